"""What the whole life of a job costs Redis with real daemons, by the server's own counters; no clock decides."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks.counters import Cost, counted
from redis_server import wait_until

JOBS = 2000
ROUNDS = 3
#: Commands that come with time, not with jobs: the auditor's walk over the records.
BY_TIME = ("scan", "getrange")


@dataclass(frozen=True)
class Bound:
    """Per job, all processes and the submitter together."""

    commands: float
    script_calls: float
    bytes_in: float
    bytes_out: float


BOUNDS = {
    "functions": ({"function": "builtins:bool"}, Bound(9.0, 0.05, 800, 650)),
    # Two at a time: reports come in smaller batches.
    "commands": ({"command": ["true"]}, Bound(12.0, 0.7, 1000, 800)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOUNDS)
def test_the_life_of_a_job_costs_no_more_than_it_did(cluster, redis_server, kind):
    """The cheapest of some rounds: on a busy machine a part goes back unstarted, and is dispatched once more."""
    item, bound = BOUNDS[kind]
    cluster.start(["master", "slave"], channels=2)
    with cluster.client() as client, redis_server.client() as watcher:
        _live(client, watcher, item)  # loads scripts, warms runners
        costs = []
        for _ in range(ROUNDS):
            with counted(watcher) as cost:
                _live(client, watcher, item)
            costs.append(cost.without(*BY_TIME))
    found = Bound(*(min(figures) for figures in zip(*map(_per_job, costs), strict=True)))
    print(found, costs[-1].commands)
    assert found.commands <= bound.commands
    assert found.script_calls <= bound.script_calls
    assert found.bytes_in <= bound.bytes_in
    assert found.bytes_out <= bound.bytes_out


def _per_job(cost: Cost) -> tuple[float, ...]:
    return cost.calls / JOBS, cost.script_calls / JOBS, cost.bytes_in / JOBS, cost.bytes_out / JOBS


def _live(client, watcher, item) -> None:
    """Submit and wait until all have ended: only then has a record a time to live."""
    before = _ended(watcher)
    client.submit_many([item] * JOBS)
    wait_until(lambda: _ended(watcher) >= before + JOBS, 60, "all have ended")


def _ended(watcher) -> int:
    return int(watcher.info("keyspace").get("db0", {}).get("expires", 0))
