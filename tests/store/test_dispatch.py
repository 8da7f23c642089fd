"""dispatch: pending -> a channel's stream, as far as its window allows; what ended meanwhile is skipped."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Flag, Outcome, State, decode_spec
from jobschedd.store.moves import Assignment
from store_driver import KEEP


def test_an_order_holds_the_attempt_the_flags_and_the_spec(driver):
    channel = driver.channel()
    (job,) = driver.submit(command=["echo", "hi"], follow=True)
    assert driver.dispatch(channel).sent == 1
    header = driver.header(job)
    assert (header.state, header.attempt, header.incarnation) == (State.DISPATCHED, 1, channel.incarnation)
    ((entry, fields),) = channel.entries()
    assert header.entry == entry
    assert fields[b"job"] == job.encode() and fields[b"attempt"] == b"1"
    assert int(fields[b"flags"]) == Flag.FOLLOWED
    assert decode_spec(fields[b"spec"]).command == ("echo", "hi")


def test_first_in_first_out(driver):
    channel = driver.channel()
    ids = driver.submit(4)
    driver.dispatch(channel, 3)
    assert channel.jobs() == ids[:3]
    assert driver.pending() == ids[3:]


class TestRoom:
    def test_the_window_is_never_exceeded(self, driver):
        channel = driver.channel(window=2)
        driver.submit(5)
        answer = driver.dispatch(channel, 5)
        assert (answer.sent, answer.left, answer.entries, answer.window) == (2, 3, 2, 2)
        answer = driver.dispatch(channel, 5)
        assert (answer.sent, answer.left) == (0, 3)

    def test_an_answered_entry_makes_room(self, driver):
        channel = driver.channel(window=1)
        first, second = driver.submit(2)
        driver.dispatch(channel, 2)
        channel.report(first)
        assert driver.dispatch(channel, 2).sent == 1
        assert channel.jobs() == [second]

    def test_a_running_job_takes_room(self, driver):
        channel = driver.channel(window=1)
        first, _ = driver.submit(2)
        driver.dispatch(channel, 2)
        driver.start(first)
        assert driver.dispatch(channel, 2).sent == 0

    def test_nothing_goes_to_a_channel_without_a_lease(self, driver):
        channel = driver.channel()
        driver.submit()
        channel.die()
        answer = driver.dispatch(channel)
        assert (answer.sent, answer.left, answer.window) == (0, 1, -1)

    def test_a_damaged_lease_takes_nothing_and_blocks_nobody(self, driver):
        bad, good = driver.channel("bad"), driver.channel("good")
        driver.client.hset(driver.keys.lease(bad.incarnation), "window", "many")
        driver.submit(2)
        shares = [Assignment(1, 0, channel.incarnation, 1) for channel in (bad, good)]
        answers = driver.moves.dispatch(driver.fence, shares, KEEP)
        assert [answer.sent for answer in answers] == [0, 1]

    def test_several_shares_of_one_channel(self, driver):
        channel = driver.channel(window=3)
        driver.submit(2, priority=5)
        driver.submit(2)
        shares = [Assignment(1, 5, channel.incarnation, 2), Assignment(1, 0, channel.incarnation, 2)]
        answers = driver.moves.dispatch(driver.fence, shares, KEEP)
        assert [(answer.sent, answer.left, answer.entries) for answer in answers] == [(2, 0, 2), (1, 1, 3)]


class TestTombstones:
    def test_what_was_cancelled_is_skipped(self, driver):
        channel = driver.channel()
        ids = driver.submit(4)
        driver.moves.cancel([ids[1], ids[3]], KEEP)
        answer = driver.dispatch(channel, 4)
        assert (answer.sent, answer.left) == (2, 0)
        assert channel.jobs() == [ids[0], ids[2]]

    def test_what_has_no_record_any_more_is_skipped(self, driver):
        channel = driver.channel()
        first, second = driver.submit(2)
        driver.client.delete(driver.keys.job(first))
        assert driver.dispatch(channel, 1).sent == 1
        assert channel.jobs() == [second]

    def test_an_id_that_stands_there_twice_goes_out_once(self, driver):
        channel = driver.channel()
        before, job = driver.submit(2)
        driver.moves.cancel([job], KEEP)
        driver.moves.retry([job])
        assert driver.pending() == [before, job, job]
        assert driver.dispatch(channel, 5).sent == 2
        assert channel.jobs() == [before, job]

    def test_many_of_them_do_not_hold_up_the_server(self, driver):
        channel = driver.channel()
        (first,) = driver.submit()
        driver.client.rpush(driver.keys.pending_list(1, 0), *["999999"] * 5000)
        (last,) = driver.submit()
        calls = 0
        while driver.pending():
            driver.dispatch(channel, 10)
            calls += 1
        assert 4 <= calls <= 7
        assert channel.jobs() == [first, last]

    def test_at_the_head_of_a_list_they_go_at_once(self, driver):
        """Where nobody ever takes from the list, it must not grow for ever."""
        for _ in range(30):
            jobs = driver.submit(2, channel="absent")
            driver.moves.cancel(jobs, KEEP)
        assert driver.pending() == []
        assert driver.survey.pending() == {}


class TestEnds:
    def test_what_expired_ends_here(self, driver):
        channel = driver.channel()
        late, fine = driver.submit(expires="1ms") + driver.submit()
        driver.wait_ms(driver.header(late).expires)
        assert driver.dispatch(channel, 5).sent == 1
        assert driver.outcome(late) is Outcome.EXPIRED and driver.cause(late) == "expired"
        assert channel.jobs() == [fine]
        assert driver.ended_messages() == [late]
        assert driver.client.zcard(driver.keys.expiring) == 0

    def test_what_was_cancelled_on_its_way_back_ends_here(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        assert driver.again(job) == 1  # pending again, and then a flag that a race may have left
        flags = driver.header(job).flags | Flag.CANCEL_REQUESTED
        driver.client.setrange(driver.keys.job(job), 26, bytes([flags]))
        assert driver.dispatch(channel).sent == 0
        assert driver.outcome(job) is Outcome.CANCELLED
        assert 0 < driver.client.pttl(driver.keys.job(job)) <= KEEP


class TestFence:
    @pytest.mark.parametrize("fence", ["m1:0", "m1:2", "m2:1", "", "m1"])
    def test_another_master_moves_nothing(self, driver, fence):
        channel = driver.channel()
        (job,) = driver.submit()
        with pytest.raises(NotTheLeader):
            driver.moves.dispatch(fence, [Assignment(1, 0, channel.incarnation, 1)], KEEP)
        assert driver.state(job) is State.PENDING and channel.entries() == []

    def test_nobody_leads_nobody_moves(self, driver):
        driver.moves.release_lead("m1")
        with pytest.raises(NotTheLeader):
            driver.dispatch(driver.channel())


def test_an_empty_list_is_taken_off_the_list_of_lists(driver):
    channel = driver.channel()
    driver.submit()
    driver.dispatch(channel)
    assert driver.survey.pending() == {}


def test_attempts_only_grow(driver):
    channel = driver.channel()
    job, _ = driver.dispatched(channel)
    for attempt in range(2, 6):
        driver.bring_back(job)
        driver.dispatch(channel)
        assert driver.header(job).attempt == attempt


def test_an_order_says_how_often_its_job_ran_when_a_channel_died(driver):
    channel = driver.channel()
    job, entry = driver.dispatched(channel)
    assert b"crashes" not in dict(channel.entries())[entry]
    driver.again(job, crashes=1)
    driver.dispatch(channel)
    assert dict(channel.entries())[driver.header(job).entry][b"crashes"] == b"1"
