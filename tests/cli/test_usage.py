"""Budgets as an operator meets them: a queue that is full says so, what is there goes on, and it opens again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster import Cluster
from jobschedd.errors import QueueFull
from redis_server import RedisServer, wait_until


@pytest.fixture
def small(redis_server: RedisServer) -> Iterator[Cluster]:
    """A master that lets 64 KiB of jobs wait, and keeps 32 KiB of finished records."""
    cluster = Cluster(redis_server.url)
    try:
        cluster.start("master", node="m", master={"budgets": {"pending": "64KiB", "finished": "32KiB"}})
        yield cluster
    finally:
        print(cluster.logs())
        cluster.close()


def usage(cluster: Cluster) -> dict:
    return json.loads(cluster.run("usage", "--json").stdout)


def test_the_queue_is_full_and_opens_again(small: Cluster):
    with small.client() as client:
        jobs = client.submit_many([{"command": ["true"], "stdin": "x" * 1000}] * 100)
        wait_until(lambda: usage(small)["full"], 20, "the master has seen it")
        refused = small.run("submit", "--", "true")
        assert refused.returncode == 75
        assert refused.stdout == ""
        assert refused.stderr.startswith("jobsched: queue full: jobs that wait use ")
        assert "(budgets.pending)" in refused.stderr
        with pytest.raises(QueueFull):
            client.submit(["true"])

        told = usage(small)
        assert told["kinds"]["waiting"]["keys"] == pytest.approx(100, abs=25)
        assert told["budgets"]["pending"] == 64 * 1024
        assert told["budgets"]["reserve"] is None, "a share of a maxmemory that is not set"
        assert "queue full" in small.run("usage").stderr

        small.start("slave", node="n", channels=2)
        client.wait(jobs, 60)
        assert {job.outcome for job in jobs} == {"succeeded"}, "results find room"

        def opened() -> bool:
            return small.run("submit", "--", "true").returncode == 0

        wait_until(opened, 20, "it is open again")
        wait_until(lambda: usage(small)["history_bytes"], 5, "the history has a size")


def test_finished_records_over_their_budget_are_forgotten(small: Cluster):
    small.start("slave", node="n", channels=2)
    with small.client() as client:
        for _ in range(3):
            jobs = client.submit_many([{"command": ["true"], "stdin": "x" * 500}] * 50)
            client.wait(jobs, 60)
        # A record is kept for ten seconds at least: whoever waited for its job can still read it.
        wait_until(lambda: client.inspect.job("1") is None, 40, "the first is forgotten")
        assert client.inspect.job(jobs[-1].id) is not None, "the last is not"
        assert client.explain("1").reason == "record_expired"
