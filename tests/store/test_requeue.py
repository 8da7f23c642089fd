"""requeue and reap: what a dead incarnation held goes back, or ends; a living one keeps it."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, State
from jobschedd.store.moves import CancelAnswer, LeaseState, Verb, Verdict
from store_driver import KEEP


@pytest.fixture
def channel(driver):
    return driver.channel()


class TestLost:
    def test_everything_goes_back_in_its_order(self, driver, channel):
        ids = driver.submit(5)
        driver.dispatch(channel, 3)
        driver.start(ids[0])
        channel.die()
        answer = driver.requeue(channel)
        assert (answer.reason, answer.requeued, answer.lost, answer.kept, answer.left) == ("lost", 3, 0, 0, 0)
        assert list(answer.jobs) == ids[:3]
        assert driver.pending() == ids
        header = driver.header(ids[0])
        assert (header.state, header.attempt, header.tries, header.crashes) == (State.PENDING, 1, 0, 0)
        assert (header.entry, header.incarnation) == ("", "")

    def test_nothing_is_left_of_the_incarnation(self, driver, channel):
        driver.dispatched(channel)
        driver.moves.reap(driver.fence, [channel.incarnation])
        driver.moves.follow("1")
        channel.die()
        driver.requeue(channel)
        assert not any(channel.incarnation in key for key in driver.all_keys())
        assert driver.survey.channels() == {}
        assert driver.client.exists(driver.keys.suspects) == 0

    def test_one_with_nothing_in_hand_is_forgotten(self, driver, channel):
        channel.die()
        assert driver.requeue(channel).left == 0
        assert driver.survey.channels() == {}

    def test_at_most_one_start_means_lost(self, driver, channel):
        job, _ = driver.dispatched(channel, retry_on_loss=False)
        channel.die()
        answer = driver.requeue(channel)
        assert (answer.requeued, answer.lost) == (0, 1)
        assert driver.outcome(job) is Outcome.LOST and driver.cause(job) == "node_lost"
        assert driver.ended_messages() == [job]

    def test_cancelled_meanwhile_it_ends(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert driver.moves.cancel([job], KEEP)[0][0] is CancelAnswer.REQUESTED
        channel.die()
        driver.requeue(channel)
        assert driver.outcome(job) is Outcome.CANCELLED

    def test_what_was_reported_and_not_collected_stays_reported(self, driver, channel):
        job, entry = driver.dispatched(channel)
        assert channel.report(job)
        channel.die()
        assert driver.requeue(channel).requeued == 0
        assert driver.state(job) is State.DISPATCHED
        assert driver.judge(Verb.DONE, job, 1, entry, 1, b"", KEEP)[0] is Verdict.ACCEPTED

    def test_foreign_entries_are_dropped(self, driver, channel):
        stream = driver.keys.dispatch(channel.incarnation)
        driver.client.xadd(stream, {"spam": "1"})
        driver.client.xadd(stream, {"job": "99", "attempt": "1"})
        job, _ = driver.dispatched(channel)
        channel.die()
        answer = driver.requeue(channel)
        assert (answer.requeued, answer.left) == (1, 0)
        assert driver.state(job) is State.PENDING

    def test_an_entry_that_is_not_the_jobs_newest_is_dropped(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.bring_back(job)  # its channel died before it took the entry away
        other = driver.channel("2")
        driver.dispatch(other)
        # Within one millisecond both have the same name.
        assert (driver.header(job).attempt, driver.header(job).entry) != (1, entry)
        assert channel.jobs() == other.jobs() == [job]
        channel.die()
        assert driver.requeue(channel).requeued == 0
        assert driver.state(job) is State.DISPATCHED and driver.header(job).attempt == 2

    def test_in_portions(self, driver):
        channel = driver.channel(window=1000)
        ids = driver.submit(25)
        driver.dispatch(channel, 25)
        channel.die()
        lefts, calls = [], 0
        while True:
            answer = driver.requeue(channel, most=10)
            lefts.append(answer.left)
            calls += 1
            if not answer.left:
                break
        assert lefts == [15, 5, 0]
        assert sorted(driver.pending(), key=int) == ids

    def test_a_portion_of_nothing_but_cancelled_ones_is_not_the_end(self, driver):
        """What is left is told by the stream, not by how many went back."""
        channel = driver.channel(window=1000)
        ids = driver.submit(15)
        driver.dispatch(channel, 15)
        driver.moves.cancel(ids[:10], KEEP)
        channel.die()
        answer = driver.requeue(channel, most=10)
        assert (answer.requeued, answer.lost, answer.left) == (0, 0, 5)
        assert driver.requeue(channel, most=10).requeued == 5


class TestLostAfter:
    def test_it_is_kept_back_until_then(self, driver, channel):
        patient, _ = driver.dispatched(channel, lost_after="10s")
        hasty, _ = driver.dispatched(channel)
        channel.die()
        since = driver.now_ms() - 5000
        answer = driver.requeue(channel, since)
        assert (answer.requeued, answer.kept, answer.left) == (1, 1, 1)
        assert driver.pending() == [hasty]
        assert driver.state(patient) is State.DISPATCHED
        assert channel.incarnation in driver.survey.channels()
        answer = driver.requeue(channel, since - 5001)
        assert (answer.requeued, answer.kept, answer.left) == (1, 0, 0)

    def test_it_hides_nothing_behind_it(self, driver):
        channel = driver.channel(window=100)
        for _ in range(12):
            driver.dispatched(channel, lost_after="10s")
        hasty, _ = driver.dispatched(channel)
        channel.die()
        answer = driver.requeue(channel, driver.now_ms(), most=5)
        assert (answer.kept, list(answer.jobs), answer.left) == (12, [hasty], 12)

    def test_a_node_that_left_in_order_need_not_be_waited_for(self, driver, channel):
        job, _ = driver.dispatched(channel, lost_after="10s")
        channel.leave()
        answer = driver.requeue(channel, 0)
        assert (answer.reason, answer.requeued) == ("left", 1)
        assert driver.pending() == [job]


class TestLeft:
    def test_nothing_was_started_so_nothing_is_lost(self, driver, channel):
        job, _ = driver.dispatched(channel, retry_on_loss=False)
        channel.leave()
        assert driver.bell()[-1] == f"l:{channel.incarnation}"
        answer = driver.requeue(channel, 0)
        assert (answer.reason, answer.requeued, answer.lost) == ("left", 1, 0)
        assert driver.state(job) is State.PENDING

    def test_asked_for_one_that_left_a_lost_one_is_spared(self, driver, channel):
        """Whether it is lost is for the leader to judge, who must have had answers for a whole lease."""
        job, _ = driver.dispatched(channel)
        channel.die()
        answer = driver.requeue(channel, 0)
        assert (answer.reason, answer.requeued, answer.left) == ("unsure", 0, 1)
        assert driver.state(job) is State.DISPATCHED

    def test_leaving_after_having_been_forgotten_leaves_nothing(self, driver, channel):
        channel.die()
        driver.requeue(channel)
        channel.leave()
        assert driver.survey.channels() == {}


class TestAlive:
    def test_a_living_one_keeps_everything(self, driver, channel):
        job, _ = driver.dispatched(channel)
        answer = driver.requeue(channel)
        assert (answer.reason, answer.requeued, answer.left) == ("alive", 0, 1)
        assert driver.state(job) is State.DISPATCHED

    def test_one_that_came_back_after_leaving_keeps_everything(self, driver, channel):
        driver.dispatched(channel)
        channel.leave()
        channel.register(10)
        assert driver.requeue(channel, 0).reason == "alive"


def test_another_master_takes_nothing(driver, channel):
    driver.dispatched(channel)
    channel.die()
    with pytest.raises(NotTheLeader):
        driver.moves.requeue("m2:1", channel.incarnation, 1, KEEP, 10)
    assert len(channel.entries()) == 1


class TestReap:
    def test_what_a_lease_says(self, driver, channel):
        driver.dispatched(channel)
        now, leases = driver.moves.reap(driver.fence, [channel.incarnation])
        assert leases == {channel.incarnation: LeaseState(10, 1, 0)}
        assert abs(now - driver.now_ms()) < 1000

    def test_since_when_it_is_missing_is_remembered(self, driver, channel):
        channel.die()
        first, leases = driver.moves.reap(driver.fence, [channel.incarnation])
        assert leases[channel.incarnation] == LeaseState(-1, 0, first)
        driver.wait_ms(first + 5)
        driver.lead("m1")
        _, leases = driver.moves.reap(driver.fence, [channel.incarnation])
        assert leases[channel.incarnation].missing_since == first

    def test_one_that_is_back_is_no_suspect(self, driver, channel):
        channel.die()
        driver.moves.reap(driver.fence, [channel.incarnation])
        channel.register(5)
        _, leases = driver.moves.reap(driver.fence, [channel.incarnation])
        assert leases[channel.incarnation] == LeaseState(5, 0, 0)
        assert driver.client.exists(driver.keys.suspects) == 0

    def test_a_damaged_lease_has_no_window(self, driver, channel):
        driver.client.hset(driver.keys.lease(channel.incarnation), "window", "x")
        _, leases = driver.moves.reap(driver.fence, [channel.incarnation])
        assert leases[channel.incarnation] == LeaseState(-1, 0, 0)

    def test_another_master_learns_nothing(self, driver, channel):
        with pytest.raises(NotTheLeader):
            driver.moves.reap("m2:1", [channel.incarnation])
