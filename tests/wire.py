"""A foreign program on the classic wire: redis-cli where there is one, else a bare socket."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from redis_server import RedisServer, die_with_parent, wait_until


class Foreigner:
    """Publishes and subscribes without a line of ours."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
        self._listeners: list[Listener] = []

    def publish(self, channel: str, payload: str) -> int:
        """PUBLISH; how many received it."""
        if self._cli is None:
            with self._connected() as (connection, lines):
                connection.sendall(_packed("PUBLISH", channel, payload))
                return int(next(lines).removeprefix(":"))
        command = [self._cli, "-s", str(self._server.socket), "PUBLISH", channel, payload]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout)

    def subscribe(self, *channels: str) -> Listener:
        """SUBSCRIBE; it listens when this returns."""
        if self._cli is not None:
            command = [self._cli, "-s", str(self._server.socket), "SUBSCRIBE", *channels]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, errors="backslashreplace", preexec_fn=die_with_parent
            )
            assert process.stdout is not None
            listener = Listener((line.rstrip("\n") for line in process.stdout), process.kill)
        else:
            stack = contextlib.ExitStack()
            connection, lines = stack.enter_context(self._connected())
            connection.sendall(_packed("SUBSCRIBE", *channels))
            texts = (line for line in lines if line[:1] not in ("*", "$"))
            listener = Listener(texts, lambda: connection.shutdown(socket.SHUT_RDWR))
        self._listeners.append(listener)
        wait_until(lambda: listener.confirmed >= len(channels), 10, f"subscribed to {channels}")
        return listener

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[socket.socket, Iterator[str]]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._server.socket))
            with connection.makefile("r", newline="\r\n", errors="backslashreplace") as file:
                yield connection, (line.removesuffix("\r\n") for line in file)


def _packed(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Listener:
    """What arrives on the channels, in order."""

    def __init__(self, lines: Iterator[str], end: object) -> None:
        self.confirmed = 0
        self.heard: list[tuple[str, str]] = []  # (channel, payload)
        self._end = end
        self._thread = threading.Thread(target=self._listen, args=(lines,), daemon=True)
        self._thread.start()

    def _listen(self, lines: Iterator[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                kind, channel, payload = next(lines, None), next(lines, None), next(lines, None)
                if payload is None or channel is None:
                    return
                if kind == "message":
                    self.heard.append((channel, payload))
                elif kind == "subscribe":
                    self.confirmed += 1

    def payloads(self, channel: str = "") -> list[str]:
        """Everything heard so far, on one channel or on all."""
        return [payload for name, payload in self.heard if not channel or name == channel]

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._end()  # type: ignore[operator]
        self._thread.join(5)


@pytest.fixture
def foreigner(redis_server: RedisServer) -> Iterator[Foreigner]:
    """A foreign program."""
    foreigner = Foreigner(redis_server)
    yield foreigner
    foreigner.close()
