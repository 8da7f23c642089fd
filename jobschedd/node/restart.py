"""When a child that died is started again, and when it is given up. Pure: told what happened, answers a delay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartLimits:
    """All in seconds, except the number of failures.

    A child that had been ready comes back at once the first time and after ``ready_delay_limit`` at most: its
    work waits. One that dies before it is ready is slowed down up to ``delay_limit``; ``max_failures`` such
    deaths in a row, each within ``quick``, are a crash loop. ``stable`` seconds of being ready forgive all.
    """

    first_delay: float = 0.1
    delay_limit: float = 30.0
    ready_delay_limit: float = 1.0
    quick: float = 10.0
    max_failures: int = 5
    stable: float = 10.0


class RestartPolicy:
    """The history of one child's deaths, as far as it matters for the next start."""

    def __init__(self, limits: RestartLimits) -> None:
        self._limits = limits
        self._delay = 0.0
        self.failures = 0

    def after_death(self, uptime: float, ready_for: float | None) -> float | None:
        """Seconds to wait before the next start; None: give it up.

        ``uptime``: seconds since its start; ``ready_for``: since it was ready, None when it never was.
        """
        limits = self._limits
        if ready_for is None:
            return self._after_failed_start(uptime)
        self.failures = 0
        if ready_for >= limits.stable:
            self._delay = 0.0
        delay = min(self._delay, limits.ready_delay_limit)
        self._delay = max(limits.first_delay, delay * 2)
        return delay

    def after_failed_fork(self) -> float:
        """Seconds to wait when the machine, not the child, refused the start: never a reason to give up."""
        return self._next_delay()

    def _after_failed_start(self, uptime: float) -> float | None:
        self.failures = self.failures + 1 if uptime < self._limits.quick else 0
        if self.failures >= self._limits.max_failures:
            return None
        return self._next_delay()

    def _next_delay(self) -> float:
        delay = min(max(self._delay, self._limits.first_delay), self._limits.delay_limit)
        self._delay = delay * 2
        return delay
