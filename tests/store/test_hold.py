"""hold, release, priority: a job that waits stays where it is, and nobody dispatches it before its time."""

from __future__ import annotations

import pytest

from jobschedd.client import Client
from jobschedd.job import Flag, Outcome, State
from jobschedd.store.inspect import Inspect
from jobschedd.store.moves import HoldAnswer
from store_driver import KEEP, Driver

DONE, NOT_WAITING, ENDED, UNKNOWN = HoldAnswer.DONE, HoldAnswer.NOT_WAITING, HoldAnswer.ENDED, HoldAnswer.UNKNOWN


def held(driver: Driver) -> set[str]:
    return {job.decode() for job in driver.client.hkeys(driver.keys.held)}


class TestHold:
    def test_a_held_job_is_passed_over(self, driver):
        channel = driver.channel()
        first, second, third = driver.submit(3)
        assert driver.moves.hold([second], "not yet", "me") == [DONE]
        assert driver.dispatch(channel, 3).sent == 2
        assert channel.jobs() == [first, third]
        assert driver.header(second).flags == Flag.HELD | Flag.PARKED
        assert driver.survey.pending() == {}, "nothing that could be dispatched is left"

    def test_who_holds_it_and_why_is_known(self, driver):
        (job,) = driver.submit()
        driver.moves.hold([job], "wait for the backup", "root")
        said = Inspect(driver.client, driver.keys).held(job)
        assert (said["reason"], said["by"]) == ("wait for the backup", "root")
        assert said["since"] == pytest.approx(driver.now_ms() / 1000, abs=5)

    def test_one_that_is_submitted_held(self, driver):
        (job,) = driver.submit(hold=True)
        assert driver.dispatch(driver.channel()).sent == 0
        assert held(driver) == {job}

    def test_a_scheduled_one_does_not_come_forth(self, driver):
        (job,) = driver.submit(delay=60)
        driver.moves.hold([job], "", "")
        driver.client.zadd(driver.keys.scheduled, {job: 1})
        driver.moves.promote(driver.fence, KEEP, 10)
        assert driver.state(job) is State.PENDING
        assert driver.pending() == []
        assert driver.moves.release([job]) == [DONE]
        assert driver.pending() == [job]

    def test_only_what_waits_can_be_held(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        assert driver.moves.hold([job, "99"], "", "") == [NOT_WAITING, UNKNOWN]
        driver.end(job)
        assert driver.moves.hold([job], "", "") == [ENDED]
        assert held(driver) == set()

    def test_twice_is_once(self, driver):
        (job,) = driver.submit()
        driver.moves.hold([job], "first", "")
        driver.moves.hold([job], "second", "")
        assert driver.moves.release([job, job]) == [DONE, NOT_WAITING]
        assert driver.dispatch(driver.channel(), 5).sent == 1

    def test_a_cancelled_one_is_held_no_more(self, driver):
        (job,) = driver.submit()
        driver.moves.hold([job], "", "")
        driver.dispatch(driver.channel())
        driver.moves.cancel([job], KEEP)
        assert held(driver) == set()
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.header(job).flags == Flag.NONE
        driver.moves.retry([job])
        assert driver.dispatch(driver.channel("2")).sent == 1

    def test_an_expired_one_too(self, driver):
        (job,) = driver.submit(expires="1h")
        driver.moves.hold([job], "", "")
        driver.client.zadd(driver.keys.expiring, {job: 1})
        driver.moves.promote(driver.fence, KEEP, 10)
        assert driver.outcome(job) is Outcome.EXPIRED
        assert held(driver) == set()

    def test_it_is_listed_among_the_pending(self, driver):
        one, other = driver.submit(2)
        driver.moves.hold([one], "", "")
        driver.dispatch(driver.channel(window=1))  # parks one, and sends the other
        inspect = Inspect(driver.client, driver.keys)
        assert [view.id for view in inspect.jobs({State.PENDING})] == [one]
        assert inspect.counts().held == 1
        assert driver.state(other) is State.DISPATCHED


class TestRelease:
    def test_it_has_the_place_that_it_would_have_had(self, driver):
        channel = driver.channel(window=1)
        first, second, third = driver.submit(3)
        driver.moves.hold([first, third], "", "")
        driver.dispatch(channel)
        assert channel.jobs() == [second]
        fourth = driver.submit()[0]
        assert driver.moves.release([first, third]) == [DONE, DONE]
        assert driver.pending() == [first, third, fourth]

    def test_the_dispatcher_hears_of_it(self, driver):
        (job,) = driver.submit()
        driver.moves.hold([job], "", "")
        driver.dispatch(driver.channel())
        driver.bell()
        driver.moves.release([job])
        assert driver.bell() == ["p:1:0:1"]

    def test_what_is_not_held(self, driver):
        (job,) = driver.submit()
        assert driver.moves.release([job, "99"]) == [NOT_WAITING, UNKNOWN]
        assert driver.pending() == [job]


class TestPriority:
    def test_it_overtakes(self, driver):
        channel = driver.channel()
        first, second = driver.submit(2)
        assert driver.moves.prioritise([second], 50) == [DONE]
        assert driver.pending(1, 50) == [second]
        assert driver.dispatch(channel, 5, 1, 50).sent == 1
        assert driver.dispatch(channel, 5, 1, 0).sent == 1
        assert channel.jobs() == [second, first]

    def test_the_old_place_is_a_tombstone(self, driver):
        """A dispatcher that has not heard of the change asks for the old list."""
        channel = driver.channel()
        first, second = driver.submit(2)
        driver.moves.prioritise([second], -50)
        assert driver.dispatch(channel, 5, 1, 0).sent == 1
        assert channel.jobs() == [first]
        assert driver.header(second).state is State.PENDING
        assert driver.pending(1, -50) == [second]

    def test_there_and_back_again_is_one_job(self, driver):
        channel = driver.channel()
        (job,) = driver.submit()
        driver.submit()
        for priority in (10, 0, 10, 0):
            driver.moves.prioritise([job], priority)
        assert driver.dispatch(channel, 9, 1, 0).sent == 2
        assert driver.dispatch(channel, 9, 1, 10).sent == 0
        assert sorted(channel.jobs(), key=int) == ["1", "2"]

    def test_a_list_of_mere_tombstones_vanishes(self, driver):
        ids = driver.submit(100)
        driver.moves.prioritise(ids, 7)
        assert driver.survey.pending() == {(1, 7): 100}

    def test_a_held_one_waits_under_its_new_priority(self, driver):
        channel = driver.channel()
        (job,) = driver.submit()
        driver.moves.hold([job], "", "")
        driver.dispatch(channel)
        driver.moves.prioritise([job], 9)
        assert driver.pending(1, 9) == []
        driver.moves.release([job])
        assert driver.pending(1, 9) == [job]

    def test_a_scheduled_one_comes_forth_with_it(self, driver):
        (job,) = driver.submit(delay=60)
        driver.moves.prioritise([job], 9)
        driver.client.zadd(driver.keys.scheduled, {job: 1})
        driver.moves.promote(driver.fence, KEEP, 10)
        assert driver.pending(1, 9) == [job]

    def test_a_retry_keeps_it(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(retries=1)
        driver.moves.prioritise([job], 9)
        driver.dispatch(channel, 1, 1, 9)
        driver.again(job)
        assert driver.pending(1, 9) == [job]

    def test_only_what_waits(self, driver):
        job, _ = driver.dispatched(driver.channel())
        assert driver.moves.prioritise([job, "99"], 1) == [NOT_WAITING, UNKNOWN]
        driver.end(job)
        assert driver.moves.prioritise([job], 1) == [ENDED]


class TestArrays:
    def test_one_that_is_submitted_held(self, driver):
        channel = driver.channel()
        (array,) = driver.submit(array="1-3%2", hold=True)
        assert driver.dispatch(channel, 5).sent == 0 and driver.pending() == []
        assert driver.moves.release([array]) == [DONE]
        assert driver.dispatch(channel, 5).sent == 2

    def test_of_one_that_has_begun_nothing_more_starts(self, driver):
        channel = driver.channel()
        (array,) = driver.submit(array="1-4%2")
        driver.dispatch(channel, 5)
        assert driver.moves.hold([array], "", "me") == [DONE]
        driver.end(f"{array}_1")
        assert driver.dispatch(channel, 5).sent == 0 and driver.pending() == []
        assert driver.header(array).flags & Flag.PARKED
        assert driver.moves.release([array]) == [DONE]
        assert driver.dispatch(channel, 5).sent == 1
        for index in (2, 3):
            driver.end(f"{array}_{index}")
        driver.dispatch(channel, 5)
        driver.end(f"{array}_4")
        assert driver.outcome(array) is Outcome.SUCCEEDED
        assert held(driver) == set()

    def test_a_held_one_may_be_cancelled_and_may_expire(self, driver):
        channel = driver.channel()
        first, second = driver.submit(array="1-2%1")[0], driver.submit(array="1-2%1", expires=0.01)[0]
        driver.dispatch(channel, 1)
        driver.moves.hold([first, second], "", "")
        driver.moves.cancel([first], KEEP)
        driver.wait_ms(driver.header(second).expires)
        driver.moves.promote(driver.fence, KEEP, 10)
        assert driver.outcome(second) is Outcome.FAILED
        driver.end(f"{first}_1")
        assert driver.outcome(first) is Outcome.CANCELLED
        assert held(driver) == set()

    def test_a_task_that_has_not_started_waits_in_its_array(self, driver):
        (array,) = driver.submit(array="1-2%1")
        driver.dispatch(driver.channel(), 5)
        for move in (lambda ids: driver.moves.hold(ids, "", ""), driver.moves.release):
            assert move([f"{array}_2", f"{array}_3"]) == [HoldAnswer.IN_ARRAY, UNKNOWN]
        assert driver.moves.prioritise([f"{array}_1", f"{array}_2"], 5) == [NOT_WAITING, HoldAnswer.IN_ARRAY]

    def test_a_task_that_came_back_can_be_held(self, driver):
        channel = driver.channel()
        (array,) = driver.submit(array="1-2%1")
        driver.dispatch(channel, 5)
        driver.bring_back(f"{array}_1")
        assert driver.moves.hold([f"{array}_1"], "", "") == [DONE]
        assert driver.dispatch(channel, 5).sent == 0
        driver.moves.release([f"{array}_1"])
        assert driver.dispatch(channel, 5).sent == 1

    def test_what_has_not_started_gets_another_priority(self, driver):
        channel = driver.channel()
        (array,) = driver.submit(array="1-4%1")
        (full,) = driver.submit(array="1-3%1")
        driver.dispatch(channel, 2)
        driver.end(f"{array}_1")
        assert driver.moves.prioritise([array, full], 9) == [DONE, DONE]
        assert driver.pending(1, 9) == [array], "the other one waits for a task to end"
        assert driver.dispatch(channel, 5, 1, 9).sent == 1
        assert driver.header(f"{array}_2").priority == 9
        assert driver.dispatch(channel, 5, 1, 0).sent == 0
        driver.end(f"{full}_1")
        assert driver.dispatch(channel, 5, 1, 9).sent == 1

    def test_a_job_for_all_nodes_waits_by_its_tasks(self, driver, redis_server):
        driver.moves.remember(driver.fence, [driver.channel(node="n2").info])
        with Client(redis_server.url, namespace="test") as client:
            job = client.submit(["true"], all=True).id
        assert driver.moves.hold([job], "", "") == [HoldAnswer.BY_TASKS]
        assert driver.moves.prioritise([job], 3) == [HoldAnswer.BY_TASKS]
        assert driver.moves.hold([f"{job}_1"], "", "") == [DONE]


@pytest.mark.parametrize("flag", [Flag.HOLDS, Flag.HOLDS | Flag.AWAITED])
def test_what_is_no_task_is_not_taken_for_one(driver, flag):
    """Whatever else stands among the flags of a job that waits."""
    (job,) = driver.submit()
    driver.client.setrange(driver.keys.job(job), 26, int(flag).to_bytes(2, "little"))
    assert driver.dispatch(driver.channel(), 5).sent == 1


def test_who_waits_is_counted_without_those_who_are_gone(driver):
    """Their ids stay behind in a list that nobody takes from: cancelled from behind, put elsewhere, or an array's."""
    gone = [job for _ in range(30) for job in driver.submit(channel="nowhere")]
    moved, stays = driver.submit(channel="nowhere") + driver.submit(channel="nowhere")
    driver.moves.cancel(gone[1:][::-1], 60_000)
    driver.moves.prioritise([moved], 7)
    waiting = Inspect(driver.client, driver.keys).pending_by_class(exact=True)
    assert {priority: count for (_, priority), count in waiting.items()} == {0: 2, 7: 1}
    driver.moves.cancel([gone[0], moved, stays], 60_000)
    assert Inspect(driver.client, driver.keys).pending_by_class(exact=True) == {}
