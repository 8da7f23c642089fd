"""Jobs that wait for others: registered at submit, unblocked on every way to an end, skipped where it can never be."""

from __future__ import annotations

import pytest

from jobschedd.errors import NoParent, NotTheLeader
from jobschedd.job import Flag, Outcome, Result, State, decode_result, decode_spec, encode
from jobschedd.store.moves import CancelAnswer, RetryAnswer
from store_driver import KEEP


@pytest.fixture
def channel(driver):
    return driver.channel()


def unblock(driver, most=1000):
    return driver.moves.unblock(driver.fence, KEEP, most)


def ended_as(driver, channel, outcome, **item):
    """A job that ended so."""
    job, _ = driver.dispatched(channel, **item)
    driver.end(job, outcome)
    return job


def why(driver, job):
    return decode_result(driver.record(job).result).error


def rest(driver):
    """Keys that belong to somebody's waiting."""
    names = ("awaits:", "dependents:", "unblocking", "waiting")
    return {key for key in driver.all_keys() if key.startswith(names)}


class TestSubmit:
    def test_it_waits_and_is_registered(self, driver):
        (parent,) = driver.submit()
        (child,) = driver.submit(after=[parent])
        assert driver.state(child) is State.WAITING
        assert decode_spec(driver.record(child).spec).after == (f"{parent}:ok",)
        assert Flag.AWAITED in driver.header(parent).flags
        assert driver.pending() == [parent]
        assert rest(driver) == {f"awaits:{child}", f"dependents:{parent}", "waiting"}

    def test_other_flags_stay(self, driver):
        (parent,) = driver.submit(follow=True, key="k")
        driver.submit(after=[parent])
        driver.submit(after=[parent])
        assert driver.header(parent).flags == Flag.FOLLOWED | Flag.KEYED | Flag.AWAITED

    @pytest.mark.parametrize(
        ("outcome", "condition"),
        [("succeeded", "ok"), ("succeeded", "any"), ("failed", "any"), ("failed", "fail"), ("lost", "fail")],
    )
    def test_what_has_come_already_is_not_waited_for(self, driver, channel, outcome, condition):
        parent = ended_as(driver, channel, Outcome[outcome.upper()])
        (child,) = driver.submit(after=f"{parent}:{condition}")
        assert driver.state(child) is State.PENDING
        assert rest(driver) == set()

    @pytest.mark.parametrize(
        ("outcome", "condition", "text"),
        [
            ("failed", "ok", "failed; this job waited for its success"),
            ("timed_out", "ok", "timed out; this job waited for its success"),
            ("succeeded", "fail", "succeeded; this job waited for its failure"),
        ],
    )
    def test_what_can_never_come_skips_it(self, driver, channel, outcome, condition, text):
        parent = ended_as(driver, channel, Outcome[outcome.upper()])
        (child,) = driver.submit(after=f"{parent}:{condition}")
        assert driver.state(child) is State.WAITING
        assert unblock(driver).skipped == 1
        assert (driver.outcome(child), driver.cause(child)) == (Outcome.SKIPPED, "dependency")
        assert why(driver, child) == f"job {parent} {text}"
        assert driver.ended_messages() == [child]
        assert 0 < driver.client.pttl(driver.keys.job(child)) <= KEEP
        assert rest(driver) == set()

    def test_a_job_without_a_record_refuses_the_whole_call(self, driver):
        (parent,) = driver.submit()
        before = driver.all_keys()
        with pytest.raises(NoParent, match="after: job 99 has no record") as error:
            driver.submit_items([{}, {"after": [parent, 99]}, {}])
        assert error.value.parent == "99"
        assert driver.all_keys() == before
        assert driver.client.get(driver.keys.next_id) == b"1"
        assert driver.header(parent).flags == Flag.NONE

    def test_a_repeated_call_registers_once(self, driver):
        (parent,) = driver.submit()
        first = driver.submit(after=[parent])
        driver._slots["c"].sequence -= 1
        assert driver.submit(after=[parent]) == first
        assert driver.client.llen(f"{driver.keys.base}dependents:{parent}") == 1

    def test_a_known_key_needs_no_parent_any_more(self, driver):
        (parent,) = driver.submit()
        (child,) = driver.submit(after=[parent], key="k")
        driver.client.delete(driver.keys.job(parent))
        assert driver.submit(after=[parent], key="k") == [child]

    def test_reserved_ids_may_refer_forwards(self, driver):
        from jobschedd.links import linked
        from jobschedd.store.moves import OperationSlot
        from jobschedd.submission import submission

        items = [{"after": "b"}, {"ref": "b"}, {"after": "b:any", "priority": 3}]
        jobs = linked([submission({"command": ["true"]} | item) for item in items], {}, driver.moves.reserve(3))
        assert driver.moves.submit(jobs, OperationSlot("c")) == ["1", "2", "3"]
        assert [driver.state(job) for job in "123"] == [State.WAITING, State.PENDING, State.WAITING]
        assert driver.header("2").flags == Flag.AWAITED
        assert driver.submit() == ["4"]


