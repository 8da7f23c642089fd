"""The read path over a store that no daemon touches."""

from __future__ import annotations

import json

import pytest

from jobschedd import Client
from jobschedd.errors import UsageError
from jobschedd.job import State, Target
from jobschedd.store import inspect as module


def ids(client: Client, *statuses: str, **options: object) -> list[int]:
    return [int(job.id) for job in client.jobs(*statuses, **options)]  # type: ignore[arg-type]


@pytest.fixture
def mixed(client: Client) -> Client:
    """1-20: pending over two priorities and channels; 21-25 scheduled; 3, 13 and 23 cancelled."""
    client.submit_many(
        {"command": ["true"], "priority": number % 2, "channel": str(number % 3), "name": f"n{number}"}
        for number in range(1, 21)
    )
    client.submit_many({"command": ["true"], "delay": 1000 - number} for number in range(5))
    client.cancel([3, 13, 23])
    return client


def test_newest_first_and_by_state(mixed: Client):
    pending = [number for number in range(20, 0, -1) if number not in (3, 13)]

    assert ids(mixed) == list(range(25, 0, -1))
    assert ids(mixed, limit=3) == [25, 24, 23]
    assert ids(mixed, "pending") == pending
    assert ids(mixed, "pending", limit=5) == pending[:5]
    assert ids(mixed, "scheduled") == [25, 24, 22, 21], "soonest first"
    assert ids(mixed, "pending", "scheduled") == [25, 24, 22, 21, *pending]
    assert ids(mixed, "cancelled") == ids(mixed, "done") == [23, 13, 3]
    assert ids(mixed, "cancelled", "scheduled") == [25, 24, 23, 22, 21, 13, 3]
    assert ids(mixed, "running", "dispatched") == ids(mixed, "succeeded") == []
    assert ids(mixed, name="n1?") == list(range(19, 9, -1))
    assert ids(mixed, "pending", name="n1?", limit=2) == [19, 18]


def test_an_unknown_word_is_refused(client: Client):
    with pytest.raises(UsageError, match="'runing' is neither a state nor an outcome"):
        client.jobs("runing")


