"""Cron expressions: which wall-clock times they name. No time zone, no I/O.

Five fields (minute, hour, day of month, month, day of week), or six with seconds first, or an alias such as
``@daily``. ``*``, ``a``, ``a-b``, ``*/n``, ``a-b/n``, ``a/n`` and lists of these; names of months and days; ``L`` for
the last day of the month, ``fri#2`` for the second and ``friL`` for the last Friday. Where both days are restricted
(neither begins with ``*``), a day that meets one of them will do, as in every cron.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: The calendar repeats itself after 400 years, in 40 every date has met every day of the week (1900 and 2100 aside).
_YEARS_TO_LOOK = 50
_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_LONGEST_MONTH = dict.fromkeys(range(1, 13), 31) | {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
_PART = re.compile(r"(?:(?P<star>[*?])|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d{1,4}))?", re.ASCII)
_NTH_DAY = re.compile(r"(?P<day>[a-z]{3}|[0-7])(?:#(?P<nth>[1-5])|(?P<last>l))", re.ASCII)


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    words: Mapping[str, int]


_SECOND = _Field("second", 0, 59, {})
_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)


@dataclass(frozen=True)
class Cron:
    """A parsed expression. ``nth_weekdays``: (weekday, n-th of the month; 0 the last); Sunday is 0."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    last_day: bool
    months: frozenset[int]
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    either_day: bool  # days of the month and of the week are both restricted: one of them is enough

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Raises ValueError that says which field is wrong, and why."""
        fields = _split(text)
        seconds, minutes, hours = (
            tuple(sorted(_values(field, part))) for field, part in zip((_SECOND, *_FIELDS[:2]), fields, strict=False)
        )
        day_text, month_text, week_text = (part.lower() for part in fields[3:])
        last_day = "l" in day_text.split(",")
        plain_days = ",".join(part for part in day_text.split(",") if part != "l")
        days = _values(_FIELDS[2], plain_days) if plain_days or not last_day else frozenset()
        nth = frozenset(_nth_day(match) for part in week_text.split(",") if (match := _NTH_DAY.fullmatch(part)))
        plain_week = ",".join(part for part in week_text.split(",") if not _NTH_DAY.fullmatch(part))
        weekdays = _values(_FIELDS[4], plain_week) if plain_week or not nth else frozenset()
        found = cls(
            seconds=seconds,
            minutes=minutes,
            hours=hours,
            days=days,
            last_day=last_day,
            months=_values(_FIELDS[3], month_text),
            weekdays=frozenset(day % 7 for day in weekdays),
            nth_weekdays=nth,
            either_day=not day_text.startswith(("*", "?")) and not week_text.startswith(("*", "?")),
        )
        if not found.either_day and not last_day and min(days) > max(_LONGEST_MONTH[one] for one in found.months):
            raise ValueError(f"{_shown(text)} never comes: no such month has a day {min(days)}")
        return found

    @property
    def hourly(self) -> bool:
        """Whether it comes in every hour of the day: meant as an interval more than as a time of day."""
        return len(self.hours) == 24

    def first(self, begin: datetime, end: datetime) -> datetime | None:
        """The first time named in [begin, end), both naive; None where there is none, or not in 50 years."""
        if begin.microsecond:
            begin = begin.replace(microsecond=0) + timedelta(seconds=1)
        end = min(end, begin.replace(day=1, year=min(begin.year + _YEARS_TO_LOOK, 9998)))
        day, clock = begin.date(), begin.time()
        while datetime.combine(day, clock) < end:
            if day.month not in self.months:
                day, clock = _next_month(day), time()
                continue
            if day.day in self._days_of(day.year, day.month) and (found := self._time_from(clock)) is not None:
                moment = datetime.combine(day, found)
                return moment if moment < end else None
            day, clock = day + timedelta(days=1), time()
        return None

    def _time_from(self, clock: time) -> time | None:
        """The first time of day that is not before ``clock``."""
        hour = bisect_left(self.hours, clock.hour)
        if hour == len(self.hours):
            return None
        if self.hours[hour] == clock.hour:
            minute = bisect_left(self.minutes, clock.minute)
            if minute < len(self.minutes):
                if self.minutes[minute] > clock.minute:
                    return time(clock.hour, self.minutes[minute], self.seconds[0])
                second = bisect_left(self.seconds, clock.second)
                if second < len(self.seconds):
                    return time(clock.hour, clock.minute, self.seconds[second])
                if minute + 1 < len(self.minutes):
                    return time(clock.hour, self.minutes[minute + 1], self.seconds[0])
            hour += 1
            if hour == len(self.hours):
                return None
        return time(self.hours[hour], self.minutes[0], self.seconds[0])

    @lru_cache(maxsize=512)  # noqa: B019 - bounded, and an expression is a small value
    def _days_of(self, year: int, month: int) -> frozenset[int]:
        first_weekday, length = calendar.monthrange(year, month)
        by_month = {day for day in range(1, length + 1) if day in self.days or (self.last_day and day == length)}
        by_week = set()
        for day in range(1, length + 1):
            weekday = (first_weekday + day) % 7  # Monday is 0 there, Sunday here
            nth, last = (day - 1) // 7 + 1, day + 7 > length
            if (
                weekday in self.weekdays
                or (weekday, nth) in self.nth_weekdays
                or (last and (weekday, 0) in self.nth_weekdays)
            ):
                by_week.add(day)
        return frozenset(by_month | by_week if self.either_day else by_month & by_week)


def _split(text: str) -> Sequence[str]:
    """Six fields."""
    line = text.strip()
    if line.startswith("@"):
        if line.lower() not in ALIASES:
            hint = "; a daemon's start is no time" if line.lower() == "@reboot" else ""
            raise ValueError(f"{_shown(text)} is no alias: there are {', '.join(ALIASES)}{hint}")
        line = ALIASES[line.lower()]
    fields = line.split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"{_shown(text)} has {len(fields)} fields: write 5 (minute hour day month weekday), or 6 with seconds first"
        )
    return fields if len(fields) == 6 else ["0", *fields]


def _values(field: _Field, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _part(field, part.lower())
    return frozenset(found)


def _part(field: _Field, part: str) -> set[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{field.name}: {_shown(part)} is none of *, a, a-b, */n, a-b/n")
    step = int(match["step"] or 1)
    if match["star"]:
        low, high = field.low, 6 if field.name == "day of week" else field.high
    else:
        low = _number(field, match["low"])
        high = _number(field, match["high"]) if match["high"] else field.high if match["step"] else low
        if field.name == "day of week" and match["high"] and high == 0 < low:
            high = 7  # fri-sun
    if high < low:
        raise ValueError(f"{field.name}: {part} goes backwards: write {low}-{field.high},{field.low}-{high}")
    if not 1 <= step <= max(1, field.high - field.low):
        raise ValueError(f"{field.name}: a step of {step} is out of range")
    return set(range(low, high + 1, step))


def _number(field: _Field, text: str) -> int:
    value = field.words.get(text[:3], -1) if text.isalpha() and _is_word(field, text) else -1
    if text.isdecimal() and len(text) <= 4:
        value = int(text)
    if not field.low <= value <= field.high:
        names = f", or {', '.join(field.words)}" if field.words else ""
        raise ValueError(f"{field.name}: {_shown(text)} is not within {field.low}-{field.high}{names}")
    return value


def _is_word(field: _Field, text: str) -> bool:
    names = calendar.month_name if field.words is _MONTHS else calendar.day_name
    return text in field.words or text in (name.lower() for name in names)


def _nth_day(match: re.Match[str]) -> tuple[int, int]:
    return _number(_FIELDS[4], match["day"]) % 7, int(match["nth"] or 0)


def _next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
