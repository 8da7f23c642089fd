"""The executor: orders in, results out. It fills the slots, watches what runs, and knows every order it holds.

A slot runs one command, or keeps a warm runner that gets functions: several at a time when they are expected
to be short, so that the runner need not wait for us between two of them.

An order may take several slots: the one that it runs in, and others that nothing starts in while it is here.

A suspect, that is an order whose job ran when a channel process died, has the channel for itself. If it was the
culprit, it is alone when the next process dies, and no bystander is taken for poison with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from jobschedd.failpoints import failpoint
from jobschedd.job import Cause, Order, Outcome, Overlap, Result
from jobschedd.slave.functions import FunctionRunner
from jobschedd.slave.loop import Loop
from jobschedd.slave.output import OutputListener
from jobschedd.slave.process import CommandRun, StartFailed
from jobschedd.slave.register import Register
from jobschedd.slave.settings import ExecutionSettings

#: Functions handed to one runner ahead of need, at most.
DEEPEST = 256
#: Seconds that a suspect waits for what runs to end. Then it starts beside it: a job of a day must not hold up the
#: rest of the channel. Two suspects never run side by side, however long it takes.
SUSPECT_PATIENCE = 60.0


@dataclass(frozen=True)
class Running:
    """One order that has started, and when (seconds since boot)."""

    order: Order
    since: float


OnEnd = Callable[[Order, Result], None]


class Executor:
    """The slots of one channel. ``on_end`` is called once for every order that was accepted and not given back."""

    def __init__(self, slots: int, loop: Loop, settings: ExecutionSettings, register: Register, on_end: OnEnd) -> None:
        self._slots: Sequence[int] = range(slots)  # all but those that an order has beside its own
        self._extra: dict[str, list[int]] = {}  # entry -> those
        self._loop = loop
        self._settings = settings
        self._register = register
        self._on_end = on_end
        self._held: deque[tuple[Order, float]] = deque()
        self._commands: dict[int, CommandRun] = {}
        self._runners: dict[int, FunctionRunner] = {}
        self._fed: set[FunctionRunner] = set()  # those that were handed orders and not told yet
        self._entries: dict[str, tuple[str, int]] = {}  # entry -> job and attempt, of all orders held or running
        self._got_on: dict[int, float] = {}  # boot time at which a slot's runner last began or ended something
        self._ended_slots: set[int] = set()
        self._suspect = ""  # the entry of the suspect that was started
        self.extra_slots = 0  # what the orders here take beyond one slot each
        self.depth = 1  # functions that a runner may hold, the current one included
        self.short_of_resources = False  # the last start failed for want of processes, memory or files

    # -- orders -----------------------------------------------------------------------------------------------

    def knows(self, entry: str) -> bool:
        """Whether the order of this dispatch entry is held or running here."""
        return entry in self._entries

    def accept(self, orders: Iterable[Order]) -> None:
        """Hold orders until slots are free; ``fill`` starts them."""
        now = self._loop.clock.boottime()
        for order in orders:
            self._entries[order.entry] = (order.job, order.attempt)
            self._held.append((order, now))
            if order.spec.resources:
                self.extra_slots += order.spec.slots - 1

    def fill(self) -> None:
        """Start what is held, in order, as far as the slots go."""
        try:
            self._fill()
        finally:
            for runner in self._fed:
                runner.go()
            self._fed.clear()

    def _fill(self) -> None:
        while self._held and self._may_start(*self._held[0]):
            slot = self._slot_for(self._held[0][0])
            if slot is None:
                return
            order, _ = self._held.popleft()
            if order.crashes:
                self._suspect = order.entry
            if self.extra_slots and order.spec.slots > 1:
                self._take_extra(order, slot)
            if order.spec.function is not None:
                self._hand_over(order, slot)
            elif not self._start_command(order, slot):
                break

    def give_back(self, older_than: float = 0.0) -> list[Order]:
        """Take back what has not started and was received ``older_than`` seconds ago or before; it is forgotten."""
        now = self._loop.clock.boottime()
        if self._held and now - self._held[0][1] < older_than:
            return []
        queued = (
            [order for runner in self._runners.values() for order in runner.revoke()]
            if self._behind(older_than)
            else []
        )
        # A suspect that waits for others to end keeps the channel: handed from one busy channel to the next, it
        # would never run. Behind another suspect it might wait for ever.
        waits = older_than > 0 and not self._suspect and self._held and self._held[0][0].crashes
        kept = [self._held.popleft()] if waits else []
        back = queued + [order for order, _ in self._held]
        self._held = deque(kept)
        for order in back:
            self._forget(order)
        return back

    def _may_start(self, order: Order, received: float) -> bool:
        if self._suspect:
            return False
        return not (order.crashes and self.busy) or self._loop.clock.boottime() - received >= SUSPECT_PATIENCE

    def _forget(self, order: Order) -> None:
        self._entries.pop(order.entry, None)
        if order.entry == self._suspect:
            self._suspect = ""
        if self.extra_slots and order.spec.slots > 1:
            self.extra_slots -= order.spec.slots - 1
            self._free_extra(order)

    def _behind(self, seconds: float) -> bool:
        """Whether some runner has not got on for that long, with more than one function in hand."""
        due = self._loop.clock.boottime() - seconds
        return any(runner.in_flight > 1 and self._got_on[slot] <= due for slot, runner in self._runners.items())

    # -- state ------------------------------------------------------------------------------------------------

    @property
    def orders(self) -> int:
        """How many are held or running."""
        return len(self._entries)

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._commands) or any(runner.in_flight for runner in self._runners.values())

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is held."""
        return not self._held and not self.busy

    @property
    def reserved(self) -> bool:
        """Whether a suspect has the channel, or waits for it: nothing else is wanted."""
        return bool(self._suspect) or bool(self._held and self._held[0][0].crashes)

    def running(self) -> list[Running]:
        """What has started."""
        commands = [Running(run.order, run.started_boot) for run in self._commands.values()]
        functions = [Running(r.current, r.current_since) for r in self._runners.values() if r.current is not None]
        return commands + functions

    def slots_in_use(self) -> int:
        """Slots that run something."""
        extra = sum(map(len, self._extra.values()))
        return len(self._commands) + sum(1 for runner in self._runners.values() if runner.in_flight) + extra

    def settle(self) -> None:
        """The results so far are in the spool: nothing of them is running any more, as far as a successor cares."""
        for slot in self._ended_slots:
            if self._is_free(slot):
                self._register.clear(slot)
        self._ended_slots.clear()

    # -- what is asked of jobs --------------------------------------------------------------------------------

    def cancel(self, job: str, attempt: int = 0) -> bool:
        """End a job because a user asked: at once when it has not started. ``attempt``: only that one; 0: whichever."""
        if attempt and (job, attempt) not in self._entries.values():
            return False
        return self.stop(job, Outcome.CANCELLED, Cause.CANCELLED)

    def interrupt(self, job: str, attempt: int) -> None:
        """End what runs, so that it can run elsewhere. What has not started is given back by itself."""
        for running in self.running():
            if (running.order.job, running.order.attempt) == (job, attempt):
                self.stop(job, Outcome.FAILED, Cause.DRAIN)

    def stop(self, job: str, outcome: Outcome, cause: Cause) -> bool:
        """TERM, grace, KILL; False when the job is not here."""
        for number, (order, _) in enumerate(self._held):
            if order.job == job:
                del self._held[number]
                self._ended(order, Result(outcome=outcome, cause=cause, error="not started", ended=self._now()))
                return True
        for run in self._commands.values():
            if run.order.job == job:
                run.stop(outcome, cause)
                return True
        return any(runner.stop(job, outcome, cause) for runner in self._runners.values())

    def stop_all(self, cause: Cause) -> None:
        """Interrupt everything: TERM, grace, KILL."""
        for running in self.running():
            self.stop(running.order.job, Outcome.FAILED, cause)

    def kill_all(self, cause: Cause) -> None:
        """Interrupt everything, at once."""
        for run in list(self._commands.values()):
            run.kill(Outcome.FAILED, cause)
        for runner in self._runners.values():
            runner.kill(Outcome.FAILED, cause)

    def kill_exclusive(self) -> None:
        """The lease is about to end: whatever must not overlap with another attempt dies now (overlap: forbid)."""
        for running in self.running():
            if running.order.spec.overlap is Overlap.FORBID:
                self._kill(running.order.job, Cause.LEASE)

    def _kill(self, job: str, cause: Cause) -> None:
        for run in list(self._commands.values()):
            if run.order.job == job:
                run.kill(Outcome.FAILED, cause)
        for runner in self._runners.values():
            if runner.current is not None and runner.current.job == job:
                runner.kill(Outcome.FAILED, cause)

    def listen(self, job: str, listener: OutputListener | None) -> bool:
        """Give the output of a job to ``listener``, from the beginning as far as kept; False: it does not run here."""
        for run in self._commands.values():
            if run.order.job == job:
                run.listen(listener)
                return True
        for runner in self._runners.values():
            if runner.current is not None and runner.current.job == job:
                runner.listen(job, listener)
                return True
        return False

    def close(self) -> None:
        """End the runners."""
        for runner in self._runners.values():
            runner.close()

    # -- slots ------------------------------------------------------------------------------------------------

    def _slot_for(self, order: Order) -> int | None:
        if self.extra_slots and order.spec.slots > 1:
            return self._slot_among_many(order)
        if order.spec.function is None:
            for slot in self._slots:
                if self._is_free(slot):
                    return slot
            return None
        if len(self._slots) == 1:
            (slot,) = self._slots
            return slot if slot not in self._commands and self._in_flight(slot) < self.depth else None
        open_slots = [slot for slot in self._slots if slot not in self._commands and self._in_flight(slot) < self.depth]
        return min(open_slots, key=lambda slot: (self._in_flight(slot), slot not in self._runners), default=None)

    def _slot_among_many(self, order: Order) -> int | None:
        """One of as many free slots as it takes: for a function one with a warm runner, if there is any."""
        free = [slot for slot in self._slots if self._is_free(slot)]
        if len(free) < order.spec.slots:
            return None
        wants_runner = order.spec.function is not None
        return min(free, key=lambda slot: (slot in self._runners) != wants_runner)

    def _take_extra(self, order: Order, own: int) -> None:
        """Slots beside its own. They are noted as its own is: a successor must not take them for free."""
        extra = [slot for slot in self._slots if slot != own and self._is_free(slot)][: order.spec.slots - 1]
        self._extra[order.entry] = extra
        self._slots = [slot for slot in self._slots if slot not in extra]
        for slot in extra:
            self._register.note(slot, order.entry)
            self._ended_slots.discard(slot)

    def _free_extra(self, order: Order) -> None:
        extra = self._extra.pop(order.entry, [])
        self._slots = sorted([*self._slots, *extra])
        self._ended_slots.update(extra)

    def _is_free(self, slot: int) -> bool:
        return slot not in self._commands and not self._in_flight(slot)

    def _in_flight(self, slot: int) -> int:
        runner = self._runners.get(slot)
        return runner.in_flight if runner is not None else 0

    def _hand_over(self, order: Order, slot: int) -> None:
        runner = self._runner(slot)
        if not runner.in_flight:
            self._got_on[slot] = self._loop.clock.boottime()
        runner.submit(order)
        self._fed.add(runner)

    def _runner(self, slot: int) -> FunctionRunner:
        if slot not in self._runners:
            offset = self._register.offset_of(slot)
            on_end = partial(self._function_ended, slot)
            self._runners[slot] = FunctionRunner(slot, self._loop, self._settings, self._register.fd, offset, on_end)
        return self._runners[slot]

    def _start_command(self, order: Order, slot: int) -> bool:
        """False when the node is short of something: the order is held again, in front."""
        failpoint("channel.start.before")
        # Noted before it exists: a successor must never take a job that has started for one that has not.
        self._register.note(slot, order.entry)
        self._ended_slots.discard(slot)
        failpoint("channel.start.registered")
        run = CommandRun(order, slot, self._loop, self._settings, self._command_ended, self._noting(slot, order.entry))
        try:
            run.start()
        except StartFailed as error:
            self._ended_slots.add(slot)
            if error.cause is Cause.RESOURCE:
                self.short_of_resources = True
                self._held.appendleft((order, self._loop.clock.boottime()))
                self._suspect = ""
                self._free_extra(order)
                return False
            now = self._now()
            result = Result(outcome=Outcome.FAILED, cause=error.cause, error=error.message, started=now, ended=now)
            self._ended(order, result)
            return True
        self._commands[slot] = run
        return True

    def _noting(self, slot: int, entry: str) -> Callable[[int, int], None]:
        def note(pid: int, starttime: int) -> None:
            self._register.note(slot, entry, pid, starttime)

        return note

    def _command_ended(self, run: CommandRun, result: Result) -> None:
        del self._commands[run.slot]
        self._ended_slots.add(run.slot)
        self._ended(run.order, result)

    def _function_ended(self, slot: int, order: Order, result: Result) -> None:
        self._got_on[slot] = self._loop.clock.boottime()
        self._ended_slots.add(slot)
        self._ended(order, result)

    def _ended(self, order: Order, result: Result) -> None:
        self._forget(order)
        self._on_end(order, result)

    def _now(self) -> float:
        return self._loop.clock.now()