def test_a_namespace_of_few_records_among_many_ids_is_swept(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_WALK", 2000)
    client.submit_many([{"command": ["true"]}] * 3)
    redis, keys = client.session._redis, client.session.keys
    redis.set(keys.next_id, 50_000_000)
    client.submit(["true"])

    assert ids(client) == [50_000_001, 3, 2, 1]
    assert ids(client, "done") == []


def test_an_unreadable_record_is_left_out(client: Client):
    client.submit_many([{"command": ["true"]}] * 3)
    client.session._redis.set(client.session.keys.job("2"), b"\x09nonsense")

    assert ids(client) == [3, 1]


def test_counts(mixed: Client):
    counts = mixed.inspect.counts()

    assert (counts.scheduled, counts.submitted, counts.active) == (4, 25, 0)
    assert counts.pending >= 18, "cancelled jobs stay in the lists as tombstones"
    assert sum(mixed.inspect.pending_by_class().values()) == counts.pending
    assert (Target(channel="1"), 1) in mixed.inspect.pending_by_class()


def register(client: Client, incarnation: str, node: str, channel: str, lease: bool = True, **more: object) -> None:
    redis, keys = client.session._redis, client.session.keys
    about = {"node": node, "channel": channel, "slots": 2, "labels": [], "version": "1", "started": 5.0, **more}
    redis.hset(keys.channels, incarnation, json.dumps(about))
    redis.hset(keys.owners, f"{node}/{channel}", incarnation)
    if lease:
        redis.hset(keys.lease(incarnation), mapping={"window": 4, "home": "x"})


def test_channels_and_nodes_in_every_state(client: Client):
    register(client, "a" * 16, "n1", "1", labels=["gpu"])
    register(client, "b" * 16, "n1", "2", lease=False)
    register(client, "c" * 16, "n2", "1")
    register(client, "d" * 16, "n3", "10")
    register(client, "e" * 16, "n3", "9")
    client.session._redis.hset(client.session.keys.owners, "n4/1", "f" * 16)
    client.session._redis.xadd(client.session.keys.dispatch("d" * 16), {"job": "1"})
    client.drain("n3", "kernel", "root")

    states = {view.name: view.state for view in client.channels()}
    assert states == {
        "n1/1": "up",
        "n1/2": "lost",
        "n2/1": "up",
        "n3/9": "drained",
        "n3/10": "draining",
        "n4/1": "down",
    }
    assert list(states)[3:5] == ["n3/9", "n3/10"], "numbers in their order"
    assert {node.node: node.state for node in client.nodes()} == {
        "n1": "degraded",
        "n2": "up",
        "n3": "draining",
        "n4": "down",
    }
    assert client.nodes()[0].labels == ("gpu",)
    assert next(view for view in client.channels() if view.name == "n3/9").drain_reason == "kernel"
    assert client.session._redis.lrange(client.session.keys.bell, 0, -1)[-1] == b"d"

    assert client.resume("n3")
    assert not client.resume("n3")
    assert {view.state for view in client.channels() if view.node == "n3"} == {"up"}


@pytest.mark.parametrize(
    ("target", "served"),
    [
        (Target(), True),
        (Target(node="n1"), True),
        (Target(channel="2"), True),
        (Target(node="n1", channel="1"), True),
        (Target(labels=("gpu",)), True),
        (Target(node="n2"), False),
        (Target(channel="3"), False),
        (Target(node="n1", channel="3"), False),
        (Target(labels=("gpu", "big")), False),
        (Target(channel="2", labels=("gpu",)), False),
    ],
)
def test_whether_a_target_was_ever_served(client: Client, target: Target, served: bool):
    register(client, "a" * 16, "n1", "1", labels=["gpu"])
    register(client, "b" * 16, "n1", "2")

    assert client.session.served(target) is served


def test_where_nothing_was_ever_seen_nothing_is_served(client: Client):
    assert not client.session.served(Target())


def test_active_jobs_are_found_by_their_streams(client: Client):
    jobs = client.submit_many([{"command": ["true"]}] * 4)
    register(client, "a" * 16, "n1", "1")
    redis, keys = client.session._redis, client.session.keys
    for job in jobs[1:3]:
        redis.xadd(keys.dispatch("a" * 16), {"job": job.id})
        redis.setrange(keys.job(job.id), 24, bytes([State.RUNNING]))
        redis.setrange(keys.job(job.id), 38, bytes.fromhex("a" * 16))

    assert ids(client, "running") == [3, 2]
    assert ids(client, "dispatched") == []
    views = list(client.inspect.jobs({State.RUNNING}))
    assert client.inspect.places(views) == {"a" * 16: ("n1", "1")}


def test_dead_letters_are_shown_escaped(client: Client):
    client.session.moves.bury("no order", b"\xff\x1b[2J", "results")
    (letter,) = client.inspect.dead_letters()

    assert (letter["reason"], letter["source"], letter["sample"]) == ("no order", "results", "\\xff\x1b[2J")
    assert client.inspect.counts().dead_letters == 1


def test_a_foreign_subscriber_is_a_channel_without_a_node(client: Client):
    redis, keys = client.session._redis, client.session.keys
    redis.sadd(keys.wires, "1", "2")
    redis.zadd(keys.sent("2"), {"17": 1.0})
    listener = redis.pubsub()
    listener.subscribe("CHANNEL_DISPATCH_1")
    listener.get_message(timeout=5)

    views = client.channels()
    assert [(view.name, view.state, view.slots, view.entries, view.transport) for view in views] == [
        ("1", "up", 1, 0, "pubsub"),
        ("2", "down", 0, 1, "pubsub"),
    ]
    assert client.nodes() == []
    assert client.session.served(Target(channel="2"))
    assert not client.session.served(Target(channel="3"))
    listener.close()
