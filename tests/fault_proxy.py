"""A way to a Redis that breaks exactly where a test says: between two bytes, if it must be.

It reads the protocol, so that one request, or its reply, can be chosen: the nth that contains these bytes. What a
black hole holds back is not thrown away: as with a real one, it arrives late, when the way is healed.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from redis_server import RedisServer, wait_until

_READ = 1 << 16
_FULL = 1 << 20  # bytes that a side may owe the other before it is read no further


class Where(Enum):
    """Where the connection breaks."""

    BEFORE = "before the request"  # the server never sees it
    AFTER = "after the request"  # it has its effect, and the whole reply is lost
    INSIDE = "inside the reply"  # some bytes of the reply get through
    SILENT = "silent after the request"  # the reply is held back, and nothing says so


@dataclass
class Cut:
    """One planned break. ``hits`` counts how often it has happened: 0 means that the test proved nothing."""

    match: bytes
    where: Where
    nth: int = 1
    bytes_through: int = 1
    reset: bool = False
    client: str = ""  # only of connections whose client name contains this
    in_reply: bool = False  # look for ``match`` in replies instead of requests
    hits: int = 0
    passed: int = 0

    def strikes(self, message: bytes, name: str) -> bool:
        """Whether it is this message's turn."""
        if self.hits or self.match not in message or self.client not in name:
            return False
        self.passed += 1
        return self.passed == self.nth


class _Frames:
    """Cuts a stream of RESP2 into whole messages; what is no RESP comes out as it is."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._data += data
        frames = []
        while self._data and (end := _end_of_message(self._data, 0)) is not None:
            frames.append(bytes(self._data[:end]))
            del self._data[:end]
        return frames


def _end_of_message(data: bytearray, start: int) -> int | None:
    if start >= len(data):
        return None
    if data[start] not in b"+-:$*":
        return len(data)
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    end = line_end + 2
    kind, rest = data[start], bytes(data[start + 1 : line_end])
    if kind not in b"$*" or rest.startswith(b"-"):
        return end
    if kind == ord("$"):
        whole = end + int(rest) + 2
        return whole if whole <= len(data) else None
    for _ in range(int(rest)):
        found = _end_of_message(data, end)
        if found is None:
            return None
        end = found
    return end


class _Flow:
    """One direction of one connection: what was read and is not written yet, each piece with its time."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.frames = _Frames()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.owed = 0
        self.ended = False  # the source said that nothing more comes
        self.held = False  # a black hole
        self.watched = False
        self.count = 0  # messages that went by

    def put(self, data: bytes, due: float) -> None:
        self.waiting.append((due, data))
        self.owed += len(data)


