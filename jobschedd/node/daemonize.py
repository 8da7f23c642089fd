"""The surroundings of a daemon, in the foreground or detached: descriptors, directory, umask, pid file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import daemon

from jobschedd.errors import JobschedError
from jobschedd.logs import one_line
from jobschedd.node import handover
from jobschedd.node.pidfile import PidFile
from jobschedd.node.signals import HANDLED

_UMASK = 0o027


class Readiness:
    """How a daemon tells the command that started it what became of it; silent in the foreground."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self) -> None:
        """The waiting command ends with 0."""
        self._send(0, "")

    def failed(self, message: str, exit_code: int) -> None:
        """The waiting command prints ``message`` and ends with ``exit_code``. Nothing after ``ready``."""
        self._send(exit_code, message)

    @property
    def awaited(self) -> bool:
        """True while somebody waits: who can still print the message."""
        return self._fd is not None

    def _send(self, exit_code: int, message: str) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(BrokenPipeError):  # nobody waits any more
            os.write(self._fd, json.dumps([exit_code, message[:2000]]).encode() + b"\n")
        self._let_go()

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def keep_from_children(self) -> None:
        """Children forked from now on do not hold the pipe open: its end then means our death."""
        os.register_at_fork(after_in_child=self._let_go)


@contextlib.contextmanager
def daemonized(*, detach: bool, pidfile: Path | None = None) -> Iterator[Readiness]:
    """Run the block as a daemon: all descriptors but 0-2 closed, umask 027, signals held back for the supervisor.

    Enter it before logging, threads and connections, with the configuration already checked. With ``detach`` the
    calling process never returns: it waits for ``ready`` or ``failed`` and exits accordingly; the block runs
    detached from the terminal in ``/``. Errors that leave the block before ``ready`` reach that process, too.
    Raises AlreadyRunning or PidFileError in the foreground.
    """
    open_standard_streams()
    pidfile = pidfile and pidfile.absolute()
    # What comes in before the supervisor can obey it waits, and at the end it must not spoil the exit code.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    handover.remember_directory()
    handover.leave("daemon", lambda: (True, []))
    if handover.take("daemon"):  # a former build has done all this; exec kept it
        if detach:
            os.chdir("/")
        with _held(pidfile):
            yield Readiness(None)
        return
    fd = _leave_waiting_parent() if detach else None
    readiness = Readiness(fd)
    try:
        with _context(detach, fd), _held(pidfile):
            readiness.keep_from_children()
            yield readiness
    except JobschedError as error:
        if not readiness.awaited:
            raise
        readiness.failed(one_line(error), error.exit_code)
        sys.exit(error.exit_code)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        readiness.failed("" if isinstance(error, SystemExit) else one_line(error), code)
        raise


def open_standard_streams() -> None:
    """Fill closed descriptors 0-2 with /dev/null: else the next socket would be "stderr" and get our log."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, errors="backslashreplace", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def _context(detach: bool, readiness_fd: int | None) -> Iterator[None]:
    # Every setting is explicit: python-daemon guesses and its defaults are for another age (umask 0, no core
    # dumps for our jobs either, SIGTERM as an exception, the journal's stderr replaced by /dev/null).
    keep = [] if readiness_fd is None else [readiness_fd]
    with daemon.DaemonContext(
        detach_process=detach,
        working_directory="/" if detach else ".",
        umask=_UMASK,
        prevent_core=False,
        signal_map={},
        files_preserve=keep,
        stdin=None if detach else sys.stdin,
        # Detached, the log goes to a file or to nowhere; until it is open, stderr may still tell the caller.
        stdout=None if detach else sys.stdout,
        stderr=None if detach else sys.stderr,
    ):
        yield


@contextlib.contextmanager
def _held(pidfile: Path | None) -> Iterator[None]:
    if pidfile is None:
        yield
        return
    with PidFile(pidfile):
        yield


def _leave_waiting_parent() -> int:
    """Fork; the parent waits for the daemon's word and never returns. The child gets the descriptor to send it on."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        os.close(reader)
        return writer
    os.close(writer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    try:
        with open(reader, "rb") as pipe:
            word = pipe.readline()
    except KeyboardInterrupt:
        os._exit(130)
    exit_code, message = json.loads(word) if word else (1, "the daemon ended before it was ready; see its log")
    if message:
        sys.stderr.write(f"jobschedd: {message}\n")
    sys.stderr.flush()
    os._exit(exit_code)
