"""Time: wall clock for people, CLOCK_BOOTTIME for deadlines (it counts suspend), both injectable."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code that waits or measures asks the time of."""

    def now(self) -> float:
        """Seconds since the epoch: for display and records only, never for deadlines."""
        ...

    def boottime(self) -> float:
        """Seconds since boot, suspend included: for every deadline and duration."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class FakeClock:
    """A clock that a test moves by hand; both faces advance together."""

    def __init__(self, now: float = 1_700_000_000.0, boottime: float = 1_000.0) -> None:
        self._now = now
        self._boottime = boottime

    def now(self) -> float:
        return self._now

    def boottime(self) -> float:
        return self._boottime

    def advance(self, seconds: float) -> None:
        """Move both faces forward by ``seconds``."""
        self._now += seconds
        self._boottime += seconds


SYSTEM_CLOCK = SystemClock()
