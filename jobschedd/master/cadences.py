"""Duties with a period: what is due is done, within bounds, so that a turn of the loop stays short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobschedd.clock import Clock

#: Seconds that duties may take before the loop goes on.
DUTIES_A_TURN = 1.0


@dataclass
class Cadence:
    """A duty and its period in seconds. ``due``: boot time of the next one, which the duty itself may change."""

    every: float
    duty: Callable[[], None]
    due: float = 0.0


class Cadences:
    """All duties of one loop. ``go_on`` is called after each: it raises where the loop must not go on."""

    def __init__(self, clock: Clock, go_on: Callable[[], None]) -> None:
        self._clock = clock
        self._go_on = go_on
        self._all: list[Cadence] = []

    def add(self, every: float, duty: Callable[[], None]) -> Cadence:
        """From the first turn on, every so many seconds."""
        cadence = Cadence(every, duty)
        self._all.append(cadence)
        return cadence

    @property
    def soonest(self) -> float:
        """Boot time at which the next one is due."""
        return min(cadence.due for cadence in self._all)

    def keep(self) -> None:
        """What is due. Over a slow line the rest comes in the next turn, so that news are heard meanwhile."""
        now = self._clock.boottime()
        for cadence in self._due(now):
            cadence.due = now + cadence.every
            cadence.duty()
            self._go_on()
            if self._clock.boottime() - now > DUTIES_A_TURN:
                return

    def _due(self, now: float) -> list[Cadence]:
        """Those that have been due for longest come first."""
        due = []
        for cadence in self._all:
            if cadence.due == 0.0:
                cadence.due = now + cadence.every
            elif now >= cadence.due:
                due.append(cadence)
        return sorted(due, key=lambda cadence: cadence.due)
