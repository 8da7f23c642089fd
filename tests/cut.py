"""A way to a Redis that breaks where a test says."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class Cut:
    """Forwards a Unix socket to another, until ``lose_reply_to`` is seen in a request: its reply is lost, once."""

    def __init__(self, address: Path, target: Path) -> None:
        self.url = f"unix://{address}"
        self.lose_reply_to = b""
        self.lost = 0
        self._address = address
        self._target = str(target)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()
        self._address.unlink()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=_copy, args=(server, client), daemon=True)
        answers.start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                if self.lose_reply_to and self.lose_reply_to in data:
                    self.lose_reply_to = b""
                    client.shutdown(socket.SHUT_RDWR)  # first: the reply must not get through
                    server.sendall(data)
                    self.lost += 1
                    break
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)
        answers.join()
        client.close()
        server.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            sink.sendall(data)
