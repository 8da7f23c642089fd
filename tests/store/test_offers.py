"""Offers: a lone job goes to the channel that the leader offers to its class, in the step that accepts it."""

from __future__ import annotations

from typing import Any

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, State
from jobschedd.limits import parse_limit
from jobschedd.store.moves import Offer, OperationSlot
from jobschedd.submission import submission
from store_driver import KEEP, Driver, FakeChannel


@pytest.fixture
def channel(driver: Driver) -> FakeChannel:
    return driver.channel(window=5)


def murmurs(driver: Driver) -> list[str]:
    return [text.decode() for text in driver.client.lrange(driver.keys.murmurs, 0, -1)]


def offer(driver: Driver, channel: FakeChannel, slots: int = 1, *others: FakeChannel) -> bool:
    """To the class of jobs without wishes, once there has been one."""
    if not driver.client.hexists(driver.keys.classes, "/"):
        (job,) = driver.submit()
        driver.moves.cancel([job], KEEP)
    driver.bell()
    channels = tuple((one.incarnation, slots) for one in (channel, *others))
    return driver.moves.offer(driver.fence, [Offer(1, channels)], KEEP)


def test_it_goes_to_its_channel_at_once(driver, channel):
    assert offer(driver, channel)
    (job,) = driver.submit(function="a:b", args=[1])
    header = driver.header(job)
    ((entry, fields),) = channel.entries()
    assert (header.state, header.attempt, header.entry) == (State.DISPATCHED, 1, entry)
    assert header.incarnation == channel.incarnation
    assert fields == {b"job": job.encode(), b"attempt": b"1", b"flags": b"0", b"spec": driver.record(job).spec}
    assert driver.bell() == driver.pending() == [], "nobody is woken up"
    assert murmurs(driver) == [f"o:1:{channel.incarnation}"]
    assert channel.report(job)
    driver.end(job)
    assert driver.outcome(job) is Outcome.SUCCEEDED


def test_its_order_is_that_of_any_other_dispatch(driver, channel):
    (waiting,) = driver.submit(function="a:b", priority=7, waiter=3)
    driver.dispatch(channel, 1, 1, 7)
    assert offer(driver, channel, 3)
    (at_once,) = driver.submit(function="a:b", priority=7, waiter=3)
    (_, one), (_, other) = channel.entries()
    assert one | {b"job": b""} == other | {b"job": b""}
    times = {"submitted": 0, "since": 0, "entry": ""}
    one, other = (driver.header(job).__class__(**vars_of(driver.header(job)) | times) for job in (waiting, at_once))
    assert one == other


def vars_of(header: Any) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__struct_fields__}


def test_an_offer_stands_as_long_as_a_slot_is_free(driver, channel):
    assert offer(driver, channel, 2)
    states = [driver.state(driver.submit()[0]) for _ in range(3)]
    assert states == [State.DISPATCHED, State.DISPATCHED, State.PENDING]


def test_of_several_the_least_loaded(driver, channel):
    others = [driver.channel(str(number), window=4) for number in (2, 3)]
    assert offer(driver, channel, 2, *others)
    for _ in range(4):
        driver.submit()
    assert sorted(len(one.jobs()) for one in (channel, *others)) == [1, 1, 2]


def test_equals_take_turns(driver, channel):
    others = [driver.channel(str(number)) for number in (2, 3)]
    assert offer(driver, channel, 1, *others)
    for _ in range(2):
        for one in (*others, channel):
            (job,) = driver.submit()
            assert one.jobs() == [job]
            one.report(job)


def test_what_was_taken_is_rung_where_nobody_has_listened_for_long(driver, channel):
    assert offer(driver, channel)
    driver.client.rpush(driver.keys.murmurs, *["w"] * 999)
    driver.submit()
    assert driver.bell() == [f"o:1:{channel.incarnation}"] and len(murmurs(driver)) == 999


@pytest.mark.parametrize(
    "item",
    [
        {"delay": 60},
        {"expires": 60},
        {"key": "k"},
        {"hold": True},
        {"array": "1-3"},
        {"after": "1:any"},
        {"channel": "1"},
        {"retry_on_loss": False},
        {"slots": 2},
    ],
    ids=lambda item: next(iter(item)),
)
def test_a_job_of_which_more_is_to_be_known_waits_its_turn(driver, channel, item):
    assert offer(driver, channel)
    (job,) = driver.submit(**item)
    assert driver.state(job) in (State.PENDING, State.SCHEDULED, State.WAITING) and channel.jobs() == []
    assert driver.client.hexists(driver.keys.offers, 1)


def test_jobs_that_come_together_wait_their_turn(driver, channel):
    assert offer(driver, channel, 3)
    assert {driver.state(job) for job in driver.submit(2)} == {State.PENDING}


def test_who_waits_comes_first(driver, channel):
    driver.submit(channel="elsewhere")
    assert offer(driver, channel)
    assert driver.state(driver.submit()[0]) is State.PENDING


@pytest.mark.parametrize("trouble", ["lost", "full", "window", "busy", "left"])
def test_a_channel_that_takes_no_more(driver, channel, trouble):
    busy = driver.dispatched(channel)[0] if trouble == "busy" else None
    assert offer(driver, channel)
    match trouble:
        case "lost":
            channel.die()
        case "left":
            channel.leave()
        case "window":
            channel.register(0)
        case "full":
            driver.client.xadd(driver.keys.dispatch(channel.incarnation), {"x": "y"})
    (job,) = driver.submit()
    assert driver.state(job) is State.PENDING
    if busy is not None:
        assert driver.moves.cancel([job], KEEP)
        channel.report(busy)
        assert driver.state(driver.submit()[0]) is State.DISPATCHED, "the offer still stands"


def test_it_falls_with_its_leader(driver, channel):
    assert offer(driver, channel)
    driver.client.delete(driver.keys.leader)
    assert driver.state(driver.submit()[0]) is State.PENDING
    with pytest.raises(NotTheLeader):
        driver.moves.offer(driver.fence, [], KEEP)
    driver.lead("another")
    (job,) = driver.submit(priority=1)
    assert driver.state(job) is State.PENDING


@pytest.mark.parametrize(
    "change",
    [
        lambda driver, channel: driver.moves.drain("1", "", "me"),
        lambda driver, channel: driver.moves.set_limit("group:a", parse_limit("1")),
        lambda driver, channel: driver.moves.offer(driver.fence, [], KEEP),
        lambda driver, channel: driver.dispatch(channel),
    ],
    ids=["drain", "limit", "withdrawn", "dispatch"],
)
def test_it_is_withdrawn(driver, channel, change):
    assert offer(driver, channel)
    change(driver, channel)
    assert driver.state(driver.submit()[0]) is State.PENDING


def test_who_has_not_heard_all_offers_nothing(driver, channel):
    assert offer(driver, channel)
    driver.client.rpush(driver.keys.bell, "d")
    assert not driver.moves.offer(driver.fence, [Offer(1, ((channel.incarnation, 1),))], KEEP)
    assert driver.state(driver.submit()[0]) is State.PENDING


def test_a_repeated_call_has_one_effect(driver, channel):
    assert offer(driver, channel)
    slot, one = OperationSlot("c2"), submission({"command": ["true"]})
    slot.sequence = 1
    (job,) = driver.moves.submit([one], slot)
    assert driver.moves.submit([one], slot) == [job] and channel.jobs() == [job]
