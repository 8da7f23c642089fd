"""Cron expressions: which wall-clock times they name."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobschedd.cron import ALIASES, Cron

BEGIN = datetime(2027, 1, 1)  # a Friday
END = datetime(2031, 1, 1)


def times(text: str, count: int, begin: datetime = BEGIN) -> list[str]:
    cron, found = Cron.parse(text), []
    while len(found) < count and (moment := cron.first(begin, END)) is not None:
        found.append(moment.isoformat(sep=" "))
        begin = moment + timedelta(seconds=1)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 3 * * *", ["2027-01-01 03:00:00", "2027-01-02 03:00:00"]),
        ("30 0 3 * * *", ["2027-01-01 03:00:30", "2027-01-02 03:00:30"]),
        ("*/20 * * * *", ["2027-01-01 00:00:00", "2027-01-01 00:20:00", "2027-01-01 00:40:00", "2027-01-01 01:00:00"]),
        ("*/30 * * * * *", ["2027-01-01 00:00:00", "2027-01-01 00:00:30", "2027-01-01 00:01:00"]),
        ("5/20 0 * * *", ["2027-01-01 00:05:00", "2027-01-01 00:25:00", "2027-01-01 00:45:00", "2027-01-02 00:05:00"]),
        ("0 9-17/4 * * mon-fri", ["2027-01-01 09:00:00", "2027-01-01 13:00:00", "2027-01-01 17:00:00"]),
        ("0 0 * * 7", ["2027-01-03 00:00:00", "2027-01-10 00:00:00"]),
        ("0 0 * * SUN", ["2027-01-03 00:00:00", "2027-01-10 00:00:00"]),
        ("0 0 * * sat-sun", ["2027-01-02 00:00:00", "2027-01-03 00:00:00", "2027-01-09 00:00:00"]),
        ("0 0 1,15 feb *", ["2027-02-01 00:00:00", "2027-02-15 00:00:00", "2028-02-01 00:00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00:00"]),
        ("0 0 L * *", ["2027-01-31 00:00:00", "2027-02-28 00:00:00", "2027-03-31 00:00:00"]),
        ("0 0 15,L 2 *", ["2027-02-15 00:00:00", "2027-02-28 00:00:00", "2028-02-15 00:00:00", "2028-02-29 00:00:00"]),
        ("0 0 * * fri#2", ["2027-01-08 00:00:00", "2027-02-12 00:00:00"]),
        ("0 0 * * friL", ["2027-01-29 00:00:00", "2027-02-26 00:00:00"]),
        ("0 0 * * mon,fri#2", ["2027-01-04 00:00:00", "2027-01-08 00:00:00", "2027-01-11 00:00:00"]),
        # Both days restricted: either will do.
        ("0 0 13 * fri", ["2027-01-01 00:00:00", "2027-01-08 00:00:00", "2027-01-13 00:00:00", "2027-01-15 00:00:00"]),
        # A field that begins with * restricts nothing: both must fit.
        ("0 0 */2 * fri", ["2027-01-01 00:00:00", "2027-01-15 00:00:00", "2027-01-29 00:00:00"]),
        ("0 0 ? * mon", ["2027-01-04 00:00:00", "2027-01-11 00:00:00"]),
        ("59 59 23 31 12 *", ["2027-12-31 23:59:59", "2028-12-31 23:59:59"]),
        ("@daily", ["2027-01-01 00:00:00", "2027-01-02 00:00:00"]),
        ("@Weekly", ["2027-01-03 00:00:00", "2027-01-10 00:00:00"]),
        ("  0   3 * *\t* ", ["2027-01-01 03:00:00", "2027-01-02 03:00:00"]),
        ("0 0 1 January Monday", ["2027-01-01 00:00:00", "2027-01-04 00:00:00"]),
    ],
)
def test_its_times(text, expected):
    assert times(text, len(expected)) == expected


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_what_they_stand_for(alias):
    assert Cron.parse(alias) == Cron.parse(ALIASES[alias])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("60 * * * *", "minute: '60' is not within 0-59"),
        ("* 24 * * *", "hour: '24'"),
        ("* * 0 * *", "day of month: '0'"),
        ("* * * 13 *", "month: '13' is not within 1-12, or jan, feb"),
        ("* * * * 8", "day of week: '8'"),
        ("* * * * foo", "day of week: 'foo'"),
        ("60 * * * * *", "second: '60'"),
        ("*/60 * * * *", "minute: a step of 60 is out of range"),
        ("*/0 * * * *", "minute: a step of 0"),
        ("1-2-3 * * * *", "minute: '1-2-3' is none of"),
        ("1,,2 * * * *", "minute: '' is none of"),
        ("-5 * * * *", "minute: '-5' is none of"),
        ("0 22-2 * * *", "hour: 22-2 goes backwards: write 22-23,0-2"),
        ("0 0 31 2 *", "never comes: no such month has a day 31"),
        ("0 0 31 4,jun,9,11 *", "never comes"),
        ("0 0 * * fri#6", "day of week: 'fri#6'"),
        ("@reboot", "no time"),
        ("@often", "no alias: there are @hourly"),
        ("٣ * * * *", "minute"),
    ],
)
def test_mistakes_are_named(text, problem):
    with pytest.raises(ValueError) as error:
        Cron.parse(text)
    assert problem in str(error.value)


def test_none_within_the_bounds():
    cron = Cron.parse("0 3 * * *")
    assert cron.first(datetime(2027, 1, 1, 3, 0, 1), datetime(2027, 1, 2, 3)) is None
    assert cron.first(datetime(2027, 1, 1, 3), datetime(2027, 1, 1, 3, 0, 1)) == datetime(2027, 1, 1, 3)
    assert cron.first(datetime(2027, 1, 1, 2, 59, 59, 1), datetime(2028, 1, 1)) == datetime(2027, 1, 1, 3)
    assert cron.first(datetime(2027, 1, 1, 3, 0, 0, 1), datetime(2028, 1, 1)) == datetime(2027, 1, 2, 3)


# -- against a model: every minute looked at --------------------------------------------------------------------


def field(low: int, high: int) -> st.SearchStrategy[tuple[str, set[int]]]:
    """(text, values)."""
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted)
    step = st.integers(1, high - low)
    everything = st.just(("*", set(range(low, high + 1))))
    part = st.one_of(
        number.map(lambda n: (str(n), {n})),
        span.map(lambda s: (f"{s[0]}-{s[1]}", set(range(s[0], s[1] + 1)))),
        st.tuples(span, step).map(lambda p: (f"{p[0][0]}-{p[0][1]}/{p[1]}", set(range(p[0][0], p[0][1] + 1, p[1])))),
    )
    steps = step.map(lambda n: (f"*/{n}", set(range(low, high + 1, n))))
    lists = st.lists(part, min_size=1, max_size=3).map(
        lambda parts: (",".join(text for text, _ in parts), set().union(*(values for _, values in parts)))
    )
    return st.one_of(everything, steps, lists)


@st.composite
def expressions(draw) -> tuple[str, list[set[int]], bool]:
    fields = [draw(field(*bounds)) for bounds in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))]
    either = not fields[2][0].startswith("*") and not fields[4][0].startswith("*")
    return " ".join(text for text, _ in fields), [values for _, values in fields], either


@settings(max_examples=50)
@given(expressions(), st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)))
def test_against_a_scan_of_every_minute(expression, begin):
    text, (minutes, hours, days, months, weekdays), either = expression
    assume(either or min(days) <= 28)
    begin = begin.replace(second=0, microsecond=0)
    end = begin + timedelta(days=4)

    def named(moment: datetime) -> bool:
        by_day, by_week = moment.day in days, (moment.weekday() + 1) % 7 in weekdays
        day = (by_day or by_week) if either else (by_day and by_week)
        return moment.minute in minutes and moment.hour in hours and moment.month in months and day

    scan = [begin + timedelta(minutes=n) for n in range(4 * 1440)]
    expected = [moment for moment in scan if named(moment)]
    cron, found, at = Cron.parse(text), [], begin
    while (moment := cron.first(at, end)) is not None:
        found.append(moment)
        at = moment + timedelta(seconds=1)
    assert found == expected


def test_a_month_is_not_longer_than_it_is():
    days = [datetime.fromisoformat(text) for text in times("0 0 28-31 * *", 40)]
    assert all(day.day <= calendar.monthrange(day.year, day.month)[1] for day in days)
    assert all(one < other for one, other in pairwise(days))
