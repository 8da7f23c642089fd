"""One command of one job: started, watched, stopped, reaped, and nothing of it left behind.

The channel process is single-threaded, so it may enter the job's directory for the moment of the spawn: that takes
no fork of a large process and no helper program, and makes a bad directory a cause of its own.
"""

from __future__ import annotations

import enum
import fcntl
import functools
import os
import resource
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Final

from jobschedd.failpoints import failpoint
from jobschedd.job import Cause, Order, Outcome, Result
from jobschedd.slave.allow import allows_command, allows_shell
from jobschedd.slave.environment import job_environment
from jobschedd.slave.executable import StartFailed, find, refusal, shortage
from jobschedd.slave.loop import Loop, Timer
from jobschedd.slave.oom import oom_watch
from jobschedd.slave.output import OutputListener, Stream
from jobschedd.slave.processtree import Tree, household, status_of, ticks_now
from jobschedd.slave.settings import ExecutionSettings

__all__ = ["CommandRun", "OutputListener", "StartFailed", "inherit_nothing"]

SHELL: Final = "/bin/sh"
#: Seconds until somebody listens to a job's output: what is over by then is read once, at its end.
OUTPUT_PATIENCE: Final = 0.002
#: Seconds that something may hold a job's output open after its end, before we stop listening.
DRAIN_PATIENCE: Final = 2.0
#: Seconds after KILL until we believe that something cannot be killed.
KILL_PATIENCE: Final = 5.0
#: Seconds between looks at what a job left behind: it was told to die already and takes a moment.
FIRST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.05

# Python ignores SIGPIPE, nohup ignores SIGHUP: a job shall start with the kernel's own defaults.
_EVERY_SIGNAL: Final = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


