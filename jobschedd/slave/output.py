"""What a job writes: its first and its last bytes are kept, all are counted, and who follows gets them live."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from typing import Final

from jobschedd.job import Captured
from jobschedd.slave.loop import Loop

#: (1 for stdout or 2 for stderr, offset of the first byte in the stream, bytes)
OutputListener = Callable[[int, int, bytes], None]

CHUNK: Final = 64 * 1024
#: Chunks read at one go, so that a flood from one job does not starve the others.
CHUNKS_AT_ONCE: Final = 8
#: Who wrote this much may well write more: a larger pipe saves it and us most changes of context.
WORTH_A_LARGER_PIPE: Final = 1 << 20
LARGER_PIPE: Final = 256 * 1024

log = logging.getLogger(__name__)


class Excerpt:
    """The head (first quarter) and the tail (last three quarters) of a stream, in at most ``limit`` bytes or so."""

    __slots__ = ("_head", "_head_limit", "_tail", "_tail_limit", "size")

    def __init__(self, limit: int) -> None:
        self._head_limit = limit // 4
        self._tail_limit = limit - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0  # bytes that came in, kept or not

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self.size += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if len(data) >= self._tail_limit:
            self._tail = bytearray(data[len(data) - self._tail_limit :])
        elif data:
            self._tail += data
            excess = len(self._tail) - self._tail_limit
            if excess > 0:
                del self._tail[:excess]

    @property
    def pieces(self) -> list[tuple[int, bytes]]:
        """What is held, as (offset in the stream, bytes)."""
        pieces = [(0, bytes(self._head)), (self.size - len(self._tail), bytes(self._tail))]
        return [(offset, data) for offset, data in pieces if data]

    @property
    def captured(self) -> Captured:
        """What goes into the job's result."""
        return Captured(bytes(self._head), bytes(self._tail), self.size) if self.size else NOTHING


NOTHING: Final = Captured()


class Stream:
    """Our end of a job's stdout or stderr pipe."""

    __slots__ = ("_enlarged", "_listener", "_loop", "_on_close", "_watched", "excerpt", "fd", "number")

    def __init__(self, number: int, fd: int, limit: int, loop: Loop, on_close: Callable[[], None]) -> None:
        """Own ``fd``, a non-blocking one; ``on_close`` is called at the end of the stream (nobody holds it open)."""
        self.number = number  # 1 or 2
        self.fd = fd  # -1 once closed
        self.excerpt = Excerpt(limit)
        self._loop = loop
        self._on_close = on_close
        self._listener: OutputListener | None = None
        self._enlarged = False
        self._watched = False

    def watch(self) -> None:
        """Read whenever something comes."""
        if self.fd >= 0 and not self._watched:
            self._watched = True
            self._loop.watch(self.fd, self.read)

    def read(self) -> None:
        """Take what is there, within bounds; at the end close and say so."""
        for _ in range(CHUNKS_AT_ONCE):
            try:
                data = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return
            if not data:
                self.close()
                self._on_close()
                return
            self._take(data)
            if len(data) < CHUNK:
                return

    def listen(self, listener: OutputListener | None) -> None:
        """Replay what is held to ``listener``, then pass on what comes; None ends that."""
        self._listener = listener
        for offset, data in self.excerpt.pieces if listener else ():
            self._tell(offset, data)

    def close(self) -> None:
        """Read no more."""
        if self.fd >= 0:
            if self._watched:
                self._loop.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _take(self, data: bytes) -> None:
        offset = self.excerpt.size
        self.excerpt.add(data)
        if self._listener is not None:
            self._tell(offset, data)
        if self.excerpt.size > WORTH_A_LARGER_PIPE and not self._enlarged:
            self._enlarge()

    def _tell(self, offset: int, data: bytes) -> None:
        if self._listener is None:
            return
        try:
            self._listener(self.number, offset, data)
        except Exception:
            # Somebody who follows is never worth a job: it loses its view, the job goes on.
            log.exception("a follower of job output failed and is not told any more")
            self._listener = None

    def _enlarge(self) -> None:
        self._enlarged = True
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, LARGER_PIPE)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOMEM, errno.EBUSY):  # beyond what this user may have
                raise
