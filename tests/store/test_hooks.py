"""What hooks are told of, on its way: written with the end, shared out once, there until it was delivered."""

from __future__ import annotations

import msgspec
import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, State
from jobschedd.store.connect import connect
from jobschedd.store.hooks import Delivery, Hooks, unpack
from store_driver import KEEP


@pytest.fixture
def hooks(driver):
    client = connect(driver.config, "hooks")
    yield Hooks(client, driver.keys)
    client.close()


def delivery(event: str, tries: int = 0) -> Delivery:
    return Delivery(event, msgspec.Raw(b'{"id": "x"}'), tries)


class TestEnds:
    def test_no_hook_no_event(self, driver, hooks):
        job, _ = driver.dispatched(driver.channel())
        driver.end(job)
        hooks.want(driver.fence, [Outcome.FAILED])
        hooks.want(driver.fence, [])
        driver.moves.cancel(driver.submit(), KEEP)
        assert hooks.events(0.01) == [] and driver.client.exists(driver.keys.hooked, driver.keys.events) == 0

    def test_an_end_is_an_event_where_its_outcome_is_asked_for(self, driver, hooks):
        hooks.want(driver.fence, [Outcome.CANCELLED, Outcome.EXPIRED])
        channel = driver.channel()
        good, _ = driver.dispatched(channel)
        driver.end(good)
        cancelled, expired = driver.submit(2, expires="1ms")
        driver.moves.cancel([cancelled], KEEP)
        driver.wait_ms(driver.header(expired).expires + 1)
        driver.moves.promote(driver.fence, KEEP, 10)
        found = [(event.job, event.outcome, event.attempt) for event in hooks.events(0.01)]
        assert found == [(cancelled, Outcome.CANCELLED, 0), (expired, Outcome.EXPIRED, 0)]

    def test_who_does_not_lead_asks_for_nothing(self, driver, hooks):
        for call in (
            lambda: hooks.want("stale:1", [Outcome.FAILED]),
            lambda: hooks.notice("stale:1", [("node:a", "up", b"")]),
            lambda: hooks.route("stale:1", ["1-1"], [("a", delivery("1-1"))]),
        ):
            with pytest.raises(NotTheLeader):
                call()
        assert not driver.client.exists(driver.keys.hooked, driver.keys.noticed, driver.keys.hook("a"))

    def test_a_job_that_names_hooks_is_an_event_in_any_case(self, driver, hooks):
        channel = driver.channel()
        asked = {"on_success": ["a", "b"], "on_failure": "c"}
        for outcome in (Outcome.SUCCEEDED, Outcome.TIMED_OUT, Outcome.CANCELLED):
            job, _ = driver.dispatched(channel, **asked)
            driver.end(job, outcome, keep=0)
        plain, _ = driver.dispatched(channel)
        driver.end(plain)
        found = [(event.outcome, event.hooks) for event in hooks.events(0.01)]
        assert found == [(Outcome.SUCCEEDED, ("a", "b")), (Outcome.TIMED_OUT, ("c",))]

    def test_of_an_array_the_end_of_the_whole(self, driver, hooks):
        hooks.want(driver.fence, [], ["a"])
        channel = driver.channel()
        (array,) = driver.submit(array="1-2", on_success="a")
        driver.dispatch(channel, 5)
        for index in (1, 2):
            driver.end(f"{array}_{index}")
        assert [(event.job, event.hooks) for event in hooks.events(0.01)] == [(array, ("a",))]

    def test_a_job_of_limits_that_names_hooks_is_no_array(self, driver, hooks):
        """All flags beside each other."""
        hooks.want(driver.fence, [Outcome.SUCCEEDED], ["a"])
        (job,) = driver.submit(on_success="a", on_failure="a", key="k", retry_on_loss=False)
        driver.submit(after=job)
        driver.dispatch(driver.channel(), 1)
        driver.end(job)
        assert [(event.job, event.hooks) for event in hooks.events(0.01)] == [(job, ("a",))]
        assert not [key for key in driver.all_keys() if key.startswith("array")]


class TestNotice:
    def test_once_for_each_change(self, driver, hooks):
        assert hooks.notice(driver.fence, [("node:a", "up", b""), ("late:1", "late", b"{}")]) == 1
        assert hooks.notice(driver.fence, [("node:a", "up", b"{}"), ("late:1", "late", b"{}")]) == 0
        assert hooks.notice(driver.fence, [("node:a", "down", b'{"node": "a"}'), ("late:1", "", b"")]) == 1
        assert hooks.noticed() == {"node:a": "down"}
        assert [event.about for event in hooks.events(0.01)] == [b"{}", b'{"node": "a"}']


class TestDeliveries:
    def test_an_event_becomes_deliveries_in_one_step(self, driver, hooks):
        hooks.notice(driver.fence, [("x", "1", b"{}")])
        (event,) = hooks.events(0.01)
        assert hooks.route(driver.fence, [event.id], [("a", delivery(event.id)), ("b", delivery(event.id))]) == 0
        assert hooks.events(0.01) == []
        for name in ("a", "b"):
            packed, wait = hooks.due(name)
            assert unpack(packed) == delivery(event.id) and wait == 0
        hooks.delivered("a", packed)
        assert hooks.due("a") == (b"", None) and hooks.due("b")[0] == packed

    def test_shared_out_twice_it_is_one_delivery(self, driver, hooks):
        for _ in range(2):
            hooks.route(driver.fence, ["1-1"], [("a", delivery("1-1"))])
        assert driver.client.zcard(driver.keys.hook("a")) == 1

    def test_it_comes_back_later(self, driver, hooks):
        hooks.route(driver.fence, ["1-1"], [("a", delivery("1-1"))])
        packed, _ = hooks.due("a")
        hooks.delivered("a", packed, delivery("1-1", 1), 30)
        nothing, wait = hooks.due("a")
        assert nothing == b"" and wait is not None and 25 < wait <= 30

    def test_who_comes_late_brings_nothing_back(self, driver, hooks):
        hooks.route(driver.fence, ["1-1"], [("a", delivery("1-1"))])
        packed, _ = hooks.due("a")
        hooks.delivered("a", packed)
        hooks.delivered("a", packed, delivery("1-1", 1), 0)  # a former leader's thread, of a try that failed
        assert hooks.due("a") == (b"", None)

    def test_a_hook_that_gets_rid_of_nothing_is_bounded(self, driver, hooks):
        for start in range(0, 10_000, 1000):
            hooks.route(driver.fence, [], [("a", delivery(f"{start + n:05}-1")) for n in range(1000)])
        assert hooks.route(driver.fence, [], [("a", delivery("99999-1")), ("b", delivery("99999-1"))]) == 1
        assert driver.client.zcard(driver.keys.hook("a")) == 10_000


def test_the_oldest_of_each_list(driver, hooks):
    ids = driver.submit(3) + driver.submit(2, priority=5)
    assert sorted(job for job, _ in hooks.oldest_pending()) == sorted(ids)
    assert {header.state for _, header in hooks.oldest_pending()} == {State.PENDING}
