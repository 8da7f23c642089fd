"""Deaths of channel processes that no job is to blame for. Pure; it remembers a minute, and that is enough.

Nobody can see who sent a SIGKILL. But where every job that ran in a process when it died has since run to an end of
its own, none of them killed it: somebody kills processes there, or the machine does. While that goes on, a job that
is hit once more is not taken for poison. A job that kills its channel each time never clears one of its deaths, so
any number of them at once excuse nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Seconds for which a death says something about those that follow.
REMEMBERED: Final = 60.0
#: So many deaths without a culprit excuse the jobs that are hit by others.
ENOUGH: Final = 2


@dataclass
class _Death:
    at: float
    suspects: set[str]


class Deaths:
    """What the collector has seen of them. Times in seconds since boot."""

    def __init__(self) -> None:
        self._deaths: dict[str, _Death] = {}  # by incarnation, oldest first
        self._last: dict[str, str] = {}  # job -> the incarnation that died under it last

    def died(self, incarnation: str, job: str, now: float) -> None:
        """The channel process ``incarnation`` died while it ran ``job``, perhaps among others."""
        self._forget(now)
        self._deaths.setdefault(incarnation, _Death(now, set())).suspects.add(job)
        self._last[job] = incarnation

    def cleared(self, job: str) -> None:
        """``job`` has run to an end of its own: it was not the culprit."""
        if self._last.pop(job, None) is not None:
            for death in self._deaths.values():
                death.suspects.discard(job)

    def without_culprit(self, now: float) -> bool:
        """Whether channel processes die these days without any job's doing."""
        self._forget(now)
        return sum(not death.suspects for death in self._deaths.values()) >= ENOUGH

    def _forget(self, now: float) -> None:
        for incarnation, death in list(self._deaths.items()):
            if now - death.at <= REMEMBERED:
                return
            del self._deaths[incarnation]
            for job in death.suspects:
                if self._last.get(job) == incarnation:
                    del self._last[job]