ENDINGS = {
    "succeeded": lambda driver, channel, job: driver.end(job, Outcome.SUCCEEDED),
    "failed": lambda driver, channel, job: driver.end(job, Outcome.FAILED),
    "timed_out": lambda driver, channel, job: driver.end(job, Outcome.TIMED_OUT),
    "not kept": lambda driver, channel, job: driver.end(job, Outcome.SUCCEEDED, keep=0),
}


class TestEveryEnd:
    """Whichever way a job ends, those that wait for its end go on."""

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_collected(self, driver, channel, ending):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=f"{job}:any")
        ENDINGS[ending](driver, channel, job)
        self.goes_on(driver, child)

    def test_cancelled_while_pending(self, driver):
        (job,) = driver.submit()
        (child,) = driver.submit(after=f"{job}:any")
        driver.moves.cancel([job], KEEP)
        self.goes_on(driver, child)

    def test_cancelled_while_scheduled(self, driver):
        (job,) = driver.submit(delay="1h")
        (child,) = driver.submit(after=f"{job}:any")
        driver.moves.cancel([job], KEEP)
        self.goes_on(driver, child)

    def test_cancelled_while_waiting(self, driver):
        (first,) = driver.submit()
        (job,) = driver.submit(after=first)
        (child,) = driver.submit(after=f"{job}:any")
        assert driver.moves.cancel([job], KEEP)[0][0] is CancelAnswer.CANCELLED
        self.goes_on(driver, child)

    def test_cancelled_and_returned(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=f"{job}:any")
        driver.moves.cancel([job], KEEP)
        driver.bring_back(job)
        self.goes_on(driver, child)

    def test_cancelled_before_a_retry(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=f"{job}:any")
        driver.moves.cancel([job], KEEP)
        driver.again(job)
        self.goes_on(driver, child)

    @pytest.mark.parametrize("state", ["pending", "scheduled", "waiting"])
    def test_expired(self, driver, state):
        (first,) = driver.submit()
        more = {"pending": {}, "scheduled": {"delay": "1h"}, "waiting": {"after": first}}[state]
        (job,) = driver.submit(expires=0.01, **more)
        (child,) = driver.submit(after=f"{job}:any")
        driver.wait_ms(driver.header(job).expires)
        assert driver.moves.promote(driver.fence, KEEP, 100)[1] == 1
        assert driver.outcome(job) is Outcome.EXPIRED
        self.goes_on(driver, child)

    def test_expired_when_dispatched(self, driver, channel):
        (job,) = driver.submit(expires=0.01, priority=5)
        (child,) = driver.submit(after=f"{job}:any")
        driver.wait_ms(driver.header(job).expires)
        driver.dispatch(channel, 1, 1, 5)
        assert driver.outcome(job) is Outcome.EXPIRED
        self.goes_on(driver, child)

    def test_lost(self, driver, channel):
        job, _ = driver.dispatched(channel, retry_on_loss=False)
        (child,) = driver.submit(after=f"{job}:any")
        channel.die()
        driver.requeue(channel)
        assert driver.outcome(job) is Outcome.LOST
        self.goes_on(driver, child)

    def test_cancelled_and_requeued(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=f"{job}:any")
        driver.moves.cancel([job], KEEP)
        channel.die()
        driver.requeue(channel)
        self.goes_on(driver, child)

    def test_skipped(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (job,) = driver.submit(after=parent)
        (child,) = driver.submit(after=f"{job}:any")
        self.goes_on(driver, child)
        assert driver.outcome(job) is Outcome.SKIPPED

    def test_settled_from_the_history(self, driver):
        from jobschedd.store.marks import KnownEnd, Marks

        (job,) = driver.submit()
        (child,) = driver.submit(after=f"{job}:any")
        end = KnownEnd(job, 1, 1e10, Outcome.FAILED, encode(Result(outcome=Outcome.FAILED, cause="exit")))
        assert Marks(driver.client, driver.keys).settle(driver.fence, [end], [KEEP]) == 1
        self.goes_on(driver, child)

    def goes_on(self, driver, child):
        assert driver.state(child) is State.WAITING
        driver.bell()
        answer = unblock(driver)
        assert (answer.unblocked, answer.left) == (1, 0)
        assert driver.state(child) is State.PENDING
        assert child in driver.pending()
        assert any(message.startswith("p:1:0:") for message in driver.bell())
        assert f"awaits:{child}" not in rest(driver)


class TestUnblock:
    def test_the_bell_rings_for_those_that_are_awaited_alone(self, driver, channel):
        plain, _ = driver.dispatched(channel)
        job, _ = driver.dispatched(channel)
        driver.submit(after=job)
        driver.bell()
        driver.end(plain)
        assert driver.bell() == []
        driver.end(job)
        assert driver.bell() == ["unblock"]
        assert Flag.AWAITED not in driver.header(job).flags

    def test_all_conditions_must_hold(self, driver, channel):
        one, _ = driver.dispatched(channel)
        two, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=[one, f"{two}:any"])
        driver.end(one)
        assert (unblock(driver).unblocked, driver.state(child)) == (0, State.WAITING)
        driver.end(two, Outcome.FAILED)
        assert (unblock(driver).unblocked, driver.state(child)) == (1, State.PENDING)
        assert rest(driver) == set()

    def test_one_that_fails_is_enough(self, driver, channel):
        one, _ = driver.dispatched(channel)
        two, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=[one, two])
        driver.end(one, Outcome.FAILED)
        unblock(driver)
        assert driver.outcome(child) is Outcome.SKIPPED
        driver.end(two)
        assert unblock(driver).unblocked == 0
        assert driver.outcome(child) is Outcome.SKIPPED
        assert rest(driver) == set()

    def test_a_skip_goes_all_the_way_down(self, driver, channel):
        first, _ = driver.dispatched(channel)
        ids = [first]
        for _ in range(50):
            ids += driver.submit(after=ids[-1])
        (handler,) = driver.submit(after=f"{ids[-1]}:fail")
        driver.end(first, Outcome.FAILED)
        unblock(driver)
        assert {driver.outcome(job) for job in ids[1:]} == {Outcome.SKIPPED}
        assert driver.state(handler) is State.PENDING

    def test_a_large_fan_out_goes_in_pieces_and_a_crash_between_repeats_nothing(self, driver, channel):
        job, _ = driver.dispatched(channel)
        children = driver.submit(250, after=job)
        driver.end(job)
        seen = []
        while (answer := unblock(driver, 100)).seen:
            seen.append((answer.unblocked, answer.left))
        assert seen == [(100, 1), (100, 1), (50, 0)]
        assert driver.pending() == children
        assert rest(driver) == set()

    def test_a_delay_that_is_not_over(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=job, delay="1h")
        due = int(driver.header(child).entry.partition("-")[0])
        assert due == driver.header(child).submitted + 3_600_000
        driver.end(job)
        driver.bell()
        assert unblock(driver).unblocked == 1
        assert (driver.state(child), driver.header(child).since) == (State.SCHEDULED, due)
        assert driver.client.zscore(driver.keys.scheduled, child) == due
        assert "s" in driver.bell()

    def test_a_delay_that_is_over(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=job, delay=0.005)
        driver.wait_ms(driver.header(child).submitted + 5)
        driver.end(job)
        unblock(driver)
        assert driver.state(child) is State.PENDING

    def test_a_held_one_is_held_still(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=job, hold=True)
        driver.end(job)
        assert unblock(driver).unblocked == 1
        assert (driver.state(child), driver.pending()) == (State.PENDING, [])
        driver.moves.release([child])
        assert driver.pending() == [child]

    def test_who_was_cancelled_stays_cancelled(self, driver, channel):
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=job)
        driver.moves.cancel([child], KEEP)
        driver.end(job)
        assert unblock(driver).unblocked == 0
        assert driver.outcome(child) is Outcome.CANCELLED
        assert rest(driver) == set()

    def test_an_end_counts_for_those_that_waited_then(self, driver, channel):
        """A user retries the job before the dispatcher has told of its end; somebody else waits for the next one."""
        job, _ = driver.dispatched(channel)
        (before,) = driver.submit(after=f"{job}:any")
        driver.end(job, Outcome.FAILED)
        driver.moves.retry([job])
        (then,) = driver.submit(after=f"{job}:any")
        unblock(driver)
        assert (driver.state(before), driver.state(then)) == (State.PENDING, State.WAITING)

    def test_what_was_meant_for_an_earlier_wait_does_not_count(self, driver, channel):
        """Cancelled and retried before it is told of an end; what it waits for has been retried as well."""
        job, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=f"{job}:any")
        driver.end(job, Outcome.FAILED)
        driver.moves.cancel([child], KEEP)
        assert driver.moves.retry([job, child]) == [RetryAnswer.PENDING, RetryAnswer.WAITING]
        assert unblock(driver).unblocked == 0
        assert driver.state(child) is State.WAITING

    def test_a_retry_of_the_scheduler_is_no_end(self, driver, channel):
        job, _ = driver.dispatched(channel, retries=1)
        (child,) = driver.submit(after=f"{job}:any")
        driver.again(job)
        assert unblock(driver).seen == 0
        assert driver.state(child) is State.WAITING

    def test_only_the_leader(self, driver):
        for move in (lambda: driver.moves.unblock("m0:0", KEEP, 1), lambda: driver.moves.recheck("m0:0", 1)):
            with pytest.raises(NotTheLeader):
                move()


