"""Hooks: whoever is configured is told of ends, of what is late and of nodes that come and go; at least once.

Threads beside the dispatcher, at work while its master leads. One turns events into deliveries and has a look at nodes
and at what is late; each hook has one more, which makes its deliveries, so a webhook that hangs holds up only itself.
Nothing of this is on the way of a job: an event is an entry that the script of the end writes, and all else is read
from Redis, where it outlives this process.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec.structs import replace

from jobschedd.clock import Clock
from jobschedd.config import HookConfig
from jobschedd.errors import NotTheLeader, ProtocolError, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import Outcome, State
from jobschedd.logs import get_logger
from jobschedd.master.clerk import leave_signals_alone
from jobschedd.master.delivery import SUBMITTER, Deliverer
from jobschedd.store.hooks import Delivery, Event, Hooks, unpack
from jobschedd.store.inspect import Inspect
from jobschedd.store.moves import Moves
from jobschedd.store.views import JobView

log = get_logger(__name__)

FAILURES = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.LOST, Outcome.EXPIRED, Outcome.SKIPPED})
#: Seconds to wait after trouble, between looks while another master leads, and at most for the next delivery.
PAUSE, STANDBY, LONGEST_SLEEP = 2.0, 0.5, 60.0
#: Seconds before a delivery is tried again: doubling, with jitter.
FIRST_DELAY, LONGEST_DELAY = 1.0, 300.0
#: Bytes of a job's description beyond which its arguments and its value are left out.
LARGEST = 64 * 1024
#: Names of hooks that are none, of which the log tells once each.
MOST_MISSED = 100
_GONE = frozenset({"lost", "down"})


@dataclass
class Story:
    """What an event is about, for matching, and the fields of its payload."""

    kind: str
    name: str = ""
    node: str = ""
    hook: str = ""  # told to this one alone
    named: frozenset[str] = frozenset()  # hooks that the job names
    fields: dict[str, Any] = field(default_factory=dict)


def wanted(hooks: Sequence[HookConfig]) -> set[Outcome]:
    """The outcomes that any hook wants to know of."""
    kinds = {kind for hook in hooks for kind in hook.on}
    return ({Outcome.SUCCEEDED} if "success" in kinds else set()) | (set(FAILURES) if "failure" in kinds else set())


def nameable(hooks: Sequence[HookConfig]) -> set[str]:
    """The hooks that jobs may name."""
    return {hook.name for hook in hooks if "named" in hook.on}


def matches(hook: HookConfig, story: Story) -> bool:
    """Whether this hook is to be told."""
    named = "named" in hook.on and hook.name in story.named
    if (story.kind not in hook.on and not named) or story.hook not in ("", hook.name):
        return False
    if story.kind in ("node_down", "node_up"):
        return fnmatchcase(story.node, hook.nodes)
    return fnmatchcase(story.name, hook.jobs)


class HookRunner:
    """One per master instance. ``look_every``: seconds between looks at nodes and late jobs; ``lease``: of channels."""

    def __init__(
        self,
        *,
        hooks: Sequence[HookConfig],
        store: Hooks,
        inspect: Inspect,
        moves: Moves,
        instance: str,
        clock: Clock,
        look_every: float,
        lease: float,
        block: float,
    ) -> None:
        self._hooks = hooks
        self._store = store
        self._inspect = inspect
        self._moves = moves
        self._instance = instance
        self._clock = clock
        self._look_every = look_every
        self._lease = lease
        self._block = block
        self._stop = threading.Event()
        self._news = {hook.name: threading.Event() for hook in hooks}
        self._fence = ""
        self._look_due = 0.0
        self._gone_since: dict[str, float] = {}
        self._missed: set[str] = set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The threads run while this is open; they are not waited for: what they are at can be done again."""
        self._thread("hooks", self._step)
        for hook in self._hooks:
            worker = Worker(hook, self._store, Deliverer(hook, self._moves), self._news[hook.name], self._leading)
            self._thread(f"hook {hook.name}", worker.step)
        try:
            yield
        finally:
            self._stop.set()
            self._wake()

    def _thread(self, name: str, step: Callable[[], None]) -> None:
        threading.Thread(target=self._keep_at, args=(step,), name=name, daemon=True).start()

    def _keep_at(self, step: Callable[[], None]) -> None:
        leave_signals_alone()
        while not self._stop.is_set():
            try:
                step()
            except NotTheLeader:
                self._fence = ""
            except (StoreUnavailable, StoreRefused) as error:
                log.debug("hooks wait for Redis", error=error)
                self._stop.wait(PAUSE)
            except Exception as error:  # noqa: BLE001 - jobs must not suffer from whatever goes wrong here
                log.error("trouble with hooks", error=repr(error))
                self._stop.wait(PAUSE)

    def _leading(self) -> bool:
        return bool(self._fence) and not self._stop.is_set()

    def _wake(self) -> None:
        for news in self._news.values():
            news.set()

    # -- events -> deliveries ---------------------------------------------------------------------------------

    def _step(self) -> None:
        fence = self._moves.leader() or ""
        if not fence.startswith(self._instance + ":"):
            self._fence = ""
            self._stop.wait(STANDBY)
            return
        if fence != self._fence:
            self._say_what_is_wanted(fence)
            self._fence = fence
            self._wake()
        if not self._hooks:
            self._stop.wait(PAUSE)  # what jobs name all the same is taken away, and told of in the log
        if self._clock.boottime() >= self._look_due:
            self._say_what_is_wanted(fence)  # again: somebody may have deleted that
            self._look()
            self._look_due = self._clock.boottime() + self._look_every
        if events := self._store.events(min(self._block, self._look_every)):
            self._share_out(events)

    def _say_what_is_wanted(self, fence: str) -> None:
        self._store.want(fence, wanted(self._hooks), nameable(self._hooks))

    def _share_out(self, events: Sequence[Event]) -> None:
        deliveries = []
        for event, story in zip(events, self._stories(events), strict=True):
            told = [hook.name for hook in self._hooks if story is not None and matches(hook, story)]
            self._complain(event, told)
            if story is not None and told:
                payload = _payload(event.id, self._moves.keys.namespace, story)
                deliveries += [(name, Delivery(event.id, payload)) for name in told]
        failpoint("hooks.route.before")
        dropped = self._store.route(self._fence, [event.id for event in events], deliveries)
        failpoint("hooks.route.after")
        if dropped:
            log.warning("a hook has more to tell than it gets rid of: the oldest was dropped", count=dropped)
        if deliveries:
            self._wake()

    def _complain(self, event: Event, told: Sequence[str]) -> None:
        """Once for each name: of what jobs name in vain."""
        for name in set(event.hooks) - set(told) - self._missed:
            if len(self._missed) < MOST_MISSED:
                self._missed.add(name)
                log.warning(
                    "a job names a hook that is none, or not for it (on: [named], jobs)", job=event.job, hook=name
                )

    def _stories(self, events: Sequence[Event]) -> list[Story | None]:
        abouts = [_about(event.about) for event in events]
        jobs = [event.job or str(about.get("job", "")) for event, about in zip(events, abouts, strict=True)]
        records = self._inspect.records(jobs)
        return [
            _story(event, about, job, record)
            for event, about, job, record in zip(events, abouts, jobs, records, strict=True)
        ]

    # -- what nobody says -------------------------------------------------------------------------------------

    def _look(self) -> None:
        known = self._store.noticed()
        things: list[tuple[str, str, bytes]] = []
        if any(hook.on and {"node_down", "node_up"} & set(hook.on) for hook in self._hooks):
            things += self._nodes(known)
        late = self._late()
        things += [(name, "late", event) for name, event in late.items() if name not in known]
        things += [(name, "", b"") for name in known if name.startswith("late:") and name not in late]
        if self._store.notice(self._fence, things):
            failpoint("hooks.notice.after")

    def _nodes(self, known: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
        """A node is down when it has been for a whole lease: one that restarts is not worth a call at night."""
        now = self._clock.boottime()
        for view in self._inspect.nodes():
            name = f"node:{view.node}"
            if view.state not in _GONE:
                self._gone_since.pop(view.node, None)
                state = "up"
            elif now - self._gone_since.setdefault(view.node, now) >= self._lease:
                state = "down"
            else:
                continue
            if known.get(name) != state:
                event = msgspec.json.encode({"event": f"node_{state}", "node": view.node, "state": view.state})
                # Of a node that is seen for the first time nobody expects to be told.
                yield name, state, event if name in known else b""

    def _late(self) -> dict[str, bytes]:
        """By what it is noticed under: jobs that have not started, or not ended, within the time a hook states."""
        found: dict[str, bytes] = {}
        watchers = [hook for hook in self._hooks if "late" in hook.on]
        now = self._clock.now()
        if any(hook.start_within for hook in watchers):
            waiting = [(job, header) for job, header in self._store.oldest_pending() if header.state is State.PENDING]
            waiting += [(view.id, view.header) for view in self._inspect.jobs(states={State.DISPATCHED})]
            for hook in watchers:
                if hook.start_within is not None:
                    found |= _too_late(hook, "start", waiting, now - hook.start_within)
        if any(hook.end_within for hook in watchers):
            running = [(view.id, view.header) for view in self._inspect.jobs(states={State.RUNNING})]
            for hook in watchers:
                if hook.end_within is not None:
                    found |= _too_late(hook, "end", running, now - hook.end_within)
        return found


class Worker:
    """Makes the deliveries of one hook, one after the other."""

    def __init__(
        self, hook: HookConfig, store: Hooks, deliverer: Deliverer, news: threading.Event, leading: Callable[[], bool]
    ) -> None:
        self._hook = hook
        self._store = store
        self._deliverer = deliverer
        self._news = news
        self._leading = leading

    def step(self) -> None:
        """One delivery, or sleep until there may be one."""
        self._news.clear()
        if not self._leading():
            self._news.wait(LONGEST_SLEEP)
            return
        packed, wait = self._store.due(self._hook.name)
        if packed:
            self._try(packed)
        else:
            self._news.wait(LONGEST_SLEEP if wait is None else min(wait, LONGEST_SLEEP))

    def _try(self, packed: bytes) -> None:
        try:
            delivery = unpack(packed)
        except ProtocolError as error:
            log.error("cannot read a delivery of a hook; dropped", hook=self._hook.name, error=error)
            self._store.delivered(self._hook.name, packed)
            return
        try:
            self._deliverer.deliver(delivery.event, bytes(delivery.payload))
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the next delivery must get its turn
            self._failed(packed, delivery, error)
            return
        failpoint("hooks.deliver.after")
        self._store.delivered(self._hook.name, packed)
        log.debug("hook told", hook=self._hook.name, about=delivery.event)

    def _failed(self, packed: bytes, delivery: Delivery, error: Exception) -> None:
        tries = delivery.tries + 1
        if tries > self._hook.retries:
            log.error("a hook was not told: given up", hook=self._hook.name, about=delivery.event, error=error)
            self._store.delivered(self._hook.name, packed)
            return
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        log.warning("a hook was not told", hook=self._hook.name, about=delivery.event, failed=tries, error=error)
        self._store.delivered(self._hook.name, packed, replace(delivery, tries=tries), delay)


def _too_late(hook: HookConfig, what: str, jobs: Sequence[tuple[str, Any]], limit: float) -> dict[str, bytes]:
    about = {"event": "late", "hook": hook.name, "late": what}
    return {
        f"late:{hook.name}:{job}:{what}": msgspec.json.encode(about | {"job": job})
        for job, header in jobs
        if header.since / 1000 < limit
    }


def _about(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any]) if data else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _story(event: Event, about: dict[str, Any], job: str, record: bytes | None) -> Story | None:
    if node := about.get("node"):
        return Story(str(about["event"]), node=str(node), fields={"node": node, "state": about.get("state")})
    description: dict[str, Any] = {"id": job}
    name = submitter = ""
    try:
        if record is not None:
            view = JobView(job, record)
            name, submitter, description = view.spec.name, view.spec.submitter, _described(view)
    except ProtocolError as error:
        log.warning("an event is about a record that cannot be read", job=job, error=error)
    if submitter.startswith(SUBMITTER) or not job:
        return None
    if about.get("event") == "late":
        fields = {"late": about.get("late"), "job": description}
        return Story("late", name=name, hook=str(about.get("hook", "")), fields=fields)
    if event.outcome not in set(Outcome):
        return None
    outcome = Outcome(event.outcome)
    kind = "success" if outcome is Outcome.SUCCEEDED else "failure" if outcome in FAILURES else ""
    fields = {"outcome": outcome.word, "attempt": event.attempt, "job": description}
    return Story(kind, name=name, fields=fields, named=frozenset(event.hooks))


def _described(view: JobView) -> dict[str, Any]:
    description = view.json()
    if len(msgspec.json.encode(description)) > LARGEST:
        description |= dict.fromkeys(("command", "shell", "args", "kwargs", "value"))
        description |= {"what": view.spec.what[:1000], "error": view.result.error[-1000:]}
    return description


def _payload(event: str, namespace: str, story: Story) -> msgspec.Raw:
    time = int(event.partition("-")[0]) / 1000
    document = {"id": event, "event": story.kind, "time": time, "namespace": namespace} | story.fields
    return msgspec.Raw(msgspec.json.encode(document))
