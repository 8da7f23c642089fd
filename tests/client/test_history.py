"""The histories of two masters as one, against real daemons that are killed."""

from __future__ import annotations

import sqlite3
import time

import pytest

from cluster import Cluster
from jobschedd.errors import Unanswered, UsageError
from redis_server import RedisServer, wait_until


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """Two masters, of which the first leads; and a slave."""
    cluster.start("master", node="m1")
    cluster.start("slave", node="n1", channels=["1", {"name": "gpu", "labels": ["gpu"], "slots": 4}])
    cluster.start("master", node="m2")
    attending(cluster, 2)
    return cluster


def attending(cluster: Cluster, masters: int) -> None:
    """So many can be asked: each says so a moment after its start."""
    with cluster.client() as client:
        redis, key = client.session._redis, client.session.keys.masters
        wait_until(lambda: redis.zcard(key) == masters, 10, f"{masters} masters answer\n{cluster.logs()}")


def in_history(client, count: int, **which):
    """The attempts, once so many are there: they are written after the verdict."""
    wait_until(lambda: len(list(client.history(**which))) >= count, 10, f"{count} attempts in the history")
    return list(client.history(**which))


def test_attempts_are_kept_each_and_found(pair: Cluster):
    with pair.client() as client:
        good = client.submit(["true"], name="etl-1", labels=["gpu"]).wait(10)
        bad = client.submit(["sh", "-c", "exit 3"], name="etl-2", retries=1, retry_delay=0.01, channel="1").wait(10)
        late = client.submit(["sleep", "9"], timeout=0.2, channel="n1/gpu").wait(10)
        found = in_history(client, 4)
        assert [(one.job, one.attempt, one.final) for one in found] == [
            (late.id, 1, 1),
            (bad.id, 2, 1),
            (bad.id, 1, 0),
            (good.id, 1, 1),
        ]
        assert [one.place for one in found] == sorted((one.place for one in found), reverse=True)
        ask = lambda **which: [(one.job, one.attempt) for one in client.history(**which)]  # noqa: E731
        assert ask(job=bad) == [(bad.id, 2), (bad.id, 1)]
        assert ask(job=bad.id, final=True) == [(bad.id, 2)]
        assert ask(label="gpu") == [(good.id, 1)]
        assert ask(name="etl-*", outcomes=["failed"]) == [(bad.id, 2), (bad.id, 1)]
        assert ask(channel="n1/gpu", cause="timeout") == [(late.id, 1)]
        assert ask(node="n2") == []
        assert ask(since=time.time() + 60) == []
        assert len(ask(limit=2)) == 2
        with pytest.raises(UsageError, match="ended"):
            client.history(outcomes=["pending"])


def test_two_histories_are_one(pair: Cluster, redis_server: RedisServer):
    """The first master is killed; the second collects from then on; what both have is given out once."""
    with pair.client() as client:
        before = client.submit_many({"command": ["true"]} for _ in range(20))
        client.wait(before, 20)
        in_history(client, 20)
        first = pair.daemons[0]
        first.kill()
        after = client.submit_many({"command": ["true"]} for _ in range(20))
        client.wait(after, 20)
        first.popen.wait(10)
        first.start()
        found = in_history(client, 40)
        histories = pair.history()
        with sqlite3.connect(histories[0]) as one, sqlite3.connect(histories[1]) as other:
            rows = one.execute("SELECT * FROM attempts LIMIT 5").fetchall()
            other.executemany(f"INSERT OR IGNORE INTO attempts VALUES ({', '.join('?' * 21)})", rows)
        one.close()
        other.close()
        asked = client.history()
        again = list(asked)
        assert asked.problem is None
        assert sorted(int(one.job) for one in again) == sorted(int(job.id) for job in before + after)
        assert len(found) == len(again) == 40


def test_pages_follow_each_other(pair: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobschedd.client.history.PAGE", 7)
    with pair.client() as client:
        jobs = client.submit_many({"command": ["true"]} for _ in range(50))
        client.wait(jobs, 30)
        assert {one.job for one in in_history(client, 50)} == {job.id for job in jobs}
        asked = client.history()
        assert len(list(asked)) == 50 and asked.problem is None and len(asked.asked) == 2


def test_a_silent_master_is_named(pair: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobschedd.client.history.PATIENCE", 3.0)
    with pair.client() as client:
        client.submit(["true"]).wait(10)
        in_history(client, 1)
        pair.daemons[2].pause("dispatcher")
        try:
            asked = client.history(since=0)
            assert len(list(asked)) == 1
            assert asked.problem is not None and str(asked.problem) == "1 of 2 masters answered: m2: no answer"
        finally:
            pair.daemons[2].resume("dispatcher")


def test_nobody_answers(redis_server: RedisServer, cluster: Cluster):
    with cluster.client() as client, pytest.raises(Unanswered, match="0 of 0 masters answered: no master runs") as said:
        list(client.history())
    assert said.value.exit_code == 69


def test_an_unreadable_file_is_told(cluster: Cluster):
    (cluster.directory / "m1").mkdir()
    (cluster.directory / "m1" / "history.db").write_bytes(b"this is no database, " * 500)
    cluster.start("master", node="m1")
    attending(cluster, 1)
    with (
        cluster.client() as client,
        pytest.raises(Unanswered, match="0 of 1 master answered: m1: cannot read its history"),
    ):
        wait_until(lambda: list(client.history()) == [], 10, "the file is read")
