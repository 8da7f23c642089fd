"""What users ask for: cancel in each state, retry, follow; and what time brings: promote, expire."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Flag, Outcome, State
from jobschedd.store.moves import CancelAnswer, RetryAnswer
from store_driver import KEEP


@pytest.fixture
def channel(driver):
    return driver.channel()


def cancel(driver, *jobs):
    return driver.moves.cancel(list(jobs), KEEP)


class TestCancel:
    def test_pending(self, driver):
        first, second = driver.submit(2)
        assert cancel(driver, second) == [(CancelAnswer.CANCELLED, Outcome.NONE)]
        assert driver.outcome(second) is Outcome.CANCELLED and driver.cause(second) == "cancelled"
        assert driver.ended_messages() == [second]
        assert 0 < driver.client.pttl(driver.keys.job(second)) <= KEEP
        assert driver.state(first) is State.PENDING

    def test_scheduled(self, driver):
        (job,) = driver.submit(delay="1h", expires="2h")
        assert cancel(driver, job)[0][0] is CancelAnswer.CANCELLED
        assert driver.client.zcard(driver.keys.scheduled) == driver.client.zcard(driver.keys.expiring) == 0

    def test_waiting_for_another_try(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.again(job, delay_ms=60_000)
        assert cancel(driver, job)[0][0] is CancelAnswer.CANCELLED
        assert driver.client.zcard(driver.keys.scheduled) == 0

    @pytest.mark.parametrize("running", [False, True])
    def test_with_a_channel_it_is_asked_for(self, driver, channel, running):
        job, _ = driver.dispatched(channel)
        if running:
            driver.start(job)
        assert cancel(driver, job) == [(CancelAnswer.REQUESTED, Outcome.NONE)]
        header = driver.header(job)
        assert header.state is (State.RUNNING if running else State.DISPATCHED)
        assert Flag.CANCEL_REQUESTED in header.flags
        assert channel.hints() == [{b"cancel": job.encode(), b"attempt": b"1"}]
        assert driver.client.smembers(driver.keys.cancelling) == {job.encode()}

    def test_asked_twice(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert [cancel(driver, job)[0][0] for _ in range(2)] == [CancelAnswer.REQUESTED] * 2
        assert driver.client.scard(driver.keys.cancelling) == 1

    def test_a_success_that_came_first_wins(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.end(job)
        assert cancel(driver, job) == [(CancelAnswer.ENDED, Outcome.SUCCEEDED)]

    def test_a_success_that_comes_then_wins_too(self, driver, channel):
        job, _ = driver.dispatched(channel)
        cancel(driver, job)
        driver.end(job)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert driver.client.scard(driver.keys.cancelling) == 0

    def test_unknown(self, driver):
        assert cancel(driver, "99", "not a number", "") == [(CancelAnswer.UNKNOWN, Outcome.NONE)] * 3

    def test_many_at_once(self, driver, channel):
        with_channel, _ = driver.dispatched(channel)
        ids = driver.submit(3)
        answers = [answer for answer, _ in cancel(driver, *ids, with_channel, "99")]
        assert answers == [CancelAnswer.CANCELLED] * 3 + [CancelAnswer.REQUESTED, CancelAnswer.UNKNOWN]


class TestHints:
    def test_they_are_repeated_while_a_channel_has_the_job(self, driver, channel):
        job, _ = driver.dispatched(channel)
        cancel(driver, job)
        assert driver.moves.repeat_hints(driver.fence, 100)[0] == 1
        assert len(channel.hints()) == 2
        driver.end(job)
        assert driver.moves.repeat_hints(driver.fence, 100)[0] == 0
        assert len(channel.hints()) == 2

    def test_the_channel_that_has_it_now_is_told(self, driver, channel):
        job, _ = driver.dispatched(channel)
        cancel(driver, job)
        other = driver.channel("2")
        driver.client.setrange(driver.keys.job(job), 38, bytes.fromhex(other.incarnation))
        driver.moves.repeat_hints(driver.fence, 100)
        assert len(other.hints()) == 1

    def test_a_job_without_a_record_is_forgotten(self, driver):
        driver.client.sadd(driver.keys.cancelling, "99")
        assert driver.moves.repeat_hints(driver.fence, 100)[0] == 0
        assert driver.client.scard(driver.keys.cancelling) == 0

    def test_another_master_says_nothing(self, driver):
        with pytest.raises(NotTheLeader):
            driver.moves.repeat_hints("m2:1", 100)


class TestRetry:
    def ended(self, driver, channel, outcome=Outcome.FAILED, **item):
        job, _ = driver.dispatched(channel, **item)
        driver.again(job, tries=2, crashes=1)
        driver.dispatch(channel)
        driver.end(job, outcome)
        return job

    def test_it_is_pending_with_fresh_budgets(self, driver, channel):
        job = self.ended(driver, channel, expires="1h", priority=0, waiter=4)
        spec = driver.record(job).spec
        assert driver.moves.retry([job]) == [RetryAnswer.PENDING]
        record = driver.record(job)
        header = record.header
        assert (header.state, header.outcome, header.tries, header.crashes) == (State.PENDING, Outcome.NONE, 0, 0)
        assert (header.attempt, header.expires, header.waiter, header.entry) == (2, 0, 0, "")
        assert (record.spec, record.result) == (spec, b"")
        assert driver.client.ttl(driver.keys.job(job)) == -1
        assert driver.pending() == [job]

    def test_it_runs_again_under_the_next_attempt(self, driver, channel):
        job = self.ended(driver, channel)
        driver.moves.retry([job])
        driver.dispatch(channel)
        assert driver.header(job).attempt == 3
        driver.end(job)
        assert driver.outcome(job) is Outcome.SUCCEEDED

    def test_a_cancelled_job_can_be_retried(self, driver, channel):
        job, _ = driver.dispatched(channel)
        cancel(driver, job)
        driver.end(job, Outcome.CANCELLED)
        driver.moves.retry([job])
        assert Flag.CANCEL_REQUESTED not in driver.header(job).flags
        assert driver.dispatch(channel).sent == 1

    def test_a_repeated_call_that_names_the_end_retries_once(self, driver, channel):
        job = self.ended(driver, channel)
        end = driver.header(job).since
        assert driver.moves.retry([job], [end]) == [RetryAnswer.PENDING]
        driver.dispatch(channel)
        driver.wait_ms(end)
        driver.end(job)
        assert driver.moves.retry([job], [end]) == [RetryAnswer.NOT_ENDED]
        assert driver.state(job) is State.DONE

    def test_what_has_not_ended_is_left_alone(self, driver, channel):
        (pending,) = driver.submit()
        assert driver.moves.retry([pending, "99"]) == [RetryAnswer.NOT_ENDED, RetryAnswer.UNKNOWN]
        assert driver.pending() == [pending]


class TestFollow:
    def test_before_it_runs_it_is_a_flag(self, driver, channel):
        (job,) = driver.submit()
        assert driver.moves.follow(job) is State.PENDING
        driver.dispatch(channel)
        assert int(channel.entries()[0][1][b"flags"]) == Flag.FOLLOWED

    def test_while_it_runs_the_channel_is_told_each_time(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert [driver.moves.follow(job) for _ in range(2)] == [State.DISPATCHED] * 2
        assert channel.hints() == [{b"follow": job.encode(), b"attempt": b"1"}] * 2

    def test_after_the_end_there_is_nothing_to_follow(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.end(job)
        assert driver.moves.follow(job) is State.DONE
        assert channel.hints() == []

    def test_unknown(self, driver):
        assert driver.moves.follow("99") is None

    def test_hints_are_bounded(self, driver, channel):
        job, _ = driver.dispatched(channel)
        for _ in range(1200):
            driver.moves.follow(job)
        assert len(channel.hints()) < 1200
        assert 0 < driver.client.pttl(driver.keys.control(channel.incarnation)) <= 3_600_000


class TestPromote:
    def promote(self, driver, most=1000):
        return driver.moves.promote(driver.fence, KEEP, most)

    def test_what_is_due_is_pending_in_the_order_of_its_time(self, driver):
        late, early = driver.submit(delay="40ms") + driver.submit(delay="20ms")
        far = driver.submit(delay="1h")
        driver.wait_ms(driver.header(late).since)
        driver.bell()
        promoted, expired, soonest = self.promote(driver)
        assert (promoted, expired) == (2, 0)
        assert 3590 < soonest <= 3600
        assert driver.pending() == [early, late]
        assert driver.bell() == ["p:1:0:2"]
        assert driver.state(far[0]) is State.SCHEDULED

    def test_nothing_is_due_early(self, driver):
        driver.submit(delay="5s")
        promoted, _, soonest = self.promote(driver)
        assert promoted == 0 and 4.5 < soonest <= 5.0

    def test_nothing_at_all(self, driver):
        assert self.promote(driver) == (0, 0, None)

    def test_in_portions(self, driver):
        ids = driver.submit(5, delay="1ms")
        driver.wait_ms(driver.header(ids[0]).since)
        assert self.promote(driver, 3)[0] == 3
        promoted, _, soonest = self.promote(driver, 3)
        assert (promoted, soonest) == (2, None)

    def test_each_into_its_own_list(self, driver):
        items = [{"delay": "1ms", "priority": 5}, {"delay": "1ms"}, {"delay": "1ms", "channel": "gpu"}]
        ids = driver.submit_items(items)
        driver.wait_ms(driver.header(ids[2]).since)
        self.promote(driver)
        assert [driver.pending(1, 5), driver.pending(1, 0), driver.pending(2, 0)] == [[ids[0]], [ids[1]], [ids[2]]]

    def test_a_tombstone_is_dropped(self, driver):
        driver.client.zadd(driver.keys.scheduled, {"99": 5})
        assert self.promote(driver) == (0, 0, None)

    def test_another_master_promotes_nothing(self, driver):
        with pytest.raises(NotTheLeader):
            driver.moves.promote("m2:1", KEEP, 10)


class TestExpire:
    def test_a_pending_job_ends_though_nobody_could_run_it(self, driver):
        (job,) = driver.submit(channel="absent", expires="5ms")
        driver.wait_ms(driver.header(job).expires)
        assert driver.moves.promote(driver.fence, KEEP, 10)[:2] == (0, 1)
        assert driver.outcome(job) is Outcome.EXPIRED and driver.cause(job) == "expired"
        assert driver.pending() == []
        assert driver.ended_messages() == [job]

    def test_a_scheduled_job_too(self, driver):
        (job,) = driver.submit(delay="1h", expires="5ms")
        driver.wait_ms(driver.header(job).expires)
        driver.moves.promote(driver.fence, KEEP, 10)
        assert driver.outcome(job) is Outcome.EXPIRED
        assert driver.client.zcard(driver.keys.scheduled) == 0

    def test_not_one_that_a_channel_has(self, driver, channel):
        job, _ = driver.dispatched(channel, expires="300ms")
        driver.wait_ms(driver.header(job).expires)
        assert driver.moves.promote(driver.fence, KEEP, 10) == (0, 0, None)
        assert driver.state(job) is State.DISPATCHED

    def test_one_that_came_back_from_a_dead_node_is_watched(self, driver, channel):
        job, _ = driver.dispatched(channel, expires="300ms")
        driver.wait_ms(driver.header(job).expires)
        driver.moves.promote(driver.fence, KEEP, 10)
        channel.die()
        driver.requeue(channel)
        assert driver.moves.promote(driver.fence, KEEP, 10)[1] == 1
        assert driver.outcome(job) is Outcome.EXPIRED
