"""The dispatcher: pending jobs -> dispatch channels, what is due or unblocked -> pending, lost work -> back.

It blocks on the bell and keeps in memory what placement looks at: how much is pending of each class and
priority, and the window and entries of each channel. Every answer of the store corrects that picture; after
any doubt it is read anew. The jobs themselves never pass through this process: one script call moves many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from jobschedd.clock import Clock
from jobschedd.errors import DataLost, NotTheLeader, QueueFull, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import Target
from jobschedd.logs import get_logger
from jobschedd.master.auditor import Auditor
from jobschedd.master.bounds import PLACE, USED, Bounds
from jobschedd.master.budgets import LOOK_EVERY, Budgets
from jobschedd.master.cadences import Cadences
from jobschedd.master.draining import Draining
from jobschedd.master.guard import Guard
from jobschedd.master.keeping import Keeping, shortage
from jobschedd.master.leadership import Leadership
from jobschedd.master.offers import Offers
from jobschedd.master.placement import ChannelView, Demand, Placement, Share, able
from jobschedd.master.timetable import Timetable
from jobschedd.outage import Outage
from jobschedd.store.bell import BELL_LIMIT, Bell
from jobschedd.store.moves import Assignment, Dispatched, LeaseState, Moves, Requeued
from jobschedd.store.survey import ChannelInfo, Head, Survey

log = get_logger(__name__)

#: Jobs that one script call may move: it bounds how long the server is busy with us (about 10 ms).
JOBS_PER_CALL = 1000
ENTRIES_PER_REQUEUE = 500
#: Conditions of waiting jobs that one look checks; how often. About a millisecond of the server's time.
CONDITIONS_PER_CHECK = 1000
RECHECK_EVERY = 1.0
#: Rounds of dispatching before the bell and the lead are looked at again.
ROUNDS = 8
#: Classes that are remembered even if nothing of them is pending: looking them up anew costs a little.
MOST_CLASSES = 1000
CLASSES_PER_CALL = 500
HOLDERS_PER_CALL = 500
#: Seconds between two looks at how long lists have waited, at most.
LONGEST_AGEING_SCAN = 30.0
SURVEY_EVERY = 30.0
#: Channels among which the one to be kept for a job is chosen.
MOST_COMPARED = 64
#: Seconds for which jobs of a class go to channels one by one after some were given back.
SPREAD_FOR = 10.0
CHECK_EVERY = 60.0
STANDBY_POLL = 0.25
#: Seconds between looks for an operator's order, and between two steps of a rebuild.
LOSS_POLL = 0.5
REBUILD_PAUSE = 0.1
LONGEST_BACK_OFF = 2.0
#: A walk over all records begins so often, in leases of a channel.
AUDIT_EVERY = 2


class Dispatcher:
    """One per master instance. ``lease``, ``reap_scan``, ``block`` in seconds; ``keep_ms``: of ends without success;
    ``keep_successes_ms``: of the others.
    ``check`` raises StoreRefused where the server cannot hold jobs safely: then nothing is dispatched. ``limits``: as
    configured (see ``limits.stored``). ``ageing``: seconds of waiting that count as one step of priority.
    ``keep_after``: seconds of waiting after which a channel is kept for a job that needs much; 0: never.
    """

    def __init__(
        self,
        *,
        moves: Moves,
        survey: Survey,
        bell: Bell,
        leadership: Leadership,
        placement: Placement,
        clock: Clock,
        lease: float,
        reap_scan: float,
        block: float,
        keep_ms: int,
        keep_successes_ms: int,
        check: Callable[[], None] = lambda: None,
        guard: Guard | None = None,
        limits: Mapping[str, str] | None = None,
        ageing: float | None = None,
        budgets: Budgets | None = None,
        timetable: Timetable | None = None,
        keep_after: float = 0.0,
    ) -> None:
        self._keeping = Keeping(keep_after)
        self._ageing = ageing
        self._aged: dict[tuple[int, int], int] = {}  # steps that pending lists have gained by waiting
        self._came_back: dict[int, float] = {}  # class -> boot time until which its jobs are spread
        self._configured_limits = dict(limits or {})
        self._bounds = Bounds()
        self._guard = guard
        self._budgets = budgets
        self._timetable = timetable
        self._check = check
        self._moves = moves
        self._survey = survey
        self._bell = bell
        self._leadership = leadership
        self._placement = placement
        self._clock = clock
        self._lease = lease
        self._block = block
        self._keep_ms = keep_ms
        self._pending: dict[tuple[int, int], int] = {}
        self._classes: dict[int, Target] = {}
        self._channels: dict[str, ChannelView] = {}
        self._full_nodes: set[str] = set()  # nodes with a channel that a limit closes
        self._remembered: dict[str, tuple[str, ...]] = {}
        self._left: set[str] = set()  # incarnations whose entries wait to be taken back
        self._draining = Draining(moves, survey, JOBS_PER_CALL)
        self._said_kept = False  # that channels are kept, in Redis
        self._checked = False  # whether this server will do: a lead on another means nothing
        self._surveyed = False
        self._offers = Offers(moves, placement, self._is_unbounded, keep_successes_ms)
        self._more_to_do = False
        self._to_unblock = False  # jobs may wait to be told of ends
        self._due_at = 0.0  # boot time at which something scheduled is due
        self._answered = 0.0  # boot time of Redis' last answer
        self._trusted_since: float | None = None
        self._server_ahead: float | None = None  # the server's clock before ours, at the last look
        self._outage = Outage(log, clock, LONGEST_BACK_OFF)
        self._beat: Callable[[str], None] = lambda doing: None
        self._doing = "leading: looks at everything"
        every = AUDIT_EVERY * lease
        self._auditor = Auditor(moves, clock, every=every, grace=lease, keep_ms=keep_ms)
        self._cadences = Cadences(clock, self._go_on)
        self._auditing = self._cadences.add(every, self._audit)
        for duty in (
            self._reap,
            self._repeat_hints,
            self._keep_deadlines,
            self._recover_gone,
            self._take_in_announcements,
        ):
            self._cadences.add(reap_scan, duty)
        self._cadences.add(SURVEY_EVERY, self._look_at_everything)
        self._cadences.add(RECHECK_EVERY, self._recheck_waiting)
        self._cadences.add(CHECK_EVERY, self._check)
        self._cadences.add(LOOK_EVERY, self._look_after_memory)
        if ageing:
            self._cadences.add(min(LONGEST_AGEING_SCAN, ageing / 4), self._see_ages)
        if keep_after:
            self._cadences.add(min(SURVEY_EVERY, keep_after / 4), self._keep_channels)

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object], beat: Callable[[str], None]) -> None:
        """Until ``stopping``. Redis away or the lead lost: step back, wait a little, go on."""
        self._beat = beat
        while not stopping():
            try:
                beat(self.step(wait))
                self._outage.over()
            except NotTheLeader:
                log.warning("lost the lead: standing by")
                self._forget()
                self._leadership.step_down()
                self._ring_for_everything()
            except DataLost as error:
                beat(f"stopped, see jobsched doctor: {error}")
                self._stand_still()
                wait(LOSS_POLL)
            except (StoreUnavailable, StoreRefused, QueueFull) as error:
                self._forget()
                self._checked = False
                beat(f"waiting for Redis: {error}")
                wait(self._outage.failed(error))
        self._leadership.release()

    def step(self, wait: Callable[[float], object]) -> str:
        """One turn; answers what to tell the supervisor. Raises DataLost where Redis is not the one that we know."""
        if not self._checked:
            self._check()
            self._checked = True
        if self._guard is not None:
            self._guard.check()
        if self._timetable is not None:
            self._timetable.present()
        led_as = self._leadership.fence
        if not self._leadership.hold():
            if self._surveyed:
                self._ring_for_everything()
            self._forget()
            wait(STANDBY_POLL)
            return "standing by"
        if self._leadership.fence != led_as:
            self._forget()  # another may have led in between, and have heard what we do not know
        self._note_answer()
        if self._guard is not None and self._guard.rebuilding:
            self._load_functions()
            wait(REBUILD_PAUSE)
            return self._guard.rebuild(self._leadership.fence)
        if not self._surveyed:
            self._load_functions()
            self._go_on()
            self._moves.configure_limits(self._leadership.fence, self._configured_limits)
            failpoint("dispatcher.configure.after")
            self._look_at_everything()
            failpoint("dispatcher.survey.after")
            self._go_on()
        self._listen()
        self._fire_due()
        self._promote_due()
        self._unblock()
        self._cadences.keep()
        self._take_back()
        self._dispatch()
        self._offer()
        self._doing = f"leading: {len(self._channels)} channels, {sum(self._pending.values())} pending"
        return self._doing

    def _go_on(self) -> None:
        """Between two calls of a turn: over a slow line it takes longer than the lead and our supervisor's patience."""
        fence = self._leadership.fence
        if not self._leadership.hold() or self._leadership.fence != fence:
            raise NotTheLeader("the lead ended in the middle of a turn")
        self._note_answer()
        self._beat(self._doing)

    def _stand_still(self) -> None:
        """Data are lost: nobody leads; an operator may have ordered what to do."""
        assert self._guard is not None
        self._forget()
        self._leadership.step_down()
        self._guard.abandon()
        try:
            self._guard.attend()
        except (StoreUnavailable, StoreRefused) as error:
            log.debug("could not ask what the operator ordered", error=error)

    def _take_in_announcements(self) -> None:
        if self._guard is not None:
            self._guard.take_in(self._leadership.fence)

    def _ring_for_everything(self) -> None:
        """What we heard since we lost the lead was meant for our successor."""
        try:
            self._bell.ring_for_everything()
        except (StoreUnavailable, StoreRefused, QueueFull) as error:
            log.debug("could not ring for the new leader; it looks at everything by itself", error=error)

    def _load_functions(self) -> None:
        try:
            self._moves.load_functions()
        except StoreRefused as error:
            log.warning("may not load our functions; channels must be allowed to", error=error)

    def _forget(self) -> None:
        self._offers.forget()
        if self._guard is not None:
            self._guard.doubt()
        self._read_schedules_again()
        self._surveyed = False
        self._doing = "leading: looks at everything"
        self._trusted_since = None
        self._auditor.forget()

    def _note_answer(self) -> None:
        """Trust in silence of others needs our own answers without a gap: a stalled Redis lets leases end unrenewed."""
        now = self._clock.boottime()
        if self._trusted_since is None or now - self._answered > self._lease / 3:
            self._trusted_since = now
        self._answered = now

    @property
    def _trusting(self) -> bool:
        return self._trusted_since is not None and self._clock.boottime() - self._trusted_since >= self._lease

    # -- what changed -----------------------------------------------------------------------------------------

    def _look_at_everything(self) -> None:
        self._bell.silence()
        self._classes = self._survey.classes()
        self._pending = self._survey.pending()
        for job_class, _ in self._pending:
            self._offers.see(job_class)  # the bell's word of these is lost
        self._go_on()
        self._draining.read()
        self._heal()
        self._go_on()
        self._bounds.set(self._survey.limits())
        self._forget_classes()
        known = self._survey.channels()
        self._go_on()
        self._remember(info for info in known.values() if info is not None)
        self._left = {incarnation for incarnation, info in known.items() if info is None}
        views = {}
        for incarnation, info in known.items():
            if info is not None:
                views[incarnation] = self._channels.get(incarnation) or self._view(incarnation, info)
        self._channels = views
        self._offers.forget()
        self._see_leases(*self._moves.reap(self._leadership.fence, list(views)))
        self._open_and_close()
        self._draining.acknowledge(self._leadership.fence)
        self._go_on()
        self._due_at = 0.0
        self._read_schedules_again()
        self._see_ages()
        self._to_unblock = True
        if not self._surveyed:
            self._keeping.adopt(self._survey.kept())
            self._said_kept = True
            self._keep_channels()
        self._surveyed = True

    def _listen(self) -> None:
        messages = self._bell.listen(self._patience())
        self._note_answer()
        if not messages:
            return
        failpoint("dispatcher.bell.after")
        if len(messages) >= BELL_LIMIT:
            self._look_at_everything()
            return
        for message in messages:
            try:
                self._hear(message)
            except ValueError:
                log.warning("the bell rang something unreadable", heard=":".join(message)[:80])

    def _patience(self) -> float:
        if self._more_to_do or self._to_unblock:
            return 0.0
        now = self._clock.boottime()
        soonest = min(self._due_at or now, self._cadences.soonest)
        if self._timetable is not None:
            soonest = min(soonest, self._timetable.due_at)
        if next_start := self._bounds.tick(now):
            soonest = min(soonest, next_start)
        return max(0.0, min(self._block, soonest - now))

    def _hear(self, message: list[str]) -> None:
        match message:
            case ["p", job_class, priority, count]:
                self._pending[int(job_class), int(priority)] = int(count)
                self._offers.see(int(job_class))
            case ["o", job_class, incarnation]:
                self._note_taken(int(job_class), incarnation)
            case ["r", incarnation, taken]:
                self._freed(incarnation, int(taken))
            case ["b", job_class]:
                self._came_back[int(job_class)] = self._clock.boottime() + SPREAD_FOR
            case ["w", incarnation, window, taken]:
                self._freed(incarnation, int(taken), int(window))
            case ["c", incarnation]:
                self._welcome(incarnation)
            case ["l", incarnation]:
                self._say_goodbye(incarnation)
            case ["s"]:
                self._due_at = 0.0
            case ["t"]:
                self._read_schedules_again()
            case ["unblock"]:
                self._to_unblock = True
            case ["x"]:
                self._repeat_hints()
            case ["a"]:
                self._look_at_everything()
            case ["f", *limit]:
                self._bounds.freed(":".join(limit))
            case ["m"]:
                self._bounds.set(self._survey.limits())
                self._fill_again()
            case ["d"]:
                self._draining.read()
                self._open_and_close()
                self._draining.acknowledge(self._leadership.fence)
            case _:
                log.warning("the bell rang something unknown", heard=":".join(message)[:80])

    def _freed(self, incarnation: str, taken: int, window: int | None = None) -> None:
        view = self._view_of(incarnation)
        if view is None:
            return
        view.entries = max(0, view.entries - max(0, taken))
        if window is not None:
            view.window = window
        if view.node in self._full_nodes:
            self._fill_again(view.node)

    def _fill_again(self, node: str | None = None) -> None:
        """Something of this node ended (None: of any): its limit may let more in."""
        for view in self._all_channels():
            view.full = view.full and node is not None and view.node != node
        self._full_nodes = self._full_nodes - {node} if node is not None else set()

    def _welcome(self, incarnation: str) -> None:
        info = self._survey.channel(incarnation)
        if info is None:
            return
        if incarnation not in self._channels:
            self._channels[incarnation] = self._view(incarnation, info)
            self._bounds.freed(f"{USED}{info.node}/{info.channel}")
            self._offers.forget()
            log.info(
                "channel is here", channel=f"{info.node}/{info.channel}", slots=info.slots, incarnation=incarnation
            )
        self._remember([info])
        self._see_leases(*self._moves.reap(self._leadership.fence, [incarnation]))
        self._open_and_close()
        self._go_on()

    def _remember(self, channels: Iterable[ChannelInfo]) -> None:
        """For jobs that are meant for all nodes, those that are away included."""
        new = [info for info in channels if self._remembered.get(info.incarnation) != info.labels]
        self._moves.remember(self._leadership.fence, new)
        self._remembered |= {info.incarnation: info.labels for info in new}

    def _view(self, incarnation: str, info: ChannelInfo) -> ChannelView:
        return ChannelView(
            incarnation,
            info.node,
            info.channel,
            max(1, info.slots),
            frozenset(info.labels),
            resources=info.resources,
            most_slots=info.most_slots,
        )

    def _say_goodbye(self, incarnation: str) -> None:
        self._left.add(incarnation)
        view = self._channels.pop(incarnation, None)
        self._offers.forget()
        self._remembered.pop(incarnation, None)
        if view is not None:
            log.info("channel left", channel=f"{view.node}/{view.name}", incarnation=incarnation)

    def _open_and_close(self) -> None:
        for view in self._channels.values():
            view.open = view.window >= 0 and not self._draining.of(view) and view.node != ""

    # -- duties with a cadence --------------------------------------------------------------------------------

    def _read_schedules_again(self) -> None:
        if self._timetable is not None:
            self._timetable.forget()

    def _fire_due(self) -> None:
        if self._timetable is not None:
            self._timetable.fire_due(self._leadership.fence, self._go_on)

    def _promote_due(self) -> None:
        now = self._clock.boottime()
        if now < self._due_at:
            return
        promoted, expired, soonest = self._moves.promote(self._leadership.fence, self._keep_ms, JOBS_PER_CALL)
        if promoted or expired:
            failpoint("dispatcher.promote.after")
            log.debug("due", promoted=promoted, expired=expired)
        self._due_at = now + min(SURVEY_EVERY, SURVEY_EVERY if soonest is None else soonest)
        self._go_on()

    def _unblock(self) -> None:
        """Tell those that wait for ended jobs, a call's worth a turn: there may be a million of them."""
        if not self._to_unblock:
            return
        failpoint("dispatcher.unblock.before")
        answer = self._moves.unblock(self._leadership.fence, self._keep_ms, JOBS_PER_CALL)
        self._to_unblock = answer.left > 0
        if answer.seen:
            failpoint("dispatcher.unblock.after")
            log.debug("unblocked", jobs=answer.unblocked, skipped=answer.skipped, ends_left=answer.left)
        self._go_on()

    def _recheck_waiting(self) -> None:
        _, mended = self._moves.recheck(self._leadership.fence, CONDITIONS_PER_CHECK)
        if mended:
            log.warning("jobs waited for what is gone, or does not know of them", conditions=mended)
            self._to_unblock = True

    def _repeat_hints(self) -> None:
        for _ in range(ROUNDS):
            _, tasks = self._moves.repeat_hints(self._leadership.fence, JOBS_PER_CALL)
            if not tasks:
                return
            failpoint("dispatcher.cancel.before")
            self._moves.cancel(tasks, self._keep_ms)
            self._go_on()

    def _look_after_memory(self) -> None:
        if self._budgets is not None:
            self._budgets.look(self._leadership.fence)

    def _keep_deadlines(self) -> None:
        self._draining.keep_deadlines(self._leadership.fence, self._channels.values(), self._go_on)

    def _reap(self) -> None:
        """Look for incarnations whose lease is gone."""
        self._fill_again()
        if self._channels:
            self._see_leases(*self._moves.reap(self._leadership.fence, list(self._channels)))
            self._open_and_close()

    def _audit(self) -> None:
        self._auditing.due = self._clock.boottime() + self._auditor.look(self._leadership.fence)

    def _recover_gone(self) -> None:
        self._auditor.recover(self._leadership.fence)

    def _note_server_clock(self, now_ms: int) -> None:
        """A clock of Redis that is set forward ends all leases at once, though everybody has renewed them."""
        now = self._clock.boottime()
        ahead = now_ms / 1000 - now
        if self._server_ahead is not None and ahead - self._server_ahead > self._lease / 3:
            log.warning("the clock of Redis was set forward", seconds=round(ahead - self._server_ahead, 1))
            self._trusted_since = now
        self._server_ahead = ahead

    def _see_leases(self, now_ms: int, leases: dict[str, LeaseState]) -> None:
        self._note_server_clock(now_ms)
        for incarnation, lease in leases.items():
            view = self._channels[incarnation]
            if lease.missing_since and view.window >= 0:
                log.warning("channel is silent: its lease ended", channel=f"{view.node}/{view.name}")
            view.window = lease.window
            view.entries = lease.entries
            if lease.missing_since and self._trusting:
                self._take_from_lost(incarnation, lease.missing_since)

    # -- limits and classes -----------------------------------------------------------------------------------

    def _see_ages(self) -> None:
        """By the job that has waited longest in each list: the first."""
        if self._ageing:
            now_ms, since = self._survey.waiting_since(list(self._pending))
            self._aged = {key: int(max(0, now_ms - at) / 1000 / self._ageing) for key, at in since.items()}

    def _keep_channels(self) -> None:
        """For jobs that need much of one, and have waited for too long behind small ones."""
        demands = {demand.key: demand for demand in self._demands() if demand.target.resources and self._keeping.after}
        self._keeping.tidy(demands, {view.incarnation for view in self._channels.values() if view.open})
        self._keeping.release(key for key in self._keeping.channels.values() if self._is_bounded(demands[key]))
        heads = self._survey.heads(list(demands)) if demands else {}
        for key in self._keeping.starving(heads, self._clock.boottime()):
            taken = self._keeping.channels
            views = able(demands[key].target, [view for view in self._all_channels() if view.incarnation not in taken])
            if views and not self._is_bounded(demands[key]):
                self._keep(demands[key], heads[key], views)
        self._say_what_is_kept()

    def _is_bounded(self, demand: Demand) -> bool:
        """Room would not help it. The store tells so only where there is room, so it is asked."""
        return self._survey.is_bounded(demand.target, self._bounds.limits)

    def _keep(self, demand: Demand, head: Head, views: list[ChannelView]) -> None:
        """The channel that is nearest to having room."""
        some = sorted(views, key=lambda view: view.load)[:MOST_COMPARED]
        used = self._survey.used([view.place for view in some])
        best = min(some, key=lambda view: shortage(demand.target, view, used[view.place]))
        self._keeping.keep(demand.key, head, best)
        log.info("channel is kept for a job that needs much", channel=best.place, job=head.job, waits=round(head.waits))

    def _say_what_is_kept(self) -> None:
        """Again and again while there is anything, so that it is healed where it was lost."""
        kept = self._keeping.all()
        self._placement.kept = self._keeping.channels
        if kept or self._said_kept:
            self._moves.keep(self._leadership.fence, kept)
            failpoint("dispatcher.keep.after")
        self._said_kept = bool(kept)

    def _heal(self) -> None:
        """Nobody may count against a limit who is with no channel."""
        cursor = 0
        while True:
            cursor, healed = self._moves.heal(self._leadership.fence, cursor, HOLDERS_PER_CALL)
            if healed:
                log.warning("ended jobs still counted against a limit: they do not any more", count=healed)
            failpoint("dispatcher.heal.after")
            if not cursor:
                return
            self._go_on()

    def _forget_classes(self) -> None:
        """Where there are many, keep those in memory and store of which something is pending."""
        if len(self._classes) <= MOST_CLASSES:
            return
        pending = {job_class for job_class, _ in self._pending}
        unused = [number for number in self._classes if number not in pending]
        for first in range(0, len(unused), CLASSES_PER_CALL):
            some = [self._classes[number].key() for number in unused[first : first + CLASSES_PER_CALL]]
            self._moves.forget_classes(self._leadership.fence, some)
            failpoint("dispatcher.forget.after")
            self._go_on()
        self._classes = self._survey.classes()
        self._came_back = {number: until for number, until in self._came_back.items() if number in self._classes}

    def _target_of(self, job_class: int, priority: int) -> Target | None:
        """What a class asks for; of one that was forgotten meanwhile, the jobs themselves still say it."""
        if job_class not in self._classes:
            self._classes |= self._survey.classes()
        if job_class not in self._classes:
            target = self._survey.class_of_pending(job_class, priority)
            if target is not None:
                self._classes[job_class] = target
        return self._classes.get(job_class)

    # -- lost work --------------------------------------------------------------------------------------------

    def _take_back(self) -> None:
        """The entries of incarnations that said goodbye: not started, so nothing is charged."""
        for incarnation in list(self._left):
            failpoint("dispatcher.requeue.before")
            answer = self._requeue(incarnation, 0)
            if answer.reason != "left" or not answer.left:
                self._left.discard(incarnation)

    def _take_from_lost(self, incarnation: str, missing_since: int) -> None:
        failpoint("dispatcher.requeue.before")
        view = self._channels[incarnation]
        answer = self._requeue(incarnation, missing_since)
        if answer.jobs or not answer.left:
            log.warning(
                "channel is lost: its jobs go to others",
                channel=f"{view.node}/{view.name}",
                requeued=answer.requeued,
                lost=answer.lost,
                kept_back=answer.kept,
            )
        if answer.reason != "alive" and not answer.left:
            del self._channels[incarnation]
            self._offers.forget()
            self._remembered.pop(incarnation, None)

    def _requeue(self, incarnation: str, missing_since: int) -> Requeued:
        fence, keep = self._leadership.fence, self._keep_ms
        answer = self._moves.requeue(fence, incarnation, missing_since, keep, ENTRIES_PER_REQUEUE)
        failpoint("dispatcher.requeue.after")
        if answer.jobs:
            shown = " ".join(answer.jobs[:20]) + (" ..." if len(answer.jobs) > 20 else "")
            log.info("requeued", incarnation=incarnation, jobs=shown, count=len(answer.jobs), reason=answer.reason)
        self._go_on()
        return answer

    # -- dispatching ------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._more_to_do = False
        for number in range(ROUNDS):
            if number:
                self._go_on()
            shares = self._placement.place(self._demands(), self._candidates(), JOBS_PER_CALL)
            if not shares:
                return
            assignments = [self._assignment(share) for share in shares]
            failpoint("dispatcher.dispatch.before")
            self._offers.forget()
            answers = self._send(assignments)
            failpoint("dispatcher.dispatch.after")
            self._note_answer()
            for share, assignment, answer in zip(shares, assignments, answers, strict=True):
                self._learn(assignment, answer.left, answer.entries, answer.window)
                self._note_bound(assignment, answer)
                self._placement.refund(share, share.count - answer.sent)
                if share.demand.target.resources and answer.sent:
                    self._note_served(share.demand)
        self._more_to_do = True

    def _note_served(self, demand: Demand) -> None:
        if self._keeping.served(demand.key, self._clock.boottime()):
            self._say_what_is_kept()

    def _offer(self) -> None:
        """While nothing waits, the next job of a class need not wait for us."""
        if self._pending or self._more_to_do:
            return
        self._offers.renew(self._leadership.fence, self._candidates(), self._demand_of)

    def _note_taken(self, job_class: int, incarnation: str) -> None:
        self._offers.see(job_class)
        view = self._view_of(incarnation)
        if view is not None:
            view.entries += 1

    def _demand_of(self, job_class: int) -> Demand | None:
        """One job of this class."""
        target = self._classes.get(job_class)
        return None if target is None else Demand(job_class, 0, target, 1)

    def _is_unbounded(self, demand: Demand, view: ChannelView) -> bool:
        """It counts against nothing: it has no group that may be paused, no limit, and takes one slot and no more."""
        return not self._bounds.terms(demand.target, view, self._all_channels())

    def _assignment(self, share: Share) -> Assignment:
        demand, view = share.demand, self._view_of(share.incarnation)
        assert view is not None
        terms = self._bounds.terms(demand.target, view, self._all_channels())
        return Assignment(demand.job_class, demand.priority, share.incarnation, share.count, terms)

    def _note_bound(self, assignment: Assignment, answer: Dispatched) -> None:
        view = self._view_of(assignment.incarnation)
        if answer.bound == PLACE and view is not None:
            view.full = True
            self._full_nodes.add(view.node)
        elif answer.bound:
            self._bounds.note(assignment.job_class, answer.bound, self._clock.boottime(), answer.wait_ms)

    def _all_channels(self) -> Iterable[ChannelView]:
        return self._channels.values()

    def _candidates(self) -> Iterable[ChannelView]:
        return self._channels.values()

    def _view_of(self, incarnation: str) -> ChannelView | None:
        return self._channels.get(incarnation)

    def _send(self, assignments: Sequence[Assignment]) -> list[Dispatched]:
        return self._moves.dispatch(self._leadership.fence, assignments, self._keep_ms)

    def _demands(self) -> list[Demand]:
        demands = []
        for (job_class, priority), count in self._pending.items():
            if count <= 0 or self._bounds.waits(job_class):
                continue
            target = self._classes.get(job_class) or self._target_of(job_class, priority)
            if target is not None and target.group not in self._draining.paused_groups:
                aged, spread = self._aged.get((job_class, priority), 0), self._is_spread(job_class)
                demands.append(Demand(job_class, priority, target, count, self._bounds.closed(job_class), aged, spread))
        return demands

    def _is_spread(self, job_class: int) -> bool:
        """Whether jobs of this class were given back of late, as they had to wait behind one that takes its time."""
        return job_class in self._came_back and self._clock.boottime() < self._came_back[job_class]

    def _learn(self, assignment: Assignment, left: int, entries: int, window: int) -> None:
        if left:
            self._pending[assignment.job_class, assignment.priority] = left
        else:
            self._pending.pop((assignment.job_class, assignment.priority), None)
            self._aged.pop((assignment.job_class, assignment.priority), None)
        view = self._view_of(assignment.incarnation)
        if view is not None:
            view.entries, view.window = entries, window
            view.open = view.open and window >= 0
