"""What keeps classes back: limits and rates. Remembers which class waits for what, so that nobody asks in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobschedd.job import Target
from jobschedd.limits import Limits, terms_of
from jobschedd.master.placement import ChannelView

PLACE = "place"
USED = "used:"
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wait:
    """What a class waits for. ``until``: boot time at which it is over by itself; 0: when somebody lets go."""

    by: str
    until: float = 0.0


class Bounds:
    """The dispatcher's memory of limits. The store decides; this saves asking again before anything changed."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._terms: dict[Target, bytes] = {}
        self._waits: dict[int, Wait] = {}  # by class
        self._closed: dict[int, frozenset[str]] = {}  # by class: channels that have too little left for it

    def set(self, limits: Limits) -> None:
        """Other limits: whoever waits may ask again."""
        self._limits = limits
        self.forget()

    @property
    def limits(self) -> Limits:
        """What is set."""
        return self._limits

    def forget(self) -> None:
        """Nothing is known of who waits for what."""
        self._terms.clear()
        self._waits.clear()
        self._closed.clear()

    # -- what the store has to see to ---------------------------------------------------------------------------

    def terms(self, target: Target, view: ChannelView, views: Iterable[ChannelView]) -> bytes:
        """For jobs of this class on this channel. ``views``: all channels, its node's others among them."""
        places = self._places(view, views)
        if places or target.amounts:
            return terms_of(target, self._limits, places, view.place, view.resources).encoded()
        if target not in self._terms:
            self._terms[target] = terms_of(target, self._limits).encoded()
        return self._terms[target]

    def _places(self, view: ChannelView, views: Iterable[ChannelView]) -> list[tuple[int, list[str]]]:
        """The limits of this channel's node and name, each with what the channels that it covers have now."""
        if not any(key.startswith(("node:", "channel:")) for key in self._limits.numbers):
            return []
        here = [other for other in views if other.node == view.node]
        same = [other for other in here if other.name == view.name]
        found = []
        for key, covered in (
            (f"node:{view.node}", here),
            (f"channel:{view.name}", same),
            (f"channel:{view.node}/{view.name}", same),
        ):
            setting = self._limits.number(key)
            if setting is not None and isinstance(setting.limit, int):
                found.append((setting.limit, [other.entries_key for other in covered]))
        return found

    # -- who waits for what ---------------------------------------------------------------------------------------

    def waits(self, job_class: int) -> bool:
        """Whether it is known that nothing of this class may go."""
        return job_class in self._waits

    def closed(self, job_class: int) -> frozenset[str]:
        """The channels (node/name) that are known to have too little left for this class."""
        return self._closed.get(job_class, _NONE)

    def note(self, job_class: int, by: str, now: float, wait_ms: int) -> None:
        """The store let no more of this class through: anywhere, or (``used:``) on this channel."""
        if by.startswith(USED):
            self._closed[job_class] = self.closed(job_class) | {by.removeprefix(USED)}
            return
        self._waits[job_class] = Wait(by, now + wait_ms / 1000 if wait_ms >= 0 else 0.0)

    def freed(self, by: str) -> None:
        """Somebody let go of ``by``."""
        if by.startswith(USED):
            place = by.removeprefix(USED)
            left = {job_class: places - {place} for job_class, places in self._closed.items()}
            self._closed = {job_class: places for job_class, places in left.items() if places}
            return
        self._drop(lambda wait: wait.by == by)

    def tick(self, now: float) -> float:
        """Let those ask again whose time has come; when the next one's comes (boot time), 0 for none."""
        self._drop(lambda wait: 0 < wait.until <= now)
        return min((wait.until for wait in self._waits.values() if wait.until), default=0.0)

    def _drop(self, over: Callable[[Wait], bool]) -> None:
        self._waits = {job_class: wait for job_class, wait in self._waits.items() if not over(wait)}
