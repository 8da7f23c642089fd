"""fire: one time of a schedule has one job, whoever fires and however often; and what users do to schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from jobschedd.errors import DataLost, NotTheLeader, QueueFull
from jobschedd.job import Outcome, State
from jobschedd.schedule import Schedule, schedule
from jobschedd.store.schedules import Answer, Fire, Schedules, Stored
from store_driver import KEEP, Driver

HOUR = 3_600_000


class Fires:
    """Fires the schedule ``s`` by hand."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.store = Schedules(driver.client, driver.keys)

    def add(self, **fields) -> Stored:
        self.store.add(self.of(**fields))
        return self.stored()

    def of(self, **fields) -> Schedule:
        return schedule({"name": "s", "every": "1m", "command": ["true"]} | fields)

    def due_of(self, moment: int) -> int:
        """When a fire of this moment starts, with a jitter of a day."""
        return self.of(jitter="1d").template().fire(moment).at_ms

    def stored(self) -> Stored:
        found = self.store.one("s")
        assert found is not None
        return found

    def begin_at(self, moment: int) -> None:
        """As if everything up to then had been dealt with."""
        self.driver.client.hset(self.driver.keys.schedule("s"), "cursor", moment)

    def fire(self, moment: int, *, cursor: int | None = None, how: str = "time", missed: int = 0) -> Answer:
        stored = self.stored()
        job = stored.schedule.template().fire(moment) if how != "pass" else None
        fire = Fire(stored, stored.cursor if cursor is None else cursor, moment, how, missed, job)
        return self.store.fire(self.driver.fence, [fire], KEEP)[1][0]

    def what(self) -> list[str]:
        return [fire.what for fire in self.store.fires("s")]


@pytest.fixture
def fires(driver):
    return Fires(driver)


@pytest.fixture
def ago(driver):
    """A minute, an hour ago, to fire for."""
    now = driver.now_ms()
    return now - HOUR - now % 60_000


class TestOnce:
    def test_a_time_has_its_job(self, driver, fires, ago):
        fires.add(channel="gpu", priority=7, retries=2)
        fires.begin_at(ago - 60_000)
        answer = fires.fire(ago)
        assert answer.word == "fired"
        assert driver.state(answer.job) is State.PENDING
        assert driver.header(answer.job).priority == 7
        spec = fires_spec(driver, answer.job)
        assert (spec.schedule, spec.scheduled_for, spec.name, spec.retries) == ("s", ago, "s", 2)
        assert spec.key.startswith("schedule:s@2")
        stored = fires.stored()
        assert (stored.cursor, stored.job, stored.fired_for, stored.fired) == (ago, answer.job, ago, 1)
        assert driver.bell() == ["t", "p:1:7:1"]

    def test_the_same_once_more_changes_nothing(self, driver, fires, ago):
        before = fires.add()
        fires.begin_at(ago - 60_000)
        assert fires.fire(ago, cursor=ago - 60_000).word == "fired"
        for _ in range(3):
            assert fires.fire(ago, cursor=ago - 60_000).word == "changed"
        assert driver.client.get(driver.keys.next_id) == b"1"
        assert fires.stored().revision == before.revision

    def test_even_when_redis_has_forgotten_that_it_fired(self, driver, fires, ago):
        """An older copy of the state: the fire's id is the job's key."""
        fires.add()
        fires.begin_at(ago - 60_000)
        first = fires.fire(ago)
        fires.begin_at(ago - 60_000)
        driver.client.hdel(driver.keys.schedule("s"), "job")
        assert fires.fire(ago) == first
        assert driver.pending() == [first.job]

    def test_several_in_one_call(self, driver, fires, ago):
        fires.add(if_running="allow")
        fires.begin_at(ago)
        stored = fires.stored()
        template = stored.schedule.template()
        times = [ago + number * 60_000 for number in range(4)]
        batch = [Fire(stored, one, other, "time", 0, template.fire(other)) for one, other in pairwise(times)]
        _, answers = fires.store.fire(driver.fence, batch, KEEP)
        assert [answer.word for answer in answers] == ["fired"] * 3
        assert [answer.job for answer in answers] == driver.pending()

    def test_not_before_its_time(self, driver, fires):
        fires.add()
        cursor = fires.stored().cursor
        assert fires.fire(driver.now_ms() + 5000).word == "early"
        assert fires.stored().cursor == cursor

    def test_jitter_makes_it_start_later_by_what_its_id_says(self, driver, fires, ago):
        fires.add(jitter="1d", if_running="allow")
        # Some times would have been due by now even with their jitter.
        ago = next(at for at in range(ago, ago - HOUR, -60_000) if fires.due_of(at) > driver.now_ms() + 60_000)
        fires.begin_at(ago - 60_000)
        first = fires.fire(ago)
        due = driver.header(first.job).since
        assert driver.state(first.job) is State.SCHEDULED
        assert ago <= due <= ago + 86_400_000
        assert fires.due_of(ago) == due

    def test_what_expires_counts_from_the_fire(self, driver, fires, ago):
        fires.add(expires="1m")
        fires.begin_at(ago - 60_000)
        job = fires.fire(ago).job
        header = driver.header(job)
        assert header.expires == header.submitted + 60_000
        assert driver.client.zscore(driver.keys.expiring, job) == header.expires

    def test_missed_times_are_counted(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago - HOUR)
        assert fires.fire(ago - 60_000, how="pass", missed=59) == Answer("passed", "")
        assert fires.fire(ago).word == "fired"
        assert fires.stored().missed == 59


