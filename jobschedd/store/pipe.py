"""A Redis connection that never blocks its process: requests go out in order, answers come to callbacks.

A channel process watches jobs, so it must not wait for Redis: a stalled or cut-off server would hold up
time-outs and output. The library opens the connection (address, TLS, password, name); from then on the socket
is ours, non-blocking, watched by the channel's event loop.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from select import POLLIN, POLLOUT, poll
from typing import Any

import hiredis
import redis
from redis.exceptions import RedisError

from jobschedd.clock import Clock
from jobschedd.errors import JobschedError, StoreUnavailable
from jobschedd.store.direct import new_connection
from jobschedd.store.errors import translate, translated

#: An answer, or the error that the server gave instead.
OnAnswer = Callable[[Any], None]

_READ_SIZE = 256 * 1024


class Pipe:
    """One connection. Any failure closes it and raises StoreUnavailable; what was in flight has an unknown end."""

    def __init__(self, client: redis.Redis, clock: Clock) -> None:
        """Connect (this blocks, at most for the client's connect time-out). Raises StoreUnavailable, StoreRefused."""
        self._clock = clock
        with translated():
            self._connection: Any = new_connection(client)
            self._connection.connect()
        self._socket: socket.socket = self._connection._sock
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self._unsent = bytearray()
        self._waiting: deque[tuple[OnAnswer, float]] = deque()

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop the connection and whoever waits for an answer on it."""
        self._waiting.clear()
        with contextlib.suppress(OSError, RedisError):
            self._connection.disconnect()

    def ask(self, on_answer: OnAnswer, patience: float, *command: Any) -> None:
        """Send a command; its answer goes to ``on_answer``. None within ``patience`` seconds: it is dead."""
        self.prepare(on_answer, patience, *command)
        self.write()

    def prepare(self, on_answer: OnAnswer, patience: float, *command: Any) -> None:
        """The same, but it is sent with the next one that is asked: the server wakes up once for both."""
        self._unsent += hiredis.pack_command(command)
        self._waiting.append((on_answer, self._clock.boottime() + patience))

    @property
    def unsent(self) -> int:
        """Bytes that the socket did not take yet: watch it for writing."""
        return len(self._unsent)

    @property
    def in_flight(self) -> int:
        """Commands without an answer so far."""
        return len(self._waiting)

    def overdue(self) -> bool:
        """Whether an answer is missing for longer than its patience."""
        return bool(self._waiting) and self._clock.boottime() > self._waiting[0][1]

    def write(self) -> None:
        """Send what the socket takes. Raises StoreUnavailable."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise self._broken(error) from error

    def read(self) -> None:
        """Take what has arrived and call back for every whole answer. Raises StoreUnavailable."""
        self._receive()
        try:
            while self._waiting and (answer := self._reader.gets()) is not False:
                on_answer, _ = self._waiting.popleft()
                on_answer(_as_ours(answer))
        except hiredis.ProtocolError as error:
            raise self._broken(error) from error

    def wait_until(self, condition: Callable[[], bool], patience: float) -> None:
        """Serve this connection alone, up to ``patience`` seconds; for moments when nothing else matters."""
        deadline = self._clock.boottime() + patience
        while not condition():
            left = deadline - self._clock.boottime()
            if left <= 0:
                raise self._broken(TimeoutError("no answer in time"))
            waiting = poll()
            waiting.register(self.fileno(), POLLIN | (POLLOUT if self.unsent else 0))
            waiting.poll(left * 1000)
            self.write()
            self.read()

    def _receive(self) -> None:
        try:
            while True:
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise self._broken(EOFError("the server closed the connection"))
                self._reader.feed(data)
                if len(data) < _READ_SIZE and not isinstance(self._socket, ssl.SSLSocket):
                    return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> StoreUnavailable:
        self.close()
        return StoreUnavailable(f"the connection to Redis broke: {error}")


def _as_ours(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        return translate(redis.ResponseError(str(answer)))
    return answer


def is_error(answer: Any) -> bool:
    """Whether an answer is the server's refusal."""
    return isinstance(answer, JobschedError)
