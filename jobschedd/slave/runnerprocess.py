"""One runner process as its channel sees it: started, fed, listened to, signalled, reaped.

What it means for jobs is decided in ``functions``; what happens inside the process is in ``runner``.
"""

from __future__ import annotations

import array
import enum
import fcntl
import functools
import os
import resource
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from jobschedd.errors import ProtocolError
from jobschedd.job import Captured
from jobschedd.slave.environment import node_environment
from jobschedd.slave.exchange import LONGEST, Answer, Inbox, Page, Setup, decode_answer, decode_task, send
from jobschedd.slave.loop import Loop, Timer
from jobschedd.slave.output import CHUNK, Excerpt, OutputListener
from jobschedd.slave.processtree import Tree, household
from jobschedd.slave.runner import BELL, GO, ORDERS, PAGE, REGISTER
from jobschedd.slave.settings import ExecutionSettings

#: Bytes that an answer may have beside its return value.
ROOM: Final = 1 << 20
#: Orders that a runner is told of at one go, at most.
MOST_UNHEARD: Final = 32
#: Seconds for which answers may gather.
GATHER: Final = 0.001
#: Seconds that a worn-out runner gets for its exit handlers.
FAREWELL: Final = 1.0
#: Seconds after KILL until we believe that something cannot be killed.
KILL_PATIENCE: Final = 5.0
#: Seconds between looks at what a killed runner left behind: it takes a moment to die.
FIRST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.05

#: Inherited by the runner, not by what it runs.
FAILPOINTS_VARIABLE: Final = "JOBSCHED_FAILPOINTS"

_EVERY_SIGNAL: Final = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


class Phase(enum.Enum):
    """How far a runner process has come."""

    SERVING = enum.auto()
    LEAVING = enum.auto()  # gets no more orders
    CLEARING = enum.auto()  # has ended; what it left behind is being killed
    GONE = enum.auto()


