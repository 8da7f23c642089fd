"""What a channel process and a warm runner exchange: orders one way, answers the other, and a page that both map.

They talk through a pair of SEQPACKET sockets: one message, one datagram, so that the kernel hands every order to
exactly one reader (the runner, or the channel that takes it back). What is too long for a datagram travels in a
memory file.
"""

from __future__ import annotations

import mmap
import os
import socket
import stat
import sys
from typing import Final

import msgspec

from jobschedd.errors import ProtocolError
from jobschedd.job import Outcome

#: Longest message that travels as a datagram: the kernel copies it twice and charges it to the socket's buffer.
DATAGRAM: Final = 64 * 1024
#: Longest message that a reader accepts unless it says otherwise.
LONGEST: Final = 1 << 30
#: Room for one descriptor that comes along with a datagram.
_ANCILLARY: Final = socket.CMSG_SPACE(4)
_IN_MEMORY_FILE: Final = b"\xc0"  # instead of the message, which is never this short


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What a runner must know before its first order. Sizes in bytes."""

    slot: int
    node: str
    channel: str
    workdir: str
    umask: int
    python_path: tuple[str, ...]
    max_payload: int
    recycle: int  # orders after which the runner ends
    memory: int  # growth after which it ends


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An order as the runner needs it. ``serial`` counts the orders sent to one runner process, from 1."""

    serial: int
    job: str
    attempt: int
    entry: str
    function: str
    args: bytes
    kwargs: bytes
    env: dict[str, str]
    cwd: str


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one function ended, as the runner saw it."""

    serial: int
    outcome: Outcome
    cause: str
    exit_code: int | None
    error: str
    value: bytes
    started: float  # seconds since the epoch
    ended: float  # by CLOCK_BOOTTIME
    duration: float  # seconds by CLOCK_BOOTTIME
    cpu: float  # seconds, its finished children included
    peak_rss: int  # bytes, over the runner's whole life
    printed: bool  # there may be output: the runner waits until the channel has read it
    last: bool  # the runner ends after this one, to be replaced


_encoder: Final = msgspec.msgpack.Encoder()
_setup: Final = msgspec.msgpack.Decoder(Setup)
_task: Final = msgspec.msgpack.Decoder(Task)
_answer: Final = msgspec.msgpack.Decoder(Answer)


class Page:
    """Memory shared by channel and runner: words that are read without a message, and the setup.

    A word has one writer and is one aligned store: a reader sees the old value or the new one, never half of it.
    """

    DIRTY: Final = 0  # channel: it may have read output that belongs to no finished job yet
    READY: Final = 1  # runner: it is up and takes orders
    RUNNING: Final = 2  # runner: serial of the last order whose function it started
    STARTED: Final = 3  # runner, a time: CLOCK_BOOTTIME at that start; written before RUNNING
    SPENT: Final = 4  # runner, a time: CPU seconds that it and its children had used before that start
    _LENGTH: Final = 5
    _SETUP: Final = 64

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        words = memoryview(self._map)[: self._SETUP]
        self.counts = words.cast("Q")
        self.times = words.cast("d")

    @classmethod
    def create(cls, setup: Setup) -> tuple[Page, int]:
        """A new page, and the descriptor that a runner inherits. Raises OSError."""
        text = _encoder.encode(setup)
        fd = os.memfd_create("jobschedd-runner", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, cls._SETUP + len(text))
            page = cls(fd)
        except OSError:
            os.close(fd)
            raise
        page.counts[cls._LENGTH] = len(text)
        page._map[cls._SETUP :] = text
        return page, fd

    def setup(self) -> Setup:
        """What the channel wrote when it made the page."""
        return _setup.decode(self._map[self._SETUP :][: self.counts[self._LENGTH]])


def encode(message: Task | Answer) -> bytes:
    """The bytes of one message."""
    return _encoder.encode(message)


def decode_task(data: bytes | memoryview) -> Task:
    """Raises ProtocolError."""
    try:
        return _task.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"unreadable order: {error}") from error


def decode_answer(data: bytes | memoryview) -> Answer:
    """Raises ProtocolError: user code shares the runner's process and may have written to its socket."""
    try:
        return _answer.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"unreadable answer of a runner: {error}") from error


def send(sock: socket.socket, message: bytes) -> None:
    """Send one message, whatever its length. Raises BlockingIOError when a non-blocking socket is full, OSError."""
    if len(message) <= DATAGRAM:
        sock.send(message)
    else:
        _send_in_memory_file(sock, message)


class Inbox:
    """The receiving end of one socket, with the buffer that its messages land in."""

    def __init__(self, sock: socket.socket, flags: int = 0, longest: int = LONGEST) -> None:
        self._receive = sock.recvmsg_into
        self._flags = flags | socket.MSG_CMSG_CLOEXEC
        self._longest = longest
        self._view = memoryview(bytearray(DATAGRAM))
        self._buffers = (self._view,)

    def receive(self) -> bytes | memoryview:
        """The next message, valid until the next call; empty at end of file.

        Raises BlockingIOError when none waits (with MSG_DONTWAIT), ProtocolError for one that nobody of us sent.
        """
        size, ancillary, _, _ = self._receive(self._buffers, _ANCILLARY, self._flags)
        if not ancillary:
            return self._view[:size]
        fds = [
            int.from_bytes(data[at : at + 4], sys.byteorder)
            for _, _, data in ancillary
            for at in range(0, len(data), 4)
        ]
        try:
            return _read_memory_file(fds[0], self._longest)
        finally:
            for fd in fds:
                os.close(fd)


def _send_in_memory_file(sock: socket.socket, message: bytes) -> None:
    fd = os.memfd_create("jobschedd-message", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(message)
        socket.send_fds(sock, [_IN_MEMORY_FILE], [fd])
    finally:
        os.close(fd)


def _read_memory_file(fd: int, longest: int) -> bytes:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > longest:
        raise ProtocolError(f"a message of {found.st_size} bytes; at most {longest} are accepted")
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)  # the sender wrote through the same offset
        return file.read(longest)