class TestRefused:
    def test_nobody_but_the_leader_fires(self, driver, fires, ago):
        fires.add()
        driver.fence = "another:1"
        with pytest.raises(NotTheLeader):
            fires.fire(ago)
        assert fires.what() == []

    def test_a_paused_one_does_not(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago - 60_000)
        fires.store.pause("s", "why", "me")
        assert fires.fire(ago).word == "changed"

    def test_one_that_was_changed_or_removed_meanwhile_does_not(self, driver, fires, ago):
        old = fires.add()
        fires.begin_at(ago - 60_000)
        fire = Fire(old, ago - 60_000, ago, "time", 0, old.schedule.template().fire(ago))
        fires.store.add(fires.of(command=["false"]), replace=True)
        assert fires.store.fire(driver.fence, [fire], KEEP)[1][0].word == "changed"
        fires.store.remove("s")
        assert fires.store.fire(driver.fence, [fire], KEEP)[1][0].word == "changed"

    def test_a_full_redis_keeps_nothing(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago - 60_000)
        driver.client.config_set("maxmemory", 1)
        with pytest.raises(QueueFull):
            fires.fire(ago)
        driver.client.config_set("maxmemory", 0)
        assert fires.stored().cursor == ago - 60_000
        assert fires.fire(ago).word == "fired"

    def test_a_redis_that_lost_data_accepts_nothing(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago - 60_000)
        driver.client.hset(driver.keys.loss, "what", "emptied")
        with pytest.raises(DataLost):
            fires.fire(ago)