class RunnerProcess:
    """From spawn to reaped. All callbacks come from the loop, none from a method called by the owner."""

    def __init__(
        self,
        slot: int,
        loop: Loop,
        settings: ExecutionSettings,
        register: tuple[int, int],
        on_answers: Callable[[], None],
        on_output: Callable[[], None],
        on_end: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        """``register``: descriptor, and offset of the slot. ``on_end``: the process has ended, what it sent can still
        be received; ``on_gone``: reaped, nothing of it lives. Raises OSError when it cannot be started."""
        self.phase = Phase.SERVING
        self.serial = 0  # of the last order sent
        self.status = 0  # as wait reports it, once gone
        self.usage: resource.struct_rusage | None = None
        self.ended = 0.0  # boot time
        self.trouble = ""  # what went wrong around its end, for people
        self.output_open = False  # once gone: something may still write to its pipes
        self.killed = False
        self.retired = False
        self._loop = loop
        self._unheard = 0  # orders sent since the bell was rung
        self._on_answers = on_answers
        self._respite: Timer | None = None  # while answers gather
        self._on_end = on_end
        self._on_gone = on_gone
        self._patience: Timer | None = None
        self._pause = FIRST_PAUSE
        with _Descriptors() as opened:
            self._page, page_fd = Page.create(_setup(slot, settings))
            opened.add(page_fd)
            self._ours, self._theirs = opened.pair()
            self._bell = opened.add(os.eventfd(0, os.EFD_CLOEXEC))
            go_out, self._go = opened.pipe()
            out, out_end = opened.pipe()
            err, err_end = opened.pipe()
            given = {
                ORDERS: self._theirs.fileno(),
                PAGE: page_fd,
                GO: go_out,
                REGISTER: register[0],
                BELL: self._bell,
            }
            self.pid = _spawn(settings, register[1], (out_end, err_end), given)
            self._tree = Tree(self.pid)
            household.join(self._tree, loop)
            self._pidfd = os.pidfd_open(self.pid)
            opened.keep(self._bell, self._go, out, err)
            os.set_blocking(out, False)
            os.set_blocking(err, False)
        self.output = RunnerOutput(out, err, self._page, settings.output_limit, loop)
        self._tree.outputs = self.output.pipes
        self._answers = Inbox(self._ours, longest=min(LONGEST, settings.max_payload + ROOM))
        self._orders = Inbox(self._theirs, socket.MSG_DONTWAIT)
        loop.watch(self._ours.fileno(), on_answers)
        loop.watch(self._pidfd, self._perhaps_ended)
        self.output.watch(on_output)

    # -- orders and answers

    def send(self, message: bytes) -> bool:
        """Whether the socket had room for it. ``ring`` after the last one. Raises OSError."""
        try:
            send(self._ours, message)
        except BlockingIOError:
            return False
        self.serial += 1
        self._unheard += 1
        if self._unheard == MOST_UNHEARD:
            self.ring()
        return True

    def ring(self) -> None:
        """Let it look at what was sent. Woken for each order by itself, it would push us aside each time."""
        if self._unheard:
            os.eventfd_write(self._bell, self._unheard)
            self._unheard = 0

    def when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call back whenever the socket has room; None ends that."""
        if callback is None:
            self._loop.unwatch_writable(self._ours.fileno())
        else:
            self._loop.watch_writable(self._ours.fileno(), callback)

    def receive(self) -> Answer | None:
        """The next answer, None when there is none yet. Raises ProtocolError."""
        try:
            message = self._answers.receive()
        except BlockingIOError:
            return None
        if not message:
            raise ProtocolError("the function closed the runner's own socket")
        return decode_answer(message)

    def let_answers_gather(self) -> None:
        """No call of ``on_answers`` for a moment: with many orders in hand, nobody need be woken for each answer."""
        if self._respite is None and self.phase is Phase.SERVING:
            self._loop.unwatch_readable(self._ours.fileno())
            self._respite = self._loop.call_later(GATHER, self._hear_answers)

    def _hear_answers(self) -> None:
        self._respite = None
        self._loop.watch(self._ours.fileno(), self._on_answers)
        self._on_answers()

    def take_back(self) -> list[int]:
        """The serials of the orders that the process has not taken; it will not get them any more."""
        serials = []
        try:
            while message := self._orders.receive():
                serials.append(decode_task(message).serial)
        except BlockingIOError:
            pass
        return serials

    def release(self) -> None:
        """Let it go on after an answer with output."""
        try:
            os.write(self._go, b"\n")
        except BrokenPipeError:
            pass  # it died while it waited

    # -- what it does now

    @property
    def ready(self) -> bool:
        """Whether it came as far as to take orders."""
        return bool(self._page.counts[Page.READY])

    @property
    def running(self) -> int:
        """Serial of the last order that it started; 0 for none."""
        return self._page.counts[Page.RUNNING]

    @property
    def started(self) -> float:
        """Boot time of that start."""
        return self._page.times[Page.STARTED]

    @property
    def spent(self) -> float:
        """CPU seconds used before that start."""
        return self._page.times[Page.SPENT]

    @property
    def serving(self) -> bool:
        """Whether it may get orders and answer them."""
        return self.phase is Phase.SERVING and not self.killed

    # -- end

    def terminate(self) -> None:
        """TERM to all of it."""
        self._tree.signal(signal.SIGTERM, signal.SIGCONT)  # CONT: a stopped process would not notice

    def kill(self) -> None:
        """KILL to all of it; ``on_gone`` follows."""
        if self.phase is Phase.GONE:
            return
        self.killed = True
        self._tree.over = True
        self._tree.signal(signal.SIGKILL)
        self._be_patient(KILL_PATIENCE, self._give_up)

    def retire(self) -> None:
        """It takes no more orders and ends by itself; it is killed when that takes too long."""
        self.phase = Phase.LEAVING
        self.retired = True
        self.stop_listening()
        self._ours.shutdown(socket.SHUT_WR)
        os.eventfd_write(self._bell, 1)
        self._be_patient(FAREWELL, self.kill)

    def stop_listening(self) -> None:
        """No more calls of ``on_answers``."""
        if self._respite is not None:
            self._respite.cancel()
            self._respite = None
        self._loop.unwatch(self._ours.fileno())

    def close(self) -> None:
        """End it now, without a callback, and wait for that, at most KILL_PATIENCE seconds."""
        if self.phase is Phase.GONE:
            return
        self._tree.over = True
        self._tree.signal(signal.SIGKILL)
        patience = time.monotonic() + KILL_PATIENCE
        while (not self._has_ended() or household.remains_of(self._tree)) and time.monotonic() < patience:
            time.sleep(FIRST_PAUSE)
        if not self._reap():
            household.give_up_main(self._tree)
        self._release_all()

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _perhaps_ended(self) -> None:
        if self._has_ended():  # or else: an event meant for the previous owner of this descriptor
            self._tree.over = True
            self._tree.signal(signal.SIGKILL)
            self._begin_clearing()

    def _begin_clearing(self) -> None:
        self.phase = Phase.CLEARING
        self._loop.unwatch(self._pidfd)
        self.stop_listening()
        self.ended = self._loop.clock.boottime()
        self._on_end()
        self._clear()

    def _clear(self) -> None:
        """Reap it once nothing else of it lives: until then its number, which names its session, stays taken."""
        if self.phase is not Phase.CLEARING:
            return
        remains = household.remains_of(self._tree)
        if remains and self._loop.clock.boottime() < self.ended + KILL_PATIENCE:
            self._loop.call_later(self._pause, self._clear)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return
        if remains:
            household.give_up(remains)
            self._note_survivors([status.identity.pid for status in remains])
        self._finish()

    def _give_up(self) -> None:
        """Even KILL did not help: an uninterruptible system call."""
        if self.phase in (Phase.SERVING, Phase.LEAVING):
            self._note_survivors([self.pid])
            household.give_up_main(self._tree)
            self._begin_clearing()

    def _note_survivors(self, pids: list[int]) -> None:
        numbers = ", ".join(map(str, pids))
        self.trouble = f"still there {KILL_PATIENCE:g} s after SIGKILL: process {numbers}"

    def _finish(self) -> None:
        self._reap()
        self.output.read_rest()
        self.output_open = self.output.open
        self._release_all()
        self._on_gone()

    def _reap(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.status, self.usage = status, usage
        return pid != 0

    def _release_all(self) -> None:
        self.phase = Phase.GONE
        household.leave(self._tree)
        if self._patience is not None:
            self._patience.cancel()
        self._loop.unwatch(self._pidfd)
        self.stop_listening()
        self.output.close()
        for fd in (self._pidfd, self._bell, self._go):
            os.close(fd)
        self._ours.close()
        self._theirs.close()

    def _be_patient(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(seconds, callback)


class RunnerOutput:
    """Stdout and stderr of a runner, cut into jobs.

    Who writes is found out without a message per job. A runner whose job may have written anything says so in its
    answer and waits until the channel has read it. So between two such answers at most one job writes, and whatever
    the channel reads belongs to the next one that says so. For those who follow live it is the oldest job without
    an answer, once the answers that were there after the bytes were read have been received.
    """

    def __init__(self, out: int, err: int, page: Page, limit: int, loop: Loop) -> None:
        self.pipes = (_Pipe(1, out), _Pipe(2, err))
        self._page = page
        self._limit = limit
        self._loop = loop
        self._held: list[tuple[int, bytes]] = []  # read, not attributed yet
        self._excerpts = {1: Excerpt(limit), 2: Excerpt(limit)}
        self._waiting = array.array("i", [0])

    def watch(self, on_output: Callable[[], None]) -> None:
        """Call ``on_output`` after something was read: ``settle`` is to attribute it."""
        for pipe in self.pipes:
            self._loop.watch(pipe.fd, functools.partial(self._on_readable, pipe, on_output))

    def _on_readable(self, pipe: _Pipe, on_output: Callable[[], None]) -> None:
        if self._read(pipe):
            on_output()

    def _read(self, pipe: _Pipe) -> int:
        self._page.counts[Page.DIRTY] = 1  # before the pipe is emptied: see surroundings.Output.written
        try:
            data = os.read(pipe.fd, CHUNK)
        except BlockingIOError:
            return 0
        if data:
            self._held.append((pipe.number, data))
        else:
            self._close(pipe)
        return len(data)

    def read_rest(self) -> None:
        """Hold all that is in the pipes at this moment, and no more: a thread may go on writing."""
        for pipe in self.pipes:
            if pipe.fd >= 0:
                fcntl.ioctl(pipe.fd, termios.FIONREAD, self._waiting)
                rest = self._waiting[0]
                while rest > 0 and (size := self._read(pipe)):
                    rest -= size

    def settle(self, listener: OutputListener | None) -> None:
        """What is held belongs to the job that ``listener`` follows."""
        held, self._held = self._held, []
        for number, data in held:
            offset = self._excerpts[number].size
            self._excerpts[number].add(data)
            if listener is not None:
                listener(number, offset, data)

    def replay(self, listener: OutputListener) -> None:
        """Tell ``listener`` what the job has written so far."""
        for number, excerpt in self._excerpts.items():
            for offset, data in excerpt.pieces:
                listener(number, offset, data)

    def take(self) -> tuple[Captured, Captured]:
        """What the job wrote that ends now; what comes from now on belongs to the next one."""
        captured = self._excerpts[1].captured, self._excerpts[2].captured
        self._excerpts = {1: Excerpt(self._limit), 2: Excerpt(self._limit)}
        self._page.counts[Page.DIRTY] = 0
        return captured

    @property
    def open(self) -> bool:
        """Whether somebody may still write."""
        for pipe in self.pipes:
            if pipe.fd >= 0:
                self._read(pipe)  # finds the end, if it is there
        return any(pipe.fd >= 0 for pipe in self.pipes)

    def close(self) -> None:
        """Read no more."""
        for pipe in self.pipes:
            self._close(pipe)

    def _close(self, pipe: _Pipe) -> None:
        if pipe.fd >= 0:
            self._loop.unwatch(pipe.fd)
            os.close(pipe.fd)
            pipe.fd = -1


class _Pipe:
    """Our end of a pipe; ``fd`` is -1 once closed."""

    __slots__ = ("fd", "number")

    def __init__(self, number: int, fd: int) -> None:
        self.number = number  # 1 or 2
        self.fd = fd


class _Descriptors:
    """Descriptors that are closed on the way out, whatever happens, unless they are kept."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._sockets: list[socket.socket] = []
        self._kept = False

    def __enter__(self) -> Self:
        return self

    def add(self, fd: int) -> int:
        """One that exists already."""
        self._open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """A reading end and a writing end."""
        out, end = os.pipe2(os.O_CLOEXEC)
        self._open.update((out, end))
        return out, end

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Ours, which does not block, and theirs."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += (ours, theirs)
        ours.setblocking(False)
        return ours, theirs

    def keep(self, *fds: int) -> None:
        """Success: only these, and the sockets, stay open."""
        self._kept = True
        self._open.difference_update(fds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._open:
            os.close(fd)
        for sock in () if self._kept else self._sockets:
            sock.close()


def _setup(slot: int, settings: ExecutionSettings) -> Setup:
    return Setup(
        slot,
        settings.node,
        settings.channel,
        settings.workdir,
        settings.umask,
        settings.python_path,
        settings.max_payload,
        settings.runner_recycle,
        settings.runner_memory,
    )


def _spawn(settings: ExecutionSettings, offset: int, output: tuple[int, int], given: dict[int, int]) -> int:
    """Execute the runner. ``given``: its descriptor numbers from 3 on, and ours that they are copies of."""
    environment = node_environment(settings)
    if FAILPOINTS_VARIABLE in os.environ:
        environment[FAILPOINTS_VARIABLE] = os.environ[FAILPOINTS_VARIABLE]
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    # Copies above the numbers that they shall get, so that no dup2 overwrites what the next one needs.
    sources = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for number, fd in given.items()}
    try:
        return os.posix_spawn(
            sys.executable,
            # -P: no module may come from the directory that jobs work in.
            (sys.executable, "-P", "-m", "jobschedd.slave.runner", str(os.getpid()), str(offset)),
            environment,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, output[0], 1),
                (os.POSIX_SPAWN_DUP2, output[1], 2),
                *((os.POSIX_SPAWN_DUP2, source, number) for number, source in sources.items()),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_EVERY_SIGNAL,
        )
    finally:
        for fd in (nothing, *sources.values()):
            os.close(fd)
