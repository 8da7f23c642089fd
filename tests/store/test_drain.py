"""drain: what is said of it, who has heard of it, and what becomes of the jobs that are there when its time is over."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Flag
from jobschedd.store.inspect import Inspect
from store_driver import Driver


def interrupt(driver: Driver, channel, then: str, deadline: int = 1) -> int:
    return driver.moves.interrupt(driver.fence, channel.incarnation, deadline, then, 100)


def states(driver: Driver) -> list[str]:
    return [view.state for view in Inspect(driver.client, driver.keys).channels()]


def test_what_is_said_is_what_is_read(driver):
    driver.moves.drain("n1", "new kernel", "root", within=60, then="kill")
    drain = driver.survey.drains()["n1"]
    assert (drain.reason, drain.by, drain.then) == ("new kernel", "root", "kill")
    assert not drain.pause and not drain.heard
    assert drain.deadline == pytest.approx(drain.since + 60)
    assert drain.since == pytest.approx(driver.now_ms() / 1000, abs=5)
    assert driver.bell() == ["d"]


def test_who_leads_says_that_it_has_heard(driver):
    driver.moves.drain("n1", "new kernel", "root", within=60, then="kill")
    before = driver.survey.drains()["n1"]
    assert driver.moves.hear_drains(driver.fence, ["n1", "resumed since"]) == 1
    after = driver.survey.drains()["n1"]
    assert after.heard
    assert (after.reason, after.by, after.then) == (before.reason, before.by, before.then)
    assert after.deadline == pytest.approx(before.deadline, abs=0.01)
    with pytest.raises(NotTheLeader):
        driver.moves.hear_drains("other:1", ["n1"])


def test_whatever_stands_there_drains(driver):
    driver.client.hset(driver.keys.drains, "n1", b"\xff no JSON")
    assert list(driver.survey.drains()) == ["n1"]


def test_words_for_people(driver):
    channel = driver.channel()
    driver.moves.drain("n1", "", "", pause=True)
    assert states(driver) == ["paused"]
    driver.moves.drain("n1/1", "", "")
    assert states(driver) == ["drained"]
    driver.submit()
    driver.dispatch(channel)
    assert states(driver) == ["draining"]


class TestInterrupt:
    def test_not_before_the_deadline(self, driver):
        channel = driver.channel()
        driver.dispatched(channel)
        assert interrupt(driver, channel, "kill", driver.now_ms() + 60_000) == 0
        assert channel.hints() == []

    def test_requeue_asks_the_channel_to_interrupt(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        assert interrupt(driver, channel, "requeue") == 1
        assert channel.hints() == [{b"interrupt": job.encode(), b"attempt": b"1"}]
        assert driver.header(job).flags == Flag.NONE

    def test_kill_cancels(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        assert interrupt(driver, channel, "kill") == interrupt(driver, channel, "kill") == 1
        assert driver.header(job).flags == Flag.CANCEL_REQUESTED
        assert channel.hints()[0] == {b"cancel": job.encode(), b"attempt": b"1"}
        assert driver.client.smembers(driver.keys.cancelling) == {job.encode()}

    def test_not_what_has_gone_on(self, driver):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        driver.end(job)
        assert interrupt(driver, channel, "kill") == 0

    def test_not_by_a_former_master(self, driver):
        with pytest.raises(NotTheLeader):
            driver.moves.interrupt("other:1", driver.channel().incarnation, 1, "kill", 10)
