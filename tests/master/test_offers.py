"""What the dispatcher offers, and when it stops."""

from __future__ import annotations

import pytest

from jobschedd.job import State
from jobschedd.limits import parse_limit
from jobschedd.master.offers import MOST, MOST_CHANNELS
from store_driver import KEEP, Driver, FakeChannel


@pytest.fixture
def channel(driver: Driver, master) -> FakeChannel:
    """One that has done a job: its class is known."""
    channel = driver.channel(window=3)
    (job,) = driver.submit()
    master.dispatch()
    finish(driver, master, channel, job)
    return channel


def finish(driver: Driver, master, channel: FakeChannel, job: str) -> None:
    channel.report(job)
    master.collect()
    master.dispatch(1)


def test_one_after_the_other_goes_at_once(driver, master, channel):
    for _ in range(3):
        (job,) = driver.submit()
        assert driver.state(job) is State.DISPATCHED
        finish(driver, master, channel, job)


def test_though_the_dispatcher_sleeps_all_the_while(driver, master, channel):
    for _ in range(3):
        (job,) = driver.submit()
        assert driver.state(job) is State.DISPATCHED
        channel.report(job)
        master.collect()
    assert driver.bell() == []


def test_what_went_by_itself_is_reckoned_with(driver, master, channel):
    """Three entries are in its window of three: what comes in a heap has to go elsewhere."""
    channel.register(3)
    other = driver.channel("2", window=3)
    master.dispatch(2)
    driver.submit()
    driver.submit()
    driver.submit(4)
    master.dispatch(2)
    assert (len(channel.jobs()), len(other.jobs())) == (3, 3)


def test_though_nobody_woke_the_dispatcher_when_it_became_idle(driver, master, channel):
    (first,) = driver.submit()
    master.dispatch(1)
    channel.report(first)
    assert driver.state(driver.submit()[0]) is State.DISPATCHED


def test_a_busy_channel_is_not_queued_at(driver, master, channel):
    driver.submit()
    master.dispatch(1)
    assert driver.state(driver.submit()[0]) is State.PENDING


def test_an_idle_channel_is_preferred(driver, master, channel):
    other = driver.channel("2", window=3)
    master.dispatch(2)
    for _ in range(2):
        assert driver.state(driver.submit()[0]) is State.DISPATCHED
        master.dispatch(1)
    assert (len(channel.jobs()), len(other.jobs())) == (1, 1)


def test_each_class_has_its_own(driver, master, channel):
    driver.channel("2", labels=("gpu",))
    (job,) = driver.submit(labels="gpu")
    master.dispatch(2)
    driver.moves.cancel([job], KEEP)
    assert len(driver.client.hkeys(driver.keys.offers)) == 4  # with fence and retention


def test_never_more_than_a_few(driver, master, channel):
    able = driver.channel("2", labels=tuple(f"l{number}" for number in range(12)))
    for number in range(12):
        (job,) = driver.submit(labels=f"l{number}")
        master.dispatch(2)
        finish(driver, master, able, job)
    assert len(driver.client.hkeys(driver.keys.offers)) == MOST + 2  # with fence and retention


@pytest.mark.parametrize(("drained", "item"), [("n1", {}), ("1", {}), ("group:g", {"group": "g"})])
def test_not_what_is_drained(driver, master, channel, drained, item):
    (job,) = driver.submit(**item)
    master.dispatch(1)
    finish(driver, master, channel, job)
    driver.moves.drain(drained, "", "me")
    assert driver.state(driver.submit(**item)[0]) is State.PENDING
    driver.moves.cancel(driver.pending(), KEEP)
    master.dispatch(2)
    assert driver.state(driver.submit(**item)[0]) is State.PENDING


def test_a_channel_that_is_gone_is_replaced(driver, master, channel):
    gone = channel
    for number in (2, 3):
        left = driver.channel(str(number), window=3)
        gone.leave()
        master.dispatch(2)
        (job,) = driver.submit()
        assert driver.state(job) is State.DISPATCHED and left.jobs() == [job]
        finish(driver, master, left, job)
        gone = left


def test_of_a_large_fleet_some_are_compared(driver, master, channel):
    for number in range(80):
        driver.channel(str(number + 2), window=3)
    master.dispatch(2)
    for _ in range(5):
        assert driver.state(driver.submit()[0]) is State.DISPATCHED
        master.dispatch(1)


@pytest.mark.parametrize("policy", ["least_loaded", "round_robin", "random"])
def test_a_few_channels_have_the_offer_and_others_have_it_next(driver, master, channel, policy):
    master.placement.policy = policy
    master.placement.random.seed(1)
    channels = [channel, *(driver.channel(str(number + 2), window=3) for number in range(MOST_CHANNELS))]
    master.dispatch(2)
    takers = []
    for _ in range(40):
        (job,) = driver.submit()
        takers += [one for one in channels if one.jobs() == [job]]
        assert offered(driver) == MOST_CHANNELS
        finish(driver, master, takers[-1], job)
    assert len({one.incarnation for one in takers}) == len(channels), "all had some"


def offered(driver: Driver) -> int:
    return driver.client.hget(driver.keys.offers, 1).count(b";")


def test_not_where_a_limit_counts(driver, master, channel):
    driver.moves.set_limit("node:n1", parse_limit("1"))
    master.dispatch(2)
    assert driver.state(driver.submit()[0]) is State.PENDING


def test_not_while_something_waits(driver, master, channel):
    driver.submit(channel="elsewhere")
    master.dispatch(2)
    assert not driver.client.exists(driver.keys.offers) or driver.state(driver.submit()[0]) is State.PENDING


def test_a_job_with_wishes_is_not_offered_anything(driver, master, channel):
    (job,) = driver.submit(limit_keys={"db": 1})
    master.dispatch(1)
    finish(driver, master, channel, job)
    assert driver.state(driver.submit(limit_keys={"db": 1})[0]) is State.PENDING


def test_the_leader_that_forgot_offers_anew(driver, master, channel):
    master.restart_dispatcher()
    master.dispatch(2)
    (job,) = driver.submit()
    assert driver.state(job) in (State.PENDING, State.DISPATCHED)
    master.dispatch(2)
    finish(driver, master, channel, job)
    assert driver.state(driver.submit()[0]) is State.DISPATCHED


def test_what_waited_when_it_began_to_lead_is_known(driver, master):
    channel = driver.channel(window=3)
    master.restart_dispatcher()
    (job,) = driver.submit()
    assert driver.state(job) is State.PENDING
    master.dispatch(2)
    finish(driver, master, channel, job)
    assert driver.state(driver.submit()[0]) is State.DISPATCHED
