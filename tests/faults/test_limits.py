"""Limits, resources and slots under kills: never one too many, by the jobs' own account, and nothing is held for ever.

Each job takes one of as many file locks as its limit allows. The kernel lets go of a lock when its process dies, so
that a job that finds all of them taken has caught the scheduler with one too many.
"""

from __future__ import annotations

import os
import time

import pytest

import faults.nemesis as nemesis_module
from faults.nemesis import Nemesis
from faults.scene import tallied
from jobschedd.store.keys import Keys
from ledger import judge
from redis_server import wait_until

SEED = int(os.environ.get("FAULTS_SEED", "1"))
LIMIT, GPUS = 2, 2
#: Whoever is stopped or cut off for longer than its lease may run a job beside its successor (see overlap: forbid):
#: nobody can stop it from afar. Deaths are what limits must withstand.
DEATHS = {
    ("channel", "kill"): 4,
    ("channel", "cut"): 2,
    ("runner", "kill"): 3,
    ("dispatcher", "kill"): 3,
    ("dispatcher", "cut"): 1,
    ("collector", "kill"): 3,
    ("collector", "cut"): 1,
    ("slave", "restart"): 1,
    ("master", "kill"): 2,
    ("master", "restart"): 1,
    ("redis", "flush scripts"): 1,
}

MODULE = '''
import fcntl, os, time

def take(directory, kind, names):
    """One lock of each name that we must have; of any name, where several would do."""
    for name in names:
        file = open(os.path.join(directory, f"{kind}.{name}"), "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            file.close()
    with open(os.path.join(directory, "violations"), "a") as told:
        told.write(f"{kind} {names} {os.environ['JOBSCHED_JOB_ID']} {os.environ['JOBSCHED_ATTEMPT']}\\n")
    return None

def slots(directory, count):
    """So many of the three that the channel has."""
    channel = os.environ["JOBSCHED_CHANNEL"]
    return [take(directory, "slot", [f"{channel}-{number}" for number in range(3)]) for _ in range(count)]

def run(tag, path, seconds, held):
    import ledger_job
    try:
        return ledger_job.run(tag, path, seconds)
    finally:
        for file in filter(None, held):
            file.close()

def limited(tag, path, directory, kind, most, seconds):
    return run(tag, path, seconds, [*slots(directory, 1), take(directory, kind, range(most))])

def with_gpu(tag, path, directory, seconds):
    gpu = take(directory, "gpu", [os.environ["CUDA_VISIBLE_DEVICES"]])
    return run(tag, path, seconds, [*slots(directory, 1), gpu])

def with_slots(tag, path, directory, count, seconds):
    return run(tag, path, seconds, slots(directory, count))
'''


class Fleet(nemesis_module.Fleet):
    """As the nemesis' own, with a GPU or two on each channel. One node, so that each GPU has one name."""

    def __init__(self, cluster, ledger, server) -> None:
        self.cluster, self.server = cluster, server
        channels = [
            {"name": "1", "slots": 3, "resources": {"gpus": ["a"]}},
            {"name": "2", "slots": 3, "resources": {"gpus": ["b"]}},
        ]
        self.masters = [cluster.daemon("master", node=f"m{number}") for number in (1, 2)]
        self.slaves = [
            cluster.daemon("slave", node="s1", channels=channels, slave={"python_path": [ledger.python_path]})
        ]
        for daemon in (*self.masters, *self.slaves):
            daemon.start()


def _under_fire(cluster, ledger, redis_server, monkeypatch, seconds: float, jobs: int) -> None:
    monkeypatch.setattr(nemesis_module, "BLOWS", DEATHS)
    directory = ledger.path.parent
    (directory / "limited_job.py").write_text(MODULE)
    fleet = Fleet(cluster, ledger, redis_server)
    options = {"max_crashes": 250, "retries": 250, "retry_delay": 0.05, "retry_max_delay": 0.1}

    def item(kind: str) -> dict:
        one = ledger.function(0.05, **options)
        kwargs = one["kwargs"] | {"directory": str(directory)}
        if kind == "gpu":
            return one | {"function": "limited_job:with_gpu", "kwargs": kwargs, "gpus": 1}
        if kind in ("2", "3"):
            kwargs["count"] = int(kind)
            return one | {"function": "limited_job:with_slots", "kwargs": kwargs, "slots": int(kind)}
        asked = {"limit_keys": [f"db={LIMIT}"]} if kind == "db" else {"group": "g"}
        return one | {"function": "limited_job:limited", "kwargs": kwargs | {"kind": kind, "most": LIMIT}, **asked}

    nemesis = Nemesis(fleet, SEED)
    with tallied("limits", "all", seed=SEED) as figures, cluster.client() as client:
        client.set_limit("group:g", LIMIT)
        for _ in range(jobs // 60):
            ledger.submit(client, [item(kind) for kind in ("db", "g", "gpu") for _ in range(16)])
            ledger.submit(client, [item(kind) for kind in ("2", "3") for _ in range(6)])
        until = time.monotonic() + seconds
        nemesis.rage(lambda: time.monotonic() < until)
        print(f"FAULTS_SEED={SEED}", *nemesis.story, sep="\n")
        with redis_server.client() as admin:
            account = judge(cluster, ledger, admin, within=180, meanwhile=fleet.keep_up)
            keys = Keys(cluster.namespace)
            left = [key for key in admin.keys(keys.base + "*") if b"limit:" in key or b"used:" in key]
            wait_until(lambda: not admin.exists(keys.holds), 5, "nobody holds anything any more")
            assert not left, f"held for ever: {left}"
        figures["jobs"] = len(account.ends)
    violations = directory / "violations"
    assert not violations.exists(), f"one too many:\n{violations.read_text()}\n{cluster.logs()}"
    again = sum(event.attempt > 1 and event.kind == "start" for event in account.events)
    print(f"{sum(nemesis.hit.values())} blows, {len(account.ends)} jobs, {again} starts again")
    assert sum(nemesis.hit.values()) >= 3


def test_never_one_too_many(cluster, ledger, redis_server, monkeypatch):
    _under_fire(cluster, ledger, redis_server, monkeypatch, seconds=10, jobs=240)


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_never_one_too_many_for_minutes(cluster, ledger, redis_server, monkeypatch):
    _under_fire(cluster, ledger, redis_server, monkeypatch, seconds=120, jobs=3000)
