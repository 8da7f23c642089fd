"""Job arrays: one id in the list, tasks made as channels have room, never more at once than the limit says."""

from __future__ import annotations

import pytest

from jobschedd.job import Flag, Outcome, Result, State, decode_result, decode_spec, encode
from jobschedd.store.marks import KnownEnd, Marks
from jobschedd.store.moves import CancelAnswer, RetryAnswer, Verdict
from store_driver import KEEP, Driver


def counts(driver: Driver, job: str) -> dict[str, int]:
    """The hash of an array, as numbers."""
    return {name.decode(): int(value) for name, value in driver.client.hgetall(driver.keys.array(job)).items()}


def run(driver: Driver, job: str, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """What a channel and the collector do with one order."""
    driver.start(job)
    assert driver.end(job, outcome) is Verdict.ACCEPTED
    header = driver.header(job)
    driver.client.xdel(driver.keys.dispatch(header.incarnation), header.entry)


class TestSubmit:
    def test_a_million_is_one_call_and_few_bytes(self, driver):
        (job,) = driver.submit(array="1-1000000%50")
        keys = [key for key in driver.all_keys() if job in key]
        assert len(keys) == 5
        assert sum(driver.client.memory_usage(driver.keys.base + key) for key in keys) < 1_000_000
        assert driver.pending() == [job]
        assert counts(driver, job) == {"total": 1_000_000, "limit": 50, "most_failures": 0, "left": 1_000_000}

    def test_jobs_before_and_behind_it_keep_their_numbers(self, driver):
        ids = driver.submit_items([{}, {"array": "1-3"}, {}, {}])
        assert ids == ["1", "2", "3", "4"]
        assert [driver.header(job).flags for job in ids] == [Flag.NONE, Flag.ARRAY, Flag.NONE, Flag.NONE]

    def test_a_repeated_call_has_one_effect(self, driver):
        ids = driver.submit_items([{"array": "1-3", "key": "k"}, {"array": "1-3", "key": "k"}, {}])
        assert ids == ["1", "1", "2"]


class TestDispatch:
    def test_tasks_carry_the_spec_and_their_index(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(array="3-9:3", command=["echo", "hi"])
        answer = driver.dispatch(channel, 2)
        assert (answer.sent, answer.left, answer.entries) == (2, 1, 2)
        assert channel.jobs() == [f"{job}_3", f"{job}_6"]
        assert decode_spec(channel.entries()[0][1][b"spec"]).command == ("echo", "hi")
        assert driver.header(f"{job}_3").flags == Flag.TASK
        assert driver.state(job) is State.RUNNING

    def test_what_is_left_counts_what_the_array_stands_for(self, driver):
        channel = driver.channel()
        driver.submit(array="1-100")
        driver.submit(3)
        assert driver.dispatch(channel, 5).left == 98
        assert driver.survey.pending() == {(1, 0): 4}, "at least so many"

    def test_it_keeps_its_turn(self, driver):
        channel = driver.channel(window=100)
        (before,) = driver.submit()
        (job,) = driver.submit(array="1-3")
        behind = driver.submit(2)
        for count in (2, 1, 10):
            driver.dispatch(channel, count)
        assert channel.jobs() == [before, f"{job}_1", f"{job}_2", f"{job}_3", *behind]
        assert driver.pending() == []

    def test_the_limit_parks_it_and_lets_others_by(self, driver):
        channel = driver.channel(window=100)
        (job,) = driver.submit(array="1-10%2")
        (behind,) = driver.submit()
        assert driver.dispatch(channel, 10).sent == 3
        assert channel.jobs() == [f"{job}_1", f"{job}_2", behind]
        assert driver.pending() == []
        run(driver, f"{job}_1")
        assert driver.pending() == [job]
        assert driver.dispatch(channel, 10).sent == 1

    def test_a_returned_task_and_one_that_waits_for_its_retry_keep_their_place(self, driver):
        channel = driver.channel(window=100)
        (job,) = driver.submit(array="1-10%2", retries=3)
        driver.dispatch(channel, 10)
        driver.bring_back(f"{job}_1")
        driver.again(f"{job}_2", delay_ms=60_000)
        assert driver.dispatch(channel, 10).sent == 1
        assert counts(driver, job)["active"] == 2

    def test_a_running_array_at_the_head_of_a_list_is_no_tombstone(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(array="1-10")
        driver.dispatch(channel, 1)
        (other,) = driver.submit()
        driver.moves.cancel([other], KEEP)
        assert driver.pending() == [job, other]


class TestEnds:
    def finished(self, driver, array="1-4", bad=(), **item):
        channel = driver.channel(window=100)
        (job,) = driver.submit(array=array, **item)
        while driver.dispatch(channel, 100).sent:
            for _, fields in channel.entries():
                task = fields[b"job"].decode()
                outcome = Outcome.FAILED if int(task.partition("_")[2]) in bad else Outcome.SUCCEEDED
                run(driver, task, outcome)
        return channel, job

    def test_all_succeeded(self, driver):
        _, job = self.finished(driver)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert driver.ended_messages() == [job]
        assert 0 < driver.client.pttl(driver.keys.array(job)) <= KEEP
        assert driver.client.smembers(driver.keys.arrays) == set()

    def test_some_failed(self, driver):
        _, job = self.finished(driver, bad={2, 3})
        assert driver.outcome(job) is Outcome.FAILED and driver.cause(job) == "tasks"
        assert decode_result(driver.record(job).result).error == "2 of 4 tasks did not succeed: 2 failed"

    def test_whoever_waits_for_the_whole_is_told(self, driver):
        (job,) = driver.submit(array="1-2")
        driver.moves.await_end(7, [job])
        channel = driver.channel()
        driver.dispatch(channel, 5)
        for index in (1, 2):
            run(driver, f"{job}_{index}")
        assert driver.client.lindex(driver.keys.inbox(7), -1).startswith(f"{job}:".encode())

    def test_whoever_waits_for_a_task_that_has_not_started_is_told(self, driver):
        (job,) = driver.submit(array="1-2")
        assert driver.moves.await_end(7, [f"{job}_2"]) == [b""]
        assert driver.moves.await_end(7, [f"{job}_3"]) == [None]
        channel = driver.channel()
        driver.dispatch(channel, 5)
        run(driver, f"{job}_2")
        assert driver.client.lindex(driver.keys.inbox(7), -1).startswith(f"{job}_2:".encode())

    def test_what_expires_before_it_starts(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(array="1-1000000", expires="1ms")
        driver.wait_ms(driver.header(job).expires)
        driver.moves.promote(driver.fence, KEEP, 100)
        assert driver.outcome(job) is Outcome.FAILED
        assert counts(driver, job)["o6"] == 1_000_000
        assert driver.dispatch(channel, 5).sent == 0 and driver.pending() == []

    def test_too_many_failures_stop_it(self, driver):
        _, job = self.finished(driver, array="1-1000%2", bad=set(range(5, 100)), max_failures=3)
        assert counts(driver, job)["o2"] in (3, 4)
        assert counts(driver, job)["o4"] == 1000 - 4 - counts(driver, job)["o2"] - (counts(driver, job)["o1"] - 4)
        assert driver.outcome(job) is Outcome.FAILED

    def test_a_stopped_array_ends_what_went_back_to_wait(self, driver):
        channel = driver.channel(window=100)
        (job,) = driver.submit(array="1-3", max_failures=1)
        driver.dispatch(channel, 10)
        driver.bring_back(f"{job}_1")
        run(driver, f"{job}_2", Outcome.FAILED)
        driver.dispatch(channel, 10)
        assert driver.cause(f"{job}_1") == "max_failures"
        assert driver.state(f"{job}_3") is State.DISPATCHED
        run(driver, f"{job}_3")
        assert driver.outcome(job) is Outcome.FAILED


class TestCancel:
    def test_before_it_starts(self, driver):
        (job,) = driver.submit(array="1-1000000")
        assert driver.moves.cancel([job], KEEP) == [(CancelAnswer.CANCELLED, Outcome.NONE)]
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.dispatch(driver.channel(), 5).sent == 0
        assert driver.client.exists(driver.keys.array(job, "todo")) == 0

    def test_while_it_runs(self, driver):
        channel = driver.channel(window=3)
        (job,) = driver.submit(array="1-1000")
        driver.dispatch(channel, 3)
        driver.start(f"{job}_1")
        assert driver.moves.cancel([job], KEEP) == [(CancelAnswer.REQUESTED, Outcome.NONE)]
        _, tasks = driver.moves.repeat_hints(driver.fence, 100)
        assert tasks == [f"{job}_1", f"{job}_2", f"{job}_3"]
        driver.moves.cancel(tasks, KEEP)
        assert driver.moves.repeat_hints(driver.fence, 100)[1] == []
        for task in tasks:
            run(driver, task, Outcome.CANCELLED)
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.client.smembers(driver.keys.cancelling) == set()

    def test_one_task_that_has_not_started(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(array="1-3")
        assert driver.moves.cancel([f"{job}_2"], KEEP) == [(CancelAnswer.CANCELLED, Outcome.NONE)]
        assert driver.outcome(f"{job}_2") is Outcome.CANCELLED
        driver.dispatch(channel, 5)
        assert channel.jobs() == [f"{job}_1", f"{job}_3"]
        assert driver.moves.cancel([f"{job}_9"], KEEP)[0][0] is CancelAnswer.UNKNOWN

    def test_while_scheduled(self, driver):
        (job,) = driver.submit(array="1-3", delay="1h")
        driver.moves.cancel([job], KEEP)
        assert driver.outcome(job) is Outcome.CANCELLED
        assert driver.moves.retry_array(job) == (RetryAnswer.PENDING, 3)
        assert driver.dispatch(driver.channel(), 5).sent == 3


class TestRetry:
    def test_only_the_failed_ones(self, driver):
        channel, job = TestEnds().finished(driver, bad={2, 4})
        ended = driver.header(job).since
        assert driver.moves.retry_array(job, ended) == (RetryAnswer.PENDING, 2)
        assert driver.moves.retry_array(job, ended)[0] is RetryAnswer.NOT_ENDED, "a repeated call changes nothing"
        assert driver.client.pttl(driver.keys.array(job)) == driver.client.pttl(driver.keys.job(job)) == -1
        assert driver.dispatch(channel, 10).sent == 2
        assert channel.jobs() == [f"{job}_2", f"{job}_4"]
        assert driver.header(f"{job}_2").attempt == 2, "attempts only grow"
        for index in (2, 4):
            run(driver, f"{job}_{index}")
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert driver.moves.retry_array(job) == (RetryAnswer.PENDING, 0)

    def test_attempts_grow_though_the_records_are_gone(self, driver):
        channel, job = TestEnds().finished(driver, bad={2})
        driver.client.delete(driver.keys.job(f"{job}_2"))
        driver.moves.retry_array(job)
        driver.dispatch(channel, 10)
        assert driver.header(f"{job}_2").attempt == 2

    def test_all(self, driver):
        channel, job = TestEnds().finished(driver, array="1-4%3", bad={2})
        assert driver.moves.retry_array(job, everything=True) == (RetryAnswer.PENDING, 4)
        assert driver.dispatch(channel, 10).sent == 3

    def test_one_task(self, driver):
        channel, job = TestEnds().finished(driver, array="1-4%1", bad={2})
        assert driver.moves.retry([f"{job}_2", f"{job}_3"]) == [RetryAnswer.PENDING] * 2
        assert driver.moves.retry([f"{job}_2"]) == [RetryAnswer.NOT_ENDED]
        assert driver.dispatch(channel, 10).sent == 1, "the limit holds for those, too"
        assert channel.jobs() == [f"{job}_2"]

    def test_while_it_is_being_cancelled_there_is_none(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(array="1-4")
        driver.dispatch(channel, 2)
        run(driver, f"{job}_1", Outcome.FAILED)
        driver.moves.cancel([job], KEEP)
        assert driver.moves.retry_array(job)[0] is RetryAnswer.NOT_ENDED
        assert driver.moves.retry([f"{job}_1"]) == [RetryAnswer.NOT_ENDED]


def test_lost_work_of_an_array_is_taken_back_within_its_limit(driver):
    channel, other = driver.channel(), driver.channel("2")
    (job,) = driver.submit(array="1-4%2")
    driver.dispatch(channel, 10)
    channel.die()
    driver.moves.reap(driver.fence, [channel.incarnation])
    assert driver.requeue(channel).requeued == 2
    assert driver.dispatch(other, 10).sent == 2
    assert other.jobs() == [f"{job}_1", f"{job}_2"]


@pytest.mark.parametrize("text", ["1-3", "5"])
def test_a_scheduled_array_waits_for_its_time(driver, text):
    (job,) = driver.submit(array=text, delay="1ms")
    assert driver.state(job) is State.SCHEDULED
    driver.wait_ms(driver.header(job).since)
    driver.moves.promote(driver.fence, KEEP, 10)
    assert driver.dispatch(driver.channel(), 10).sent > 0


class TestRolledBack:
    """Redis went back to a copy in which tasks had not started; the history knows that they have ended."""

    def settle(self, driver, *ends):
        said = []
        for task, attempt, outcome in ends:
            result = encode(Result(outcome=outcome, cause="exit"))
            said.append(KnownEnd(task, attempt, driver.now_ms() / 1000, outcome, result))
        return Marks(driver.client, driver.keys).settle(driver.fence, said, [KEEP] * len(said))

    def test_what_has_ended_does_not_start_again(self, driver):
        (job,) = driver.submit(array="1-4")
        ends = [(f"{job}_1", 1, Outcome.SUCCEEDED), (f"{job}_3", 2, Outcome.FAILED), (f"{job}_9", 1, Outcome.FAILED)]
        assert self.settle(driver, *ends) == 2
        assert self.settle(driver, *ends) == 0
        assert driver.header(f"{job}_3").attempt == 2
        channel = driver.channel()
        assert driver.dispatch(channel, 10).sent == 2
        assert channel.jobs() == [f"{job}_2", f"{job}_4"]
        for index in (2, 4):
            run(driver, f"{job}_{index}")
        assert (counts(driver, job)["o1"], counts(driver, job)["o2"]) == (3, 1)
        assert driver.outcome(job) is Outcome.FAILED
        assert driver.moves.retry_array(job) == (RetryAnswer.PENDING, 1)

    def test_with_the_last_of_them_ends_the_whole(self, driver):
        (job,) = driver.submit(array="1-3", delay="1h")
        assert self.settle(driver, *((f"{job}_{index}", 1, Outcome.SUCCEEDED) for index in (1, 2, 3))) == 3
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert driver.client.zcard(driver.keys.scheduled) == 0

    def test_an_end_of_a_former_life_is_none_of_this_one(self, driver):
        _, job = TestEnds().finished(driver, array="1-2", bad={2})
        driver.moves.retry_array(job)
        assert self.settle(driver, (f"{job}_2", 1, Outcome.FAILED)) == 0
        assert driver.client.getbit(driver.keys.array(job, "todo"), 2) == 1
        assert self.settle(driver, (f"{job}_2", 2, Outcome.SUCCEEDED)) == 1
        assert driver.outcome(job) is Outcome.SUCCEEDED

    @pytest.mark.parametrize(
        ("outcome", "failed", "count"),
        [(Outcome.SUCCEEDED, 0, "o1"), (Outcome.FAILED, 3, "o4"), (Outcome.SKIPPED, 3, "o7")],
    )
    def test_of_what_has_no_row_the_end_of_the_whole_tells(self, driver, outcome, failed, count):
        (job,) = driver.submit(array="1-3")
        assert self.settle(driver, (job, 0, outcome)) == 1
        assert driver.outcome(job) is outcome
        assert counts(driver, job)[count] == 3
        assert driver.client.bitcount(driver.keys.array(job, "failed")) == failed

    def test_a_channel_says_what_it_has(self, driver):
        """An order of a former life, or one that has a successor, stays outside, and leaves nothing behind."""
        channel, job = TestEnds().finished(driver, array="1-2", bad={2})
        driver.moves.retry_array(job)
        assert self.announce(driver, channel, f"{job}_2", 1) == 0
        assert driver.client.getbit(driver.keys.array(job, "todo"), 2) == 1
        assert self.announce(driver, channel, f"{job}_2", 2) == 1
        assert driver.state(f"{job}_2") is State.DISPATCHED
        assert counts(driver, job)["active"] == 1
        assert driver.dispatch(channel, 10).sent == 0

    def announce(self, driver, channel, task, attempt):
        now = driver.now_ms()
        fields = {"job": task, "attempt": attempt, "entry": f"{now}-{attempt}", "incarnation": channel.incarnation}
        driver.client.xadd(driver.keys.announced, fields | {"info": b"{}", "spec": driver.record(task).spec})
        return Marks(driver.client, driver.keys).take_in(driver.fence)[1]
