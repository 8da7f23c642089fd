"""The times of a schedule where clocks change: each policy, in zones that differ in every way."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calendar_model import model
from jobschedd.cron import Cron
from jobschedd.recurrence import Dst, Recurrence, time_zone


def ms(text: str) -> int:
    """Of a time in UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def utc(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def times(cron: str, zone: str, dst: str, begin: str, end: str) -> list[str]:
    recurrence = Recurrence(cron=Cron.parse(cron), zone=time_zone(zone), dst=Dst(dst))
    found, _ = recurrence.within(ms(begin) - 1, ms(end) - 1, 10_000)
    return [utc(moment) for moment in found]


POLICIES = ("skip", "run_once", "run_twice")
#: (zone, expression, from, until, what each policy gives: skip, run_once, run_twice), the times in UTC.
CHANGES = [
    # Clocks go forward at 01:00 UTC: 02:30 does not exist.
    (
        "Europe/Berlin",
        "30 2 * * *",
        "2027-03-27",
        "2027-03-30",
        ["2027-03-27 01:30", "2027-03-29 00:30"],
        ["2027-03-27 01:30", "2027-03-28 01:00", "2027-03-29 00:30"],
        ["2027-03-27 01:30", "2027-03-28 01:00", "2027-03-29 00:30"],
    ),
    # Back at 01:00 UTC: 02:30 comes at 00:30 and 01:30.
    (
        "Europe/Berlin",
        "30 2 * * *",
        "2026-10-24",
        "2026-10-26",
        ["2026-10-24 00:30", "2026-10-25 00:30"],
        ["2026-10-24 00:30", "2026-10-25 00:30"],
        ["2026-10-24 00:30", "2026-10-25 00:30", "2026-10-25 01:30"],
    ),
    (
        "America/New_York",
        "30 2 * * *",
        "2027-03-13 12:00",
        "2027-03-15 12:00",
        ["2027-03-15 06:30"],
        ["2027-03-14 07:00", "2027-03-15 06:30"],
        ["2027-03-14 07:00", "2027-03-15 06:30"],
    ),
    (
        "America/New_York",
        "30 1 * * *",
        "2026-11-01",
        "2026-11-02",
        ["2026-11-01 05:30"],
        ["2026-11-01 05:30"],
        ["2026-11-01 05:30", "2026-11-01 06:30"],
    ),
    # Half an hour only: forward from 02:00 to 02:30 on 4 October 2026, back from 02:00 to 01:30 on 4 April 2027.
    (
        "Australia/Lord_Howe",
        "15 2 * * *",
        "2026-10-02 16:00",
        "2026-10-04 16:00",
        ["2026-10-04 15:15"],
        ["2026-10-03 15:30", "2026-10-04 15:15"],
        ["2026-10-03 15:30", "2026-10-04 15:15"],
    ),
    (
        "Australia/Lord_Howe",
        "45 1 * * *",
        "2027-04-02 16:00",
        "2027-04-04 16:00",
        ["2027-04-03 14:45", "2027-04-04 15:15"],
        ["2027-04-03 14:45", "2027-04-04 15:15"],
        ["2027-04-03 14:45", "2027-04-03 15:15", "2027-04-04 15:15"],
    ),
    # Midnight itself does not exist: the last change of Brazil, 4 November 2018; and none any more in 2026.
    (
        "America/Sao_Paulo",
        "0 0 * * *",
        "2018-11-03",
        "2018-11-06",
        ["2018-11-03 03:00", "2018-11-05 02:00"],
        ["2018-11-03 03:00", "2018-11-04 03:00", "2018-11-05 02:00"],
        ["2018-11-03 03:00", "2018-11-04 03:00", "2018-11-05 02:00"],
    ),
    (
        "America/Sao_Paulo",
        "30 23 * * *",
        "2019-02-16 12:00",
        "2019-02-18 00:00",
        ["2019-02-17 01:30"],
        ["2019-02-17 01:30"],
        ["2019-02-17 01:30", "2019-02-17 02:30"],
    ),
    *(
        (zone, "0 0 * * *", "2026-10-31", "2026-11-03", *[[f"2026-{day} {at}" for day in days]] * 3)
        for zone, at, days in (
            ("America/Sao_Paulo", "03:00", ("10-31", "11-01", "11-02")),
            ("Asia/Kolkata", "18:30", ("10-31", "11-01", "11-02")),
        )
    ),
    # The trap: clocks go back for Ramadan and forward after it, by a calendar of the moon.
    (
        "Africa/Casablanca",
        "30 2 * * *",
        "2027-02-06",
        "2027-02-09",
        ["2027-02-06 01:30", "2027-02-07 01:30", "2027-02-08 02:30"],
        ["2027-02-06 01:30", "2027-02-07 01:30", "2027-02-08 02:30"],
        ["2027-02-06 01:30", "2027-02-07 01:30", "2027-02-07 02:30", "2027-02-08 02:30"],
    ),
    (
        "Africa/Casablanca",
        "30 2 * * *",
        "2027-03-13 12:00",
        "2027-03-16",
        ["2027-03-15 01:30"],
        ["2027-03-14 02:00", "2027-03-15 01:30"],
        ["2027-03-14 02:00", "2027-03-15 01:30"],
    ),
    # A day that did not exist at all.
    (
        "Pacific/Apia",
        "0 3 * * *",
        "2011-12-29 00:00",
        "2012-01-01 00:00",
        ["2011-12-29 13:00", "2011-12-30 13:00", "2011-12-31 13:00"],
        ["2011-12-29 13:00", "2011-12-30 10:00", "2011-12-30 13:00", "2011-12-31 13:00"],
        ["2011-12-29 13:00", "2011-12-30 10:00", "2011-12-30 13:00", "2011-12-31 13:00"],
    ),
]


@pytest.mark.parametrize(
    ("zone", "cron", "begin", "end", "dst", "expected"),
    [
        pytest.param(*change[:4], policy, change[4 + number], id=f"{change[0]}-{change[2]}-{change[1]}-{policy}")
        for change in CHANGES
        for number, policy in enumerate(POLICIES)
    ],
)
def test_both_changes_by_each_policy(zone, cron, begin, end, dst, expected):
    assert times(cron, zone, dst, begin, end) == expected


def test_many_times_in_a_gap_run_once_at_the_change():
    found = times("*/10 * * * *", "Europe/Berlin", "run_once", "2027-03-28 00:40", "2027-03-28 01:20")
    assert found == ["2027-03-28 00:40", "2027-03-28 00:50", "2027-03-28 01:00", "2027-03-28 01:10"]


def test_the_notes_say_what_happens():
    recurrence = Recurrence(cron=Cron.parse("30 2 * * *"), zone=time_zone("Europe/Berlin"))
    (spring,) = islice(recurrence.occurrences(ms("2027-03-27 12:00")), 1)
    assert spring.note == "02:30:00 does not exist: clocks go from 02:00 to 03:00; it runs at the change"
    (autumn,) = islice(recurrence.occurrences(ms("2027-10-30 12:00")), 1)
    assert autumn.note == "02:30:00 comes twice: it runs the first time only"
    skipping = Recurrence(cron=Cron.parse("30 2 * * *"), zone=time_zone("Europe/Berlin"), dst=Dst.SKIP)
    (skipped,) = islice(skipping.occurrences(ms("2027-03-27 12:00")), 1)
    assert not skipped.runs and "is skipped" in skipped.note
    twice = Recurrence(cron=Cron.parse("30 2 * * *"), zone=time_zone("Europe/Berlin"), dst=Dst.RUN_TWICE)
    notes = [one.note for one in islice(twice.occurrences(ms("2027-10-30 12:00")), 3)]
    assert ["first" in notes[0], "second" in notes[1], notes[2]] == [True, True, ""]


class TestIntervals:
    def test_counted_from_the_epoch(self):
        five = Recurrence(every=5000)
        assert list(islice(five.after(12_345), 3)) == [15_000, 20_000, 25_000]
        assert list(islice(five.after(15_000), 1)) == [20_000]

    def test_counted_from_the_start(self):
        found = list(islice(Recurrence(every=7000, start=3000).after(0), 3))
        assert found == [3000, 10_000, 17_000]

    def test_no_more_after_the_end(self):
        assert list(Recurrence(every=1000, start=1000, end=3000).after(0)) == [1000, 2000, 3000]
        assert list(Recurrence(cron=Cron.parse("* * * * *"), end=120_000).after(0)) == [60_000, 120_000]

    def test_within_a_long_time_only_the_last_are_looked_at(self):
        found, all_of_them = Recurrence(every=1000).within(0, ms("2026-01-01"), 100)
        assert found[-1] == ms("2026-01-01") and 100 <= len(found) <= 300 and not all_of_them
        assert Recurrence(every=1000).within(0, 3000, 100) == ([1000, 2000, 3000], True)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../../etc/passwd", "Europe/berlin/x", "\0"])
def test_a_zone_that_does_not_exist(name):
    with pytest.raises(ValueError, match="no time zone"):
        time_zone(name)


# -- against a model: every minute of the real time, seen through the zone ----------------------------------------

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Africa/Casablanca",
    "Pacific/Apia",
    "America/St_Johns",
    "Antarctica/Troll",
    "UTC",
]


