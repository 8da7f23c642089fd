"""Channels that are kept for jobs which need much of one: else those might wait for ever behind small ones. Pure.

A job that asks for resources or for several slots starves where small ones take whatever becomes free. So once the
first of its list has waited for ``after`` seconds, and nothing of the list was dispatched for as long, one channel is
kept for it: what is of the same or a lower rank goes elsewhere, until it fits. One channel a list, one list a channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from jobschedd.job import Target
from jobschedd.master.placement import ChannelView, Key
from jobschedd.store.survey import Head, Kept


class Keeping:
    """Who waits for too long, and which channel is kept for whom. ``after``: 0 for never."""

    def __init__(self, after: float) -> None:
        self.after = after
        self._kept: dict[Key, Kept] = {}
        self._served: dict[Key, float] = {}  # boot time at which something of this list was last dispatched

    @property
    def channels(self) -> dict[str, Key]:
        """By incarnation, the list that it is kept for."""
        return {kept.incarnation: key for key, kept in self._kept.items()}

    def all(self) -> list[Kept]:
        """What is kept for whom."""
        return list(self._kept.values())

    def adopt(self, kept: Iterable[Kept]) -> None:
        """What a former leader kept."""
        self._kept = {(one.job_class, one.priority): one for one in kept} if self.after else {}

    def served(self, key: Key, now: float) -> bool:
        """Something of this list was dispatched (boot time); whether a channel was kept for it, until now."""
        self._served[key] = now
        return self._kept.pop(key, None) is not None

    def tidy(self, waiting: Collection[Key], able: Collection[str]) -> None:
        """Forget lists of which nothing waits, and channels (incarnations) that take nothing any more."""
        self._served = {key: at for key, at in self._served.items() if key in waiting}
        self._kept = {key: one for key, one in self._kept.items() if key in waiting and one.incarnation in able}

    def release(self, keys: Iterable[Key]) -> None:
        """Nothing is kept for these any more."""
        for key in list(keys):
            self._kept.pop(key, None)

    def starving(self, heads: Mapping[Key, Head], now: float) -> list[Key]:
        """Lists for which a channel is to be kept, whoever waits longest first."""
        found = [key for key, head in heads.items() if head.waits >= self.after and not self._is_served(key, now)]
        return sorted((key for key in found if key not in self._kept), key=lambda key: -heads[key].waits)

    def _is_served(self, key: Key, now: float) -> bool:
        return key in self._served and now - self._served[key] < self.after

    def keep(self, key: Key, head: Head, view: ChannelView) -> None:
        """From now on, until something of the list is dispatched."""
        self._kept[key] = Kept(view.incarnation, *key, head.job, head.now)


def shortage(target: Target, view: ChannelView, used: Mapping[str, int]) -> tuple[float, float]:
    """How far a channel is from having room: what is missing of each thing asked for, added up; then how busy it is."""
    free = {name: amount - used.get(name, 0) for name, amount in view.resources.items()}
    missing = [(amount - free.get(name, 0)) / amount for name, amount in target.amounts.items()]
    missing.append((target.slots - view.room) / target.slots)
    return sum(max(0.0, part) for part in missing), view.load