class TestIfRunning:
    def times(self, fires: Fires, ago: int, count: int, **fields) -> list[Answer]:
        fires.add(**fields)
        fires.begin_at(ago - 60_000)
        return [fires.fire(ago + number * 60_000) for number in range(count)]

    def test_allow(self, driver, fires, ago):
        answers = self.times(fires, ago, 3, if_running="allow")
        assert [answer.word for answer in answers] == ["fired"] * 3

    def test_skip(self, driver, fires, ago):
        answers = self.times(fires, ago, 3)
        assert [answer.word for answer in answers] == ["fired", "skipped", "skipped"]
        assert {answer.job for answer in answers} == {"1"}
        assert fires.stored().skipped == 2
        driver.moves.cancel(["1"], KEEP)
        assert fires.fire(ago + 180_000).word == "fired"
        assert fires.what() == ["fired", "skipped", "skipped", "fired"]

    def test_queue(self, driver, fires, ago):
        answers = self.times(fires, ago, 4, if_running="queue", catch_up_max=2)
        assert [answer.word for answer in answers] == ["fired", "queued", "queued", "skipped"]
        assert fires.stored().waiting == (ago + 60_000, ago + 120_000)
        assert fires.fire(ago + 60_000, how="queued").word == "busy"
        driver.moves.cancel(["1"], KEEP)
        assert fires.fire(ago + 120_000, how="queued").word == "changed", "one after the other"
        assert fires.fire(ago + 60_000, how="queued") == Answer("fired", "2")
        assert fires.fire(ago + 60_000, how="queued").word == "changed", "once"
        assert fires.fire(ago + 120_000, how="queued").word == "busy"
        assert fires.stored().waiting == (ago + 120_000,)
        assert fires_spec(driver, "2").scheduled_for == ago + 60_000

    def test_what_comes_while_others_wait_waits_too(self, driver, fires, ago):
        self.times(fires, ago, 2, if_running="queue")
        driver.moves.cancel(["1"], KEEP)
        assert fires.fire(ago + 120_000).word == "queued"

    def test_replace_one_that_has_not_started(self, driver, fires, ago):
        answers = self.times(fires, ago, 2, if_running="replace")
        assert [answer.word for answer in answers] == ["fired", "fired"]
        assert driver.outcome("1") is Outcome.CANCELLED
        assert driver.state("2") is State.PENDING
        assert driver.ended_messages() == ["1"]

    def test_replace_one_that_runs(self, driver, fires, ago):
        """Its end is asked for; the newest of those that came meanwhile runs after it."""
        channel = driver.channel()
        fires.add(if_running="replace")
        fires.begin_at(ago - 60_000)
        fires.fire(ago)
        driver.dispatch(channel)
        assert fires.fire(ago + 60_000) == Answer("queued", "1")
        assert fires.fire(ago + 120_000) == Answer("queued", "1")
        assert driver.client.smembers(driver.keys.cancelling) == {b"1"}
        assert fires.stored().waiting == (ago + 120_000,)
        driver.end("1", Outcome.CANCELLED)
        assert fires.fire(ago + 120_000, how="queued") == Answer("fired", "2")
        assert fires.what() == ["fired", "replaced", "fired"]

    def test_replace_when_the_one_before_has_ended_meanwhile(self, driver, fires, ago):
        channel = driver.channel()
        fires.add(if_running="replace")
        fires.begin_at(ago - 60_000)
        fires.fire(ago)
        driver.dispatch(channel)
        fires.fire(ago + 60_000)
        driver.end("1", Outcome.CANCELLED)
        assert fires.fire(ago + 120_000) == Answer("fired", "2")
        assert fires.stored().waiting == ()


class TestUsers:
    def test_add_change_remove(self, driver, fires):
        assert fires.store.add(fires.of()) == "added"
        assert fires.store.add(fires.of()) == "unchanged"
        assert fires.store.add(fires.of(command=["false"])) == "exists"
        assert fires.store.add(fires.of(command=["false"]), replace=True) == "changed"
        assert driver.bell() == ["t", "t"]
        assert fires.store.remove("s") == "removed"
        assert fires.store.remove("s") == "unknown"
        assert fires.store.all() == ([], [])
        assert {key for key in driver.all_keys() if "schedule" in key or "fires" in key} == set()

    def test_a_new_one_counts_from_now(self, driver, fires):
        now = driver.now_ms()
        assert now <= fires.add().cursor <= now + 5000

    def test_other_times_count_from_now_and_other_work_does_not(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago)
        fires.store.add(fires.of(command=["false"]), replace=True)
        assert fires.stored().cursor == ago
        fires.store.add(fires.of(every="2m"), replace=True)
        assert fires.stored().cursor > ago

    def test_pause_and_resume(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago)
        assert fires.store.pause("s", "db is down", "me") == "paused"
        assert fires.store.pause("s", "again", "you") == "already"
        paused = fires.stored().paused
        assert (paused["reason"], paused["by"]) == ("db is down", "me")
        assert fires.store.resume("s") == "resumed"
        assert fires.store.resume("s") == "already"
        assert fires.stored().cursor > ago, "what passed meanwhile is not caught up"
        assert fires.store.pause("x", "", "") == fires.store.resume("x") == "unknown"

    def test_one_that_nobody_can_read_hides_no_other(self, driver, fires):
        fires.add()
        driver.client.hset(driver.keys.schedules, "odd", b"\xff")
        found, unreadable = fires.store.all()
        assert [one.schedule.name for one in found] == ["s"]
        assert unreadable == ["odd"]


