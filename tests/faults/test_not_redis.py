"""Something answers, and it is not a Redis that will do: one clear line, no endless waiting, no crash."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fault_proxy import _Frames
from redis_server import RedisServer, wait_until

INFO_OF_OLD = b"# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n# Cluster\r\ncluster_enabled:0\r\n"
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


class Stranger:
    """Listens on a port and answers each connection in its own way."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._answer(connection)


def saying(text: bytes, at_once: bool = False) -> Callable[[socket.socket], None]:
    """Says one thing, whatever it is asked."""

    def answer(connection: socket.socket) -> None:
        while at_once or connection.recv(4096):
            connection.sendall(text)
            if at_once:
                connection.recv(4096)
                return

    return answer


def old_server(connection: socket.socket) -> None:
    """As much of a Redis 6.2 as it takes."""
    frames = _Frames()
    while data := connection.recv(4096):
        for frame in frames.feed(data):
            answer = b"+OK\r\n"
            if b"\r\nINFO\r\n" in frame:
                answer = b"$%d\r\n%s\r\n" % (len(INFO_OF_OLD), INFO_OF_OLD)
            elif b"\r\nCLIENT\r\n" not in frame and b"\r\nSELECT\r\n" not in frame:
                answer = b"-ERR unknown command\r\n"
            connection.sendall(answer)


def silent(connection: socket.socket) -> None:
    """Takes everything and says nothing."""
    while connection.recv(4096):
        pass


@pytest.fixture
def stranger() -> Iterator[Callable[[Callable[[socket.socket], None]], Stranger]]:
    made: list[Stranger] = []

    def start(answer: Callable[[socket.socket], None]) -> Stranger:
        made.append(Stranger(answer))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(saying(HTTP), "does not speak the protocol of Redis", id="http"),
        pytest.param(saying(b"SSH-2.0-OpenSSH_9.2p1\r\n", True), "does not speak the protocol of Redis", id="ssh"),
        pytest.param(saying(b"\x15\x03\x01\x00\x02\x02\x46"), "does not speak the protocol of Redis", id="tls"),
        pytest.param(saying(b"$999999999\r\n"), "cannot be reached", id="huge"),
        pytest.param(saying(b"$-5\r\n"), "does not speak the protocol of Redis", id="negative"),
        pytest.param(saying(b"-ERR go away\r\n"), "go away", id="error"),
        pytest.param(silent, "cannot be reached", id="silent"),
        pytest.param(old_server, "6.2.14 is too old", id="old"),
    ],
)
def test_a_command_line_ends_with_one_line(cluster, stranger, answer, told):
    cluster.redis_url = stranger(answer).url
    begin = time.monotonic()
    typed = cluster.run("submit", "--", "true")
    assert typed.returncode == 69, typed
    assert typed.stderr.count("\n") == 1 and told in typed.stderr, typed.stderr
    assert typed.stdout == ""
    assert time.monotonic() - begin < 8


def test_nobody_listens(cluster):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    cluster.redis_url = f"redis://127.0.0.1:{port}/0"
    typed = cluster.run("list")
    assert typed.returncode == 69 and "refused" in typed.stderr.lower() and typed.stderr.count("\n") == 1


def test_a_name_that_does_not_resolve(cluster):
    cluster.redis_url = "redis://no-such-host.invalid:6379/0"
    typed = cluster.run("list")
    assert typed.returncode == 69 and "no-such-host.invalid" in typed.stderr and typed.stderr.count("\n") == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(saying(HTTP), "does not speak the protocol of Redis", id="http"),
        pytest.param(saying(b"$999999999\r\n"), "cannot be reached", id="huge"),
        pytest.param(old_server, "is too old", id="old"),
    ],
)
def test_daemons_say_it_once_and_wait(cluster, stranger, redis_server: RedisServer, answer, told):
    one = stranger(answer)
    cluster.redis_url = one.url
    master = cluster.start("master")
    slave = cluster.start("slave", channels=1)
    before = {**master.children(), **slave.children()}
    wait_until(lambda: told in master.log(), 10, f"the master says so\n{cluster.logs()}")
    seen, begin = one.connections, time.monotonic()
    wait_until(lambda: time.monotonic() > begin + 3, 5, "time passes", every=0.05)
    assert one.connections - seen < 40, "no storm"
    assert {**master.children(), **slave.children()} == before, "nobody was restarted"
    loud = [line for line in cluster.logs().splitlines() if " warning " in line or " error " in line]
    assert len(loud) <= 12, "\n".join(loud)
    assert "Traceback" not in cluster.logs()
    for process in before.values():
        assert process.memory_info().rss < 200 << 20
