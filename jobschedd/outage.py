"""Waiting for Redis: back-off with jitter, told when it begins, now and then while it lasts, and when it is over."""

from __future__ import annotations

import random

from jobschedd.clock import Clock
from jobschedd.durations import format_duration
from jobschedd.logs import Logger

#: Seconds between two reminders of the same trouble.
REMIND_EVERY = 60.0


class Outage:
    """One process's view of Redis being away. ``longest``: the longest pause between two tries, in seconds."""

    def __init__(self, log: Logger, clock: Clock, longest: float, first: float = 0.05) -> None:
        self._log = log
        self._clock = clock
        self._longest = longest
        self._first = first
        self._pause = first
        self._began: float | None = None
        self._told = ""
        self._told_at = 0.0

    def failed(self, error: Exception) -> float:
        """It failed (again): tell it if that is news, and answer how long to wait before the next try."""
        now, text = self._clock.boottime(), str(error)
        if self._began is None:
            self._began = now
        if text != self._told or now - self._told_at >= REMIND_EVERY:
            self._log.warning("waiting for Redis", error=text, since=format_duration(now - self._began))
            self._told, self._told_at = text, now
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._longest, self._pause * 2)
        return pause

    def over(self) -> None:
        """It works (again)."""
        if self._began is not None:
            self._log.notice("Redis is back", after=format_duration(self._clock.boottime() - self._began))
        self._began, self._told, self._pause = None, "", self._first
