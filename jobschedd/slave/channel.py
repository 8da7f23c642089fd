"""The channel process: its dispatch stream -> job processes -> the result stream; it renews its lease.

It never runs user code and never waits for Redis: jobs are supervised, timed out and their results spooled
whether Redis answers or not. What it must not do without Redis is start anything: nothing starts past the
lease, which is counted from before the renewal was sent.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec

from jobschedd.clock import SYSTEM_CLOCK, Clock
from jobschedd.errors import DataLost, JobschedError, ProtocolError, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import (
    Captured,
    Cause,
    Flag,
    Order,
    Outcome,
    Report,
    ReportKind,
    Result,
    decode_report,
    decode_spec,
    encode,
)
from jobschedd.logs import get_logger
from jobschedd.outage import Outage
from jobschedd.slave.executor import Executor
from jobschedd.slave.joblog import JobLog
from jobschedd.slave.live import LiveOutput
from jobschedd.slave.loop import Loop
from jobschedd.slave.recovery import kill_survivors, settle_predecessors
from jobschedd.slave.register import boot_id
from jobschedd.slave.settings import ExecutionSettings
from jobschedd.slave.spool import Home
from jobschedd.slave.window import Window
from jobschedd.store.channel import ORDERS_PER_READ, ChannelStore, Hint, OrderEntry, StoreState
from jobschedd.store.knock import Knock
from jobschedd.store.marks import STORIES, Announcement, announcement
from jobschedd.store.pipe import Pipe
from jobschedd.store.survey import ChannelInfo
from jobschedd.version import VERSION

log = get_logger(__name__)

#: Seconds between looks at what runs, while anything does.
TICK = 0.05
#: A job that still runs after this is said to be running.
ANNOUNCE_AFTER = 0.05
#: An exclusive job is killed this long before the lease ends, or a fifth of the lease where that is shorter.
LEASE_MARGIN = 2.0
#: What is unanswered for this long is forced to the disk.
SYNC_AFTER = 0.1
#: Seconds that reports may wait for each other while more jobs are about to end, and how many at most.
GATHER, MOST_GATHERED = 0.04, 200
#: Bytes of one report call: more would keep the server, and us, busy for too long.
MOST_BYTES = 4 << 20
#: Bytes that a report takes beside its result.
REPORT_ROOM = 4096
#: Pause after the node was short of processes, memory or files.
SHORTAGE_PAUSE = 1.0
#: Seconds between two tries to connect, at most.
LONGEST_BACK_OFF = 2.0
#: What a stop at once may spend on sending the last results.
LAST_WORDS = 1.5
IDLE = 1.0


class Supervision(Protocol):
    """What the channel needs of its supervisor's side (see ``node.context.ChildContext``)."""

    def ready(self, status: str = "") -> None: ...
    def beat(self, status: str = "") -> None: ...
    def fileno(self) -> int: ...
    def check(self) -> int: ...


RUN, DRAIN, NOW = 0, 1, 2
#: A flag as a plain number: the arithmetic of enumerations takes a microsecond, of the twenty that a job takes here.
_FOLLOWED = int(Flag.FOLLOWED)
#: A window that nobody says: ours has to be said again.
_UNKNOWN = -1


@dataclass(frozen=True)
class ChannelSettings:
    """One channel of one node. Times in seconds."""

    node: str
    name: str
    slots: int
    labels: tuple[str, ...]
    execution: ExecutionSettings
    home: str  # which state directory of which machine: two daemons must not share a channel name
    heartbeat: float
    lease: float
    return_after: float
    prefetch: float
    drain_timeout: float
    transport: str = "stream"
    resources: Mapping[str, int] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """``node/name``."""
        return f"{self.node}/{self.name}"


