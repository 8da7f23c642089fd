"""The timetable: which schedules are due. The leader reckons the times, one script fires each of them once.

A schedule's *cursor* in Redis is the last of its times that was dealt with. A fire names the cursor that it was
reckoned from; the script moves it on and makes the job in one step, or does neither. So whoever else fires, and
however often a call is repeated, each time has one job. What is late, by an outage or a change of the lead, is
fired late; what is later than a minute counts as missed, and the schedule's ``catch_up`` decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from jobschedd.clock import Clock
from jobschedd.errors import InvalidJob, QueueFull
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.recurrence import Recurrence
from jobschedd.schedule import CatchUp, Schedule, Template
from jobschedd.store.schedules import Answer, Fire, Schedules, Stored

log = get_logger(__name__)

#: Milliseconds by which a time may be late and still count as met: a change of the lead takes less.
MISSED_AFTER = 60_000
FIRES_PER_CALL, BYTES_PER_CALL = 200, 4 << 20
#: Times that are looked at, at most, to see what was missed.
MOST_MISSED = 10_000
#: Seconds between looks whether a job is over that another fire waits for, and before a refused call is repeated.
QUEUE_POLL = 0.5
REFUSED_PAUSE = 1.0
PRESENT_EVERY = 30.0


class ServerTime:
    """The server's clock as we know it: asked now and then, carried on by the boot clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = clock.now() - clock.boottime()

    def told(self, now_ms: int) -> None:
        """The server has just said what time it is."""
        self._ahead = now_ms / 1000 - self._clock.boottime()

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int((self._clock.boottime() + self._ahead) * 1000)

    def boottime_at(self, moment_ms: int) -> float:
        """When our boot clock will say that this moment has come."""
        return moment_ms / 1000 - self._ahead


class _Entry:
    """One schedule, as the leader has it in memory."""

    def __init__(self, stored: Stored) -> None:
        self.recurrence: Recurrence = stored.schedule.recurrence()
        self.template: Template = stored.schedule.template()
        self.refresh(stored)

    def refresh(self, stored: Stored) -> None:
        """What Redis says now of the same revision."""
        self.stored = stored
        self.cursor = stored.cursor
        self.waiting = list(stored.waiting)

    def next(self) -> int | None:
        """The next time; None where there is none."""
        return None if self.stored.paused is not None else next(self.recurrence.after(self.cursor), None)

    def due(self, now: int) -> list[Fire]:
        """What is to be done for the times up to ``now``, in order."""
        missed_before = now - MISSED_AFTER
        late: list[int] = []
        if self.cursor < missed_before:
            late, _ = self.recurrence.within(self.cursor, missed_before, MOST_MISSED)
        chosen = self._caught_up(late)
        on_time, _ = self.recurrence.within(max(self.cursor, missed_before), now, MOST_MISSED)
        left_out = len(late) - len(chosen)
        fires: list[Fire] = []
        if not chosen and late:
            fires.append(Fire(self.stored, self.cursor, late[-1], "pass", left_out))
            left_out = 0
        for moment in (*chosen, *on_time):
            cursor = fires[-1].time if fires else self.cursor
            fires.append(Fire(self.stored, cursor, moment, "time", left_out, self.template.fire(moment)))
            left_out = 0
        return fires

    def _caught_up(self, late: list[int]) -> list[int]:
        match self.stored.schedule.catch_up:
            case CatchUp.NONE:
                return []
            case CatchUp.LAST:
                return late[-1:]
            case CatchUp.ALL:
                return late[-self.stored.schedule.catch_up_max :]

    def queued(self) -> Fire:
        """The first of those that wait for the job before."""
        moment = self.waiting[0]
        return Fire(self.stored, self.cursor, moment, "queued", 0, self.template.fire(moment))


