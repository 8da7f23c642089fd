"""Jobs for all nodes: the list is frozen at submit; those that are away catch up or are missing, and rerun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobschedd.client import Client
from jobschedd.errors import InvalidJob
from jobschedd.job import Outcome, decode_result, decode_spec
from jobschedd.store.inspect import Inspect
from jobschedd.store.moves import Assignment
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Client]:
    with Client(redis_server.url, namespace="test") as client:
        yield client


def fleet(driver: Driver, count: int, away: int = 0, **more: object) -> list[FakeChannel]:
    """Channels that the dispatcher has seen; the first ``away`` have left. They keep no connections open."""
    driver.lead(lease_ms=3_600_000)
    driver.client.connection_pool.max_connections = 10_000  # it counts those that were closed, too
    channels = []
    for number in range(1, count + 1):
        channel = driver.channel("1", node=f"n{number}", lease=3_600_000, **more)
        if number <= away:
            go_away(driver, channel)
        channel.store.close()
        channels.append(channel)
    driver.moves.remember(driver.fence, [channel.info for channel in channels])
    return channels


def go_away(driver: Driver, channel: FakeChannel) -> None:
    """Says goodbye, and is forgotten as far as its entries go."""
    channel.leave()
    driver.requeue(channel, 0)


def serve(driver: Driver, channels: list[FakeChannel], outcome: Outcome = Outcome.SUCCEEDED) -> list[str]:
    """What dispatcher, channels and collector do until nothing moves; the tasks that ran."""
    classes = {target.node: number for number, target in driver.survey.classes().items()}
    shares = [Assignment(classes[c.node], 0, c.incarnation, 5) for c in channels if c.node in classes]
    driver.moves.dispatch(driver.fence, shares, KEEP)
    ran = []
    for channel in channels:
        for entry, fields in channel.entries():
            task = fields[b"job"].decode()
            assert decode_spec(fields[b"spec"]).node == channel.node, "on its own node only"
            driver.end(task, outcome)
            driver.client.xdel(driver.keys.dispatch(channel.incarnation), entry)
            ran.append(task)
    return ran


def test_a_thousand_channels_of_which_thirty_are_away(driver, client):
    here = fleet(driver, 1000, away=30, labels=("web",))[30:]
    late = driver.channel("1", node="other")
    job = client.submit(["true"], all=True, labels=["web"], expires="1h")
    places = {f"{job.id}_{index}": place for index, place in enumerate(client.inspect.place_names(job.id), 1)}
    assert len(places) == 1000
    assert len(serve(driver, [*here, late])) == 970
    assert not job.refresh().ended and job.counts.outcomes == {"succeeded": 970}

    # Five come back in time, on other incarnations.
    back = [driver.channel("1", node=f"n{number}", labels=("web",)) for number in range(1, 6)]
    assert sorted(places[task] for task in serve(driver, back)) == [f"n{number}" for number in range(1, 6)]

    # The deadline: those that are still away are missing.
    expiring = driver.client.zrange(driver.keys.expiring, 0, -1)
    assert len(expiring) >= 25
    driver.client.zadd(driver.keys.expiring, dict.fromkeys(expiring, 1))
    driver.moves.promote(driver.fence, KEEP, 2000)
    assert (job.refresh().outcome, job.cause) == ("failed", "tasks")
    assert job.counts.outcomes == {"succeeded": 975, "expired": 25}
    assert decode_result(driver.record(job.id).result).error == "25 of 1000 tasks did not succeed: 25 expired"

    # And only those run again.
    assert client.retry_failed(job.id) == 25
    returned = [driver.channel("1", node=f"n{number}", labels=("web",)) for number in range(6, 31)]
    assert serve(driver, here) == []
    assert {places[task] for task in serve(driver, returned)} == {f"n{number}" for number in range(6, 31)}
    assert client.job(job.id).outcome == "succeeded"


class TestPlaces:
    def test_one_task_a_node_or_one_a_channel(self, driver, client):
        for name in ("a", "b"):
            driver.channel(name, node="n1")
        driver.channel("a", node="n2")
        inspect = Inspect(driver.client, driver.keys)
        assert inspect.place_names(client.submit(["true"], all=True).id) == ["n1", "n2"]
        assert inspect.place_names(client.submit(["true"], all=True, channel="b").id) == ["n1"]
        assert inspect.place_names(client.submit(["true"], all_channels=True).id) == ["n1/a", "n1/b", "n2/a"]

    def test_nobody_matches(self, driver, client):
        driver.channel(node="n1")
        with pytest.raises(InvalidJob, match="no node has ever been seen that matches"):
            client.submit(["true"], all=True, labels=["gpu"])

    def test_the_forgotten_are_not_meant(self, driver, client):
        fleet(driver, 2, away=1)
        driver.moves.forget(["n1/1"])
        assert client.inspect.place_names(client.submit(["true"], all=True).id) == ["n2"]

    @pytest.mark.parametrize("more", [{"array": "1-3"}, {"follow": True}])
    def test_what_does_not_go_together(self, client, more):
        with pytest.raises(InvalidJob):
            client.submit(["true"], all=True, **more)


def test_too_many_failures_stop_what_has_not_started(driver, client):
    channels = fleet(driver, 10)
    job = client.submit(["false"], all=True, max_failures=3)
    assert len(serve(driver, channels[:3], Outcome.FAILED)) == 3
    assert serve(driver, channels[3:6]) == []
    _, tasks = driver.moves.repeat_hints(driver.fence, 100)
    assert len(tasks) == 4
    driver.moves.cancel(tasks, KEEP)
    assert client.job(job.id).counts.outcomes == {"failed": 3, "cancelled": 7}
    assert client.job(job.id).outcome == "failed"


def test_one_node_again(driver, client):
    channels = fleet(driver, 3)
    job = client.submit(["true"], all=True)
    serve(driver, channels, Outcome.FAILED)
    client.retry(f"{job.id}_2")
    assert serve(driver, channels) == [f"{job.id}_2"]
    assert client.job(job.id).counts.outcomes == {"succeeded": 1, "failed": 2}
    assert client.job(f"{job.id}_2").attempt == 2


def test_cancelled_while_nodes_are_away(driver, client):
    channels = fleet(driver, 3, away=1)
    job = client.submit(["true"], all=True)
    serve(driver, channels[1:])
    client.cancel(job)
    driver.moves.cancel(driver.moves.repeat_hints(driver.fence, 100)[1], KEEP)
    assert client.job(job.id).outcome == "cancelled"
    assert driver.client.smembers(driver.keys.cancelling) == set()
