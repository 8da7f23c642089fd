"""One child process: how it is described, forked, heard and named in logs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jobschedd import logs
from jobschedd.errors import JobschedError
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger, one_line
from jobschedd.node.context import ChildContext, StopLevel
from jobschedd.node.prctl import set_parent_death_signal, set_title
from jobschedd.node.signals import blocked, restore_defaults, signal_name

log = get_logger(__name__)


@dataclass(frozen=True)
class ChildSpec:
    """A child that is wanted. Exactly one of ``target`` and ``program`` is set.

    ``name``: unique, shown in ``ps`` and logs ("dispatcher", "channel 1"). ``target``: runs in the forked child
    and returns its exit code. ``program``: exec'd, in a session of its own. ``fingerprint``: differs when the
    child's part of the configuration does. ``stage``: lower ones start first and stop last. ``drain_timeout``:
    seconds from SIGTERM to SIGKILL. ``ready_check``: polled until true (programs cannot say so themselves);
    must return at once.
    """

    name: str
    target: Callable[[ChildContext], int] | None
    program: tuple[str, ...] | None = None
    fingerprint: str = ""
    stage: int = 0
    drain_timeout: float = 10.0
    ready_check: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if (self.target is None) == (self.program is None):
            raise ValueError(f"child {self.name!r} needs either a target or a program")


@dataclass
class Child:
    """A running child as the supervisor sees it. Times are CLOCK_BOOTTIME seconds."""

    spec: ChildSpec
    pid: int
    status_fd: int
    started: float
    ready_at: float | None = None
    last_beat: float = 0.0
    status: str = ""
    error: str = ""
    told: StopLevel = StopLevel.RUN
    kill_at: float | None = None
    killed: bool = False
    mute: bool = False  # nothing more can come: a program closes its end when it is exec'd
    _unread: bytes = field(default=b"", repr=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def beats(self) -> bool:
        """True for a child whose silence means that it hangs."""
        return self.spec.program is None and self.ready_at is not None

    def hear(self, now: float) -> bool:
        """Take in what the child has said; True when that made it ready."""
        if self.status_fd < 0:
            return False
        was_ready = self.ready_at is not None
        for line in self._lines():
            kind, text = line[:1], line[1:]
            if kind == "E":
                self.error = text
                continue
            self.last_beat, self.status = now, text
            if kind == "R" and self.ready_at is None:
                self.ready_at = now
        return not was_ready and self.ready_at is not None

    def send(self, signum: signal.Signals) -> None:
        """Signal the process; it cannot be another one, since nobody but us reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.killed = True
        self.kill_at = None
        self.send(signal.SIGKILL)

    def close(self) -> None:
        if self.status_fd >= 0:
            os.close(self.status_fd)
            self.status_fd = -1

    def _lines(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.status_fd, 65536):
                self._unread += data
            self.mute = True
        *lines, self._unread = self._unread.split(b"\n")
        return [line.decode("ascii", "replace") for line in lines]

    def to_json(self) -> dict[str, Any]:
        """What a successor of the supervisor under the same pid must know of this child."""
        return {
            "name": self.name,
            "program": self.spec.program,
            "fingerprint": self.spec.fingerprint,
            "stage": self.spec.stage,
            "drain_timeout": self.spec.drain_timeout,
            "pid": self.pid,
            "status_fd": self.status_fd,
            "started": self.started,
            "ready_at": self.ready_at,
            "last_beat": self.last_beat,
            "status": self.status,
            "told": int(self.told),
            "kill_at": self.kill_at,
            "killed": self.killed,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Child:
        """The child again; its target belongs to the old image and can no longer be started."""
        program = tuple(state["program"]) if state["program"] else None
        spec = ChildSpec(
            name=state["name"],
            target=_of_the_old_image if program is None else None,
            program=program,
            fingerprint=state["fingerprint"],
            stage=state["stage"],
            drain_timeout=state["drain_timeout"],
        )
        os.set_inheritable(state["status_fd"], False)
        return cls(
            spec,
            pid=state["pid"],
            status_fd=state["status_fd"],
            started=state["started"],
            ready_at=state["ready_at"],
            last_beat=state["last_beat"],
            status=state["status"],
            told=StopLevel(state["told"]),
            kill_at=state["kill_at"],
            killed=state["killed"],
        )


def _of_the_old_image(context: ChildContext) -> int:
    raise AssertionError("a child of the old build cannot be started again")


def describe_end(status: int) -> str:
    """A wait status in words: ``exit code 3`` or ``signal KILL``."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal_name(-code)}" if code < 0 else f"exit code {code}"


# Fork. In the child nothing may ever return into the supervisor's code.


def start_child(spec: ChildSpec, now: float, private_fds: Iterable[int], beat_interval: float) -> Child:
    """Fork ``spec``; the child closes ``private_fds``. Raises OSError when the machine refuses."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    parent = os.getpid()
    try:
        # Blocked, so that no signal for the child is taken by handlers that are still the parent's.
        with blocked():
            pid = os.fork()
            if pid == 0:
                _be_child(spec, parent, writer, (reader, *private_fds), beat_interval)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Child(spec, pid, reader, started=now, last_beat=now)


def _be_child(
    spec: ChildSpec, parent: int, status_fd: int, private_fds: Iterable[int], beat_interval: float
) -> NoReturn:
    code = 1
    try:
        failpoint("supervisor.fork.after")
        restore_defaults()
        _tie_to(parent, signal.SIGTERM if spec.program else signal.SIGINT)
        for fd in private_fds:
            os.close(fd)
        logs.set_process_name(spec.name)
        context = ChildContext(spec.name, status_fd, parent, beat_interval)
        code = _exec(spec.program, context) if spec.program else _run(spec, context)
    except BaseException as error:  # noqa: BLE001 - the last line before os._exit: nothing may pass it
        log.error("the child could not be set up", cause=error)
    finally:
        _flush()
        os._exit(code)


def _tie_to(parent: int, signum: signal.Signals) -> None:
    set_parent_death_signal(signum)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _run(spec: ChildSpec, context: ChildContext) -> int:
    set_title(f"jobschedd: {spec.name}")
    context.open()
    assert spec.target is not None
    try:
        return spec.target(context)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except JobschedError as error:
        log.error("failed", cause=error)
        context.failed(one_line(error))
        return error.exit_code
    except BaseException as error:  # whatever it is, the supervisor decides what happens next
        log.exception("failed unexpectedly")
        context.failed(one_line(error))
        return 1


def _exec(program: tuple[str, ...], context: ChildContext) -> int:
    os.setsid()  # Ctrl-C must not reach it before those that still need it
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and exec would pass that on
        signal.signal(signum, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execvp(program[0], program)  # noqa: S606 - without a shell is the point
    except OSError as error:
        context.failed(f"cannot execute {program[0]}: {error.strerror}")
    return 127


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, absent or without a reader: there is nobody left to tell
            stream.flush()
