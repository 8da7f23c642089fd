"""Offers: while nothing waits, channels for the lone jobs of each class that was seen of late.

Such a job goes to one of them in the same step that accepts it, and nobody here is even woken up. Offers stand only
while their leader leads, and are void as long as anything waits (see ``lua/offer.lua`` and ``lua/offered.lua``).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from jobschedd.failpoints import failpoint
from jobschedd.master.placement import ChannelView, Demand, Placement, able
from jobschedd.store.moves import Moves, Offer

#: Classes that have an offer at a time: those seen last.
MOST = 8
#: Channels that each of them is offered: the store looks for one of these that is idle.
MOST_CHANNELS = 8
#: Channels that are compared, drawn from a large fleet.
MOST_COMPARED = 64

Find = Callable[[int], Demand | None]


class Offers:
    """Of one leader. ``may_take(demand, view)``: there is nothing that the store would have to count.

    ``keep_ms``: for how long the record of a success is kept, which may be judged with its report while offers stand.
    """

    def __init__(
        self, moves: Moves, placement: Placement, may_take: Callable[[Demand, ChannelView], bool], keep_ms: int
    ) -> None:
        self._moves = moves
        self._placement = placement
        self._may_take = may_take
        self._keep_ms = keep_ms
        self._seen: dict[int, None] = {}  # classes, the newest last
        self._used: set[int] = set()  # classes of which jobs came since their channels were chosen
        self._made: dict[int, tuple[ChannelView, ...]] = {}
        self._turn = 0  # where the next channels in turn begin

    def see(self, job_class: int) -> None:
        """A job of this class came."""
        self._seen.pop(job_class, None)
        self._seen[job_class] = None
        self._used.add(job_class)
        if len(self._seen) > MOST:
            del self._seen[next(iter(self._seen))]

    def forget(self) -> None:
        """None of them stands any more."""
        self._made.clear()

    def renew(self, fence: str, views: Iterable[ChannelView], demand_of: Find) -> None:
        """Have an offer for each class of late; they stand until something speaks against them.

        Busy channels are offered, too: they may be idle by then, and the store looks.
        """
        views = list(views)
        wanted = {}
        for job_class in self._seen:
            demand = demand_of(job_class)
            if demand is None:
                continue
            channels = self._made.get(job_class, ())
            if job_class in self._used or not self._still_fit(demand, channels):
                channels = self._choose(demand, views)
            if channels:
                wanted[job_class] = channels
        self._used.clear()
        if _names(wanted) == _names(self._made):
            return
        offers = [
            Offer(job_class, tuple((view.incarnation, view.slots) for view in channels))
            for job_class, channels in wanted.items()
        ]
        self._made = wanted if self._moves.offer(fence, offers, self._keep_ms) else {}
        failpoint("dispatcher.offer.after")

    def _still_fit(self, demand: Demand, channels: Sequence[ChannelView]) -> bool:
        return bool(channels) and self._fit(demand, channels) == list(channels)

    def _fit(self, demand: Demand, views: Sequence[ChannelView]) -> list[ChannelView]:
        return [view for view in able(demand.target, views) if self._may_take(demand, view)]

    def _choose(self, demand: Demand, views: Sequence[ChannelView]) -> tuple[ChannelView, ...]:
        """All that may take it; of many those whose turn it is, or those that are least loaded."""
        in_turn = self._placement.policy == "round_robin"
        fit = self._fit(demand, views if in_turn else self._some(views))
        fit.sort(key=lambda view: (view.node, view.name, view.incarnation))
        if len(fit) > MOST_CHANNELS and in_turn:
            first = self._turn % len(fit)
            self._turn = first + MOST_CHANNELS
            fit = (fit[first:] + fit[:first])[:MOST_CHANNELS]
        elif len(fit) > MOST_CHANNELS:
            fit = heapq.nsmallest(MOST_CHANNELS, fit, key=lambda view: (view.load, self._placement.random.random()))
        return tuple(fit)

    def _some(self, views: Sequence[ChannelView]) -> Sequence[ChannelView]:
        return views if len(views) <= MOST_COMPARED else self._placement.random.sample(views, MOST_COMPARED)


def _names(made: Mapping[int, Sequence[ChannelView]]) -> dict[int, list[str]]:
    return {job_class: [view.incarnation for view in channels] for job_class, channels in made.items()}
