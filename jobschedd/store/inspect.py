"""The read path: what there is and where it is. Nothing here writes.

There is no index of ended jobs: ids are counted, so a listing walks down from the newest. Whatever has not ended
is found where it waits (pending lists, the scheduled set, dispatch streams), however many have ended beside it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain, islice
from typing import Any

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.indices import bytes_of, contains, members
from jobschedd.job import (
    CHANNELS,
    HEADER_SIZE,
    Flag,
    Header,
    Outcome,
    Result,
    State,
    Target,
    decode_header,
    encode,
    task_of,
)
from jobschedd.limits import Limits, Rate
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys, dispatch_channel
from jobschedd.store.scripts import script
from jobschedd.store.survey import Kept, Survey, read_kept
from jobschedd.store.views import NO_RECORD, ArrayCounts, ChannelView, Counts, JobView, NodeView, WorkflowView, by_node

#: Ids that one call of the scan script looks at: about a millisecond of the server's time.
_SCAN = 2000
#: Ids to walk before asking whether the records that are left are fewer than the ids.
_WALK = 100_000
#: Records fetched at once: each may hold its output.
_FETCH = 50

#: Records that one call of the filter script looks into.
_FILTERED = 500

#: Of an array, see lua/array.lua.
#: Ids of a pending list that are looked at to say how many wait there.
_LOOKED_THROUGH = 5000
_BITMAPS = ("all", "todo", "active", "failed", "cancelled", "expired")
_ACTIVE = frozenset({State.DISPATCHED, State.RUNNING})


class Inspect:
    """One namespace, read only. Every method raises StoreUnavailable or StoreRefused."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client: Any = client
        self.keys = keys

    # -- jobs -------------------------------------------------------------------------------------------------

    def records(self, ids: Sequence[str]) -> list[bytes | None]:
        """The packed record of each id; None where there is none."""
        if not ids:
            return []
        with translated():
            found: list[bytes | None] = self.client.mget([self.keys.job(job_id) for job_id in ids])
        return found

    def job(self, job_id: str) -> JobView | None:
        """One job; None where there is no record. Raises ProtocolError for one that cannot be read."""
        if (task := task_of(job_id)) is not None:
            return self.task(*task)
        (data,) = self.records([job_id])
        view = None if data is None else JobView(job_id, data)
        return self.count([view])[0] if view is not None else None

    def count(self, views: Sequence[JobView]) -> Sequence[JobView]:
        """Have the arrays among these know where their tasks are."""
        arrays = [view for view in views if view.is_array]
        if arrays:
            with translated():
                pipeline = self.client.pipeline(transaction=False)
                for view in arrays:
                    pipeline.hgetall(self.keys.array(view.id))
                for view, said in zip(arrays, pipeline.execute(), strict=True):
                    view.counts = _array_counts(said) if said else None
        return views

    def tasks(
        self,
        array: str,
        states: Collection[State] = (),
        outcomes: Collection[Outcome] = (),
        limit: int = 0,
    ) -> Iterator[JobView]:
        """The tasks of an array by index, those that have not started included; filters as of ``jobs``.

        Left out are those that succeeded and whose records are past their retention.
        """
        with translated():
            found = self.client.mget([self.keys.array(array, part) for part in _BITMAPS])
            places = self.client.llen(self.keys.array(array, "places"))
        bits = dict(zip(_BITMAPS, (data or b"" for data in found), strict=True))
        bits["all"] = bits["all"] or bytes_of(range(1, places + 1))
        views = self._tasks(array, members(_wanted(bits, states, outcomes)), bits)
        if states or outcomes:
            views = (v for v in views if v.header.state in states or (v.ended and v.outcome in outcomes))
        return islice(views, limit or None)

    def is_unstarted(self, array: str, index: int) -> bool:
        """Whether this task of an array has not started, or is to start again."""
        with translated():
            return bool(self.client.getbit(self.keys.array(array, "todo"), index))

    def task(self, array: str, index: int) -> JobView | None:
        """One task of an array; None where there is none, or no record of it any more."""
        alone = bytes_of(range(index, index + 1))
        bits = {}
        with translated():
            for part in _BITMAPS:
                bits[part] = alone if self.client.getbit(self.keys.array(array, part), index) else b""
        return next(self._tasks(array, [index], bits), None)

    def _tasks(self, array: str, indices: Iterable[int], bits: Mapping[str, bytes]) -> Iterator[JobView]:
        (parent,) = self.records([array])
        whole = None if parent is None else _readable(array, parent)
        if whole is not None:
            self.count([whole])
        source = iter(indices)
        while batch := list(islice(source, _FETCH)):
            records = self.records([f"{array}_{index}" for index in batch])
            for index, record in zip(batch, records, strict=True):
                said = {part for part in ("todo", "cancelled", "expired") if contains(bits[part], index)}
                view = _task(f"{array}_{index}", record, whole, said)
                if view is not None:
                    yield view

    def jobs(
        self,
        states: Collection[State] = (),
        outcomes: Collection[Outcome] = (),
        limit: int = 0,
        name: str = "",
        group: str = "",
        select: Callable[[JobView], bool] | None = None,
    ) -> Iterator[JobView]:
        """Jobs in any of the states or with any of the outcomes (neither: all), newest first.

        ``limit``: at most so many, 0 for all. ``name``: a shell-style pattern. Scheduled jobs asked for alone
        come soonest first. Records that cannot be read are left out.
        """
        found = (view for view in self._views(self._ids(states, outcomes), states, outcomes))
        if name:
            found = (view for view in found if fnmatchcase(view.spec.name, name))
        if group:
            found = (view for view in found if view.spec.group == group)
        if select is not None:
            found = (view for view in found if select(view))
        return islice(found, limit or None)

    def matching(
        self,
        states: Collection[State],
        outcomes: Collection[Outcome] = (),
        *,
        name: str = "",
        node: str = "",
        channel: str = "",
        group: str = "",
        labels: Collection[str] = (),
    ) -> Iterator[list[tuple[str, int]]]:
        """(id, since when it is in its state) of the jobs that match everything given, in chunks, newest first.

        ``name``: a shell-style pattern. A node or channel matches where it was asked for, and where the job is or was.
        The jobs may be changed between two chunks.
        """
        places = b"".join(self._incarnations_of(node, channel)) if node or channel else b""
        wanted = (_word(State, states), _word(Outcome, outcomes), node, channel, group, places)
        ids: Iterable[str] = self._ids(states, outcomes)
        if State.SCHEDULED in states:
            ids = list(ids)  # paged by rank, which changes when some of them go
        source = iter(ids)
        while batch := list(islice(source, _FILTERED)):
            with translated():
                asked = (msgspec.json.encode(list(labels)), "1" if name else "0")
                flat = script("filter").call(self.client, self.keys, *wanted, *asked, *batch)
            found = [
                (_text(flat[at]), int(flat[at + 1]))
                for at in range(0, len(flat), 3)
                if not name or fnmatchcase(_text(flat[at + 2]), name)
            ]
            if found:
                yield found

    def _incarnations_of(self, node: str, channel: str) -> list[bytes]:
        return [
            bytes.fromhex(view.incarnation)
            for view in self.channels()
            if view.incarnation and node in ("", view.node) and channel in ("", view.channel)
        ]

    def held(self, job_id: str) -> dict[str, Any]:
        """Why, by whom and since when a user holds a job."""
        with translated():
            return _description(self.client.hget(self.keys.held, job_id))

    def _views(self, ids: Iterable[str], states: Collection[State], outcomes: Collection[Outcome]) -> Iterator[JobView]:
        everything = not states and not outcomes
        source = iter(ids)
        size = 10
        while batch := list(islice(source, size)):
            size = _FETCH
            views = [
                view
                for job_id, data in zip(batch, self.records(batch), strict=True)
                if (view := _readable(job_id, data)) is not None
            ]
            for view in self.count(views):
                # What waited where it was found may have gone on since.
                if everything or view.header.state in states or (view.ended and view.outcome in outcomes):
                    yield view

    def _ids(self, states: Collection[State], outcomes: Collection[Outcome]) -> Iterator[str]:
        waiting = set(states)
        if outcomes or not states or State.DONE in waiting:
            return self._walk(states, outcomes)
        if waiting == {State.SCHEDULED}:
            return _distinct(chain(filter(str.isdigit, self._scheduled_ids()), self._array_ids()))
        sources: list[Iterable[str]] = [self._array_ids()]
        if State.SCHEDULED in waiting:
            sources.append(sorted(filter(str.isdigit, self._scheduled_ids()), key=int, reverse=True))
        if waiting & _ACTIVE:
            sources.append(self._active_ids())
        if State.WAITING in waiting:
            sources.append(self._waiting_ids())
        if State.PENDING in waiting:
            sources.append(self._pending_ids())
            sources.append(self.held_ids())
        return _distinct(heapq.merge(*sources, key=int, reverse=True))

    def _walk(self, states: Collection[State], outcomes: Collection[Outcome]) -> Iterator[str]:
        everything = not states and not outcomes
        wanted = _word(State, tuple(State) if everything else states), _word(Outcome, outcomes)
        with translated():
            newest = int(self.client.get(self.keys.next_id) or 0)
        for first in range(newest, 0, -_SCAN):
            if newest - first >= _WALK and (newest - first) % _WALK < _SCAN:
                with translated():
                    records = self.client.dbsize()
                if records < first:
                    yield from self._swept(first, wanted)
                    return
            yield from self._scan(first, min(_SCAN, first), wanted)

    def _scan(self, first: int, count: int, wanted: tuple[str, str]) -> list[str]:
        with translated():
            found = script("scan").call(self.client, self.keys, first, count, *wanted)
        return [job_id.decode() for job_id in found]

    def _swept(self, newest: int, wanted: tuple[str, str]) -> Iterator[str]:
        """The same by a sweep over all keys: cheaper where most ids have no record any more."""
        prefix = self.keys.job("").encode()
        with translated():
            keys = self.client.scan_iter(match=_literal(prefix) + b"*", count=1000)
            numbers = {int(key[len(prefix) :]) for key in keys if key[len(prefix) :].isdigit()}
        for number in sorted((number for number in numbers if number <= newest), reverse=True):
            yield from self._scan(number, 1, wanted)

    def _array_ids(self) -> list[str]:
        """Of arrays that have not ended. Their tasks are not listed beside them."""
        with translated():
            return sorted(map(_text, self.client.smembers(self.keys.arrays)), key=int, reverse=True)

    def _scheduled_ids(self) -> Iterator[str]:
        for start in range(0, 1 << 62, 1000):
            with translated():
                page = self.client.zrange(self.keys.scheduled, start, start + 999)
            yield from (job_id.decode() for job_id in page)
            if len(page) < 1000:
                return

    def _waiting_ids(self) -> list[str]:
        with translated():
            ids = [_text(job_id) for job_id in self.client.zrange(self.keys.waiting, 0, -1)]
        return sorted((job_id for job_id in ids if job_id.isdigit()), key=int, reverse=True)

    def _active_ids(self) -> list[str]:
        with translated():
            incarnations = [_text(name) for name in self.client.hkeys(self.keys.channels)]
            ids: set[str] = set()
            for some in _chunks(incarnations, 500):
                pipeline = self.client.pipeline(transaction=False)
                for incarnation in some:
                    pipeline.xrange(self.keys.dispatch(incarnation))
                for entries in pipeline.execute():
                    ids |= {_text(fields[b"job"]) for _, fields in entries if fields and b"job" in fields}
            for channel in self.client.smembers(self.keys.sent_channels):
                ids |= {_text(job) for job in self.client.zrange(self.keys.sent(_text(channel)), 0, -1)}
        return sorted((job_id for job_id in ids if job_id.isdigit()), key=int, reverse=True)

    def _pending_ids(self) -> Iterator[str]:
        with translated():
            names = [_text(name) for name in self.client.smembers(self.keys.pending)]
        lists = (filter(str.isdigit, self._list_backwards(f"{self.keys.base}pending:{name}")) for name in names)
        # A list is nearly in order: only what came back stands in front of younger ones.
        return heapq.merge(*lists, key=int, reverse=True)

    def held_ids(self) -> list[str]:
        """Those that users hold: they may stand in no list."""
        with translated():
            ids = [_text(job_id) for job_id in self.client.hkeys(self.keys.held)]
        return sorted(filter(str.isdigit, ids), key=int, reverse=True)

    def _list_backwards(self, key: str) -> Iterator[str]:
        end = -1
        while True:
            with translated():
                page = self.client.lrange(key, end - 499, end)
            yield from (job_id.decode() for job_id in reversed(page))
            if len(page) < 500:
                return
            end -= 500

    def places(self, views: Iterable[JobView]) -> dict[str, tuple[str, str]]:
        """By incarnation, the node and channel of those that have one of these jobs now."""
        incarnations = sorted({view.header.incarnation for view in views if view.header.state in _ACTIVE} - {""})
        if not incarnations:
            return {}
        with translated():
            said = self.client.hmget(self.keys.channels, incarnations)
        described = {name: _description(data) for name, data in zip(incarnations, said, strict=True)}
        return {
            name: (str(about.get("node", "")), str(about.get("channel", "")))
            for name, about in described.items()
            if about
        }

    def newest_id(self) -> int:
        """The last id that was given out."""
        with translated():
            return int(self.client.get(self.keys.next_id) or 0)

    def ahead_of(self, view: JobView) -> tuple[int, bool]:
        """(how many wait before a pending job in its own list, whether that is exact and not with ids gone since)."""
        header = view.header
        key = self.keys.pending_list(header.job_class, header.priority)
        with translated():
            place = self.client.lpos(key, view.id)
            if place is None or place > _SCAN:
                return place or 0, place is None
            ahead = [_text(job_id) for job_id in self.client.lrange(key, 0, place - 1)] if place else []
        return sum(1 for _ in self._waiting_in(ahead, header.job_class, header.priority)), True

    def _waiting_in(self, ids: list[str], job_class: int, priority: int) -> Iterator[str]:
        """Those that wait in the list of this class and priority: others have left a mere id there."""
        for job_id, header in self._headers(ids):
            if header.state == State.PENDING and (header.job_class, header.priority) == (job_class, priority):
                yield job_id

    def _headers(self, ids: list[str]) -> Iterator[tuple[str, Header]]:
        """Those of these jobs that have a record which can be read."""
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for job_id in ids:
                pipeline.getrange(self.keys.job(job_id), 0, HEADER_SIZE - 1)
            heads = pipeline.execute() if ids else []
        for job_id, head in zip(ids, heads, strict=True):
            with suppress(ProtocolError):
                yield job_id, decode_header(head)

    def some_entries(self, incarnations: Sequence[str], most: int) -> list[str]:
        """Ids of jobs that these channels have, at most one more than ``most``."""
        ids: list[str] = []
        for incarnation in incarnations:
            if len(ids) > most:
                break
            with translated():
                entries = self.client.xrange(self.keys.dispatch(incarnation), count=most + 1)
            ids += [_text(fields[b"job"]) for _, fields in entries if fields and b"job" in fields]
        return ids[: most + 1]

    # -- jobs that depend on each other -----------------------------------------------------------------------

    def missing(self, ids: list[str]) -> str | None:
        """The first of these jobs that has no record."""
        for some in _chunks(ids, 1000):
            with translated():
                pipeline = self.client.pipeline(transaction=False)
                for job_id in some:
                    pipeline.exists(self.keys.job(job_id))
                for job_id, there in zip(some, pipeline.execute(), strict=True):
                    if not there:
                        return job_id
        return None

    def awaited(self, job_id: str) -> set[str]:
        """The jobs that this one waits for still."""
        with translated():
            return {_text(parent) for parent in self.client.smembers(self.keys.awaits(job_id))}

    def workflows(self, limit: int = 0) -> Iterator[WorkflowView]:
        """Workflows, newest first, as long as any of their jobs has a record. ``limit``: at most so many, 0 for all."""
        with translated():
            texts = [_text(text) for text in self.client.zrange(self.keys.workflows, 0, -1, desc=True)]
        views = (self._workflow(text) for text in texts)
        return islice((view for view in views if view is not None), limit or None)

    def workflow(self, first: str) -> WorkflowView | None:
        """The workflow whose first job this is."""
        with translated():
            texts = self.client.zrange(self.keys.workflows, first, first, byscore=True)
        return self._workflow(_text(texts[0])) if texts else None

    def _workflow(self, text: str) -> WorkflowView | None:
        first, jobs, name = text.split(":", 2)
        view = WorkflowView(first, int(jobs), name, {})
        statuses = self._statuses(view.ids)
        return replace(view, statuses=statuses) if set(statuses) - {NO_RECORD} else None

    def _statuses(self, ids: list[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for some in _chunks(ids, 1000):
            with translated():
                pipeline = self.client.pipeline(transaction=False)
                for job_id in some:
                    pipeline.getrange(self.keys.job(job_id), 24, 25)
                pairs = pipeline.execute()
            for pair in pairs:
                counts[_status(pair)] += 1
        return dict(counts)

    # -- the fleet --------------------------------------------------------------------------------------------

    def channels(self) -> list[ChannelView]:
        """Every channel that is or was, by name; several incarnations of one while an old one drains."""
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.hgetall(self.keys.channels)
            pipeline.hgetall(self.keys.owners)
            pipeline.hgetall(self.keys.known)
            pipeline.get(self.keys.kept)
            said, owners, remembered, kept = pipeline.execute()
        known = {_text(name): _description(data) for name, data in remembered.items()}
        kept_for = {one.incarnation: one.job for one in read_kept(kept)}
        drains = self.drains()
        newest = {_text(name): _text(incarnation) for name, incarnation in owners.items()}
        described = {_text(name): _description(data) for name, data in said.items()}
        leases = self._leases(list(described))
        for incarnation, unanswered in self._unanswered(described).items():
            leases[incarnation] = (leases[incarnation][0], unanswered)
        views = []
        for incarnation, about in described.items():
            if about:
                view = _channel(incarnation, about, *leases[incarnation], drains)
                views.append(replace(view, kept_for=kept_for.get(incarnation)))
        alive = {view.name for view in views}
        for name in newest:
            if name not in alive:
                labels = tuple(str(label) for label in (known.get(name) or {}).get("labels") or ())
                views.append(replace(_gone(name, newest[name], drains), labels=labels))
        views += self._wires({view.channel for view in views})
        return sorted(views, key=lambda view: (_natural(view.node), _natural(view.channel), view.started))

    def _wires(self, known: Collection[str]) -> list[ChannelView]:
        """pubsub channels that no slave of ours has announced: somebody else's, up while anybody is subscribed."""
        with translated():
            names = sorted({_text(name) for name in self.client.smembers(self.keys.wires)} - set(known))
            if not names:
                return []
            pipeline = self.client.pipeline(transaction=False)
            pipeline.pubsub_numsub(*(dispatch_channel(name) for name in names))
            for name in names:
                pipeline.zcard(self.keys.sent(name))
            subscribers, *unanswered = pipeline.execute()
        drains = self.drains()
        listening = [int(count) for _, count in subscribers]
        return [
            replace(
                _gone(f"/{name}", "", drains),
                state="up" if count else "down",
                slots=count,
                entries=entries,
                transport="pubsub",
            )
            for name, count, entries in zip(names, listening, unanswered, strict=True)
        ]

    def _leases(self, incarnations: list[str]) -> dict[str, tuple[int | None, int]]:
        leases: dict[str, tuple[int | None, int]] = {}
        for some in _chunks(incarnations, 500):
            with translated():
                pipeline = self.client.pipeline(transaction=False)
                for incarnation in some:
                    pipeline.hget(self.keys.lease(incarnation), "window")
                    pipeline.xlen(self.keys.dispatch(incarnation))
                replies = pipeline.execute()
            for number, incarnation in enumerate(some):
                window, entries = replies[2 * number : 2 * number + 2]
                leases[incarnation] = (None if window is None else int(window), int(entries))
        return leases

    def _unanswered(self, described: dict[str, dict[str, Any]]) -> dict[str, int]:
        """What pubsub channels have instead of entries in a stream."""
        names = {i: str(about.get("channel")) for i, about in described.items() if about.get("transport") == "pubsub"}
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for name in names.values():
                pipeline.zcard(self.keys.sent(name))
            return dict(zip(names, pipeline.execute(), strict=True)) if names else {}

    def nodes(self) -> list[NodeView]:
        """Every node that is or was, by name."""
        return by_node(self.channels())

    def places_for(self, target: Target, what: str) -> list[tuple[str, str]]:
        """Who is meant by a job for all NODES or CHANNELS: (node, channel or ""), whether they are here or away."""
        meant = {
            (view.node, view.channel if what == CHANNELS else "")
            for view in self.channels()
            if view.node and target.admits(view.node, view.channel, frozenset(view.labels))
        }
        return sorted(meant, key=lambda place: (_natural(place[0]), _natural(place[1])))

    def place_names(self, array: str) -> list[str]:
        """The places of a job for all nodes: NODE or NODE/CHANNEL, of its task 1, 2, ..."""
        with translated():
            return [_text(name) for name in self.client.lrange(self.keys.array(array, "places"), 0, -1)]

    def drains(self) -> dict[str, dict[str, Any]]:
        """What is drained or paused: node, channel, node/channel or group:NAME -> reason, since, by, deadline, ..."""
        with translated():
            found = self.client.hgetall(self.keys.drains)
        return {_text(name): _description(data) or {} for name, data in found.items()}

    def kept(self) -> list[Kept]:
        """The channels that are kept for jobs which need much."""
        return Survey(self.client, self.keys).kept()

    def nameable_hooks(self) -> set[str]:
        """The hooks that the leading master lets jobs name."""
        with translated():
            return set(_text(self.client.get(self.keys.nameable) or b"").split())

    def leader(self) -> tuple[str, int] | None:
        """(fence of the leading master, milliseconds left of its lease); None where nobody leads."""
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.get(self.keys.leader)
            pipeline.pttl(self.keys.leader)
            holder, left = pipeline.execute()
        return None if holder is None else (_text(holder), int(left))

    def counts(self) -> Counts:
        """How many jobs are where."""
        with translated():
            incarnations = [_text(name) for name in self.client.hkeys(self.keys.channels)]
            pipeline = self.client.pipeline(transaction=False)
            pipeline.get(self.keys.next_id)
            pipeline.zcard(self.keys.scheduled)
            pipeline.zcard(self.keys.waiting)
            pipeline.xlen(self.keys.results)
            pipeline.scard(self.keys.cancelling)
            pipeline.xlen(self.keys.dead)
            pipeline.smembers(self.keys.pending)
            pipeline.hlen(self.keys.held)
            pipeline.hlen(self.keys.judged)
            newest, scheduled, waiting, uncollected, cancelling, dead, lists, held, judged = pipeline.execute()
        active = sum(entries for _, entries in self._leases(incarnations).values())
        with translated():
            for channel in self.client.smembers(self.keys.sent_channels):
                active += self.client.zcard(self.keys.sent(_text(channel)))
        return Counts(
            pending=sum(self._lengths([_text(name) for name in lists]).values()) + self._not_started(),
            scheduled=scheduled,
            waiting=waiting,
            active=active,
            submitted=int(newest or 0),
            uncollected=uncollected + judged,
            cancelling=cancelling,
            dead_letters=dead,
            held=held,
        )

    # -- limits -----------------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """What is set, by an operator and by the leading master's configuration."""
        return Survey(self.client, self.keys).limits()

    def holders(self, key: str) -> list[str]:
        """The jobs that count against a limit."""
        with translated():
            return sorted((_text(job) for job in self.client.smembers(self.keys.limit(key))), key=_natural)

    def held_limits(self) -> dict[str, int]:
        """Every limit that jobs count against now, and how many."""
        with translated():
            found = {
                _text(key)
                for text in self.client.hvals(self.keys.holds)
                for key in msgspec.msgpack.decode(text)["limits"]
            }
            pipeline = self.client.pipeline(transaction=False)
            for key in sorted(found):
                pipeline.scard(self.keys.limit(key))
            return dict(zip(sorted(found), pipeline.execute(), strict=True))

    def used(self, channel: str) -> dict[str, int]:
        """What jobs use of the resources of a channel (node/name), by name."""
        return Survey(self.client, self.keys).used([channel])[channel]

    def starts(self, key: str, rate: Rate) -> tuple[int, float]:
        """(starts that count against a rate now, seconds until one more may begin)."""
        name, now = self.keys.rate(key, rate.ms), round(self.time() * 1000)
        with translated():
            within = [
                int(score) for _, score in self.client.zrangebyscore(name, f"({now - rate.ms}", "+inf", withscores=True)
            ]
        if len(within) < rate.count:
            return len(within), 0.0
        return len(within), max(0, within[len(within) - rate.count] + rate.ms - now) / 1000

    def classes(self) -> dict[int, Target]:
        """What each class of jobs asks for, by number."""
        return Survey(self.client, self.keys).classes()

    def _not_started(self) -> int:
        """Of arrays; each stands in a list as one, unless its limit is reached."""
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for array in self._array_ids():
                pipeline.hmget(self.keys.array(array), "left", "parked")
            return sum(int(left or 0) - (bool(int(left or 0)) and not parked) for left, parked in pipeline.execute())

    def pending_by_class(self, *, exact: bool = False) -> dict[tuple[Target, int], int]:
        """How many wait, by (where they may run, priority).

        ``exact``: lists that are not very long are looked through, for they may hold ids of jobs that are gone.
        """
        with translated():
            lists = [_text(name) for name in self.client.smembers(self.keys.pending)]
        classes = Survey(self.client, self.keys).classes()
        waiting: dict[tuple[Target, int], int] = {}
        for name, length in self._lengths(lists).items():
            number, _, priority = name.partition(":")
            if exact and length <= _LOOKED_THROUGH:
                length = self._standing_in(name)
            if length and int(number) in classes:
                waiting[classes[int(number)], int(priority)] = length
        return waiting

    def _standing_in(self, name: str) -> int:
        """How many ids of a pending list are of jobs that wait there, or of arrays that have tasks left."""
        job_class, _, priority = name.partition(":")
        with translated():
            ids = [_text(job_id) for job_id in self.client.lrange(f"{self.keys.base}pending:{name}", 0, -1)]
        count = 0
        for some in _chunks(ids, 500):
            for _, header in self._headers(some):
                stands = (header.job_class, header.priority) == (int(job_class), int(priority))
                unended = Flag.ARRAY in header.flags and header.state is not State.DONE
                count += stands and (header.state is State.PENDING or unended)
        return count

    def _lengths(self, lists: list[str]) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for some in _chunks(lists, 500):
            with translated():
                pipeline = self.client.pipeline(transaction=False)
                for name in some:
                    pipeline.llen(f"{self.keys.base}pending:{name}")
                lengths |= dict(zip(some, pipeline.execute(), strict=True))
        return lengths

    def dead_letters(self, limit: int = 20) -> list[dict[str, str]]:
        """The newest messages that nobody could read: id, time, reason, source, sample (escaped)."""
        with translated():
            entries = self.client.xrevrange(self.keys.dead, count=limit)
        letters = []
        for entry, fields in entries:
            texts = {_text(name): value.decode(errors="backslashreplace") for name, value in fields.items()}
            letters.append(
                {"id": _text(entry)} | {name: texts.get(name, "") for name in ("reason", "source", "sample")}
            )
        return letters

    def server(self) -> dict[str, Any]:
        """INFO of the server, as far as we may ask."""
        with translated():
            return dict(self.client.info())

    def time(self) -> float:
        """The server's clock, in seconds since the epoch."""
        with translated():
            seconds, micro = self.client.time()
        return float(seconds) + float(micro) / 1e6


def _status(pair: bytes) -> str:
    """The one word of a record, from the two bytes of its header that say it."""
    if len(pair) < 2:
        return NO_RECORD
    state, outcome = pair
    try:
        return Outcome(outcome).word if state == State.DONE else State(state).word
    except ValueError:
        return "unreadable"


def _readable(job_id: str, data: bytes | None) -> JobView | None:
    if data is None:
        return None
    try:
        view = JobView(job_id, data)
        _ = view.spec, view.result
    except ProtocolError:
        return None
    return view


def _array_counts(said: dict[bytes, bytes]) -> ArrayCounts:
    numbers = {_text(name): int(value) for name, value in said.items()}
    ended = {outcome.word: numbers.get(f"o{int(outcome)}", 0) for outcome in Outcome if outcome}
    return ArrayCounts(
        total=numbers.get("total", 0),
        limit=numbers.get("limit", 0),
        not_started=numbers.get("left", 0),
        active=numbers.get("active", 0),
        outcomes={word: count for word, count in ended.items() if count},
    )


def _wanted(bits: Mapping[str, bytes], states: Collection[State], outcomes: Collection[Outcome]) -> bytes:
    """Where to look for tasks in these states or with these outcomes."""
    if not states and not outcomes:
        return bits["all"]
    size = max(map(len, bits.values()))
    every, todo, active, failed, cancelled, expired = (
        int.from_bytes(bits[part].ljust(size, b"\0"), "big") for part in _BITMAPS
    )
    wanted = 0
    if set(states) - {State.DONE}:
        wanted |= active
    if {State.PENDING, State.SCHEDULED} & set(states):
        wanted |= todo
    if set(outcomes) - {Outcome.SUCCEEDED}:
        wanted |= failed & ~todo & ~cancelled & ~expired
    if Outcome.CANCELLED in outcomes:
        wanted |= cancelled
    if Outcome.EXPIRED in outcomes:
        wanted |= expired
    if State.DONE in states or Outcome.SUCCEEDED in outcomes:
        wanted |= every & ~todo & ~active
    return wanted.to_bytes(size, "big")


def _task(job_id: str, record: bytes | None, whole: JobView | None, said: Collection[str]) -> JobView | None:
    """A task by its record; where it has none yet, or never got one, by what its array says."""
    view = None if record is None else _readable(job_id, record)
    if whole is None or not said or (view is not None and "todo" not in said):
        return view
    header = msgspec.structs.replace(
        whole.header,
        flags=Flag.TASK | (whole.header.flags & Flag.HELD),
        attempt=view.header.attempt if view else 0,
        incarnation="",
        entry="",
    )
    result = b""
    if "todo" in said:
        waits = header.state if header.state in (State.SCHEDULED, State.WAITING) else State.PENDING
        header = msgspec.structs.replace(header, state=waits, outcome=Outcome.NONE)
    else:
        expired = "expired" in said
        outcome, cause = (Outcome.EXPIRED, "expired") if expired else (Outcome.CANCELLED, "cancelled")
        header = msgspec.structs.replace(header, state=State.DONE, outcome=outcome)
        result = encode(Result(outcome=outcome, cause=cause, ended=header.since / 1000))
    made = JobView(job_id, header.pack(len(whole.packed_spec)) + whole.packed_spec + result)
    made.within = whole.counts if "todo" in said else None
    return made


def _word(kind: type[State] | type[Outcome], wanted: Collection[Any]) -> str:
    chosen = set(wanted)
    return "".join("1" if number in {int(one) for one in chosen} else "0" for number in range(max(kind) + 1))


def _distinct(ids: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for job_id in ids:
        if job_id not in seen:
            seen.add(job_id)
            yield job_id


def _literal(prefix: bytes) -> bytes:
    for special in b"\\*?[":
        prefix = prefix.replace(bytes((special,)), b"\\" + bytes((special,)))
    return prefix


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _description(data: bytes | None) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data or b"null")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 62, name)


def _drain(node: str, channel: str, drains: dict[str, dict[str, Any]]) -> str | None:
    found = _drains_of(node, channel, drains)
    return str(found[0].get("reason") or "") if found else None


def _drains_of(node: str, channel: str, drains: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [drains[name] for name in (f"{node}/{channel}", node, channel) if name in drains]


def _channel(
    incarnation: str,
    about: dict[str, Any],
    window: int | None,
    entries: int,
    drains: dict[str, dict[str, Any]],
) -> ChannelView:
    node, channel = str(about.get("node", "")), str(about.get("channel", ""))
    reason = _drain(node, channel, drains)
    if window is None:
        state = "lost"
    elif reason is None:
        state = "up"
    else:
        paused = all(drain.get("pause") for drain in _drains_of(node, channel, drains))
        state = "paused" if paused else "draining" if entries else "drained"
    return ChannelView(
        node=node,
        channel=channel,
        state=state,
        slots=int(about.get("slots") or 0),
        labels=tuple(str(label) for label in about.get("labels") or ()),
        window=window or 0,
        entries=entries,
        incarnation=incarnation,
        pid=int(about.get("pid") or 0),
        host=str(about.get("host") or ""),
        version=str(about.get("version") or ""),
        transport=str(about.get("transport") or "stream"),
        started=float(about.get("started") or 0.0),
        drain_reason=reason,
        aside=int(about.get("aside") or 0),
        resources=_amounts(about.get("resources")),
        most_slots=int(about.get("most_slots") or 1),
    )


def _amounts(said: Any) -> dict[str, int]:
    if not isinstance(said, dict):
        return {}
    return {str(name): amount for name, amount in said.items() if isinstance(amount, int)}


def _gone(name: str, incarnation: str, drains: dict[str, dict[str, Any]]) -> ChannelView:
    node, _, channel = name.partition("/")
    return ChannelView(
        node=node,
        channel=channel,
        state="down",
        slots=0,
        labels=(),
        window=0,
        entries=0,
        incarnation=incarnation,
        pid=0,
        host="",
        version="",
        transport="stream",
        started=0.0,
        drain_reason=_drain(node, channel, drains),
    )
