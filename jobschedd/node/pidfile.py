"""The pid file: the lock decides who runs, the text only tells people which process it is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from jobschedd.errors import JobschedError
from jobschedd.node import handover


class AlreadyRunning(JobschedError):
    """Another process holds the pid file."""


class PidFileError(JobschedError):
    """The pid file cannot be used: not writable, a symbolic link, not a regular file."""


class PidFile:
    """Holds ``path`` locked while open; a stale, empty or strange text in it does not matter.

    The lock survives a re-exec and is not shared with forked children: it is free as soon as this process ends.
    """

    def __init__(self, path: Path) -> None:
        # DaemonContext changes the directory before it opens this.
        self._path = path.absolute()
        self._heirloom = f"pidfile {self._path}"
        self._fd = -1
        self._owner = 0

    def __enter__(self) -> PidFile:
        inherited = handover.take(self._heirloom)
        self._fd = self._open_locked() if inherited is None else int(inherited)
        os.set_inheritable(self._fd, False)
        self._owner = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{self._owner}\n".encode(), 0)
        os.register_at_fork(after_in_child=self._let_go)
        handover.leave(self._heirloom, self._legacy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd < 0 or self._owner != os.getpid():
            return
        # Before the lock is free: afterwards it could be the next owner's file.
        self._path.unlink(missing_ok=True)
        handover.forget(self._heirloom)
        self._let_go()

    def _legacy(self) -> tuple[Any, Iterable[int]]:
        return self._fd, [self._fd]

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_locked(self) -> int:
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _pid_in(fd)
                os.close(fd)
                who = f"pid {holder}" if holder else "pid unknown"
                raise AlreadyRunning(f"already running, {who} (it holds {self._path})") from None
            if self._is_still(fd):
                return fd
            os.close(fd)  # its last owner removed it between our open and our lock

    def _open(self) -> int:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags, 0o644)
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise PidFileError(f"cannot use the pid file {self._path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PidFileError(f"cannot use the pid file {self._path}: it is not a regular file")
        return fd

    def _is_still(self, fd: int) -> bool:
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _pid_in(fd: int) -> int | None:
    # The holder locks first and writes then: give it a moment.
    end = time.monotonic() + 0.5
    while True:
        text = os.pread(fd, 32, 0).strip()
        if text.isdigit():
            return int(text)
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)
