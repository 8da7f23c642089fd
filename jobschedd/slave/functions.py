"""The functions of one slot: orders in, results out, a warm runner process in between.

Several orders are under way at once, so that the runner never waits for its channel; it runs them strictly one
after another. What it has not taken yet can be taken back at any time, and only the job that runs is charged with
what happens to the process.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from jobschedd.errors import ProtocolError
from jobschedd.failpoints import failpoint
from jobschedd.job import Captured, Cause, Order, Outcome, Result
from jobschedd.slave.allow import allows_function
from jobschedd.slave.environment import gpu_variables
from jobschedd.slave.exchange import Answer, Task, encode
from jobschedd.slave.loop import Loop, Timer
from jobschedd.slave.oom import oom_watch
from jobschedd.slave.output import OutputListener
from jobschedd.slave.runnerprocess import Phase, RunnerProcess
from jobschedd.slave.settings import ExecutionSettings

__all__ = ["FunctionRunner"]

#: With so many orders in hand a runner goes on for longer than its channel lets answers gather.
ENOUGH_TO_GO_ON: Final = 50
#: Seconds until a runner that could not be started is tried again: the first time, and at most.
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 30.0
#: Function names whose permission is remembered.
NAMES: Final = 1024
#: Characters kept of what a runner that could not start had to say.
LONGEST_NOTICE: Final = 2000

log = logging.getLogger(__name__)


class _Sent(NamedTuple):
    serial: int
    order: Order


class _Stop(NamedTuple):
    """The running job was told to end."""

    job: str
    outcome: Outcome
    cause: Cause
    at: float  # boot time


class FunctionRunner:
    """One slot's functions. ``on_end`` is called exactly once for every order that is not revoked."""

    def __init__(
        self,
        slot: int,
        loop: Loop,
        settings: ExecutionSettings,
        register_fd: int,
        register_offset: int,
        on_end: Callable[[Order, Result], None],
    ) -> None:
        """The process is started with the first order. It notes what it starts in the register behind
        ``register_fd``, whose region for this slot begins at ``register_offset``."""
        self._slot = slot
        self._loop = loop
        self._settings = settings
        self._register = (register_fd, register_offset)
        self._on_end = on_end
        self._allowed = functools.lru_cache(NAMES)(functools.partial(allows_function, settings))
        self._queue: deque[Order] = deque()  # not handed to a process
        self._sent: deque[_Sent] = deque()  # handed to it and not answered: the first one runs, or runs next
        self._refused: deque[tuple[Order, Result]] = deque()  # ended without a process, not said yet
        self._process: RunnerProcess | None = None
        self._full = False  # the socket takes no more for now
        self._stop: _Stop | None = None
        self._escalated = False
        self._grace: Timer | None = None
        self._deadline: Timer | None = None
        self._backoff: Timer | None = None
        self._failures = 0  # to start a runner, in a row
        self._stillborn = 0  # runners in a row that ended between taking an order and starting it
        self._listeners: dict[str, OutputListener] = {}
        self._closed = False
        oom_watch()  # so that it knows the count from before the first failure

    # -- what the channel asks

    @property
    def in_flight(self) -> int:
        """Orders whose end was not reported yet."""
        return len(self._queue) + len(self._sent) + len(self._refused)

    @property
    def current(self) -> Order | None:
        """The order whose function runs at this moment."""
        return self._sent[0].order if self._runs_first() else None

    @property
    def current_since(self) -> float:
        """Boot time at which the current order started."""
        return self._process.started if self._process is not None else 0.0

    @property
    def pid(self) -> int:
        """Of the runner process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def submit(self, order: Order) -> None:
        """Run it after all those submitted before; any number may be in flight. Never calls ``on_end`` itself.

        After the last one call ``go``."""
        function = order.spec.function or ""
        if self._allowed(function):
            self._queue.append(order)
            if not self._full:
                self._hand_over()
        else:
            self._refuse(order, Cause.DENIED, f"{function}: not in this node's list of allowed functions")

    def go(self) -> None:
        """Begin with what was submitted."""
        if self._process is not None and self._process.phase is not Phase.GONE:
            self._process.ring()

    def revoke(self) -> list[Order]:
        """Take back, oldest first, everything that the runner process has not taken: it will never run here."""
        self._take_back()
        orders = list(self._queue)
        self._queue.clear()
        for order in orders:
            self._listeners.pop(order.job, None)
        return orders

    def stop(self, job: str, outcome: Outcome, cause: Cause) -> bool:
        """End this job with this outcome and cause; False when it is not here (any more).

        Waiting: it ends at once. Running: TERM to the runner and all below it, KILL after the grace. The first
        reason given counts; a job that ends by itself before the TERM keeps its own end.
        """
        if self._stop is not None and self._stop.job == job:
            return True
        if not self._isolate(job):
            return False
        if self._end_waiting(job, outcome, cause):
            self._feed()
            return True
        self._receive()
        process = self._process
        if process is not None and process.serving and self._sent and self._sent[0].order.job == job:
            self._stop = _Stop(job, outcome, cause, self._loop.clock.boottime())
            self._grace = self._loop.call_later(self._settings.term_grace, self._escalate)
            process.terminate()
        else:
            self._feed()  # it has just ended by itself
        return True

    def kill(self, outcome: Outcome, cause: Cause) -> None:
        """KILL at once what runs; it ends with this outcome and cause, unless it was told to stop before."""
        if self._stop is not None:
            self._escalate()
            return
        self._take_back()
        self._receive()
        if self._process is not None and self._process.serving and self._sent:
            job = self._sent[0].order.job
            self._stop = _Stop(job, outcome, cause, self._loop.clock.boottime())
            self._process.kill()
        else:
            self._feed()

    def listen(self, job: str, listener: OutputListener | None) -> None:
        """Replay what is held of its output, then every chunk as it comes; None ends that."""
        if listener is None:
            self._listeners.pop(job, None)
            return
        self._listeners[job] = listener
        if self._process is not None and self._sent and self._sent[0].order.job == job:
            self._process.output.replay(self._guarded(job))

    def close(self) -> None:
        """End the process, idle or not. No ``on_end`` follows: revoke first, and stop what runs."""
        self._closed = True
        for timer in (self._grace, self._deadline, self._backoff):
            if timer is not None:
                timer.cancel()
        if self._process is not None:
            self._process.close()
            self._process = None

    # -- orders to the process

    def _feed(self) -> None:
        self._hand_over()
        self.go()

    def _hand_over(self) -> None:
        """What the socket takes, without waiting for anything."""
        while self._queue and self._stop is None and not self._closed:
            process = self._process or self._start()
            if process is None or not process.serving:
                return
            order = self._queue[0]
            try:
                taken = process.send(_message(order, process.serial + 1, gpu_variables(order, self._settings)))
            except UnicodeEncodeError as error:
                self._refuse(self._queue.popleft(), Cause.ARGV, f"it cannot be passed on: {error}")
                continue
            except OSError as error:
                self._refuse(self._queue.popleft(), Cause.RESOURCE, f"it cannot be passed on: {error.strerror}")
                continue
            if not taken:
                self._full = True
                process.when_writable(self._feed_again)
                return
            self._sent.append(_Sent(process.serial, self._queue.popleft()))
            failpoint("channel.function.sent")
            if len(self._sent) == 1:
                self._watch_time(self._loop.clock.boottime())

    def _feed_again(self) -> None:
        self._unfill()
        self._feed()

    def _unfill(self) -> None:
        if self._full:
            self._full = False
            if self._process is not None:
                self._process.when_writable(None)

    def _take_back(self) -> None:
        """What the process has not taken goes to the front of the queue again."""
        if self._process is None or self._process.phase is Phase.GONE:
            return
        self._unfill()
        untaken = set(self._process.take_back())
        self._queue.extendleft(reversed([sent.order for sent in self._sent if sent.serial in untaken]))
        self._sent = deque(sent for sent in self._sent if sent.serial not in untaken)

    def _isolate(self, job: str) -> bool:
        """Make sure that ``job`` is either waiting here or the only one that the process has. False: not here."""
        here = any(sent.order.job == job for sent in self._sent) or any(order.job == job for order in self._queue)
        if here:
            self._take_back()
        return here

    def _end_waiting(self, job: str, outcome: Outcome, cause: Cause) -> bool:
        for order in self._queue:
            if order.job == job:
                self._queue.remove(order)
                self._report(order, self._unstarted(outcome, cause, ""))
                return True
        return False

    # -- answers from the process

    def _receive(self) -> None:
        """Take the answers that are there: no more than were due, so that nobody keeps us here."""
        process = self._process
        if process is None:
            return
        for _ in range(len(self._sent) or 1):
            try:
                answer = process.receive()
                if answer is None:
                    return
                self._take(process, answer)
            except ProtocolError as error:
                process.trouble = str(error)
                process.stop_listening()
                process.kill()
                return
            if self._process is not process:
                return

    def _on_answers(self) -> None:
        self._receive()
        if len(self._sent) >= ENOUGH_TO_GO_ON and self._process is not None:
            self._process.let_answers_gather()
        if self._queue and not self._full:
            self._feed()

    def _take(self, process: RunnerProcess, answer: Answer) -> None:
        if not self._sent or self._sent[0].serial != answer.serial:
            raise ProtocolError("a runner answered for an order that it does not have")
        order = self._sent.popleft().order
        out, err = self._printed(process, order) if answer.printed else (_SILENT, _SILENT)
        self._failures = self._stillborn = 0
        if self._sent:
            self._watch_time(answer.ended)
        result = self._result(process, answer, out, err)
        if self._stop is not None:
            result = self._stopped(process, order, answer, result)
        elif answer.last and process.phase is Phase.SERVING:
            self._take_back()
            process.retire()
        self._report(order, result)

    def _printed(self, process: RunnerProcess, order: Order) -> tuple[Captured, Captured]:
        output = process.output
        output.read_rest()
        output.settle(self._listener_of(order.job))
        captured = output.take()
        process.release()
        return captured

    def _on_output(self) -> None:
        process = self._process
        if process is None:
            return
        if process.phase is Phase.SERVING:
            self._receive()  # now the first one without an answer is the one that wrote it
        process.output.settle(self._listener_of(self._sent[0].order.job) if self._sent else None)
        if self._queue and not self._full:
            self._feed()

    def _result(self, process: RunnerProcess, answer: Answer, out: Captured, err: Captured) -> Result:
        return Result(
            outcome=answer.outcome,
            cause=answer.cause,
            exit_code=answer.exit_code,
            error=answer.error,
            value=answer.value,
            started=answer.started,
            ended=answer.started + answer.duration,
            duration=answer.duration,
            peak_rss=answer.peak_rss,
            cpu=answer.cpu,
            pid=process.pid,
            node=self._settings.node,
            channel=self._settings.channel,
            stdout=out,
            stderr=err,
        )

    def _stopped(self, process: RunnerProcess, order: Order, answer: Answer, result: Result) -> Result:
        """It answered although it was told to stop: on its own account when it had ended before that."""
        stop, self._stop = self._stop, None
        if not process.killed:
            process.kill()  # the TERM hits it now or later
        if stop is None or answer.ended < stop.at:
            return result
        return msgspec.structs.replace(
            result,
            outcome=stop.outcome,
            cause=stop.cause,
            error="\n".join(filter(None, (_reason(stop, order), result.error))),
            escalated=self._escalated,
        )

    def _report(self, order: Order, result: Result) -> None:
        if self._listeners:
            self._listeners.pop(order.job, None)
        self._on_end(order, result)

    # -- time

    def _watch_time(self, start: float) -> None:
        """The first order sent has started, or will start, no earlier than ``start``.

        One timer serves all: it looks at what runs when it fires. Orders that end in time cost no timer each.
        """
        timeout = self._sent[0].order.spec.timeout
        if timeout and (self._deadline is None or start + timeout < self._deadline.when):
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self._loop.call_at(start + timeout, self._check_time)

    def _check_time(self) -> None:
        self._deadline = None
        self._receive()
        process = self._process
        if process is None or not self._sent or self._stop is not None:
            return
        order, now = self._sent[0].order, self._loop.clock.boottime()
        start = process.started if self._runs_first() else now
        if order.spec.timeout and start + order.spec.timeout <= now:
            self.stop(order.job, Outcome.TIMED_OUT, Cause.TIMEOUT)
        else:
            self._watch_time(start)

    def _runs_first(self) -> bool:
        """Whether the runner has started the first order that it was sent."""
        return self._process is not None and bool(self._sent) and self._process.running == self._sent[0].serial

    def _escalate(self) -> None:
        if self._process is not None and not self._process.killed:
            self._escalated = True
            self._process.kill()

    # -- the process begins and ends

    def _start(self) -> RunnerProcess | None:
        """None while no runner can be started: the first order has been failed for that, the others wait."""
        if self._backoff is not None:
            return None
        try:
            self._process = RunnerProcess(
                self._slot,
                self._loop,
                self._settings,
                self._register,
                on_answers=self._on_answers,
                on_output=self._on_output,
                on_end=self._on_process_end,
                on_gone=self._on_process_gone,
            )
        except OSError as error:
            self._could_not_start(f"this node cannot start a runner process now: {error}")
        return self._process

    def _could_not_start(self, message: str) -> None:
        log.warning("slot %d: %s", self._slot, message)
        if self._queue:
            self._refuse(self._queue.popleft(), Cause.RESOURCE, message)
        self._stillborn = 0
        pause = min(FIRST_BACKOFF * 2**self._failures, LONGEST_BACKOFF)
        self._failures += 1
        self._backoff = self._loop.call_later(pause, self._try_again)

    def _try_again(self) -> None:
        self._backoff = None
        self._feed()

    def _on_process_end(self) -> None:
        self._receive()  # what it said before it died counts
        self._take_back()

    def _on_process_gone(self) -> None:
        process, stop = self._process, self._stop
        if process is None:
            return
        if self._grace is not None:
            self._grace.cancel()
        self._unfill()
        taken = self._sent.popleft() if self._sent else None
        charged = taken is not None and (process.running == taken.serial or stop is not None)
        self._queue.extendleft(reversed([sent.order for sent in self._sent]))
        self._sent.clear()
        if taken is not None and not charged:
            self._queue.appendleft(taken.order)  # it was taken and not started
            self._stillborn += 1
        result = self._death(process, taken.order) if taken is not None and charged else None
        self._process = self._stop = self._grace = None
        self._escalated = False
        if (not process.ready and not process.killed) or self._stillborn > 1:
            self._could_not_start(f"the runner process ended before it started a function: {_death_notice(process)}")
        elif result is None and not process.retired and not process.killed:
            log.warning("slot %d: the idle runner process %d ended: %s", self._slot, process.pid, _ending(process))
        if taken is not None and result is not None:
            self._report(taken.order, result)
        self._feed()

    def _death(self, process: RunnerProcess, order: Order) -> Result:
        """How a job ended whose runner ended with it."""
        process.output.settle(self._listener_of(order.job))
        out, err = process.output.take()
        clock, status, usage = self._loop.clock, process.status, process.usage
        began = process.started if process.running else process.ended
        started = clock.now() - (clock.boottime() - began)
        outcome, cause, error = self._verdict(process, order)
        return Result(
            outcome=outcome,
            cause=cause,
            exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            error="\n".join(filter(None, (error, process.trouble))),
            started=started,
            ended=started + process.ended - began,
            duration=process.ended - began,
            peak_rss=usage.ru_maxrss * 1024 if usage is not None else 0,
            cpu=max(0.0, usage.ru_utime + usage.ru_stime - process.spent) if usage is not None else 0.0,
            pid=process.pid,
            node=self._settings.node,
            channel=self._settings.channel,
            stdout=out,
            stderr=err,
            escalated=self._escalated,
            output_open=process.output_open,
        )

    def _verdict(self, process: RunnerProcess, order: Order) -> tuple[Outcome, Cause, str]:
        if self._stop is not None:
            return self._stop.outcome, self._stop.cause, _reason(self._stop, order)
        if os.WIFEXITED(process.status):
            return Outcome.FAILED, Cause.EXIT, "the function ended its process instead of returning"
        number = os.WTERMSIG(process.status)
        if number == signal.SIGKILL and not process.killed and oom_watch().moved():
            return Outcome.FAILED, Cause.OOM, "the kernel killed it for want of memory"
        return Outcome.FAILED, Cause.SIGNAL, f"killed by {_signal_name(number)}"

    # -- ends without a process

    def _refuse(self, order: Order, cause: Cause, message: str) -> None:
        """It fails without having been started; said from the loop, never from within ``submit``."""
        if not self._refused:
            self._loop.call_later(0.0, self._report_refused)
        self._refused.append((order, self._unstarted(Outcome.FAILED, cause, message)))

    def _report_refused(self) -> None:
        for _ in range(0 if self._closed else len(self._refused)):
            self._report(*self._refused.popleft())

    def _unstarted(self, outcome: Outcome, cause: Cause, error: str) -> Result:
        return Result(
            outcome=outcome,
            cause=cause,
            error=error,
            ended=self._loop.clock.now(),
            node=self._settings.node,
            channel=self._settings.channel,
        )

    # -- followers

    def _listener_of(self, job: str) -> OutputListener | None:
        return self._guarded(job) if self._listeners and job in self._listeners else None

    def _guarded(self, job: str) -> OutputListener:
        def tell(number: int, offset: int, data: bytes) -> None:
            listener = self._listeners.get(job)
            if listener is None:
                return
            try:
                listener(number, offset, data)
            except Exception:
                # Somebody who follows is never worth a job: it loses its view, the job goes on.
                log.exception("a follower of the output of job %s failed and is not told any more", job)
                self._listeners.pop(job, None)

        return tell


_SILENT: Final = Captured()


def _message(order: Order, serial: int, more: dict[str, str]) -> bytes:
    spec = order.spec
    function = spec.function or ""
    env = spec.env | more
    task = Task(serial, order.job, order.attempt, order.entry, function, spec.args, spec.kwargs, env, spec.cwd)
    return encode(task)


def _reason(stop: _Stop, order: Order) -> str:
    return f"ran longer than {order.spec.timeout:g} s" if stop.cause is Cause.TIMEOUT else ""


def _ending(process: RunnerProcess) -> str:
    status = process.status
    if os.WIFSIGNALED(status):
        return f"killed by {_signal_name(os.WTERMSIG(status))}"
    return f"exit code {os.WEXITSTATUS(status)}"


def _death_notice(process: RunnerProcess) -> str:
    process.output.settle(None)
    _, err = process.output.take()
    text = (err.head + err.tail).decode(errors="replace").strip()
    return "\n".join(filter(None, (_ending(process), process.trouble, text[-LONGEST_NOTICE:])))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # the real-time ones have no names