@settings(max_examples=40)
@given(
    zone=st.sampled_from(ZONES),
    dst=st.sampled_from(POLICIES),
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=4),
    hours=st.one_of(st.just(set(range(24))), st.sets(st.integers(0, 23), min_size=1, max_size=4)),
    day=st.dates(datetime(2010, 1, 1).date(), datetime(2030, 1, 1).date()),
    around_a_change=st.booleans(),
)
def test_against_a_scan_of_every_minute(zone, dst, minutes, hours, day, around_a_change):
    info = time_zone(zone)
    begin = round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    if around_a_change:
        begin = next_change(info, begin) - 86_400
    end = begin + 2 * 86_400
    text = f"{','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(hours)))} * * *"
    recurrence = Recurrence(cron=Cron.parse(text), zone=info, dst=Dst(dst))
    found, _ = recurrence.within(begin * 1000 - 1, end * 1000 - 1, 100_000)
    assert found == [1000 * at for at in model(minutes, hours, info, dst, begin, end)]
    assert all(one < other for one, other in pairwise(found))


def next_change(zone: ZoneInfo, at: int) -> int:
    """Roughly: the hour of it; ``at`` where there is none within a year."""
    offset = datetime.fromtimestamp(at, zone).utcoffset()
    for later in range(at, at + 366 * 86_400, 3600):
        if datetime.fromtimestamp(later, zone).utcoffset() != offset:
            return later
    return at