class Timetable:
    """The dispatcher's. ``own``: the schedules of this master's file; ``keep_ms``: of jobs that are replaced."""

    def __init__(
        self,
        schedules: Schedules,
        clock: Clock,
        own: Sequence[Schedule] = (),
        node: str = "",
        keep_ms: int = 60_000,
        server: ServerTime | None = None,
    ) -> None:
        self._schedules = schedules
        self._clock = clock
        self._own = own
        self._node = node
        self._keep_ms = keep_ms
        self._server = server or ServerTime(clock)
        self._entries: dict[str, _Entry] = {}
        self._coming: list[tuple[int, str]] = []  # a heap; what differs from ``_expected`` is passed over
        self._expected: dict[str, int] = {}
        self._known = False
        self._owned_under = ""
        self._poll_at = 0.0
        self._not_before = 0.0
        self._present_at = 0.0

    @property
    def due_at(self) -> float:
        """Boot time at which there is something to do; 0 for now."""
        if not self._known:
            return self._not_before
        soonest = self._present_at
        if self._coming:
            soonest = min(soonest, self._server.boottime_at(self._coming[0][0]))
        if any(entry.waiting for entry in self._entries.values()):
            soonest = min(soonest, self._poll_at)
        return max(soonest, self._not_before)

    def present(self) -> None:
        """Say now and then that this master is there, leading or not."""
        now = self._clock.boottime()
        if now >= self._present_at:
            self._server.told(self._schedules.present(self._node, self._own))
            self._present_at = now + PRESENT_EVERY

    def forget(self) -> None:
        """What we know may be wrong: read it again."""
        self._known = False

    def fire_due(self, fence: str, go_on: Callable[[], None] = lambda: None) -> None:
        """Everything that is due. Raises NotTheLeader, StoreUnavailable. ``go_on``: called now and then."""
        if self._clock.boottime() < self.due_at:
            return
        go_on()
        if not self._known:
            self._read(fence)
            go_on()
        now = self._clock.boottime()
        fires = self._due() + self._queued(now)
        for some in _calls(fires):
            if not self._known or not self._fire(fence, some):
                return
            go_on()

    def _read(self, fence: str) -> None:
        if self._owned_under != fence:
            for word, name in self._schedules.own(fence, self._own):
                log.notice(f"schedule {word}", schedule=name, by="configuration")
            self._owned_under = fence
            failpoint("dispatcher.timetable.after")
        self._server.told(self._schedules.now())
        found, unreadable = self._schedules.all()
        for name in unreadable:
            log.error("a schedule cannot be read by this version; it does not fire", schedule=name)
        before, self._entries = self._entries, {}
        self._coming = []
        for stored in found:
            self._take_in(stored, before.get(stored.schedule.name))
        self._known = True

    def _take_in(self, stored: Stored, entry: _Entry | None) -> None:
        name = stored.schedule.name
        try:
            if entry is not None and entry.stored.revision == stored.revision:
                entry.refresh(stored)
            else:
                entry = _Entry(stored)
        except (InvalidJob, ValueError) as error:
            log.error("a schedule is not valid here; it does not fire", schedule=name, error=error)
            return
        self._entries[name] = entry
        self._expect(name, entry)

    def _expect(self, name: str, entry: _Entry) -> None:
        moment = entry.next()
        if moment is not None:
            self._expected[name] = moment
            heapq.heappush(self._coming, (moment, name))

    def _due(self) -> list[Fire]:
        now = self._server.now_ms()
        fires: list[Fire] = []
        while self._coming and self._coming[0][0] <= now:
            moment, name = heapq.heappop(self._coming)
            if self._expected.get(name) == moment:
                del self._expected[name]
                fires += self._entries[name].due(now)
        return fires

    def _queued(self, now: float) -> list[Fire]:
        if now < self._poll_at:
            return []
        self._poll_at = now + QUEUE_POLL
        return [entry.queued() for entry in self._entries.values() if entry.waiting and entry.stored.paused is None]

    def _fire(self, fence: str, fires: Sequence[Fire]) -> bool:
        failpoint("dispatcher.fire.before")
        try:
            now, answers = self._schedules.fire(fence, fires, self._keep_ms)
        except QueueFull as error:
            log.warning("schedules cannot fire", due=len(fires), error=error)
            self._not_before = self._clock.boottime() + REFUSED_PAUSE
            self.forget()
            return False
        failpoint("dispatcher.fire.after")
        self._server.told(now)
        for fire, answer in zip(fires, answers, strict=True):
            self._learn(fire, answer)
        for name in {fire.stored.schedule.name for fire in fires if fire.how != "queued"}:
            self._expect(name, self._entries[name])
        return True

    def _learn(self, fire: Fire, answer: Answer) -> None:
        name, entry = fire.stored.schedule.name, self._entries[fire.stored.schedule.name]
        match answer.word:
            case "fired":
                log.info("schedule fired", schedule=name, job=answer.job)
            case "skipped":
                log.notice("schedule skipped: its last job has not ended", schedule=name, job=answer.job)
            case "queued":
                log.info("schedule waits for its last job", schedule=name, job=answer.job)
            case "changed":
                self.forget()
                return
            case "early" | "busy":
                return
        if fire.how == "queued":
            entry.waiting.pop(0)
        else:
            entry.cursor = fire.time
            if answer.word == "queued":
                replacing = entry.stored.schedule.if_running == "replace"
                entry.waiting = [fire.time] if replacing else [*entry.waiting, fire.time]
            elif answer.word == "fired" and entry.stored.schedule.if_running == "replace":
                entry.waiting = []
        if fire.missed:
            log.warning(
                "schedule missed times", schedule=name, count=fire.missed, catch_up=fire.stored.schedule.catch_up
            )


def _calls(fires: Sequence[Fire]) -> Iterator[list[Fire]]:
    """As many as one call of the script should carry."""
    some: list[Fire] = []
    size = 0
    for fire in fires:
        length = len(fire.submission.spec) if fire.submission is not None else 0
        if some and (len(some) == FIRES_PER_CALL or size + length > BYTES_PER_CALL):
            yield some
            some, size = [], 0
        some.append(fire)
        size += length
    if some:
        yield some
