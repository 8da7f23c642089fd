"""Limits and rates: counted where jobs go out, let go of on every way back, never one too many."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Flag, Outcome, State
from jobschedd.limits import Limits, Rate, parse_limit, stored, terms_of
from store_driver import KEEP, Driver, FakeChannel


def limits_of(driver: Driver) -> Limits:
    return driver.survey.limits()


def send(driver: Driver, channel: FakeChannel, job: str, count: int = 10):
    """One assignment of the job's class, with the terms that its class has."""
    from jobschedd.store.moves import Assignment

    header = driver.header(job)
    target = driver.survey.classes()[header.job_class]
    terms = terms_of(target, limits_of(driver)).encoded()
    assignment = Assignment(header.job_class, header.priority, channel.incarnation, count, terms)
    (answer,) = driver.moves.dispatch(driver.fence, [assignment], KEEP)
    return answer


def holders(driver: Driver, key: str = "db") -> set[str]:
    return {job.decode() for job in driver.client.smembers(driver.keys.limit(key))}


class TestNumbers:
    def test_as_many_as_the_job_says(self, driver):
        channel = driver.channel()
        ids = driver.submit(5, limit_keys=["db=3"])
        answer = send(driver, channel, ids[0])
        assert (answer.sent, answer.left, answer.bound, answer.wait_ms) == (3, 2, "db", -1)
        assert holders(driver) == set(ids[:3])
        assert Flag.HOLDS in driver.header(ids[0]).flags
        assert send(driver, channel, ids[0]).sent == 0

    def test_a_key_without_a_number_is_one_at_a_time(self, driver):
        channel = driver.channel()
        ids = driver.submit(2, limit_keys="db")
        assert send(driver, channel, ids[0]).sent == 1

    def test_the_operator_wins_over_the_configuration_and_that_over_the_job(self, driver):
        channel = driver.channel()
        ids = driver.submit(9, limit_keys=["db=1"])
        driver.moves.configure_limits(driver.fence, dict([stored("db", 3)]))
        assert send(driver, channel, ids[0]).sent == 3
        driver.moves.set_limit("db", 5)
        assert send(driver, channel, ids[0]).sent == 2
        assert driver.moves.remove_limit("db")
        assert not driver.moves.remove_limit("db")
        driver.moves.configure_limits(driver.fence, {})
        assert send(driver, channel, ids[0]).sent == 0

    def test_several_keys_and_a_group_count_together(self, driver):
        channel = driver.channel()
        (first,) = driver.submit(limit_keys=["db=2", "disk=5"], group="science")
        second, _ = driver.submit(2, limit_keys=["db=2"])
        assert send(driver, channel, first).sent == 1
        assert send(driver, channel, second).sent == 1
        assert holders(driver) == {first, second} and holders(driver, "group:science") == {first}

    def test_a_group_is_counted_before_it_is_limited(self, driver):
        channel = driver.channel()
        ids = driver.submit(4, group="science")
        assert send(driver, channel, ids[0], 2).sent == 2
        driver.moves.set_limit("group:science", 3)
        assert send(driver, channel, ids[0]).sent == 1

    def test_ordinary_jobs_leave_no_trace(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        assert driver.header(job).flags == Flag.NONE
        assert not {key for key in driver.all_keys() if key.startswith(("limit", "hold", "blocked"))}


class TestLettingGo:
    """Every way out of a channel's hands."""

    @pytest.fixture
    def held(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(limit_keys=["db"], retries=3)
        assert send(driver, channel, job).sent == 1
        assert holders(driver) == {job}
        return channel, job

    def check(self, driver, job, state):
        assert driver.state(job) is state
        assert holders(driver) == set()
        assert Flag.HOLDS not in driver.header(job).flags
        assert not driver.client.exists(driver.keys.holds)

    def test_the_end(self, driver, held):
        driver.end(held[1])
        self.check(driver, held[1], State.DONE)

    def test_the_end_after_it_said_that_it_runs(self, driver, held):
        driver.start(held[1])
        assert holders(driver) == {held[1]}
        driver.end(held[1], Outcome.FAILED)
        self.check(driver, held[1], State.DONE)

    def test_an_end_that_leaves_no_record(self, driver, held):
        driver.end(held[1], keep=0)
        assert holders(driver) == set() and not driver.client.exists(driver.keys.holds)

    @pytest.mark.parametrize(("delay", "state"), [(0, State.PENDING), (60_000, State.SCHEDULED)])
    def test_a_retry(self, driver, held, delay, state):
        driver.again(held[1], delay)
        self.check(driver, held[1], state)

    def test_a_return(self, driver, held):
        driver.bring_back(held[1])
        self.check(driver, held[1], State.PENDING)

    def test_a_return_of_a_cancelled_one(self, driver, held):
        driver.moves.cancel([held[1]], KEEP)
        assert holders(driver) == {held[1]}, "its channel has it still"
        driver.bring_back(held[1])
        self.check(driver, held[1], State.DONE)

    @pytest.mark.parametrize("how", ["die", "leave"])
    def test_the_death_of_its_channel(self, driver, held, how):
        channel, job = held
        getattr(channel, how)()
        driver.requeue(channel)
        self.check(driver, job, State.PENDING)

    def test_a_loss_that_ends_it(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(limit_keys=["db"], retry_on_loss=False)
        send(driver, channel, job)
        channel.die()
        driver.requeue(channel)
        self.check(driver, job, State.DONE)

    def test_and_whoever_waits_is_told_once(self, driver, held):
        channel, job = held
        other, _ = driver.submit(2, limit_keys=["db"])
        assert send(driver, channel, other).bound == "db"
        driver.bell()
        driver.end(job)
        assert driver.bell() == ["f:db"]

    def test_where_nobody_waits_nobody_is_told(self, driver, held):
        driver.bell()
        driver.end(held[1])
        assert driver.bell() == []

    def test_a_holder_whose_record_is_gone(self, driver, held):
        """Nobody of ours does that; healed all the same."""
        driver.client.delete(driver.keys.job(held[1]))
        assert driver.moves.heal(driver.fence, 0, 100) == (0, 1)
        assert holders(driver) == set()
        assert driver.moves.heal(driver.fence, 0, 100) == (0, 0)

    def test_a_holder_whose_flag_an_older_version_lost(self, driver, held):
        _, job = held
        driver.client.setrange(driver.keys.job(job), 26, bytes(2))
        assert driver.moves.heal(driver.fence, 0, 100) == (0, 0)
        assert holders(driver) == {job}
        driver.end(job)
        self.check(driver, job, State.DONE)


class TestRates:
    def test_as_many_starts_as_the_period_allows(self, driver):
        channel = driver.channel()
        ids = driver.submit(5, rates=["api=3/m"])
        answer = send(driver, channel, ids[0])
        assert (answer.sent, answer.bound) == (3, "rate:api")
        assert 59_000 < answer.wait_ms <= 60_000
        assert send(driver, channel, ids[0]).sent == 0

    def test_an_end_gives_nothing_back(self, driver):
        channel = driver.channel()
        ids = driver.submit(2, rates=["api=1/m"])
        send(driver, channel, ids[0])
        driver.end(ids[0])
        assert send(driver, channel, ids[0]).sent == 0

    def test_time_does(self, driver):
        channel = driver.channel()
        ids = driver.submit(2, rates=["api=1/50ms"])
        send(driver, channel, ids[0])
        before = driver.now_ms()
        driver.wait_ms(before + 51)
        assert send(driver, channel, ids[0]).sent == 1

    def test_it_leaves_nothing_behind(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(rates=["api=1/50ms"])
        send(driver, channel, job)
        driver.wait_ms(driver.now_ms() + 60)
        assert not driver.client.exists(driver.keys.rate("api", 50))


class TestFence:
    def test_a_former_leader_changes_nothing(self, driver):
        for move in (
            lambda: driver.moves.heal("m0:0", 0, 10),
            lambda: driver.moves.configure_limits("m0:0", {"db": "3"}),
            lambda: driver.moves.forget_classes("m0:0", ["/"]),
        ):
            with pytest.raises(NotTheLeader):
                move()


class TestClasses:
    def test_those_of_which_nothing_is_pending_are_forgotten(self, driver):
        channel = driver.channel()
        (waits,) = driver.submit(labels=["a"])
        job, _ = driver.dispatched(channel, labels=["b"])
        number = driver.header(job).job_class
        assert driver.moves.forget_classes(driver.fence, ["/+a", "/+b", "/none"]) == 1
        assert set(driver.survey.classes()) == {driver.header(waits).job_class}
        (again,) = driver.submit(labels=["b"])
        assert driver.header(again).job_class > number, "no number is given twice"

    def test_a_job_of_a_forgotten_class_says_itself_what_it_asks_for(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel, labels=["b"], limit_keys=["db=2"], group="g")
        header = driver.header(job)
        target = driver.survey.classes()[header.job_class]
        driver.moves.forget_classes(driver.fence, [target.key()])
        driver.bring_back(job)
        assert driver.survey.class_of_pending(header.job_class, header.priority) == target


def test_what_is_set_is_read_back(driver):
    driver.moves.set_limit("db", 3)
    driver.moves.set_limit("db", Rate(10, 60_000))
    driver.moves.configure_limits(driver.fence, dict([stored("group:a", 7), stored("db", 1)]))
    limits = limits_of(driver)
    assert limits.numbers["db"].limit == 3 and limits.rates["db"].limit == parse_limit("10/m")
    assert limits.numbers["group:a"].limit == 7
