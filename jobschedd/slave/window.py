"""How many entries a channel wants in its dispatch stream: its free slots, and what it expects to start at once.

Prefetch is bounded in time, not in number: as many as its slots should get through in ``seconds`` (about
50 ms), so that a new urgent job waits no longer than that. Unknown durations prefetch nothing.
"""

from __future__ import annotations

#: More would only lengthen the way back of entries that could not be started.
MOST_PREFETCH = 512
#: What a job costs beyond its own run time, in seconds: an instant job must not look free.
OVERHEAD = 50e-6
#: Jobs that must have ended before their durations are believed.
ENOUGH = 8
_WEIGHT = 0.1


class Window:
    """The window of a channel of ``slots`` slots that may prefetch ``seconds`` of work."""

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots = slots
        self._seconds = seconds
        self._average = 0.0
        self._ended = 0
        self._refill = seconds  # from saying ends to more orders, while more jobs wait

    def note_end(self, duration: float) -> None:
        """A job ran for ``duration`` seconds. A long one counts at once, short ones gain trust slowly."""
        cost = duration + OVERHEAD
        self._ended += 1
        if cost > self._seconds:
            self._average = max(cost, self._average)
        else:
            self._average += _WEIGHT * (cost - self._average)

    def note_refill(self, took: float) -> None:
        """Ends were said while more jobs waited, and orders came ``took`` seconds later. A long one counts at once."""
        took = min(took, self._seconds)
        self._refill = max(took, self._refill + _WEIGHT * (took - self._refill))

    def note_late(self) -> None:
        """Something prefetched could not start in time: nothing is believed until more has ended."""
        self._ended = 0

    def prefetch(self) -> int:
        """Entries beyond the slots; a round number (1, 2, 3, 4, 6, 8, 12, 16, ...), so that it seldom changes."""
        if self._ended < ENOUGH or self._seconds <= 0:
            return 0
        expected = int(self._seconds * self._slots / max(self._average, OVERHEAD))
        step = 1 << max(0, expected.bit_length() - 2)
        return min(MOST_PREFETCH, expected // step * step)

    def size(self, longest_running: float) -> int:
        """The window while the longest of the running jobs has run for so many seconds."""
        if longest_running > self._seconds:
            return self._slots
        return self._slots + self.prefetch()

    def is_running_dry(self, orders: int, unsaid: int, filled: int) -> bool:
        """Whether ends must be said now, lest the slots soon have nothing to do.

        ``orders``: in hand, those that run included; ``unsaid``: ends that were not said yet; ``filled``: the window,
        where it was full the last time that orders came, else 0. Then more jobs wait, and it is soon enough to ask for
        them when what is in hand will just last until they are here, by experience; never before half of it has ended.
        """
        reserve = orders - self._slots
        if filled:
            return reserve <= 0 or (2 * unsaid >= filled and reserve <= self._started_within_a_refill())
        return reserve <= self.prefetch() // 4

    def _started_within_a_refill(self) -> float:
        return self._slots * self._refill / max(self._average, OVERHEAD) + 1