class TestRetry:
    def test_a_retried_parent_skips_nobody_back(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (child,) = driver.submit(after=parent)
        unblock(driver)
        driver.moves.retry([parent])
        assert unblock(driver).seen == 0
        assert driver.outcome(child) is Outcome.SKIPPED

    def test_a_skipped_job_asks_again(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (child,) = driver.submit(after=parent)
        unblock(driver)
        assert driver.moves.retry([parent, child]) == [RetryAnswer.PENDING, RetryAnswer.WAITING]
        assert driver.state(child) is State.WAITING
        driver.dispatch(channel)
        driver.end(parent)
        unblock(driver)
        assert driver.state(child) is State.PENDING

    def test_and_is_skipped_again_where_nothing_has_changed(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (child,) = driver.submit(after=parent)
        unblock(driver)
        assert driver.moves.retry([child]) == [RetryAnswer.WAITING]
        unblock(driver)
        assert driver.outcome(child) is Outcome.SKIPPED

    def test_whoever_started_once_waits_for_nobody(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.SUCCEEDED)
        (child,) = driver.submit(after=parent)
        driver.dispatch(channel)
        driver.end(child, Outcome.FAILED)
        driver.moves.retry([parent])
        assert driver.moves.retry([child]) == [RetryAnswer.PENDING]

    def test_a_parent_that_nobody_remembers(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (strict,) = driver.submit(after=parent)
        (handler,) = driver.submit(after=f"{parent}:any")
        unblock(driver)
        driver.moves.cancel([handler], KEEP)
        driver.client.delete(driver.keys.job(parent))
        assert driver.moves.retry([strict, handler]) == [RetryAnswer.WAITING, RetryAnswer.PENDING]
        unblock(driver)
        assert why(driver, strict) == f"job {parent} has no record any more; this job waited for its success"


class TestRecheck:
    """After a loss of data."""

    def check(self, driver):
        return driver.moves.recheck(driver.fence, 1000)

    def test_all_is_well(self, driver):
        parents = driver.submit(2)
        driver.submit(3, after=parents)
        assert self.check(driver) == (3, 0)
        assert self.check(driver) == (3, 0)

    def test_it_goes_round(self, driver):
        (parent,) = driver.submit()
        children = driver.submit(10, after=parent)
        seen = set()
        for _ in range(5):
            driver.moves.recheck(driver.fence, 2)
            seen |= set(driver.client.zrange(driver.keys.waiting, -2, -1))
            driver.wait_ms(driver.now_ms() + 1)
        assert seen == {child.encode() for child in children}

    @pytest.mark.parametrize(("condition", "state"), [("ok", State.DONE), ("any", State.PENDING), ("fail", State.DONE)])
    def test_the_parent_is_gone(self, driver, condition, state):
        (parent,) = driver.submit()
        (child,) = driver.submit(after=f"{parent}:{condition}")
        driver.client.delete(driver.keys.job(parent), f"{driver.keys.base}dependents:{parent}")
        assert self.check(driver) == (1, 1)
        unblock(driver)
        assert driver.state(child) is state

    def test_the_parent_has_ended_and_told_nobody(self, driver, channel):
        parent, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=parent)
        driver.client.delete(f"{driver.keys.base}dependents:{parent}")
        driver.end(parent)
        assert self.check(driver) == (1, 1)
        unblock(driver)
        assert driver.state(child) is State.PENDING

    def test_the_parent_does_not_know_of_it(self, driver, channel):
        parent, _ = driver.dispatched(channel)
        (child,) = driver.submit(after=parent)
        driver.client.delete(f"{driver.keys.base}dependents:{parent}")
        driver.client.setrange(driver.keys.job(parent), 27, b"\0")
        assert self.check(driver) == (1, 1)
        driver.end(parent)
        unblock(driver)
        assert driver.state(child) is State.PENDING

    def lose(self, driver, child):
        assert driver.client.delete(driver.keys.awaits(child)) == 1

    def test_the_list_of_ends_is_gone(self, driver, channel):
        parent, _ = driver.dispatched(channel)
        children = [driver.submit(after=[parent])[0] for _ in range(3)]
        driver.end(parent)
        assert driver.client.delete(driver.keys.unblocking) == 1
        driver.moves.recheck(driver.fence, 1000)
        driver.moves.unblock(driver.fence, KEEP, 10)
        assert sorted(driver.pending()) == children and rest(driver) == set()

    def test_what_it_waits_for_is_gone(self, driver, channel):
        """It waits on, for those that have not ended."""
        ended, open_, other = (driver.dispatched(channel)[0] for _ in range(3))
        (child,) = driver.submit(after=[ended, open_, f"{other}:any"])
        driver.end(ended)
        unblock(driver)
        self.lose(driver, child)
        self.settle(driver)
        assert driver.state(child) is State.WAITING
        driver.end(open_)
        self.settle(driver)
        assert driver.state(child) is State.WAITING
        driver.end(other, Outcome.FAILED)
        self.settle(driver)
        assert driver.state(child) is State.PENDING
        assert rest(driver) == set()

    @pytest.mark.parametrize("first", [Outcome.SUCCEEDED, Outcome.FAILED])
    def test_it_is_gone_when_an_end_is_told(self, driver, channel, first):
        one, two = (driver.dispatched(channel)[0] for _ in range(2))
        (child,) = driver.submit(after=[one, two])
        self.lose(driver, child)
        driver.end(one, first)
        unblock(driver)
        assert driver.state(child) is (State.WAITING if first is Outcome.SUCCEEDED else State.DONE)
        driver.end(two)
        unblock(driver)
        assert driver.state(child) is (State.PENDING if first is Outcome.SUCCEEDED else State.DONE)

    def test_it_is_gone_and_all_have_ended(self, driver, channel):
        one, two = (driver.dispatched(channel)[0] for _ in range(2))
        (child,) = driver.submit(after=[one, two])
        self.lose(driver, child)
        driver.end(one)
        driver.end(two, keep=0)
        self.settle(driver)
        assert driver.state(child) is State.PENDING

    @pytest.mark.parametrize("told", [True, False])
    def test_it_is_gone_and_so_is_the_record_of_one_that_had_ended(self, driver, channel, told):
        """How many it waited for says whether that end had come."""
        forgotten, open_ = (driver.dispatched(channel)[0] for _ in range(2))
        (child,) = driver.submit(after=[forgotten, open_])
        if told:
            driver.end(forgotten)
            unblock(driver)
        self.lose(driver, child)
        driver.client.delete(driver.keys.job(forgotten), f"{driver.keys.base}dependents:{forgotten}")
        self.settle(driver)
        assert driver.state(child) is (State.WAITING if told else State.DONE)
        driver.end(open_)
        self.settle(driver)
        assert driver.state(child) is (State.PENDING if told else State.DONE)

    def test_it_is_gone_after_a_retry_that_waits_again(self, driver, channel):
        parent = ended_as(driver, channel, Outcome.FAILED)
        (child,) = driver.submit(after=parent)
        unblock(driver)
        driver.moves.retry([parent, child])
        self.lose(driver, child)
        self.settle(driver)
        assert driver.state(child) is State.WAITING
        driver.dispatch(channel)
        driver.end(parent)
        self.settle(driver)
        assert driver.state(child) is State.PENDING

    def settle(self, driver):
        for _ in range(3):
            unblock(driver)
            self.check(driver)
        unblock(driver)

    def test_not_while_ends_are_being_told(self, driver, channel):
        parent, _ = driver.dispatched(channel)
        driver.submit(after=parent)
        driver.end(parent)
        assert self.check(driver) == (0, 0)


def test_settled_it_waits_no_more(driver):
    """Redis went back to a copy in which it waited; the history knows that it has ended."""
    from jobschedd.store.marks import KnownEnd, Marks

    (parent,) = driver.submit()
    (child,) = driver.submit(after=parent, delay="1h")
    (grandchild,) = driver.submit(after=f"{child}:fail")
    result = encode(Result(outcome=Outcome.SKIPPED, cause="dependency"))
    end = KnownEnd(child, 0, driver.now_ms() / 1000 + 1, Outcome.SKIPPED, result)
    assert Marks(driver.client, driver.keys).settle(driver.fence, [end], [KEEP]) == 1
    assert driver.outcome(child) is Outcome.SKIPPED
    unblock(driver)
    assert driver.state(grandchild) is State.PENDING
    assert rest(driver) == {f"dependents:{parent}"}, "a tombstone, until that one ends"


def test_restored_by_a_channel_it_waits_no_more(driver, channel):
    """Redis went back to a copy in which it waited; a channel runs it."""
    from jobschedd.store.marks import Marks

    (parent,) = driver.submit()
    (child,) = driver.submit(after=parent)
    fields = {"job": child, "attempt": 1, "entry": "5-1", "incarnation": channel.incarnation, "info": b"{}"}
    driver.client.xadd(driver.keys.announced, fields | {"spec": driver.record(child).spec})
    assert Marks(driver.client, driver.keys).take_in(driver.fence) == (1, 1)
    assert driver.state(child) is State.DISPATCHED
    assert f"awaits:{child}" not in rest(driver) and "waiting" not in rest(driver)
