"""Which channel runs what: pure, over the free windows of the channels."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from jobschedd.job import Target


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
    full: bool = False  # a limit of its node or name lets no more in, until something of it ends

    @property
    def room(self) -> int:
        """How many more entries its window takes."""
        return self.window - self.entries if self.open and not self.full else 0

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


def _elsewhere(candidates: list[ChannelView], everywhere: Iterable[ChannelView], target: Target) -> list[ChannelView]:
    """Those not on the node to avoid; all, where no other node could ever take it as things stand."""
    another = any(
        view.node != target.avoid and view.open and view.window > 0 and target.admits(view.node, view.name, view.labels)
        for view in everywhere
    )
    return [channel for channel in candidates if channel.node != target.avoid] if another else candidates


@dataclass(frozen=True)
class Share:
    """``count`` jobs of a demand for one channel incarnation."""

    demand: Demand
    incarnation: str
    count: int


Policy = Callable[[Sequence[ChannelView], int], dict[str, int]]


@dataclass
class Placement:
    """Answers "which channels get how many", by strict priority; takes turns among classes of one priority.

    A class that nobody can serve now blocks nobody. The views' ``entries`` are raised by what was given out,
    so that one pass does not promise the same room twice; the store's answer corrects them.
    """

    policy: str = "least_loaded"
    random: random.Random = field(default_factory=random.Random)
    _last: dict[int, int] = field(default_factory=dict)  # priority -> the class that was served first, the last time

    def place(self, demands: Iterable[Demand], channels: Iterable[ChannelView], most: int) -> list[Share]:
        """Shares of at most ``most`` jobs in all."""
        everywhere = list(channels)
        free = [channel for channel in everywhere if channel.room > 0]
        shares: list[Share] = []
        first: dict[int, int] = {}
        for demand in self._in_order(demands):
            if not free or most <= 0:
                break
            candidates = [
                channel for channel in free if demand.target.admits(channel.node, channel.name, channel.labels)
            ]
            if demand.target.avoid:
                candidates = _elsewhere(candidates, everywhere, demand.target)
            given = self._divide(candidates, min(demand.count, most))
            for channel in candidates:
                count = given.get(channel.incarnation, 0)
                if count:
                    channel.entries += count
                    most -= count
                    shares.append(Share(demand, channel.incarnation, count))
            if given:
                first.setdefault(demand.priority, demand.job_class)
                free = [channel for channel in free if channel.room > 0]
        self._last |= first
        return shares

    def _in_order(self, demands: Iterable[Demand]) -> list[Demand]:
        """By priority; among equals, after whichever class was served first the last time."""
        ordered = sorted(demands, key=lambda demand: (-demand.priority, demand.job_class))
        result: list[Demand] = []
        for priority, group in groupby(ordered, key=lambda demand: demand.priority):
            peers = list(group)
            last = self._last.get(priority, -1)
            result += [peer for peer in peers if peer.job_class > last]
            result += [peer for peer in peers if peer.job_class <= last]
        return result

    def _divide(self, candidates: Sequence[ChannelView], count: int) -> dict[str, int]:
        if count >= sum(channel.room for channel in candidates):
            return {channel.incarnation: channel.room for channel in candidates}
        return getattr(self, f"_{self.policy}")(candidates, count)  # type: ignore[no-any-return]

    def _least_loaded(self, candidates: Sequence[ChannelView], count: int) -> dict[str, int]:
        """One by one to whichever is least loaded then; equals in random order."""
        given: dict[str, int] = {}
        heap = [(channel.load, self.random.random(), channel) for channel in candidates]
        heapq.heapify(heap)
        for _ in range(count):
            _, tie, channel = heap[0]
            taken = given[channel.incarnation] = given.get(channel.incarnation, 0) + 1
            if taken < channel.room:
                heapq.heapreplace(heap, ((channel.entries + taken) / channel.slots, tie, channel))
            else:
                heapq.heappop(heap)
        return given

    def _round_robin(self, candidates: Sequence[ChannelView], count: int) -> dict[str, int]:
        ring = sorted(candidates, key=lambda channel: (channel.node, channel.name, channel.incarnation))
        given: dict[str, int] = {}
        position = self._position
        while count:
            channel = ring[position % len(ring)]
            position += 1
            if given.get(channel.incarnation, 0) < channel.room:
                given[channel.incarnation] = given.get(channel.incarnation, 0) + 1
                count -= 1
        self._position = position
        return given

    _position: int = 0

    def _random(self, candidates: Sequence[ChannelView], count: int) -> dict[str, int]:
        given: dict[str, int] = {}
        open_ones = list(candidates)
        for _ in range(count):
            number = self.random.randrange(len(open_ones))
            channel = open_ones[number]
            taken = given[channel.incarnation] = given.get(channel.incarnation, 0) + 1
            if taken >= channel.room:
                open_ones[number] = open_ones[-1]
                open_ones.pop()
        return given
