"""Resources: what a channel has is never given out twice, and comes back on every way."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobschedd.job import Flag, Outcome, State
from jobschedd.limits import Limits, terms_of
from jobschedd.store.moves import Assignment
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel

HAVE = {"cpus": 4000, "memory": 8 << 30, "gpus": 2, "license": 1}


def send(driver: Driver, channel: FakeChannel, job: str, count: int = 10, have: dict[str, int] = HAVE):
    header = driver.header(job)
    target = driver.survey.classes()[header.job_class]
    terms = terms_of(target, Limits(), place=f"{channel.node}/{channel.name}", have=have).encoded()
    assignment = Assignment(header.job_class, header.priority, channel.incarnation, count, terms)
    (answer,) = driver.moves.dispatch(driver.fence, [assignment], KEEP)
    return answer


def gpus(channel: FakeChannel) -> dict[str, str]:
    return {fields[b"job"].decode(): fields.get(b"gpus", b"").decode() for _, fields in channel.entries()}


def users(driver: Driver, place: str = "n1/1") -> set[str]:
    return {job.decode() for job in driver.client.hkeys(driver.keys.used(place))}


def test_as_many_as_fit(driver):
    channel = driver.channel()
    ids = driver.submit(4, cpus=1.5)
    answer = send(driver, channel, ids[0])
    assert (answer.sent, answer.bound) == (2, "used:n1/1")
    assert users(driver) == set(ids[:2])


def test_the_scarcest_decides(driver):
    channel = driver.channel()
    ids = driver.submit(4, cpus=1, memory="1G", resources=["license"])
    assert send(driver, channel, ids[0]).sent == 1


def test_what_it_does_not_have_it_cannot_give(driver):
    channel = driver.channel()
    (job,) = driver.submit(resources={"fpga": 1})
    assert send(driver, channel, job).sent == 0


def test_gpus_go_by_number(driver):
    channel = driver.channel()
    first, second, third = driver.submit(3, gpus=1)
    send(driver, channel, first)
    assert gpus(channel) == {first: "0", second: "1"}
    channel.report(first)
    driver.end(first)
    send(driver, channel, third)
    assert gpus(channel) == {second: "1", third: "0"}


def test_two_at_once(driver):
    channel = driver.channel()
    (job,) = driver.submit(gpus=2)
    send(driver, channel, job)
    assert gpus(channel) == {job: "0,1"}


def test_the_successor_of_a_channel_knows_what_the_old_one_still_uses(driver):
    old = driver.channel()
    job, waits = driver.submit(2, gpus=1, cpus=4)
    send(driver, old, job)
    new = driver.channel()
    assert send(driver, new, waits).sent == 0
    old.report(job)
    driver.end(job)
    assert send(driver, new, waits).sent == 1


def test_a_channel_that_has_less_than_before_gives_nothing(driver):
    channel = driver.channel()
    ids = driver.submit(2, cpus=2)
    send(driver, channel, ids[0], 1)
    assert send(driver, channel, ids[1], have={"cpus": 1000}).sent == 0


def test_whoever_waits_is_told(driver):
    channel = driver.channel()
    ids = driver.submit(2, cpus=4)
    send(driver, channel, ids[0])
    driver.bell()
    driver.end(ids[0])
    assert driver.bell() == ["f:used:n1/1"]


def test_a_job_whose_record_is_gone_gives_back(driver):
    channel = driver.channel()
    (job,) = driver.submit(cpus=1)
    send(driver, channel, job)
    driver.client.delete(driver.keys.job(job))
    driver.moves.heal(driver.fence, 0, 10)
    assert users(driver) == set()


ASKS = st.sampled_from(
    [{"cpus": 1}, {"cpus": 3, "gpus": 1}, {"gpus": 2}, {"resources": {"license": 1}, "cpus": 0.5}, {}]
)


@given(asks=st.lists(ASKS, min_size=1, max_size=12), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_never_oversubscribed_and_always_given_back(redis_server: RedisServer, asks: list[dict], seed: int) -> None:
    """Whatever happens in whatever order: what the orders of a channel ask for fits into what it has."""
    redis_server.wipe()
    driver, chance = Driver(redis_server), random.Random(seed)
    driver.lead()
    channel = driver.channel(window=8)
    ids = [driver.submit(retries=9, **ask)[0] for ask in asks]
    asked = dict(zip(ids, asks, strict=True))

    def active() -> list[str]:
        return [job for job in ids if driver.state(job) in (State.DISPATCHED, State.RUNNING)]

    for _ in range(40):
        what, busy = chance.choice(["send", "send", "end", "again", "return", "die", "cancel"]), active()
        if what == "send":
            waiting = [job for job in ids if driver.state(job) is State.PENDING]
            if waiting:
                send(driver, channel, chance.choice(waiting))
        elif what == "die":
            channel.die()
            driver.requeue(channel)
            channel = driver.channel(window=8)
        elif busy:
            job = chance.choice(busy)
            if what == "end":
                driver.end(job, Outcome.FAILED)
            elif what == "again":
                driver.again(job)
            elif what == "return":
                driver.bring_back(job)
            else:
                driver.moves.cancel([job], KEEP)
        busy = active()
        assert sum(asked[job].get("cpus", 0) for job in busy) <= 4
        assert sum(asked[job].get("gpus", 0) for job in busy) <= 2
        assert sum("resources" in asked[job] for job in busy) <= 1
        assert users(driver) == {job for job in busy if asked[job]}
        numbers = [n for job, text in gpus(channel).items() if job in busy for n in text.split(",") if n]
        held = [n for job, n in ((job, gpus(channel).get(job, "")) for job in busy) if n]
        assert len(numbers) == len(set(numbers)), f"one GPU for two jobs: {held}"
    for job in active():
        driver.end(job)
    assert users(driver) == set() and not driver.client.exists(driver.keys.holds)
    assert all(Flag.HOLDS not in driver.header(job).flags for job in ids)
    driver.close()
