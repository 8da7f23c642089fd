"""Drains and pauses, as the dispatcher sees them: who gets nothing new, and what becomes of what runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.master.placement import ChannelView
from jobschedd.store.moves import Moves
from jobschedd.store.survey import Drain, Survey, groups_among

log = get_logger(__name__)


class Draining:
    """What an operator has drained or paused. ``most``: jobs that one call asks to end."""

    def __init__(self, moves: Moves, survey: Survey, most: int) -> None:
        self._moves = moves
        self._survey = survey
        self._most = most
        self._drains: dict[str, Drain] = {}
        self.paused_groups: frozenset[str] = frozenset()

    def read(self) -> None:
        """Look at what is ordered now."""
        self._drains = self._survey.drains()
        self.paused_groups = groups_among(self._drains)

    def of(self, view: ChannelView) -> list[Drain]:
        """Those that close this channel: its node's, those of its name anywhere, its own."""
        names = (view.node, view.name, f"{view.node}/{view.name}")
        return [self._drains[name] for name in names if name in self._drains]

    def acknowledge(self, fence: str) -> None:
        """From now on nothing new goes there: whoever waits until a node is empty may believe what he sees."""
        if unheard := [name for name, drain in self._drains.items() if not drain.heard]:
            self._moves.hear_drains(fence, unheard)

    def keep_deadlines(self, fence: str, views: Iterable[ChannelView], go_on: Callable[[], None]) -> None:
        """Where the time is over, what still runs is asked to end, again and again until it has."""
        for view in views:
            for drain in self.of(view) if view.entries else ():
                if drain.deadline is not None and drain.then != "wait":
                    self._interrupt(fence, view, drain.deadline, drain.then)
                    go_on()

    def _interrupt(self, fence: str, view: ChannelView, deadline: float, then: str) -> None:
        asked = self._moves.interrupt(fence, view.incarnation, round(deadline * 1000), then, self._most)
        if asked:
            failpoint("dispatcher.interrupt.after")
            log.info("drain: time is over", channel=f"{view.node}/{view.name}", then=then, jobs=asked)
