"""Which moments a schedule names: a cron expression in a time zone, or a fixed interval. Pure: no clock, no I/O.

Everything here is in whole milliseconds since the epoch. Cron names times of the wall clock; where the wall clock
jumps, ``Dst`` decides. An interval knows no wall clock: its moments are counted from an anchor, so that whoever counts
them comes to the same.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobschedd.cron import Cron

_EPOCH = datetime(1970, 1, 1)
_DAY = 86_400
#: No two changes of a zone's offset are nearer to each other.
_PROBE = _DAY // 2
_LAST_YEAR = 2200


class Dst(enum.StrEnum):
    """What becomes of a wall-clock time that does not exist on one day, or exists twice."""

    SKIP = "skip"  # none; one that exists twice runs the first time
    RUN_ONCE = "run_once"  # at the change; one that exists twice runs the first time
    RUN_TWICE = "run_twice"  # at the change; one that exists twice runs both times


class Occurrence(NamedTuple):
    """One moment; ``runs`` is False for one that only explains why nothing runs."""

    at: int  # milliseconds since the epoch
    runs: bool = True
    note: str = ""


class _Span(NamedTuple):
    """A stretch of time with one offset to UTC. All in seconds; ``change``: of the offset, where the span begins."""

    begin: int
    end: int
    offset: int
    change: int
    next_change: int


@dataclass(frozen=True)
class Recurrence:
    """``cron`` or ``every`` (milliseconds), within [``start``, ``end``] (milliseconds; 0: open)."""

    cron: Cron | None = None
    every: int = 0
    zone: ZoneInfo = ZoneInfo("UTC")  # noqa: RUF009 - immutable
    dst: Dst = Dst.RUN_ONCE
    start: int = 0
    end: int = 0

    def after(self, moment: int) -> Iterator[int]:
        """Every moment later than ``moment`` at which it runs, in order."""
        return (occurrence.at for occurrence in self.occurrences(moment) if occurrence.runs)

    def occurrences(self, moment: int) -> Iterator[Occurrence]:
        """The same with notes, and with what a change of the clocks leaves out."""
        moment = max(moment, self.start - 1)
        found = self._regular(moment) if self.cron is None else self._by_calendar(self.cron, moment // 1000 + 1)
        for occurrence in found:
            if self.end and occurrence.at > self.end:
                return
            yield occurrence

    def within(self, after: int, until: int, most: int) -> tuple[list[int], bool]:
        """The last ``most`` moments (about) in (after, until], and whether these are all: whatever the distance."""
        width = 60_000
        while True:
            begin = max(after, until - width)
            found = []
            for moment in self.after(begin):
                if moment > until:
                    break
                found.append(moment)
            if begin == after or len(found) >= most:
                return found, begin == after
            width *= 2

    def _regular(self, moment: int) -> Iterator[Occurrence]:
        first = (moment - self.start) // self.every + 1
        return (Occurrence(self.start + number * self.every) for number in count(first))

    def _by_calendar(self, cron: Cron, begin: int) -> Iterator[Occurrence]:
        """From the second ``begin`` on."""
        for span in _spans(self.zone, begin):
            yield from self._in_span(cron, span, begin)

    def _in_span(self, cron: Cron, span: _Span, begin: int) -> Iterator[Occurrence]:
        wall, end = _wall(span.begin + span.offset), _wall(span.end + span.offset)
        if span.change > 0 and span.begin >= begin:
            missing = cron.first(wall - timedelta(seconds=span.change), wall)
            if missing is not None:
                runs = self.dst is not Dst.SKIP
                yield Occurrence(span.begin * 1000, runs, _missing(missing, wall, span.change, runs))
                if runs:
                    wall += timedelta(seconds=1)
        repeated_until = wall + timedelta(seconds=max(0, -span.change))
        if self.dst is not Dst.RUN_TWICE:
            wall = repeated_until
        repeats_from = end + timedelta(seconds=min(0, span.next_change))
        wall = max(wall, _wall(max(begin, span.begin) + span.offset))
        while (found := cron.first(wall, end)) is not None:
            at = (_seconds(found) - span.offset) * 1000
            note = ""
            if found < repeated_until:
                note = f"{found:%H:%M:%S} comes twice: this is the second time"
            elif found >= repeats_from:
                only = "this is the first time" if self.dst is Dst.RUN_TWICE else "it runs the first time only"
                note = f"{found:%H:%M:%S} comes twice: {only}"
            yield Occurrence(at, True, note)
            wall = found + timedelta(seconds=1)


def time_zone(name: str) -> ZoneInfo:
    """Raises ValueError for a name that the time zone database does not have."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name[:60]!r} is no time zone; write a name such as Europe/Berlin or UTC") from None


def _missing(missing: datetime, wall: datetime, change: int, runs: bool) -> str:
    before = wall - timedelta(seconds=change)
    what = "runs at the change" if runs else "is skipped"
    return f"{missing:%H:%M:%S} does not exist: clocks go from {before:%H:%M} to {wall:%H:%M}; it {what}"


def _wall(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)


def _seconds(wall: datetime) -> int:
    return round((wall - _EPOCH).total_seconds())


def _spans(zone: ZoneInfo, moment: int) -> Iterator[_Span]:
    """From the one that holds ``moment`` on. They end with the year, too: nobody looks further than is asked for."""
    begin = moment - 2 * _DAY
    offset, change = _offset(zone, begin), 0
    for year in range(_wall(begin).year, _LAST_YEAR):
        for at, after in _changes(zone, year):
            if at <= begin:
                continue
            if at > moment:
                yield _Span(begin, at, offset, change, after - offset)
            begin, offset, change = at, after, after - offset
        end = _seconds(datetime(year + 1, 1, 1))
        # Not while the wall clock may still repeat what it has shown.
        if end > moment and end - begin > 3 * _DAY:
            yield _Span(begin, end, offset, change, 0)
            begin, change = end, 0


@lru_cache(maxsize=4096)
def _changes(zone: ZoneInfo, year: int) -> tuple[tuple[int, int], ...]:
    """(second, offset from then on) for each change of the zone's offset in a year of UTC."""
    found = []
    at, end = (_seconds(datetime(one, 1, 1)) for one in (year, year + 1))
    # A change in the first second of the year is one against the second before.
    at -= 1
    end -= 1
    offset = _offset(zone, at)
    while at < end:
        probe = min(at + _PROBE, end)
        if _offset(zone, probe) != offset:
            probe = _first_change(zone, at, probe, offset)
            offset = _offset(zone, probe)
            found.append((probe, offset))
        at = probe
    return tuple(found)


def _first_change(zone: ZoneInfo, low: int, high: int, offset: int) -> int:
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: ZoneInfo, seconds: int) -> int:
    offset = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())
