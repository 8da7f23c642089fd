"""submit: ids in order, one effect however often it is sent, everything where it belongs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from jobschedd.errors import InvalidJob, QueueFull
from jobschedd.job import HEADER_SIZE, Flag, State, Target, decode_spec
from jobschedd.store.connect import connect
from jobschedd.store.moves import Moves, OperationSlot, RetryAnswer
from jobschedd.submission import submission


def test_the_record_holds_what_was_asked_for(driver):
    before = driver.now_ms()
    (job,) = driver.submit(command=["echo", "hi"], priority=7, expires="1h", waiter=5, retry_on_loss=False)
    record, after = driver.record(job), driver.now_ms()
    header = record.header
    assert (header.state, header.priority, header.waiter, header.flags) == (State.PENDING, 7, 5, Flag.NO_RETRY_ON_LOSS)
    assert before <= header.submitted == header.since <= after
    assert header.expires == header.submitted + 3_600_000
    assert (header.attempt, header.tries, header.crashes, header.entry, header.incarnation) == (0, 0, 0, "", "")
    assert decode_spec(record.spec).command == ("echo", "hi")
    assert record.result == b""
    assert driver.survey.classes()[header.job_class] == Target()


def test_a_record_costs_its_spec_and_sixty_bytes(driver):
    (job,) = driver.submit()
    assert driver.client.strlen(driver.keys.job(job)) == HEADER_SIZE + len(driver.record(job).spec)
    assert driver.client.ttl(driver.keys.job(job)) == -1


def test_ids_are_counted_and_in_order(driver):
    assert driver.submit(3) == ["1", "2", "3"]
    assert driver.submit(2) == ["4", "5"]
    assert driver.pending() == ["1", "2", "3", "4", "5"]
    assert driver.survey.pending() == {(1, 0): 5}


def test_the_bell_rings_with_the_length_of_the_list(driver):
    driver.submit(3)
    driver.submit(2, priority=-5)
    assert driver.bell() == ["p:1:0:3", "p:1:-5:2"]


def test_one_call_of_many_kinds_keeps_the_order_of_ids(driver):
    items = [{}, {"priority": 5}, {}, {}, {"channel": "gpu"}, {"delay": "1h"}, {"node": "n2", "labels": ["b", "a"]}]
    ids = driver.submit_items(items)
    assert ids == [str(number) for number in range(1, 8)]
    headers = [driver.header(job) for job in ids]
    assert [header.priority for header in headers] == [0, 5, 0, 0, 0, 0, 0]
    assert [header.state for header in headers] == [State.PENDING] * 5 + [State.SCHEDULED, State.PENDING]
    targets = driver.survey.classes()
    assert targets[headers[4].job_class] == Target(channel="gpu")
    assert targets[headers[6].job_class] == Target(node="n2", labels=("a", "b"))
    assert headers[5].job_class == headers[0].job_class


def test_a_class_keeps_its_number(driver):
    first, second = driver.submit_items([{"channel": "a"}, {"channel": "b"}])
    again, other = driver.submit_items([{"channel": "b"}, {"channel": "a"}])
    assert driver.header(first).job_class == driver.header(other).job_class
    assert driver.header(second).job_class == driver.header(again).job_class


class TestRepeats:
    """A reply got lost: the client sends the same call again."""

    def test_the_same_call_has_one_effect(self, driver):
        slot, jobs = OperationSlot("c1"), [submission({"command": ["true"]})] * 3
        slot.sequence = 1
        first = driver.moves.submit(jobs, slot)
        assert driver.moves.submit(jobs, slot) == first
        assert driver.pending() == first
        assert driver.client.get(driver.keys.next_id) == b"3"

    def test_the_next_call_has_its_own(self, driver):
        slot, jobs = OperationSlot("c1"), [submission({"command": ["true"]})]
        slot.sequence = 1
        first = driver.moves.submit(jobs, slot)
        slot.sequence = 2
        assert driver.moves.submit(jobs, slot) != first

    def test_clients_do_not_mix(self, driver):
        jobs = [submission({"command": ["true"]})]
        one, other = OperationSlot("c1"), OperationSlot("c2")
        assert driver.moves.submit(jobs, one) != driver.moves.submit(jobs, other)

    def test_the_memory_ends(self, driver):
        driver.submit()
        assert 0 < driver.client.pttl(driver.keys.operation("c")) <= 3_600_000

    def test_ids_are_exact_far_beyond_a_million(self, driver):
        driver.client.set(driver.keys.next_id, 2**45)
        slot, jobs = OperationSlot("c1"), [submission({"command": ["true"]})] * 2
        first = driver.moves.submit(jobs, slot)
        assert first == [str(2**45 + 1), str(2**45 + 2)]
        assert driver.moves.submit(jobs, slot) == first
        assert driver.state(first[1]) is State.PENDING


class TestKeys:
    def test_one_key_one_job(self, driver):
        (first,) = driver.submit(key="nightly")
        assert driver.submit(key="nightly") == [first]
        assert driver.submit(key="weekly") != [first]
        assert len(driver.pending()) == 2

    def test_the_same_key_twice_in_one_call(self, driver):
        assert driver.submit_items([{"key": "k"}, {}, {"key": "k"}, {"key": "l"}]) == ["1", "2", "1", "3"]

    def test_the_very_same_submission_twice_in_one_call(self, driver):
        job = submission({"command": ["true"], "key": "k"})
        assert driver.moves.submit([job, job, job], OperationSlot("c1")) == ["1", "1", "1"]
        assert driver.pending() == ["1"]

    def test_a_key_lasts_as_long_as_its_job(self, driver):
        (job,) = driver.submit(key="k")
        assert driver.client.ttl(driver.keys.base + "once:k") == -1
        driver.moves.cancel([job], keep_ms=5000)
        assert 0 < driver.client.pttl(driver.keys.base + "once:k") <= 5000
        assert driver.submit(key="k") == [job]
        driver.client.delete(driver.keys.job(job))
        assert driver.submit(key="k") != [job]

    def test_a_users_retry_keeps_the_key(self, driver):
        (job,) = driver.submit(key="k")
        driver.moves.cancel([job], keep_ms=5000)
        driver.moves.retry([job])
        assert driver.client.ttl(driver.keys.base + "once:k") == -1


class TestScopes:
    """How long a key is taken."""

    def test_until_it_ends(self, driver):
        channel = driver.channel()
        (job,) = driver.submit(key="k", key_scope="running")
        assert driver.submit(key="k", key_scope="running") == [job]
        driver.dispatch(channel)
        driver.start(job)
        assert driver.submit(key="k", key_scope="running") == [job]
        driver.end(job)
        (other,) = driver.submit(key="k", key_scope="running")
        assert other != job

    def test_until_a_channel_has_it(self, driver):
        channel = driver.channel(window=1)
        (job,) = driver.submit(key="k", key_scope="pending")
        assert driver.submit(key="k", key_scope="pending") == [job]
        driver.dispatch(channel)
        (other,) = driver.submit(key="k", key_scope="pending")
        assert other != job
        driver.end(job)
        assert driver.submit(key="k", key_scope="pending") == [other], "an end frees no key of another"

    @pytest.mark.parametrize("back", ["bring_back", "again", "requeue"])
    def test_what_waits_again_has_its_key_again(self, driver, back):
        channel = driver.channel()
        (job,) = driver.submit(key="k", key_scope="pending", retries=1)
        driver.dispatch(channel)
        if back == "requeue":
            channel.die()
            driver.requeue(channel)
        else:
            getattr(driver, back)(job)
        assert driver.submit(key="k", key_scope="pending") == [job]

    def test_a_users_retry_takes_it_again(self, driver):
        (job,) = driver.submit(key="k", key_scope="running")
        driver.moves.cancel([job], keep_ms=5000)
        assert driver.moves.retry([job]) == [RetryAnswer.PENDING]
        assert driver.submit(key="k", key_scope="running") == [job]

    def test_a_users_retry_beside_another_is_refused(self, driver):
        (job,) = driver.submit(key="k", key_scope="running")
        driver.moves.cancel([job], keep_ms=5000)
        (other,) = driver.submit(key="k", key_scope="running")
        assert driver.moves.retry([job]) == [RetryAnswer.KEY_TAKEN]
        assert driver.state(job) is State.DONE
        assert driver.submit(key="k", key_scope="running") == [other]

    def test_the_scope_needs_a_key(self):
        with pytest.raises(InvalidJob, match="key_scope"):
            submission({"command": ["true"], "key_scope": "running"})
        with pytest.raises(InvalidJob, match="record, running, pending"):
            submission({"command": ["true"], "key": "k", "key_scope": "ever"})
        assert len(submission({"command": ["true"], "key": "k", "key_scope": "record"}).spec) == len(
            submission({"command": ["true"], "key": "k"}).spec
        )

    def test_many_at_once(self, driver):
        """Whoever asks first has it, and all others get that one."""

        def one(number: int) -> str:
            moves = Moves(connect(driver.config, f"t{number}"), driver.keys)
            job = submission({"command": ["true"], "key": "k", "key_scope": "running"})
            return moves.submit([job], OperationSlot(f"c{number}"))[0]

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(one, range(64)))) == 1
        assert len(driver.pending()) == 1


class TestTimes:
    def test_a_delay_schedules(self, driver):
        (job,) = driver.submit(delay="10s")
        header = driver.header(job)
        assert header.state is State.SCHEDULED
        assert header.since == header.submitted + 10_000
        assert driver.client.zscore(driver.keys.scheduled, job) == header.since
        assert driver.pending() == []
        assert driver.bell() == ["s"]

    def test_at_is_absolute(self, driver):
        due = driver.now_ms() + 60_000
        (job,) = driver.submit(at=due / 1000)
        assert driver.header(job).since == due

    @pytest.mark.parametrize("past", [{"at": "2001-01-01T00:00:00Z"}, {"at": -5}, {"delay": 0}], ids=str)
    def test_what_is_due_already_is_pending(self, driver, past):
        (job,) = driver.submit(**past)
        assert driver.state(job) is State.PENDING
        assert driver.pending() == [job]

    def test_what_expires_makes_the_dispatcher_look_at_the_time(self, driver):
        (job,) = driver.submit(expires="1m")
        assert driver.client.zscore(driver.keys.expiring, job) == driver.header(job).expires
        assert sorted(driver.bell()) == ["p:1:0:1", "s"]


class TestFull:
    def test_a_full_redis_refuses_and_keeps_nothing(self, driver):
        driver.submit()
        driver.client.config_set("maxmemory", 1)
        with pytest.raises(QueueFull) as error:
            driver.submit(5)
        assert error.value.exit_code == 75
        driver.client.config_set("maxmemory", 0)
        assert driver.submit() == ["2"]
        assert driver.pending() == ["1", "2"]


def test_a_bell_that_nobody_reads_stays_bounded(driver):
    driver.client.rpush(driver.keys.bell, *["x"] * 10_000)
    driver.submit(2)
    assert driver.client.llen(driver.keys.bell) == 10_000
