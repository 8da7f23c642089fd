"""A way to a Redis whose subscriptions can die as behind a router that forgot them: open, and silent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_server import RedisServer


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.subscribed = False
        self.silent = False

    def copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.subscribed |= source is self.client and b"SUBSCRIBE" in data
                if not self.silent:
                    sink.sendall(data)
        # A black hole tells nobody that the other side has gone.
        if not self.silent:
            for end in (self.client, self.server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class BlackHole:
    """Forwards a Unix socket to the server's."""

    def __init__(self, server: RedisServer) -> None:
        self.address = server.directory / "blackhole.sock"
        self.url = f"unix://{self.address}"
        self._target = str(server.socket)
        self._connections: list[_Connection] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.address))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow_subscriptions(self) -> int:
        """Connections that have subscribed stay open, and nothing passes them any more; how many there are."""
        chosen = [one for one in self._connections if one.subscribed and not one.silent]
        for one in chosen:
            one.silent = True
        return len(chosen)

    def close(self) -> None:
        """Accept nobody any more and close what is open."""
        self._listener.close()
        Path(self.address).unlink(missing_ok=True)
        for one in self._connections:
            for end in (one.client, one.server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                connection = _Connection(client, server)
                self._connections.append(connection)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=connection.copy, args=ends, daemon=True).start()


@pytest.fixture
def blackhole(redis_server: RedisServer) -> Iterator[BlackHole]:
    """A way around which nothing is lost, until it is told to."""
    blackhole = BlackHole(redis_server)
    yield blackhole
    blackhole.close()
