"""start, return, collect: the verdicts, and the fence of (attempt, entry, leader) before each of them."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, Result, State, decode_record, decode_result, encode
from jobschedd.store.moves import CancelAnswer, Verb, Verdict
from store_driver import KEEP

RESULT = encode(Result(outcome=Outcome.SUCCEEDED, cause="exit"))


@pytest.fixture
def channel(driver):
    return driver.channel()


class TestStart:
    def test_dispatched_becomes_running(self, driver, channel):
        job, entry = driver.dispatched(channel)
        assert driver.start(job) is Verdict.ACCEPTED
        header = driver.header(job)
        assert (header.state, header.entry, header.attempt) == (State.RUNNING, entry, 1)

    def test_said_twice_it_changes_nothing(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.start(job)
        since = driver.header(job).since
        assert driver.start(job) is Verdict.ACCEPTED
        assert driver.header(job).since == since

    def test_too_late_it_changes_nothing(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.end(job)
        assert driver.judge(Verb.START, job, 1, entry)[0] is Verdict.DUPLICATE
        assert driver.state(job) is State.DONE


class TestDone:
    @pytest.mark.parametrize("outcome", [one for one in Outcome if one], ids=lambda one: one.word)
    def test_an_end_is_on_the_record(self, driver, channel, outcome):
        job, entry = driver.dispatched(channel, command=["echo", "hi"])
        before = driver.record(job)
        assert driver.end(job, outcome) is Verdict.ACCEPTED
        record = driver.record(job)
        assert (record.header.state, record.header.outcome) == (State.DONE, outcome)
        assert (record.header.attempt, record.header.entry) == (1, entry)
        assert record.spec == before.spec
        assert decode_result(record.result).outcome is outcome
        assert 0 < driver.client.pttl(driver.keys.job(job)) <= KEEP

    def test_the_record_before_comes_back_for_the_history(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.start(job)
        before = driver.client.get(driver.keys.job(job))
        verdict, record = driver.judge(Verb.DONE, job, 1, entry, 1, RESULT, KEEP)
        assert (verdict, record) == (Verdict.ACCEPTED, before)

    def test_a_repeat_is_a_duplicate_and_brings_the_record(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.end(job)
        worse = encode(Result(outcome=Outcome.FAILED, cause="exit"))
        verdict, record = driver.judge(Verb.DONE, job, 1, entry, int(Outcome.FAILED), worse, KEEP)
        assert verdict is Verdict.DUPLICATE
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert decode_result(decode_record(record).result).outcome is Outcome.SUCCEEDED

    def test_kept_for_no_time_it_is_gone(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.end(job, keep=0)
        assert driver.client.exists(driver.keys.job(job)) == 0

    def test_binary_results_survive(self, driver, channel):
        job, entry = driver.dispatched(channel)
        blob = bytes(range(256)) * 10
        driver.judge(Verb.DONE, job, 1, entry, 1, blob, KEEP)
        assert driver.record(job).result == blob


class TestFence:
    def test_a_job_that_nobody_knows(self, driver, channel):
        assert driver.judge(Verb.DONE, "77", 1, "1-1", 1, RESULT, KEEP) == (Verdict.UNKNOWN, None)

    @pytest.mark.parametrize("verb", [Verb.START, Verb.RETURN, Verb.DONE, Verb.RETRY])
    def test_another_attempt_is_stale(self, driver, channel, verb):
        job, entry = driver.dispatched(channel)
        for attempt, its_entry in [(2, entry), (0, entry), (1, "1-1"), (1, entry + "1")]:
            assert driver.judge(verb, job, attempt, its_entry, 1, b"", 0, 0)[0] is Verdict.STALE
        assert driver.state(job) is State.DISPATCHED

    def test_a_late_end_of_an_attempt_that_was_superseded(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.bring_back(job)
        assert driver.judge(Verb.DONE, job, 1, entry, 1, RESULT, KEEP)[0] is Verdict.STALE
        driver.dispatch(channel)
        assert driver.judge(Verb.DONE, job, 1, entry, 1, RESULT, KEEP)[0] is Verdict.STALE
        assert driver.state(job) is State.DISPATCHED
        assert driver.end(job) is Verdict.ACCEPTED

    def test_the_record_comes_with_a_stale_report_only_where_the_attempt_is_over(self, driver, channel):
        job, entry = driver.dispatched(channel)
        assert driver.judge(Verb.DONE, job, 2, entry, 1, RESULT, KEEP)[1] is None
        assert driver.judge(Verb.DONE, job, 1, "1-1", 1, RESULT, KEEP)[1] is None
        driver.again(job)
        assert driver.judge(Verb.DONE, job, 1, entry, 1, RESULT, KEEP)[1] is not None

    @pytest.mark.parametrize("fence", ["m1:0", "m2:1", ""])
    def test_another_master_judges_nothing(self, driver, channel, fence):
        job, entry = driver.dispatched(channel)
        with pytest.raises(NotTheLeader):
            driver.moves.collect(fence, [Verb.DONE, job, 1, entry, 1, RESULT, KEEP, "", ""])
        assert driver.state(job) is State.DISPATCHED

    def test_an_unreadable_record_is_unknown(self, driver):
        driver.client.set(driver.keys.job("5"), b"\x02" + bytes(80))
        driver.client.set(driver.keys.job("6"), b"short")
        for job in ("5", "6"):
            assert driver.judge(Verb.DONE, job, 1, "1-1", 1, RESULT, KEEP)[0] is Verdict.UNKNOWN


class TestRetry:
    def test_after_a_delay(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert driver.again(job, delay_ms=5000, tries=3, crashes=2) is Verdict.ACCEPTED
        header = driver.header(job)
        assert (header.state, header.tries, header.crashes, header.attempt) == (State.SCHEDULED, 3, 2, 1)
        assert (header.entry, header.incarnation) == ("", "")
        assert 4000 < header.since - driver.now_ms() <= 5000
        assert driver.client.zscore(driver.keys.scheduled, job) == header.since

    def test_at_once_it_stands_in_front(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (other,) = driver.submit()
        driver.again(job)
        assert driver.state(job) is State.PENDING
        assert driver.pending() == [job, other]

    @pytest.mark.parametrize("delay", [0, 300_000])
    def test_a_cancel_that_came_meanwhile_ends_it_at_once(self, driver, channel, delay):
        job, _ = driver.dispatched(channel)
        assert driver.moves.cancel([job], KEEP)[0][0] is CancelAnswer.REQUESTED
        assert driver.again(job, delay_ms=delay) is Verdict.ACCEPTED
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.ended_messages() == [job]
        assert driver.client.scard(driver.keys.cancelling) == 0

    def test_budgets_are_counted_in_a_byte(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.again(job, tries=250, crashes=300)
        header = driver.header(job)
        assert (header.tries, header.crashes) == (250, 255)


class TestReturn:
    def test_to_the_front_and_uncharged(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (other,) = driver.submit()
        assert driver.bring_back(job) is Verdict.ACCEPTED
        header = driver.header(job)
        assert (header.state, header.tries, header.crashes, header.attempt) == (State.PENDING, 0, 0, 1)
        assert driver.pending() == [job, other]

    def test_several_keep_their_order(self, driver, channel):
        ids = driver.submit(6)
        driver.dispatch(channel, 4)
        arguments = []
        for job in ids[:4]:
            arguments += [Verb.RETURN, job, 1, driver.header(job).entry, KEEP, "", "", "", ""]
        driver.moves.collect(driver.fence, arguments)
        assert driver.pending() == ids

    def test_cancelled_meanwhile_it_ends(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.moves.cancel([job], KEEP)
        driver.bring_back(job)
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.pending() == []

    @pytest.mark.parametrize("back", ["bring_back", "again"])
    def test_the_time_to_expire_is_watched_again(self, driver, channel, back):
        """It may have passed while the channel had the job; nobody may ever have room for it again."""
        job, _ = driver.dispatched(channel, expires="300ms")
        driver.wait_ms(driver.header(job).expires)
        driver.moves.promote(driver.fence, KEEP, 100)
        assert driver.client.zcard(driver.keys.expiring) == 0
        getattr(driver, back)(job)
        assert driver.moves.promote(driver.fence, KEEP, 100)[:2] == (0, 1)
        assert driver.outcome(job) is Outcome.EXPIRED


class TestBatches:
    def test_each_report_has_its_own_verdict(self, driver, channel):
        good, gone = driver.dispatched(channel)[0], driver.dispatched(channel)[0]
        entries = {job: driver.header(job).entry for job in (good, gone)}
        driver.end(gone)
        arguments = [Verb.START, good, 1, entries[good], "", "", "", "", ""]
        arguments += [Verb.DONE, good, 1, entries[good], 1, RESULT, KEEP, "", ""]
        arguments += [Verb.DONE, gone, 1, entries[gone], 1, RESULT, KEEP, "", ""]
        arguments += [Verb.DONE, "99", 1, "1-1", 1, RESULT, KEEP, "", ""]
        verdicts = [verdict for verdict, _ in driver.moves.collect(driver.fence, arguments)]
        assert verdicts == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.UNKNOWN]


class TestWaiters:
    def inbox(self, driver, client):
        return [
            message.partition(b":")[0].decode() for message in driver.client.lrange(driver.keys.inbox(client), 0, -1)
        ]

    def test_the_submitter_may_wait_from_the_start(self, driver, channel):
        job, _ = driver.dispatched(channel, waiter=9)
        driver.end(job)
        assert self.inbox(driver, 9) == [job]
        assert 0 < driver.client.pttl(driver.keys.inbox(9)) <= 600_000

    def test_whoever_asks_later_is_told(self, driver, channel):
        job, _ = driver.dispatched(channel)
        client = driver.moves.next_client()
        assert driver.moves.await_end(client, [job, "99"]) == [1, None]
        driver.end(job)
        assert self.inbox(driver, client) == [job]

    def test_a_lone_message_brings_the_record(self, driver, channel):
        long = b"x" * 5000
        for result, others, brings in ((RESULT, [], True), (RESULT, ["7"], False), (long, [], False)):
            job, _ = driver.dispatched(channel, waiter=9)
            driver.client.delete(driver.keys.inbox(9))
            for other in others:
                driver.client.rpush(driver.keys.inbox(9), other)
            driver.end(job, result=result)
            message = driver.client.lindex(driver.keys.inbox(9), -1)
            assert message == (
                job.encode() + b":" + driver.client.get(driver.keys.job(job)) if brings else job.encode()
            )

    def test_whoever_asks_learns_which_attempt_is_news(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.end(job)
        driver.moves.retry([job])
        assert driver.moves.await_end(9, [job]) == [2]
        driver.dispatch(channel)
        assert driver.moves.await_end(9, [job]) == [2]

    def test_several_are_all_told_once(self, driver, channel):
        job, _ = driver.dispatched(channel)
        for client in (1, 2, 3, 2, 1):
            driver.moves.await_end(client, [job])
        driver.end(job)
        assert [self.inbox(driver, client) for client in (1, 2, 3)] == [[job]] * 3
        assert not any(key.startswith("waiters:") for key in driver.all_keys())

    def test_who_comes_after_the_end_gets_the_record(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.end(job)
        assert driver.moves.await_end(1, [job]) == [driver.client.get(driver.keys.job(job))]

    def test_a_retry_of_ours_wakes_nobody(self, driver, channel):
        job, _ = driver.dispatched(channel, waiter=9)
        driver.again(job)
        assert self.inbox(driver, 9) == []
        driver.dispatch(channel)
        driver.end(job)
        assert self.inbox(driver, 9) == [job]

    def test_a_cancel_and_an_expiry_wake_too(self, driver):
        (cancelled,) = driver.submit(waiter=1)
        (late,) = driver.submit(waiter=2, expires="1ms")
        driver.moves.cancel([cancelled], KEEP)
        driver.wait_ms(driver.header(late).expires)
        driver.moves.promote(driver.fence, KEEP, 10)
        assert (self.inbox(driver, 1), self.inbox(driver, 2)) == ([cancelled], [late])