class Channel:
    """One incarnation. ``open_store(incarnation)`` connects; it may raise StoreUnavailable or StoreRefused.

    ``knock()`` asks aside whether it is worth while: what runs must not wait for a server that is silent.
    """

    def __init__(
        self,
        settings: ChannelSettings,
        home: Home,
        open_store: Callable[[str], ChannelStore],
        supervision: Supervision,
        clock: Clock = SYSTEM_CLOCK,
        knock: Callable[[], Knock] | None = None,
    ) -> None:
        self.settings = settings
        self.incarnation = secrets.token_hex(8)
        self._home = home
        self._open_store = open_store
        self._supervision = supervision
        self._clock = clock
        self._loop = Loop(clock)
        self._register, self._spool = home.open(self.incarnation, settings.slots)
        self._executor = Executor(settings.slots, self._loop, settings.execution, self._register, self._job_ended)
        self._window = Window(settings.slots, settings.prefetch)
        self._job_log = JobLog(clock)
        self._live = LiveOutput(self._executor, clock, self._publish, self._end_output, self._backlog)
        self._store: ChannelStore | None = None
        self._watched: tuple[int, ...] = ()  # its descriptors, which it may have closed by itself
        self._connect_due = 0.0
        self._new_knock = knock
        self._knock: Knock | None = None
        # When Redis is back, we are before anybody can take our silence for our end.
        self._outage = Outage(log, clock, min(LONGEST_BACK_OFF, settings.lease / 4))
        self._lease_until = 0.0  # boot time past which nothing may start
        self._renew_due = 0.0
        self._ended: list[tuple[Order, Result]] = []
        self._outgoing: list[tuple[str, bytes]] = []  # reports to send; entry "" for news
        self._reported_at = 0.0  # boot time of the last report call
        self._reporting: list[tuple[str, bytes]] | None = None  # the report call in flight
        self._said: set[str] | None = None  # answered since we connected, until the own history was read
        self._unsynced_since: float | None = None
        self._announced: set[str] = set()
        self._known = home.recall()  # identity and mark of the store's data, as we last saw them
        self._data_lost = False
        self._unstarted: dict[str, Order] = {}  # orders that went back when the connection broke, by entry
        self._unconfirmed: dict[str, Order] = {}  # orders whose results wait for an answer
        self._foreign: dict[str, str] = {}  # entries of data that were given up, and the identity of those
        self._waiting_for = ""  # our announcement that the master has not taken in yet
        self._said_window = _UNKNOWN
        self._filled = 0  # the window, where the last orders have filled it: more jobs wait
        self._refill_since = 0.0  # boot time of the first report call since then: what made room for more of them
        self._pause_until = 0.0
        self._tick_due = 0.0
        self._level = RUN
        self._drain_until = 0.0
        self._gone = False
        self._called = False
        self._heed_due = 0.0
        self._loop.watch(supervision.fileno(), self._call)

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until stopped; the exit code."""
        self._connect_if_due()
        self._supervision.ready(self._status())
        while not self._finished():
            self._loop.run_once(self._patience())
            self._heed_supervisor()
            self._keep_results()
            self._connect_if_due()
            self._start_jobs()
            self._look_after_jobs()
            self._talk_to_redis()
        self._close()
        return 0

    def _patience(self) -> float:
        now = self._clock.boottime()
        due = [self._renew_due if self._store else now + IDLE if self._knock else self._connect_due]
        if self._executor.busy or self._live.any or not self._executor.idle:
            due.append(self._tick_due)
        if self._pause_until > now:
            due.append(self._pause_until)
        if self._unsynced_since is not None:
            due.append(self._unsynced_since + SYNC_AFTER)
        if self._outgoing and self._reporting is None and self._store:
            due.append(self._reported_at + GATHER)
        return max(0.0, min(IDLE, min(due) - now))

    def _talk_to_redis(self) -> None:
        if self._store is None:
            return
        try:
            self._renew_lease()
            self._send_reports()
            self._notice_silence()
        except (StoreUnavailable, StoreRefused) as error:
            self._disconnect(error)

    def _guarded(self, step: Callable[[], None]) -> None:
        """A step that talks to Redis: when that fails, jobs go on and we connect anew."""
        if self._store is None:
            return
        try:
            step()
        except (StoreUnavailable, StoreRefused) as error:
            self._disconnect(error)

    def _status(self) -> str:
        away = "stopped, Redis has lost data" if self._data_lost else "waiting for Redis"
        state = "draining" if self._level else "ready" if self._store else away
        return f"{state}: {self._executor.slots_in_use()} of {self.settings.slots} slots busy"

    def _heed_supervisor(self) -> None:
        """At once when it wants something, else now and then: most turns of the loop are about one short job."""
        now = self._clock.boottime()
        if not self._called and now < self._heed_due:
            return
        self._called, self._heed_due = False, now + TICK
        self._obey()
        self._supervision.beat(self._status())

    def _call(self) -> None:
        self._called = True

    def _nothing(self) -> None:
        """To be woken is enough."""

    # -- connection -------------------------------------------------------------------------------------------

    def _connect_if_due(self) -> None:
        if self._store is not None or self._gone or self._clock.boottime() < self._connect_due:
            return
        if not self._is_worthwhile():
            return
        try:
            self._connect()
            self._outage.over()
        except (StoreUnavailable, StoreRefused) as error:
            self._disconnect(error)

    def _is_worthwhile(self) -> bool:
        """Whether to connect now, which blocks: at once when nothing runs, else when Redis has answered a knock."""
        if self._knock is None:
            if self._new_knock is None or not self._executor.busy:
                return True
            self._knock = self._new_knock()
            self._loop.watch(self._knock.fileno(), self._nothing)
        if not self._knock.answered:
            return False
        error = self._knock.error
        self._drop_knock()
        if error is not None:
            self._disconnect(error)
        return error is None

    def _drop_knock(self) -> None:
        if self._knock is not None:
            self._loop.unwatch(self._knock.fileno())
            self._knock.close()
        self._knock = None

    def _connect(self) -> None:
        store = self._open_store(self.incarnation)
        try:
            failpoint("channel.connect.opened")
            self._recognise(store)
            asked = self._clock.boottime()
            window = self._current_window()
            store.register(
                self.settings.full_name, self._info(), window, self._ms(self.settings.lease), self.settings.home
            )
            failpoint("channel.register.after")
            settle_predecessors(self._home, store, self.settings.full_name, self._clock)
        except Exception:
            store.close()
            raise
        self._store = store
        self._data_lost = False
        self._unstarted.clear()
        self._said_window = window
        self._hold_lease(asked)
        self._said = set()
        self._watched = tuple(pipe.fileno() for pipe in store.pipes)
        for pipe in store.pipes:
            self._loop.watch(pipe.fileno(), partial(self._guarded, pipe.read))
        self._outgoing = self._spool.unacknowledged() + [news for news in self._outgoing if not news[0]]
        store.read_orders(self._received)
        self._live.resume()
        failpoint("channel.connect.after")
        log.info("channel connected", channel=self.settings.full_name, incarnation=self.incarnation)

    def _disconnect(self, error: JobschedError) -> None:
        self._connect_due = self._clock.boottime() + self._outage.failed(error)
        if self._store is not None:
            self._know(*self._store.seen)
        self._drop_store()
        # What has not started is read again from the stream: by then it may be somebody else's.
        self._unstarted |= {order.entry: order for order in self._executor.give_back()}
        if isinstance(error, DataLost):
            self._waiting_for = ""
            if not self._data_lost:
                log.error("data are lost: nothing starts, and results are kept here", what=error)
            self._data_lost = True
        failpoint("channel.disconnect.after")

    # -- whether it is the store that we know -----------------------------------------------------------------

    def _recognise(self, store: ChannelStore) -> None:
        """Raises DataLost where it is not; StoreUnavailable until the master has heard what we have."""
        identity, mark = self._known
        there = store.look(identity)
        if there is None:
            return  # not for us to know
        if there.lost or (identity and not there.identity):
            raise DataLost(STORIES.get(there.lost or "emptied", there.lost))
        if identity and there.identity != identity:
            self._change_store(identity, there)
        elif there.mark < mark:
            raise DataLost(STORIES["rolled back"])
        elif identity and there.rebuilt > mark and self.settings.transport == "stream":
            self._announce(store)
        store.watch(there.identity, there.mark)
        self._know(there.identity, there.mark)

    def _know(self, identity: str, mark: int) -> None:
        if not identity or (identity, mark) == self._known:
            return
        self._known = identity, mark
        try:
            self._home.remember(identity, mark)
        except OSError as error:
            log.error("cannot keep what we know of Redis on disk", error=error)

    def _change_store(self, identity: str, there: StoreState) -> None:
        """Other data than those we worked for. What belongs to the old ones never mixes with the new."""
        at_stake = bool(self._unconfirmed or self._executor.busy or self._spool.unacknowledged())
        if not there.abandoned and (at_stake or any(one.unsent for one in self._home.predecessors())):
            raise DataLost(f"{STORIES['replaced']}; this channel still has jobs or results of the old data")
        reports = self._spool.unacknowledged()
        for predecessor in self._home.predecessors():
            kill_survivors(predecessor)
            reports += predecessor.unsent
        if reports:
            path = self._home.put_aside(identity, reports)
            log.error("results of data that were given up are put aside", count=len(reports), file=path)
        self._spool.acknowledge(entry for entry, _ in self._spool.unacknowledged())
        for predecessor in self._home.predecessors():
            self._home.discard(predecessor)
        self._outgoing.clear()
        self._unconfirmed.clear()
        self._unstarted.clear()
        self._foreign |= {running.order.entry: identity for running in self._executor.running()}
        log.notice("working for other data of Redis from now on", identity=there.identity, before=identity)

    def _announce(self, store: ChannelStore) -> None:
        """Redis lost data and was rebuilt: the master must hear what we have before we say anything of it."""
        if not self._waiting_for:
            self._waiting_for = store.announce(self._at_stake(), self._info)
            # A master that takes orders back learns anew what runs.
            self._announced.clear()
        if self._waiting_for and store.is_waiting(self._waiting_for):
            raise StoreUnavailable("data were lost and rebuilt: waiting for the master to take in what we have")
        self._waiting_for = ""

    def _at_stake(self) -> list[Announcement]:
        """What runs, ended or waits here, in the order in which it was dispatched."""
        orders = {running.order.entry: running.order for running in self._executor.running()}
        orders |= self._unstarted | self._unconfirmed
        found = [announcement(order, self.incarnation) for order in orders.values() if order.entry not in self._foreign]
        for predecessor in self._home.predecessors():
            for entry, packed in predecessor.unsent:
                with contextlib.suppress(ProtocolError):
                    report = decode_report(packed)
                    found.append(Announcement(report.job, report.attempt, entry, predecessor.incarnation))
        return sorted(found, key=lambda one: [int(part) for part in one.entry.split("-")])

    def _drop_store(self) -> None:
        if self._store is not None:
            for fd in self._watched:
                self._loop.unwatch(fd)
            self._store.close()
        self._watched = ()
        self._store = None
        # News is said only once: what may have been lost on its way is said again.
        self._outgoing = [news for news in self._reporting or () if not news[0]] + self._outgoing
        self._reporting = None
        self._filled, self._refill_since = 0, 0.0

    def _info(self, incarnation: str = "") -> bytes:
        settings = self.settings
        return msgspec.json.encode(
            ChannelInfo(
                node=settings.node,
                channel=settings.name,
                incarnation=incarnation or self.incarnation,
                slots=settings.slots,
                labels=settings.labels,
                pid=os.getpid(),
                host=socket.gethostname(),
                boot=boot_id(),
                version=VERSION,
                started=self._clock.now(),
                transport=settings.transport,
                aside=self._home.aside(),
                resources=dict(settings.resources),
                # On the classic wire nothing tells whether several are free at once.
                most_slots=settings.slots if settings.transport == "stream" else 1,
            )
        )

    @property
    def _open(self) -> ChannelStore:
        if self._store is None:
            raise StoreUnavailable("not connected")
        return self._store

    def _notice_silence(self) -> None:
        for pipe in self._open.pipes:
            if pipe.overdue():
                raise StoreUnavailable("Redis does not answer in time")
            if pipe.unsent:
                self._loop.watch_writable(pipe.fileno(), partial(self._guarded, partial(self._write, pipe)))

    def _write(self, pipe: Pipe) -> None:
        self._loop.unwatch_writable(pipe.fileno())
        pipe.write()

    # -- lease ------------------------------------------------------------------------------------------------

    def _hold_lease(self, asked: float) -> None:
        """Counted from before the request: the server cannot have begun to count any earlier."""
        self._lease_until = asked + self.settings.lease
        self._renew_due = asked + self.settings.heartbeat

    def _renew_lease(self) -> None:
        asked = self._clock.boottime()
        if asked < self._renew_due:
            return
        self._renew_due = asked + self.settings.heartbeat
        self._open.renew(self._ms(self.settings.lease), lambda held: self._renewed(asked, held))

    def _renewed(self, asked: float, held: bool) -> None:
        if not held:
            raise StoreUnavailable("our lease has ended; announcing ourselves again")
        self._hold_lease(asked)
        self._know(*self._open.seen)

    def _may_start(self) -> bool:
        now = self._clock.boottime()
        return self._store is not None and self._level == RUN and now < self._lease_until and now >= self._pause_until

    # -- orders -----------------------------------------------------------------------------------------------

    def _received(self, entries: list[OrderEntry], hints: list[Hint]) -> None:
        if entries:
            failpoint("channel.read.after")
        orders = [order for entry in entries if (order := self._order(entry)) is not None]
        if len(entries) < ORDERS_PER_READ:
            self._said = None
        slots_before = self._executor.extra_slots
        self._executor.accept(orders)
        self._note_room(bool(orders))
        if self._executor.extra_slots != slots_before:
            self._said_window = _UNKNOWN  # whoever sent them took their slots off it
        for hint in hints:
            self._take_hint(hint)
        self._start_jobs()  # before the server is asked for more: to wake it up takes a while
        self._open.read_orders(self._received)

    def _note_room(self, came: bool) -> None:
        """Orders came, or only hints did: is the window full, and how long did it take to fill it?"""
        if came and self._refill_since:
            self._window.note_refill(self._clock.boottime() - self._refill_since)
            self._refill_since = 0.0
        self._filled = max(0, self._said_window) if self._unanswered() >= self._said_window else 0

    def _order(self, entry: OrderEntry) -> Order | None:
        """None for what we have already, and for what is no order: that is said on the result stream."""
        if self._said is not None and self._is_known(entry.id):
            return None
        if entry.order is not None:
            return entry.order
        fields = entry.fields
        try:
            job, attempt = fields[b"job"].decode("ascii"), int(fields[b"attempt"])
            flags, spec_bytes = int(fields[b"flags"]), fields[b"spec"]
            crashes = int(fields.get(b"crashes", b"0"))
            gpus = tuple(map(int, fields[b"gpus"].split(b","))) if b"gpus" in fields else ()
        except (KeyError, ValueError) as error:
            self._refuse(entry, f"{type(error).__name__}: {error}")
            return None
        try:
            if len(spec_bytes) > self.settings.execution.max_payload:
                raise ProtocolError(
                    f"a spec of {len(spec_bytes)} bytes; the limit is {self.settings.execution.max_payload}"
                )
            order = Order(job, attempt, entry.id, decode_spec(spec_bytes), crashes=crashes, gpus=gpus)
        except ProtocolError as error:
            self._fail_unreadable(job, attempt, entry.id, str(error))
            return None
        if flags & _FOLLOWED:
            self._live.follow(job, attempt)
        return order

    def _refuse(self, entry: OrderEntry, reason: str) -> None:
        log.warning("not an order", entry=entry.id, reason=reason)
        sample = repr(entry.fields).encode()[:256]
        self._say(ReportKind.UNREADABLE, Order("", 0, entry.id, _NO_SPEC), entry.id, reason=reason, sample=sample)

    def _fail_unreadable(self, job: str, attempt: int, entry: str, reason: str) -> None:
        now = self._clock.now()
        result = Result(outcome=Outcome.FAILED, cause=Cause.UNREADABLE, error=reason, started=now, ended=now)
        self._job_ended(Order(job, attempt, entry, _NO_SPEC), result)

    def _is_known(self, entry: str) -> bool:
        """Only our own history, read after a connect, can hold entries that we know.

        It may even hold some whose reports were taken since: the two connections are answered in any order.
        """
        waits = any(entry == known for known, _ in (*self._outgoing, *(self._reporting or ())))
        ended = any(entry == order.entry for order, _ in self._ended)
        return waits or ended or entry in (self._said or ()) or self._executor.knows(entry)

    def _take_hint(self, hint: Hint) -> None:
        if hint.what == "cancel":
            # After a reconnect old hints are read again; the job may have been retried by a user since.
            self._executor.cancel(hint.job, hint.attempt)
            self._said_window = _UNKNOWN  # its order may have got lost, with slots that were taken off the window
        elif hint.what == "interrupt":
            self._executor.interrupt(hint.job, hint.attempt)
        else:
            self._live.follow(hint.job, hint.attempt)

    # -- jobs -------------------------------------------------------------------------------------------------

    def _start_jobs(self) -> None:
        if not self._may_start():
            return
        self._executor.depth = max(1, self._window.prefetch() // self.settings.slots)
        self._executor.fill()
        if self._executor.short_of_resources:
            self._executor.short_of_resources = False
            self._pause_until = self._clock.boottime() + SHORTAGE_PAUSE
            log.error("the node is short of processes, memory or files: nothing starts for a moment")
            self._return(self._executor.give_back())

    def _look_after_jobs(self) -> None:
        """While anything runs or waits: say what runs, give back what waits too long, keep within the lease."""
        now = self._clock.boottime()
        if now < self._tick_due or (self._executor.idle and not self._live.any):
            return
        self._tick_due = now + TICK
        for running in self._executor.running():
            if now - running.since >= ANNOUNCE_AFTER and running.order.entry not in self._announced:
                if running.order.entry in self._foreign:
                    continue
                self._announced.add(running.order.entry)
                self._say(ReportKind.STARTED, running.order, "", time=self._clock.now() - (now - running.since))
        if self._store is not None:
            late = self._executor.give_back(older_than=self.settings.return_after)
            if late:
                self._window.note_late()
                self._return(late)
        if now > self._lease_until - min(LEASE_MARGIN, self.settings.lease / 5):
            self._executor.kill_exclusive()
        self._live.look_after()

    def _return(self, orders: Iterable[Order]) -> None:
        for order in orders:
            failpoint("channel.return.before")
            self._unstarted[order.entry] = order
            self._say(ReportKind.RETURN, order, order.entry)

    def _job_ended(self, order: Order, result: Result) -> None:
        self._window.note_end(result.duration)
        self._live.ended(order)
        self._ended.append((order, result))

    def _keep_results(self) -> None:
        """Into the spool first: a finished job must not run again because its result could not be sent."""
        if self._ended:
            failpoint("channel.exit.before_spool")
            for order, result in self._ended:
                self._keep_result(order, result)
            self._ended.clear()
            self._write_spool()
            failpoint("channel.spool.after")
            self._executor.settle()
        self._sync_if_due()
        self._job_log.flush()

    def _keep_result(self, order: Order, result: Result) -> None:
        node, channel = self.settings.node, self.settings.name
        if (result.node, result.channel) == (node, channel):
            whole = result
        else:  # of a job that never came to run
            whole = msgspec.structs.replace(result, node=node, channel=channel)
        packed_result = self._packed(whole)
        self._announced.discard(order.entry)
        self._job_log.ended(order, whole)
        report = Report(
            kind=ReportKind.RESULT,
            job=order.job,
            attempt=order.attempt,
            entry=order.entry,
            incarnation=self.incarnation,
            outcome=whole.outcome,
            cause=whole.cause,
            result=packed_result,
        )
        packed = encode(report)
        if order.entry in self._foreign:
            self._put_aside(self._foreign.pop(order.entry), order.entry, packed)
            return
        self._unconfirmed[order.entry] = order
        self._spool.append(order.entry, packed)
        self._outgoing.append((order.entry, packed))

    def _put_aside(self, identity: str, entry: str, packed: bytes) -> None:
        try:
            path = self._home.put_aside(identity, [(entry, packed)])
            log.warning("put aside a result of data that were given up", file=path)
        except OSError as error:
            log.error("cannot keep a result of data that were given up", error=error)

    def _packed(self, result: Result) -> bytes:
        """A result that is too large to be taken loses its output, never its cause or its value."""
        packed = encode(result)
        if len(packed) <= 2 * self.settings.execution.max_payload - REPORT_ROOM:
            return packed
        bare = {name: Captured(size=getattr(result, name).size) for name in ("stdout", "stderr")}
        return encode(msgspec.structs.replace(result, **bare))

    def _write_spool(self) -> None:
        try:
            self._spool.flush()
        except OSError as error:
            log.error("cannot spool results: taking no new jobs for a moment", error=error)
            self._pause_until = self._clock.boottime() + SHORTAGE_PAUSE
        if self._unsynced_since is None:
            self._unsynced_since = self._clock.boottime()

    def _sync_if_due(self) -> None:
        if self._unsynced_since is None or self._clock.boottime() < self._unsynced_since + SYNC_AFTER:
            return
        self._unsynced_since = None
        try:
            self._spool.sync()
        except OSError as error:
            log.error("cannot force results to the disk", error=error)

    # -- reports ----------------------------------------------------------------------------------------------

    def _say(
        self, kind: ReportKind, order: Order, entry: str, *, time: float = 0.0, reason: str = "", sample: bytes = b""
    ) -> None:
        report = Report(
            kind=kind,
            job=order.job,
            attempt=order.attempt,
            entry=order.entry,
            incarnation=self.incarnation,
            time=time,
            reason=reason,
            sample=sample,
        )
        self._outgoing.append((entry, encode(report)))

    def _send_reports(self) -> None:
        """One call in flight; whatever comes up meanwhile goes with the next, so that load makes the batches."""
        if self._reporting is not None or self._may_gather():
            return
        window = self._current_window()
        changed = window if window != self._said_window else None
        if not self._outgoing and changed is None:
            return
        self._reported_at = self._clock.boottime()
        count = _within(MOST_BYTES, self._outgoing)
        batch, self._outgoing = self._outgoing[:count], self._outgoing[count:]
        self._reporting = batch
        if self._filled and not self._refill_since:
            self._refill_since = self._reported_at
        self._said_window = window
        self._open.report(batch, changed, lambda answers: self._reported(batch, answers))
        failpoint("channel.report.sent")

    def _may_gather(self) -> bool:
        """While more is about to end, reports wait a few milliseconds for each other; a lone one goes at once.

        So do those without which the channel would soon have nothing to do: they make room for more.
        """
        if self._level != RUN or not self._executor.busy or len(self._outgoing) >= MOST_GATHERED:
            return False
        if self._window.is_running_dry(self._executor.orders, len(self._outgoing), self._filled):
            return False
        return self._clock.boottime() < self._reported_at + GATHER

    def _unanswered(self) -> int:
        """Entries in our dispatch stream, as far as we know."""
        return self._executor.orders + len(self._ended) + len(self._outgoing) + len(self._reporting or ())

    def _reported(self, batch: list[tuple[str, bytes]], answers: list[bool]) -> None:
        failpoint("channel.report.acknowledged")
        if all(answers):
            self._acknowledge(batch, answers)
        else:
            # Taken away by another, or gone with all the data? Only what Redis surely has may leave the spool.
            self._open.confirm(partial(self._acknowledge, batch, answers))

    def _acknowledge(self, batch: list[tuple[str, bytes]], answers: list[bool]) -> None:
        self._reporting = None
        if self._said is not None:
            self._said.update(entry for entry, _ in batch if entry)
        self._spool.acknowledge(entry for entry, _ in batch if entry)
        # Whatever is in the spool now came after this batch was sent.
        self._unsynced_since = self._reported_at if self._spool.unacknowledged() else None
        for (entry, _), taken in zip(batch, answers, strict=True):
            self._unconfirmed.pop(entry, None)
            self._unstarted.pop(entry, None)
            if not taken:
                log.info("a report came too late: the job was given to another", entry=entry)

    def _current_window(self) -> int:
        now = self._clock.boottime()
        if self._level != RUN or now < self._pause_until or self._executor.reserved:
            return 0
        longest = max((now - running.since for running in self._executor.running()), default=0.0)
        taken = self._executor.extra_slots + self._home.busy_elsewhere() + len(self._foreign)
        return max(0, self._window.size(longest) - taken)

    def _publish(self, job: str, attempt: int, fd: int, offset: int, data: bytes) -> None:
        self._guarded(lambda: self._open.publish_output(job, attempt, fd, offset, data))

    def _end_output(self, job: str, attempt: int) -> None:
        self._guarded(lambda: self._open.end_output(job, attempt))

    def _backlog(self) -> int:
        return self._store.commands.unsent if self._store is not None else 1 << 30

    # -- stopping ---------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        level = self._supervision.check()
        now = self._clock.boottime()
        if level > self._level:
            if self._level == RUN:
                self._return(self._executor.give_back())
                self._guarded(self._take_no_more)
                failpoint("channel.drain.after")
                self._drain_until = now + self.settings.drain_timeout
                log.info("draining", channel=self.settings.full_name, running=self._executor.slots_in_use())
            if level == NOW:
                self._executor.kill_all(Cause.DRAIN)
                self._drain_until = now + LAST_WORDS
            self._level = level
        elif self._level == DRAIN and now >= self._drain_until and self._executor.busy:
            log.warning("drain timeout: interrupting what still runs", running=self._executor.slots_in_use())
            self._drain_until = now + self.settings.execution.term_grace + 60.0
            self._executor.stop_all(Cause.DRAIN)

    def _take_no_more(self) -> None:
        self._return(self._open.stop_orders())

    def _finished(self) -> bool:
        if self._level == RUN or not self._executor.idle or self._ended:
            return False
        all_said = not self._outgoing and self._reporting is None
        if all_said or (self._store is None and self._level == DRAIN):
            return True
        return self._clock.boottime() >= self._drain_until

    def _close(self) -> None:
        self._gone = True
        self._executor.close()
        if self._store is not None and not self._spool.unacknowledged():
            failpoint("channel.leave.before")
            try:
                self._store.leave()
                failpoint("channel.leave.after")
            except JobschedError as error:
                log.warning("could not say goodbye to Redis; the lease will end by itself", error=error)
        self._drop_store()
        self._drop_knock()
        self._home.close(self._register, self._spool)
        self._loop.close()

    @staticmethod
    def _ms(seconds: float) -> int:
        return max(1, round(seconds * 1000))


def _within(limit: int, reports: Sequence[tuple[str, bytes]]) -> int:
    """How many of these, from the first on, hold no more than ``limit`` bytes together; one at least."""
    size = 0
    for number, (_, packed) in enumerate(reports):
        size += len(packed)
        if size > limit and number:
            return number
    return len(reports)


_NO_SPEC = decode_spec(b"\x80")