def inherit_nothing() -> None:
    """Call it once in a channel process: what was open in whoever started the daemon is not passed on to jobs."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the one that the list itself was read with


class _Phase(enum.Enum):
    NEW = enum.auto()
    RUNNING = enum.auto()  # the main process lives
    CLEARING = enum.auto()  # it ended, is kept as a zombie, and others of its tree still live
    DRAINING = enum.auto()  # all gone; its output may hold more
    DONE = enum.auto()


class CommandRun:
    """One attempt of one command job in one slot."""

    def __init__(
        self,
        order: Order,
        slot: int,
        loop: Loop,
        settings: ExecutionSettings,
        on_end: Callable[[CommandRun, Result], None],
        note_start: Callable[[int, int], None],
    ) -> None:
        """``note_start(pid, start in clock ticks since boot)`` is called as soon as the process exists; ``on_end``
        exactly once, when the process was reaped, nothing of it lives and its output was read."""
        self.order = order
        self.slot = slot
        self.pid = 0
        self.started = 0.0  # seconds since the epoch
        self.started_boot = 0.0  # seconds since boot
        self._loop = loop
        self._settings = settings
        self._on_end = on_end
        self._note_start = note_start
        self._phase = _Phase.NEW
        self._pidfd = -1
        self._tree: Tree
        self._streams: tuple[Stream, ...] = ()
        self._timeout: Timer | None = None
        self._not_heard: Timer  # until its output is watched
        self._stopping: tuple[Outcome, Cause] | None = None
        self._patience: Timer | None = None  # until the KILL that follows a TERM, then until we give up
        self._pause = FIRST_PAUSE
        self._escalated = False
        self._duration = 0.0
        self._status: int | None = None  # as wait4() gives it; None: it could not be waited for
        self._usage: resource.struct_rusage | None = None
        self._trouble = ""

    # -- start

    def start(self) -> None:
        """Start the process. Raises StartFailed when that cannot be: then there is none, and on_end is not called."""
        spec = self.order.spec
        argv, environment = self._command(), job_environment(self.order, self._settings)
        ends = _Ends()
        try:
            with _Place(os.path.join(self._settings.workdir, spec.cwd)):
                path = SHELL if spec.shell is not None else self._executable(argv[0], environment)
                ends.open(spec.stdin)
                self._spawn(path, argv, environment, ends)
            ends.close_the_jobs()
            self._attend(ends)
        except OSError as error:
            raise shortage(error) from error
        finally:
            ends.close()

    def _command(self) -> tuple[str, ...]:
        spec = self.order.spec
        if spec.shell is not None:
            if not allows_shell(self._settings):
                raise StartFailed(Cause.DENIED, "this node runs no shell lines")
            return (SHELL, "-c", spec.shell)
        if not spec.command:
            raise StartFailed(Cause.ARGV, "the command is empty")
        return spec.command

    def _executable(self, name: str, environment: dict[str, str]) -> str:
        try:
            path = find(name, environment["PATH"])
            allowed = allows_command(self._settings, name, path, by_job="PATH" in self.order.spec.env)
        except ValueError as error:  # NUL or a lone surrogate
            raise StartFailed(Cause.ARGV, f"no command can have this name: {error}") from error
        if not allowed:
            raise StartFailed(Cause.DENIED, f"{name}: not among the commands that this node allows")
        return path

    def _spawn(self, path: str, argv: tuple[str, ...], environment: dict[str, str], ends: _Ends) -> None:
        stdin, out, err = ends.jobs
        actions = (
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, err, 2),
        )
        clock = self._loop.clock
        self.started, self.started_boot = clock.now(), clock.boottime()
        before = ticks_now()
        try:
            self.pid = os.posix_spawn(
                path, argv, environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_EVERY_SIGNAL
            )
        except ValueError as error:
            raise StartFailed(Cause.ARGV, f"arguments or environment: {error}") from error
        except OSError as error:
            raise refusal(error, path) from error
        # Within one tick we know the start time that the kernel noted, and need not read it from /proc.
        start = before if before == ticks_now() else _start_of(self.pid, before)
        self._tree = Tree(self.pid, self.order.job, self.order.attempt, start)
        household.join(self._tree, self._loop)

    def _attend(self, ends: _Ends) -> None:
        try:
            failpoint("channel.start.spawned")
            self._note_start(self.pid, self._tree.since or 0)
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._undo()
            raise
        oom_watch()  # so that it knows the count from before the first failure
        limit, loop = self._settings.output_limit, self._loop
        out, err = ends.hand_over()
        self._streams = (
            Stream(1, out, limit, loop, self._output_ended),
            Stream(2, err, limit, loop, self._output_ended),
        )
        self._tree.outputs = self._streams
        self._phase = _Phase.RUNNING
        loop.watch(self._pidfd, self._main_ended)
        self._not_heard = loop.call_later(OUTPUT_PATIENCE, self._watch_output)
        if self.order.spec.timeout > 0:
            self._timeout = loop.call_at(self.started_boot + self.order.spec.timeout, self._time_out)

    def _watch_output(self) -> None:
        for stream in self._streams:
            stream.watch()

    def _undo(self) -> None:
        self._tree.over = True
        household.signal(self._tree, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        household.leave(self._tree)

    # -- stop

    def stop(self, outcome: Outcome, cause: Cause) -> None:
        """TERM to the whole tree, KILL after the grace. The first reason given is the one that is recorded; nothing
        happens when the process has ended by itself already."""
        if self._phase is not _Phase.RUNNING or self._stopping or _has_ended(self.pid):
            return
        self._stopping = (outcome, cause)
        # CONT: a stopped process would not notice the TERM.
        household.signal(self._tree, signal.SIGTERM, signal.SIGCONT)
        self._patience = self._loop.call_later(self._settings.term_grace, self._escalate)

    def kill(self, outcome: Outcome, cause: Cause) -> None:
        """KILL to the whole tree at once; otherwise as ``stop``, and what cuts the grace of a stop short."""
        if self._stopping:
            self._escalate()
        elif self._phase is _Phase.RUNNING and not _has_ended(self.pid):
            self._stopping = (outcome, cause)
            self._kill()

    def _time_out(self) -> None:
        self.stop(Outcome.TIMED_OUT, Cause.TIMEOUT)

    def _escalate(self) -> None:
        if self._phase in (_Phase.RUNNING, _Phase.CLEARING) and not self._tree.over:
            self._escalated = True
            self._kill()

    def _kill(self) -> None:
        self._tree.over = True
        household.signal(self._tree, signal.SIGKILL)
        self._be_patient(KILL_PATIENCE, self._give_up)

    # -- end

    def _main_ended(self) -> None:
        if not household.has_strangers():
            if self._reap():
                self._drain()
        elif _has_ended(self.pid):
            self._unwatch_main()
            self._watch_output()
            self._phase = _Phase.CLEARING
            if not self._stopping:
                self._kill()
            self._clear()

    def _clear(self) -> None:
        """Nothing of a job may outlive it; when it was told to stop, all of its tree has the same grace."""
        if self._phase is not _Phase.CLEARING:
            return
        remains = household.remains_of(self._tree)
        if not remains and not self._tree.over:
            # Nothing that is known to be its own is left to wait for; now what hides must go too.
            self._kill()
            remains = household.remains_of(self._tree)
        if remains:
            self._loop.call_later(self._pause, self._clear)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        elif self._reap():
            self._drain()

    def _reap(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        self._status, self._usage = status, usage
        self._leave()
        return True

    def _leave(self) -> None:
        self._duration = self._loop.clock.boottime() - self.started_boot
        self._unwatch_main()
        household.leave(self._tree)
        if self._patience is not None:
            self._patience.cancel()
        self._phase = _Phase.DRAINING

    def _unwatch_main(self) -> None:
        self._not_heard.cancel()
        if self._timeout is not None:
            self._timeout.cancel()
        if self._pidfd >= 0:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _give_up(self) -> None:
        """Even KILL did not help: an uninterruptible system call, or a process that is not ours to signal."""
        remains = household.remains_of(self._tree)
        household.give_up(remains)
        numbers = [self.pid] if self._phase is _Phase.RUNNING else [status.identity.pid for status in remains]
        self._trouble = f"still there {KILL_PATIENCE:g} s after SIGKILL: process {', '.join(map(str, numbers))}"
        if not self._reap():
            household.give_up_main(self._tree)
            self._leave()
        self._drain()

    def _drain(self) -> None:
        for stream in self._streams:
            if stream.fd >= 0:
                stream.read()
        self._output_ended()
        if self._phase is _Phase.DRAINING:
            for stream in self._streams:
                stream.watch()
            self._be_patient(DRAIN_PATIENCE, self._finish)

    def _output_ended(self) -> None:
        if self._phase is _Phase.DRAINING and not self._output_is_open():
            self._finish()

    def _output_is_open(self) -> bool:
        out, err = self._streams
        return out.fd >= 0 or err.fd >= 0

    def _finish(self) -> None:
        self._phase = _Phase.DONE
        if self._patience is not None:
            self._patience.cancel()
        output_open = self._output_is_open()
        for stream in self._streams:
            stream.close()
        self._on_end(self, self._result(output_open))

    def _be_patient(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(seconds, callback)

    # -- output and result

    def listen(self, listener: OutputListener | None) -> None:
        """First replays what is held (head, then tail with its offset), then every chunk as it comes."""
        for stream in self._streams:
            stream.listen(listener)

    def _result(self, output_open: bool) -> Result:
        outcome, cause, error = self._verdict()
        out, err = self._streams
        status, usage = self._status, self._usage
        return Result(
            outcome=outcome,
            cause=cause,
            exit_code=os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
            error="\n".join(filter(None, (error, self._trouble))),
            started=self.started,
            ended=self.started + self._duration,
            duration=self._duration,
            peak_rss=_peak(usage) if usage is not None else 0,
            cpu=usage.ru_utime + usage.ru_stime if usage is not None else 0.0,
            pid=self.pid,
            node=self._settings.node,
            channel=self._settings.channel,
            stdout=out.excerpt.captured,
            stderr=err.excerpt.captured,
            escalated=self._escalated,
            output_open=output_open,
        )

    def _verdict(self) -> tuple[Outcome, Cause, str]:
        if self._stopping is not None:
            outcome, cause = self._stopping
            limit = self.order.spec.timeout
            return outcome, cause, f"ran longer than {limit:g} s" if cause is Cause.TIMEOUT else ""
        if self._status == 0:
            return Outcome.SUCCEEDED, Cause.EXIT, ""
        memory = "the kernel killed a process of this node's jobs for want of memory" if oom_watch().moved() else ""
        number = os.WTERMSIG(self._status or 0)
        if not number:
            return Outcome.FAILED, Cause.EXIT, memory or _hint(os.WEXITSTATUS(self._status or 0))
        if memory and number == signal.SIGKILL:
            return Outcome.FAILED, Cause.OOM, memory
        return Outcome.FAILED, Cause.SIGNAL, f"killed by {_signal_name(number)}"


class _Place:
    """The job's directory, entered for the moment of its spawn."""

    __slots__ = ("_directory",)

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        _home()
        try:
            os.chdir(self._directory)
        except OSError as error:
            message = f"cannot enter the working directory {self._directory}: {error.strerror}"
            raise StartFailed(Cause.CWD, message) from error
        except ValueError as error:
            raise StartFailed(Cause.CWD, f"no directory can have this name: {error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fchdir(_home())


@functools.cache
def _home() -> int:
    return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@functools.cache
def _nothing() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _has_ended(pid: int) -> bool:
    """Whether our child is a zombie; leaves it one, so that the numbers of its group and session stay taken."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _start_of(pid: int, otherwise: int) -> int:
    status = status_of(pid)
    return status.identity.start if status is not None else otherwise


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # the real-time ones have no names


def _hint(code: int) -> str:
    number = code - 128
    if number not in signal.valid_signals():
        return ""
    return f"exit code {code} is also what a shell makes of a command that {_signal_name(number)} killed"


_own_peak = 0


def _peak(usage: resource.struct_rusage) -> int:
    """The largest resident size in bytes of any one process of the job; 0 when it is too small to tell.

    A spawned process inherits the peak of the one that spawned it, so nothing below our own can be told apart.
    """
    global _own_peak
    kilobytes = usage.ru_maxrss
    if kilobytes > _own_peak:
        _own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 if kilobytes > _own_peak else 0


class _Ends:
    """The descriptors that one start needs, closed whatever happens: our ends of the pipes and the job's three."""

    __slots__ = ("jobs", "ours")

    def __init__(self) -> None:
        self.ours: list[int] = []  # of stdout and stderr
        self.jobs: list[int] = []  # stdin, stdout, stderr

    def open(self, stdin: bytes) -> None:
        """Raises OSError when this process has no more descriptors."""
        self.jobs.append(_input(stdin))
        for _ in range(2):
            ours, jobs = os.pipe()
            self.ours.append(ours)
            self.jobs.append(jobs)
            os.set_blocking(ours, False)
            if jobs <= 2:  # we were started without standard streams: in the job it would overwrite another one
                self.jobs[-1] = fcntl.fcntl(jobs, fcntl.F_DUPFD_CLOEXEC, 3)
                os.close(jobs)

    def hand_over(self) -> list[int]:
        """Our ends; whoever asked owns them now."""
        ours, self.ours = self.ours, []
        return ours

    def close_the_jobs(self) -> None:
        """As soon as it has them: as long as we hold them too, its output never ends."""
        for fd in self.jobs:
            if fd != _nothing():
                os.close(fd)
        self.jobs = []

    def close(self) -> None:
        """Close what is still here."""
        self.close_the_jobs()
        for fd in self.hand_over():
            os.close(fd)


def _input(data: bytes) -> int:
    """A descriptor to read ``data`` from: in memory, so that nobody has to feed it."""
    if not data:
        return _nothing()
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