class Connection:
    """One client's connection, by the name it gave itself."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.name = ""
        self.requests = _Flow(client, server)
        self.replies = _Flow(server, client)
        self.doomed: tuple[int, Cut] | None = None  # the reply of this number is the last
        self.closed = False

    @property
    def flows(self) -> tuple[_Flow, _Flow]:
        return self.requests, self.replies


class FaultProxy:
    """Listens on a Unix socket and on a TCP port; one thread serves all connections."""

    def __init__(self, target: str | tuple[str, int], directory: Path) -> None:
        self._target = target
        self._listeners = [socket.socket(socket.AF_UNIX), socket.socket()]
        self._address = directory / f"proxy-{id(self):x}.sock"
        self._listeners[0].bind(str(self._address))
        self._address.chmod(0o777)
        self._listeners[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listeners[1].bind(("127.0.0.1", 0))
        self.port: int = self._listeners[1].getsockname()[1]
        self.url = f"unix://{self._address}"
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        self._cuts: list[Cut] = []
        self._connections: list[Connection] = []
        self._held: list[tuple[str, bool, bool]] = []  # (client name, requests, replies) of black holes
        self._delay = 0.0
        self._rate = 0  # bytes a second, byte by byte; 0: no limit
        self._refusing = False
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._running = True
        for one in self._listeners:
            one.listen(256)
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="fault proxy", daemon=True)
        self._thread.start()

    # -- what a test says -------------------------------------------------------------------------------------

    def cut(self, match: str | bytes, where: Where, **how: object) -> Cut:
        """Break the connection once, at the nth request from now that contains ``match``."""
        planned = Cut(match.encode() if isinstance(match, str) else match, where, **how)  # type: ignore[arg-type]
        self._do(lambda: self._cuts.append(planned))
        return planned

    def black_hole(self, *, requests: bool = True, replies: bool = True, client: str = "") -> None:
        """Nothing passes any more, and nobody is told; on present and future connections of this client name."""

        def hold() -> None:
            self._held.append((client, requests, replies))
            for connection in self._connections:
                self._hold_if_meant(connection)

        self._do(hold)

    def heal(self) -> None:
        """No black hole, no delay, no cut, no refusal from now on. What was held back arrives now."""

        def mend() -> None:
            self._held.clear()
            self._cuts.clear()
            self._delay, self._rate, self._refusing = 0.0, 0, False
            for connection in self._connections:
                connection.doomed = None
                for flow in connection.flows:
                    flow.held = False

        self._do(mend)

    def slow(self, *, delay: float = 0.0, rate: int = 0) -> None:
        """Each piece comes ``delay`` seconds late, and at most ``rate`` bytes a second, each on its own."""

        def set_both() -> None:
            self._delay, self._rate = delay, rate

        self._do(set_both)

    def refuse(self) -> None:
        """New connections are reset."""

        def set_it() -> None:
            self._refusing = True

        self._do(set_it)

    def reset(self, client: str = "") -> int:
        """RST to both sides of every connection of this client name; how many."""
        count = 0

        def cut_all() -> None:
            nonlocal count
            for connection in [c for c in self._connections if client in c.name]:
                self._close(connection, reset=True)
                count += 1

        self._do(cut_all)
        return count

    def names(self) -> list[str]:
        """The client names of the open connections."""
        found: list[str] = []
        self._do(lambda: found.extend(c.name for c in self._connections))
        return sorted(found)

    def close(self) -> None:
        """Close everything."""

        def end() -> None:
            self._running = False

        self._do(end)
        self._thread.join(5)
        self._address.unlink(missing_ok=True)

    # -- the thread -------------------------------------------------------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.put((order, done))
        self._bell.send(b"!")
        assert done.wait(10), "the proxy does not obey"

    def _serve(self) -> None:
        while self._running:
            for key, events in self._selector.select(self._patience()):
                self._handle(key, events)
            for connection in list(self._connections):
                self._pump(connection)
                self._watch(connection)
        for connection in list(self._connections):
            self._close(connection)
        for one in (*self._listeners, self._bell, self._ear):
            one.close()
        self._selector.close()

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._ear:
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(4096)
            while not self._orders.empty():
                order, done = self._orders.get()
                order()
                done.set()
        elif key.fileobj in self._listeners:
            self._accept(key.fileobj)  # type: ignore[arg-type]
        elif events & selectors.EVENT_READ and key.data is not None:
            connection, flow = key.data
            if not connection.closed and flow.watched:
                self._read(connection, flow)

    def _patience(self) -> float:
        now = time.monotonic()
        due = [flow.waiting[0][0] for c in self._connections for flow in c.flows if flow.waiting and not flow.held]
        return max(0.0, min(0.5, min(due, default=now + 0.5) - now))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server.connect(self._target)
            except OSError:
                _reset(client)
                server.close()
                return
            connection = Connection(client, server)
            self._connections.append(connection)
            self._hold_if_meant(connection)
            for flow in connection.flows:
                flow.source.setblocking(False)

    def _watch(self, connection: Connection) -> None:
        for flow in () if connection.closed else connection.flows:
            wanted = not (flow.held or flow.ended) and flow.owed < _FULL
            if wanted and not flow.watched:
                self._selector.register(flow.source, selectors.EVENT_READ, (connection, flow))
            elif flow.watched and not wanted:
                self._selector.unregister(flow.source)
            flow.watched = wanted

    def _hold_if_meant(self, connection: Connection) -> None:
        for name, requests, replies in self._held:
            # A new connection has said no name yet: it is held at once when everybody is, else once it has said it.
            if name in connection.name:
                connection.requests.held |= requests
                connection.replies.held |= replies

    def _read(self, connection: Connection, flow: _Flow) -> None:
        try:
            data = flow.source.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            flow.ended = True
            return
        pass_on = self._pass_request if flow is connection.requests else self._pass_reply
        for frame in flow.frames.feed(data):
            pass_on(connection, frame)
            if connection.closed:
                return

    def _pass_request(self, connection: Connection, frame: bytes) -> None:
        if b"SETNAME" in frame.upper()[:64]:
            connection.name = frame.rstrip(b"\r\n").rpartition(b"\r\n")[2].decode(errors="replace")
            self._hold_if_meant(connection)
        if connection.doomed is not None:
            return
        for cut in self._cuts:
            if not cut.in_reply and cut.strikes(frame, connection.name):
                connection.doomed = (connection.requests.count, cut)
                break
        if connection.doomed is None or connection.doomed[1].where is not Where.BEFORE:
            self._put(connection.requests, frame)
            connection.requests.count += 1
        self._end_if_doomed(connection)

    def _pass_reply(self, connection: Connection, frame: bytes) -> None:
        for one in self._cuts:
            if connection.doomed is None and one.in_reply and one.strikes(frame, connection.name):
                connection.doomed = (connection.replies.count, one)
        number, cut = connection.doomed or (-1, None)
        if cut is None or connection.replies.count != number:
            self._put(connection.replies, frame)
            connection.replies.count += 1
            self._end_if_doomed(connection)
            return
        if cut.where is Where.SILENT:
            connection.replies.held = True
            self._put(connection.replies, frame)
            cut.hits += 1
            return
        if cut.where is Where.INSIDE:
            with contextlib.suppress(OSError):
                connection.replies.sink.send(frame[: min(cut.bytes_through, len(frame) - 1)])
        cut.hits += 1
        self._close(connection, reset=cut.reset)

    def _end_if_doomed(self, connection: Connection) -> None:
        """Cut before a request: the requests that went before it are still answered."""
        if connection.doomed is None or connection.doomed[1].where is not Where.BEFORE:
            return
        number, cut = connection.doomed
        if connection.replies.count >= number:
            self._pump(connection)
            cut.hits += 1
            self._close(connection, reset=cut.reset)

    def _put(self, flow: _Flow, data: bytes) -> None:
        now = time.monotonic()
        if self._rate:
            begin = max(now + self._delay, flow.waiting[-1][0] if flow.waiting else 0.0)
            for number, byte in enumerate(data, 1):
                flow.put(bytes([byte]), begin + number / self._rate)
        else:
            flow.put(data, now + self._delay)

    def _pump(self, connection: Connection) -> None:
        for flow in connection.flows:
            if connection.closed or flow.held:
                continue
            self._write(connection, flow)
            if flow.ended and not flow.waiting:
                self._close(connection)

    def _write(self, connection: Connection, flow: _Flow) -> None:
        now = time.monotonic()
        while flow.waiting and flow.waiting[0][0] <= now:
            _, data = flow.waiting.popleft()
            flow.owed -= len(data)
            try:
                sent = flow.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(connection)
                return
            if sent < len(data):
                flow.waiting.appendleft((now + 0.005, data[sent:]))
                flow.owed += len(data) - sent
                return

    def _close(self, connection: Connection, reset: bool = False) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._connections.remove(connection)
        for flow in connection.flows:
            if flow.watched:
                self._selector.unregister(flow.source)
            flow.watched = False
        for flow in connection.flows:
            _reset(flow.source) if reset else flow.source.close()


def _reset(connection: socket.socket) -> None:
    """RST instead of FIN, where there is such a thing."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """A way to the test's server on which nothing breaks until it is told to."""
    proxy = FaultProxy(str(redis_server.socket), redis_server.directory)
    yield proxy
    proxy.close()


def hit(cut: Cut, within: float = 10.0) -> None:
    """The break has happened: else the test would prove nothing."""
    wait_until(lambda: cut.hits == 1, within, f"void: no cut {cut.where.value} of {cut.match!r}")
