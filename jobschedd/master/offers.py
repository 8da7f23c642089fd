"""Offers: while nothing waits, an idle channel for the next job of each class that was seen of late.

That job goes to its channel in the same step that accepts it, and does not wait for this process to wake up: on an idle
system that is a fifth of its time. An offer is for one job, stands only while its leader leads, and is void as soon as
anything waits (see ``lua/offer.lua`` and ``lua/offered.lua``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jobschedd.failpoints import failpoint
from jobschedd.master.placement import ChannelView, Demand, Placement, able
from jobschedd.store.moves import Moves, Offer

#: Classes that have an offer at a time: those seen last.
MOST = 8
#: Channels that are compared, drawn from a large fleet: each lone job has this done once.
MOST_COMPARED = 64

Find = Callable[[int], Demand | None]


class Offers:
    """Of one leader. ``may_take(demand, view)``: there is nothing that the store would have to count."""

    def __init__(self, moves: Moves, placement: Placement, may_take: Callable[[Demand, ChannelView], bool]) -> None:
        self._moves = moves
        self._placement = placement
        self._may_take = may_take
        self._seen: dict[int, None] = {}  # classes, the newest last
        self._made: dict[int, ChannelView] = {}

    def see(self, job_class: int) -> None:
        """A job of this class came."""
        self._seen.pop(job_class, None)
        self._seen[job_class] = None
        if len(self._seen) > MOST:
            del self._seen[next(iter(self._seen))]

    def taken(self, job_class: int) -> None:
        """A job came and took what was offered to its class."""
        self._made.pop(job_class, None)

    def forget(self) -> None:
        """None of them stands any more."""
        self._made.clear()

    def renew(self, fence: str, views: Iterable[ChannelView], demand_of: Find) -> None:
        """Have an offer for each class of late; they stand until they are taken.

        Where no channel is idle, as far as we know, it is the one that may be so next: the store looks once more.
        """
        views = list(views)
        wanted = {}
        for job_class in self._seen:
            made = self._made.get(job_class)
            view = made if made is not None and _is_idle(made) else self._choose(demand_of(job_class), views)
            if view is not None:
                wanted[job_class] = view
        if {key: view.incarnation for key, view in wanted.items()} == self._names():
            return
        offers = [Offer(job_class, view.incarnation, view.slots) for job_class, view in wanted.items()]
        self._made = wanted if self._moves.offer(fence, offers) else {}
        failpoint("dispatcher.offer.after")

    def _names(self) -> dict[int, str]:
        return {job_class: view.incarnation for job_class, view in self._made.items()}

    def _choose(self, demand: Demand | None, views: Sequence[ChannelView]) -> ChannelView | None:
        """By the policy that holds for every dispatch."""
        if demand is None:
            return None
        fit = {
            view.incarnation: view for view in able(demand.target, self._some(views)) if self._may_take(demand, view)
        }
        for share in self._placement.place([demand], filter(_is_idle, fit.values()), 1):
            view = fit[share.incarnation]
            view.entries -= demand.slots  # it has not got it yet
            return view
        return min(fit.values(), key=lambda view: view.load, default=None)

    def _some(self, views: Sequence[ChannelView]) -> Sequence[ChannelView]:
        """Some of many, unless all have their turn."""
        if len(views) <= MOST_COMPARED or self._placement.policy == "round_robin":
            return views
        return self._placement.random.sample(views, MOST_COMPARED)


def _is_idle(view: ChannelView) -> bool:
    return view.room > 0 and view.entries < view.slots