class TestConfigured:
    """The schedules of the leader's file."""

    def own(self, driver, fires, *schedules: Schedule):
        return fires.store.own(driver.fence, schedules)

    def test_it_owns_what_came_from_it(self, driver, fires, ago):
        other = schedule({"name": "t", "cron": "@daily", "shell": "x"})
        assert self.own(driver, fires, fires.of(), other) == [("added", "s"), ("added", "t")]
        fires.begin_at(ago)
        assert self.own(driver, fires, fires.of(), other) == []
        assert self.own(driver, fires, fires.of(command=["false"]), other) == [("changed", "s")]
        assert fires.stored().cursor == ago
        assert self.own(driver, fires, fires.of(command=["false"])) == [("removed", "t")]

    def test_users_schedules_are_left_alone(self, driver, fires):
        fires.add()
        assert self.own(driver, fires) == []
        assert fires.stored().origin == "user"

    def test_one_of_the_same_name_is_taken(self, driver, fires, ago):
        fires.add()
        fires.begin_at(ago)
        assert self.own(driver, fires, fires.of()) == [("taken", "s")]
        assert (fires.stored().origin, fires.stored().cursor) == ("config", ago)

    def test_users_cannot_change_them_but_pause_them(self, driver, fires):
        self.own(driver, fires, fires.of())
        assert fires.store.add(fires.of(command=["false"])) == "configured"
        assert fires.store.add(fires.of(command=["false"]), replace=True) == "configured"
        assert fires.store.remove("s") == "configured"
        assert fires.store.pause("s", "", "") == "paused"
        assert self.own(driver, fires, fires.of(command=["false"])) == [("changed", "s")]
        assert fires.stored().paused is not None, "a reload does not resume it"


class TestMasters:
    def test_each_says_what_it_is_configured_with(self, driver, fires):
        fires.store.present("m1", [fires.of()])
        fires.store.present("m2", [])
        (one, other) = fires.store.masters()
        assert (one.name, other.name, other.schedules) == ("m1", "m2", ())
        assert one.schedules == (f"s:{fires.of().revision}",)

    def test_what_others_wrote_there_is_passed_over(self, driver, fires):
        fires.store.present("m1", [])
        for said in ("?", "{}", '{"at":"x"}', '{"at":1e15,"says":"["}'):
            driver.client.hset(driver.keys.configurations, f"odd{said}", said)
        driver.client.lpush(driver.keys.fires("s"), "?", "\xff")
        assert [master.name for master in fires.store.masters()] == ["m1"]
        assert fires.store.fires("s") == []

    def test_one_that_was_not_heard_of_for_a_day_is_forgotten(self, driver, fires):
        driver.client.hset(driver.keys.configurations, "old", '{"at":1,"says":"{}"}')
        driver.client.hset(driver.keys.configurations, "odd", "?")
        fires.store.present("m1", [])
        assert [master.name for master in fires.store.masters()] == ["m1"]


def fires_spec(driver: Driver, job: str):
    from jobschedd.job import decode_spec

    return decode_spec(driver.record(job).spec)
