"""What a user may write for a schedule, and what each of its times submits."""

from __future__ import annotations

import pytest

from jobschedd.errors import InvalidJob, ProtocolError
from jobschedd.job import Flag, decode_spec
from jobschedd.schedule import fire_id, jitter_of, pack, schedule, unpack

DAILY = {"name": "s", "cron": "0 3 * * *", "command": ["true"]}


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"name": None}, "name", "is missing"),
        ({"name": "3x"}, "name", "no name of a schedule"),
        ({"name": "a/b"}, "name", "no name of a schedule"),
        ({"name": "a" * 65}, "name", "no name of a schedule"),
        ({"cron": None}, "cron", "give one of cron and every"),
        ({"every": "5s"}, "cron", "give one of cron and every"),
        ({"cron": "0 3 * *"}, "cron", "has 4 fields"),
        ({"cron": 5}, "cron", "must be text"),
        ({"cron": None, "every": "10ms"}, "every", "between 1 and"),
        ({"cron": None, "every": "soon"}, "every", "no duration"),
        ({"cron": None, "every": []}, "every", ""),
        ({"timezone": "Mars"}, "timezone", "no time zone"),
        ({"dst": "twice"}, "dst", "must be skip or run_once or run_twice"),
        ({"catch_up": True}, "catch_up", "must be none or last or all"),
        ({"catch_up_max": 0}, "catch_up_max", "from 1 to"),
        ({"if_running": "kill"}, "if_running", "must be skip or queue or replace or allow"),
        ({"jitter": "2d"}, "jitter", "between 0 and 86400"),
        ({"start": "tomorrow"}, "start", "no ISO 8601 time"),
        ({"start": "2027-01-02", "end": "2027-01-01"}, "end", "lies before start"),
        ({"start": "2027-01-01T04:00Z", "end": "2027-01-01T05:00Z"}, "cron", "never comes between"),
        ({"cron": None, "every": "5s", "timezone": "Europe/Berlin"}, "timezone", "knows no wall clock"),
        ({"cron": None, "every": "5s", "dst": "skip"}, "dst", "knows no wall clock"),
        ({"command": None}, "command", "give one of"),
        ({"command": "true"}, "command", "must be a list"),
        ({"retries": -1}, "retries", "whole number"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"delay": 5}, "delay", "the schedule says when"),
        ({"at": "2027-01-01"}, "at", "jobsched submit --at"),
        ({"key": "k"}, "key", "each fire has a key"),
        ({"stdin": b"\xff"}, "stdin", "UTF-8"),
    ],
    ids=str,
)
def test_mistakes_name_their_field(change, field, problem):
    with pytest.raises(InvalidJob) as error:
        schedule(DAILY | change)
    assert error.value.field == field
    assert problem in error.value.problem


def test_what_is_no_mapping():
    with pytest.raises(InvalidJob, match="must be an object"):
        schedule(["x"])  # type: ignore[arg-type]


def test_it_survives_its_way_through_redis():
    one = schedule(
        DAILY | {"dst": "skip", "jitter": "5m", "stdin": b"hi", "labels": ("a", "b"), "start": 1_800_000_000}
    )
    assert unpack(pack(one)) == one
    assert one.job == {"command": ["true"], "stdin": "hi", "labels": ["a", "b"]}
    assert unpack(pack(one)).revision == one.revision


def test_fields_of_a_later_version_are_passed_over():
    assert unpack(b'{"name":"s","job":{"command":["true"]},"every":5000,"moon":"full"}').every == 5000


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 5000, b'{"name":"s","job":{},"dst":"odd"}'])
def test_what_cannot_be_read(data):
    with pytest.raises(ProtocolError):
        unpack(data)


def test_the_revision_changes_with_anything_and_the_timing_with_times_alone():
    one, work = schedule(DAILY), schedule(DAILY | {"command": ["false"]})
    times, zone = schedule(DAILY | {"cron": "0 4 * * *"}), schedule(DAILY | {"timezone": "Europe/Berlin"})
    assert len({one.revision, work.revision, times.revision, zone.revision}) == 4
    assert one.timing == work.timing
    assert len({one.timing, times.timing, zone.timing}) == 3


def test_a_fire_is_known_by_schedule_and_time():
    assert fire_id("backup", 1_800_000_000_000) == "schedule:backup@2027-01-15T08:00:00Z"
    assert fire_id("tick", 1_800_000_000_500) == "schedule:tick@2027-01-15T08:00:00.500Z"


def test_its_job():
    fired = schedule(DAILY | {"priority": 5, "channel": "n/gpu", "retries": 2, "jitter": "10m"}).template().fire(60_000)
    spec = decode_spec(fired.spec)
    assert (spec.name, spec.schedule, spec.scheduled_for) == ("s", "s", 60_000)
    assert spec.key == fired.key == fire_id("s", 60_000)
    assert fired.flags & Flag.KEYED
    assert (fired.priority, fired.target.node, spec.retries) == (5, "n", 2)
    assert fired.at_ms == 60_000 + jitter_of(fired.key, 600_000)


def test_jitter_is_spread_and_always_the_same():
    found = [jitter_of(fire_id("s", moment * 60_000), 10_000) for moment in range(2000)]
    assert found == [jitter_of(fire_id("s", moment * 60_000), 10_000) for moment in range(2000)]
    assert 0 <= min(found) < 200 and 9800 < max(found) <= 10_000
    assert jitter_of("x", 0) == 0
