"""Which channel runs what: pure, over the free windows of the channels."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from jobschedd.job import HIGHEST_PRIORITY, Target

#: Stands for the groups that have no weight of their own, and for jobs without a group.
DEFAULT_GROUP = "default"

#: Packs that a channel's prefetch has: the jobs of one are over in about three milliseconds.
_PACKS_AHEAD = 16
#: Packs that jobs are made into at least, so that many channels have some; and those that are left at any moment.
_PACKS, _LAST_PACKS = 32, 8

#: A pending list: class and priority.
Key = tuple[int, int]


@dataclass
class ChannelView:
    """A channel incarnation as the dispatcher sees it. ``open`` is False while drained or suspect."""

    incarnation: str
    node: str
    name: str
    slots: int = 1
    labels: frozenset[str] = frozenset()
    window: int = 0
    entries: int = 0  # in its stream: what it runs and what it holds for the next moments
    open: bool = True
    resources: Mapping[str, int] = field(default_factory=dict)
    most_slots: int = 1  # that one job may take
    full: bool = False  # a limit of its node or name lets no more in, until something of it ends

    @property
    def room(self) -> int:
        """How many more entries its window takes."""
        return self.window - self.entries if self.open and not self.full else 0

    @property
    def place(self) -> str:
        """What people call it."""
        return f"{self.node}/{self.name}"

    @property
    def entries_key(self) -> str:
        """Where the store counts its entries."""
        return f"dispatch:{self.incarnation}"

    @property
    def load(self) -> float:
        """Entries per slot."""
        return self.entries / self.slots


@dataclass(frozen=True)
class Demand:
    """``count`` pending jobs of one class and priority."""

    job_class: int
    priority: int
    target: Target
    count: int
    closed: frozenset[str] = frozenset()  # channels (node/name) that are known to have too little left for it now
    aged: int = 0  # steps that it has gained by waiting
    spread: bool = False  # however instant jobs have been of late, these are not

    @property
    def key(self) -> Key:
        """The list that they wait in."""
        return self.job_class, self.priority

    @property
    def slots(self) -> int:
        """How many slots, and so how much of a window, each of them takes."""
        return self.target.slots

    @property
    def rank(self) -> int:
        """What it is ordered by: its priority, and what waiting has added."""
        return min(HIGHEST_PRIORITY, self.priority + self.aged)


def _could_run(target: Target, view: ChannelView) -> bool:
    return target.admits(view.node, view.name, view.labels) and (
        not target.resources or target.fits(view.resources, view.most_slots)
    )


def _packs(channels: Iterable[ChannelView], count: int, demand: Demand) -> dict[str, int]:
    """How many of ``count`` jobs go to each of these together, where that may be more than one.

    It is more where a channel's window says that its jobs are over at once: a small part of what it would prefetch. To
    spread these costs the store more than it gains; but a few jobs, of which less is known, are spread all the same.
    """
    most = count // _PACKS
    if most < 2 or demand.spread:
        return {}
    return {
        channel.incarnation: max(1, min((channel.window // channel.slots - 1) // _PACKS_AHEAD, most) // demand.slots)
        for channel in channels
    }


def able(target: Target, channels: Iterable[ChannelView]) -> list[ChannelView]:
    """The channels that could run it once they have room for it."""
    everywhere = list(channels)
    found = [view for view in everywhere if view.open and view.window >= 0 and _could_run(target, view)]
    return _elsewhere(found, everywhere, target) if target.avoid else found


def _elsewhere(candidates: list[ChannelView], everywhere: Iterable[ChannelView], target: Target) -> list[ChannelView]:
    """Those not on the node to avoid; all, where no other node could ever take it as things stand."""
    another = any(
        view.node != target.avoid and view.open and view.window > 0 and _could_run(target, view) for view in everywhere
    )
    return [channel for channel in candidates if channel.node != target.avoid] if another else candidates


@dataclass(frozen=True)
class Share:
    """``count`` jobs of a demand for one channel incarnation."""

    demand: Demand
    incarnation: str
    count: int


class _Room:
    """What is free in one pass, and what has been given out of it. ``kept``: as ``Placement.kept``, with the rank."""

    def __init__(self, channels: list[ChannelView], most: int, kept: Mapping[str, tuple[Key, int]]) -> None:
        self._channels = channels
        self._kept = kept
        self.free = [channel for channel in channels if channel.room > 0]
        self.most = most
        self._given: dict[tuple[int, int, str], Share] = {}
        self._taken: dict[tuple[int, int], int] = {}

    @property
    def over(self) -> bool:
        return not self.free or self.most <= 0

    def left(self, demand: Demand) -> int:
        """Jobs of a demand that have no channel yet."""
        return demand.count - self._taken.get((demand.job_class, demand.priority), 0)

    def candidates(self, demand: Demand) -> list[ChannelView]:
        """The channels with room that may take it."""
        target = demand.target
        found = [channel for channel in self.free if _could_run(target, channel)]
        if demand.closed:
            found = [channel for channel in found if channel.place not in demand.closed]
        if self._kept:
            found = [channel for channel in found if self._may_have(demand, channel)]
        if demand.slots > 1:
            found = [channel for channel in found if channel.room >= demand.slots]
        return _elsewhere(found, self._channels, target) if target.avoid else found

    def _may_have(self, demand: Demand, channel: ChannelView) -> bool:
        """It is kept for nobody, for these, or for others that rank lower."""
        key, rank = self._kept.get(channel.incarnation, (demand.key, 0))
        return key == demand.key or demand.rank > rank

    def give(self, demand: Demand, channel: ChannelView, count: int) -> int:
        """Note it; the count again."""
        if not count:
            return 0
        channel.entries += count * demand.slots
        self.most -= count
        key = (demand.job_class, demand.priority, channel.incarnation)
        before = self._given[key].count if key in self._given else 0
        self._given[key] = Share(demand, channel.incarnation, before + count)
        self._taken[key[:2]] = self._taken.get(key[:2], 0) + count
        return count

    def tidy(self) -> None:
        """Channels without room are out of the question from now on."""
        self.free = [channel for channel in self.free if channel.room > 0]

    def shares(self) -> list[Share]:
        """What was given, in the order in which it was."""
        return list(self._given.values())


class Fairness:
    """Stride scheduling: each group's *pass* grows by jobs over weight, and the lowest is next.

    Whoever had nothing waiting gains nothing by that: it enters where the others are.
    """

    def __init__(self) -> None:
        self._passes: dict[str, float] = {}
        self._now = 0.0  # the pass of whoever was next the last time

    def enter(self, groups: Iterable[str]) -> None:
        """These wait for room."""
        for group in groups:
            self._passes[group] = max(self._passes.get(group, 0.0), self._now)

    def next(self, groups: Iterable[str]) -> str:
        """Who is next among those that can be served."""
        chosen = min(groups, key=lambda group: (self._passes[group], group))
        self._now = max(self._now, self._passes[chosen])
        return chosen

    def charge(self, group: str, jobs: int, weight: int) -> None:
        """It got so many; negative: it gave some back."""
        if group in self._passes:
            self._passes[group] += jobs / weight

    def leave(self, groups: Iterable[str]) -> None:
        """Forget those who would enter anew all the same."""
        waiting = set(groups)
        self._passes = {g: at for g, at in self._passes.items() if g in waiting or at > self._now}


Policy = Callable[[Sequence[ChannelView], int], dict[str, int]]


@dataclass
class Placement:
    """Answers "which channels get how many": by strict rank; within one, groups share by weight, and classes of one
    group take turns.

    A class that nobody can serve now blocks nobody. The views' ``entries`` are raised by what was given out,
    so that one pass does not promise the same room twice; the store's answer corrects them.
    """

    policy: str = "least_loaded"
    random: random.Random = field(default_factory=random.Random)
    weights: Mapping[str, int] = field(default_factory=dict)  # by group; DEFAULT_GROUP stands for those not named
    kept: Mapping[str, Key] = field(default_factory=dict)  # incarnation -> whose turn comes first there
    _last: dict[tuple[int, str], int] = field(default_factory=dict)  # (rank, group) -> the class served first last time
    _fairness: Fairness = field(default_factory=Fairness)

    def place(self, demands: Iterable[Demand], channels: Iterable[ChannelView], most: int) -> list[Share]:
        """Shares of at most ``most`` jobs in all."""
        demands = list(demands)
        room = _Room(list(channels), most, self._kept_now(demands) if self.kept else {})
        ordered = sorted(demands, key=lambda demand: (-demand.rank, demand.job_class, -demand.priority))
        for rank, peers in groupby(ordered, key=lambda demand: demand.rank):
            if room.over:
                break
            groups: dict[str, list[Demand]] = {}
            for peer in peers:
                groups.setdefault(peer.target.group, []).append(peer)
            queues = {group: self._in_turn(rank, group, some) for group, some in groups.items()}
            if len(queues) == 1:
                for group, queue in queues.items():
                    self._serve(room, rank, group, queue, room.most)
            else:
                self._share_out(room, rank, queues)
        return room.shares()

    def _kept_now(self, demands: Iterable[Demand]) -> dict[str, tuple[Key, int]]:
        """Not for those that cannot go anywhere at the moment, as a limit or a pause keeps them back."""
        ranks = {demand.key: demand.rank for demand in demands}
        return {incarnation: (key, ranks[key]) for incarnation, key in self.kept.items() if key in ranks}

    def refund(self, share: Share, count: int) -> None:
        """So many jobs of a share did not go after all: they are not charged to their group."""
        self._fairness.charge(share.demand.target.group, -count, self._weight(share.demand.target.group))

    def _weight(self, group: str) -> int:
        return self.weights.get(group) or self.weights.get(DEFAULT_GROUP, 1)

    def _share_out(self, room: _Room, rank: int, queues: dict[str, list[Demand]]) -> None:
        """Whoever has had least for its weight is next, with about its part of what is free."""
        self._fairness.enter(queues)
        weights = {group: self._weight(group) for group in queues}
        hungry = set(queues)
        free = min(room.most, sum(channel.room for channel in room.free))
        while hungry and not room.over:
            group = self._fairness.next(hungry)
            wanted = max(1, free * weights[group] // sum(weights.values()))
            given = self._serve(room, rank, group, queues[group], wanted)
            self._fairness.charge(group, given, weights[group])
            if given < wanted:
                hungry.discard(group)
        self._fairness.leave(queues)

    def _serve(self, room: _Room, rank: int, group: str, queue: list[Demand], wanted: int) -> int:
        """Up to ``wanted`` jobs of one group; how many there were."""
        served, alone = 0, wanted >= room.most
        for demand in queue:
            if served >= wanted or room.over:
                break
            candidates = room.candidates(demand)
            count = min(room.left(demand), wanted - served, room.most)
            packs = _packs(candidates, count, demand)
            given = self._divide(candidates, count, demand.slots, room.left(demand) if alone else count, packs)
            if given and not served:
                self._last[rank, group] = demand.job_class
            for channel in candidates:
                served += room.give(demand, channel, given.get(channel.incarnation, 0))
            room.tidy()
        return served

    def _in_turn(self, rank: int, group: str, peers: list[Demand]) -> list[Demand]:
        """After whichever class was served first the last time."""
        last = self._last.get((rank, group), -1)
        return [peer for peer in peers if peer.job_class > last] + [peer for peer in peers if peer.job_class <= last]

    def _divide(
        self, candidates: Sequence[ChannelView], count: int, slots: int, waiting: int, packs: Mapping[str, int]
    ) -> dict[str, int]:
        """Who gets how many of ``count`` jobs that take ``slots`` slots each; in the next passes more follow, up to
        ``waiting`` in all. ``packs``: how many go to a channel together, where it is more than one.
        """
        if waiting >= sum(channel.room // slots for channel in candidates):
            return self._one_by_one(candidates, count, slots, waiting, {})
        if self.policy != "least_loaded":
            return getattr(self, f"_{self.policy}")(candidates, count, slots)  # type: ignore[no-any-return]
        if waiting > count:
            return self._one_by_one(candidates, count, slots, waiting // len(candidates), packs)
        return self._least_loaded(candidates, count, slots, packs)

    def _one_by_one(
        self, candidates: Sequence[ChannelView], count: int, slots: int, most: int, packs: Mapping[str, int]
    ) -> dict[str, int]:
        """One channel after the other gets its whole part, ``most`` or a pack, the least loaded first: more than this
        can give is on its way, and few large shares cost the store less than many small ones.
        """
        given: dict[str, int] = {}
        for channel in sorted(candidates, key=lambda channel: channel.load):
            part = max(1, most, packs.get(channel.incarnation, 1))
            given[channel.incarnation] = min(count, channel.room // slots, part)
            count -= given[channel.incarnation]
        return given

    def _least_loaded(
        self, candidates: Sequence[ChannelView], count: int, slots: int, packs: Mapping[str, int]
    ) -> dict[str, int]:
        """One by one, instant ones in packs, to whichever is least loaded then; equals in random order."""
        given: dict[str, int] = {}
        heap = [(channel.load, self.random.random(), channel) for channel in candidates]
        heapq.heapify(heap)
        left = count
        while left:
            _, tie, channel = heap[0]
            before, room = given.get(channel.incarnation, 0), channel.room // slots
            # Ever smaller at the end, so that all are as loaded as each other.
            pack = min(packs.get(channel.incarnation, 1), 1 + left // _LAST_PACKS)
            taken = given[channel.incarnation] = before + min(left, room - before, pack)
            left -= taken - before
            if taken < room:
                heapq.heapreplace(heap, ((channel.entries + taken * slots) / channel.slots, tie, channel))
            else:
                heapq.heappop(heap)
        return given

    def _round_robin(self, candidates: Sequence[ChannelView], count: int, slots: int) -> dict[str, int]:
        ring = sorted(candidates, key=lambda channel: (channel.node, channel.name, channel.incarnation))
        given: dict[str, int] = {}
        position = self._position
        while count:
            channel = ring[position % len(ring)]
            position += 1
            if given.get(channel.incarnation, 0) < channel.room // slots:
                given[channel.incarnation] = given.get(channel.incarnation, 0) + 1
                count -= 1
        self._position = position
        return given

    _position: int = 0

    def _random(self, candidates: Sequence[ChannelView], count: int, slots: int) -> dict[str, int]:
        given: dict[str, int] = {}
        open_ones = list(candidates)
        for _ in range(count):
            number = self.random.randrange(len(open_ones))
            channel = open_ones[number]
            taken = given[channel.incarnation] = given.get(channel.incarnation, 0) + 1
            if taken >= channel.room // slots:
                open_ones[number] = open_ones[-1]
                open_ones.pop()
        return given
