"""Faults at random under load. A failing run says its seed: FAULTS_SEED=N repeats the same faults in the same order.

FAULTS_JOBS sets how many jobs the long run has: with the crash-point matrix, 100,000 and more for the scorecard.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time

import pytest

from faults.nemesis import Feeder, Fleet, Nemesis, schedule
from faults.scene import of_account, tallied
from ledger import judge
from redis_server import wait_until

SEED = os.environ.get("FAULTS_SEED")
JOBS = int(os.environ.get("FAULTS_JOBS", "20000"))


def test_a_seed_says_it_all():
    def first(seed):
        return list(itertools.islice(schedule(seed), 200))

    assert first(1) == first(1) != first(2)


def _under_fire(cluster, ledger, redis_server, seed: int, jobs: int, seconds: float) -> None:
    print(f"the seed of this run: FAULTS_SEED={seed}")
    fleet = Fleet(cluster, ledger, redis_server)
    nemesis, feeder = Nemesis(fleet, seed), Feeder(cluster, ledger, seed, jobs)
    until = time.monotonic() + seconds
    with tallied("nemesis", "all", seed=seed) as figures:
        feeder.start()
        try:
            nemesis.rage(lambda: feeder.is_alive() and time.monotonic() < until)
        finally:
            print(f"FAULTS_SEED={seed}", *nemesis.story, sep="\n")
            feeder.enough.set()
        wait_until(lambda: fleet.keep_up() or not feeder.is_alive(), 120, "the feeder has ended", 0.05)
        if feeder.error is not None:
            raise feeder.error
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=120, meanwhile=fleet.keep_up)
        blows = sum(nemesis.struck.values())
        again = sum(event.attempt > 1 and event.kind == "start" for event in account.events)
        figures |= of_account(account) | {"blows": dict(nemesis.hit), "again": again}
        figures["unknown"] = sum(told.answer == "unknown" for told in ledger.told)
    print(f"{blows} blows, {len(account.ends)} jobs, {again} starts again")
    assert blows >= 3 and sum(nemesis.hit.values()) >= blows / 2, f"void: {nemesis.hit} of {nemesis.struck}"
    interrupting = sum(nemesis.hit[name] for name in ("kill channel", "kill runner", "kill slave", "restart slave"))
    assert again or interrupting < 3, "void: no fault hit a running job"


def test_ten_seconds(cluster, ledger, redis_server):
    _under_fire(cluster, ledger, redis_server, int(SEED or 1), jobs=1_000_000, seconds=10)


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_for_as_long_as_it_takes(cluster, ledger, redis_server):
    """FAULTS_JOBS jobs; bounded by an hour."""
    seed = int(SEED or secrets.randbelow(1 << 32))
    _under_fire(cluster, ledger, redis_server, seed, jobs=JOBS, seconds=3600)
