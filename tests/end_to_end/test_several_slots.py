"""Jobs that take several slots, beside ordinary ones, with real processes: never more than the channel has."""

from __future__ import annotations

import random
import signal
from itertools import accumulate
from pathlib import Path

import pytest

from cluster import Cluster
from jobschedd.store.keys import Keys
from redis_server import wait_until

SLOTS = 4


class Account:
    """Jobs write down the slots that they take when they begin, and the same below zero before they end."""

    def __init__(self, cluster: Cluster) -> None:
        self.file = cluster.directory / "account"

    def job(self, slots: int, seconds: float = 0.05, gate: Path | None = None, **more) -> dict:
        """One that takes so many, for so long or until there is a file."""
        wait = f"sleep {seconds}" if gate is None else f"until [ -e {gate} ]; do sleep 0.05; done"
        line = f"echo {slots} >> {self.file}; {wait}; echo -{slots} >> {self.file}"
        return {"shell": line, "slots": slots} | more

    def taken(self) -> list[int]:
        """How many were taken at each moment."""
        return list(accumulate(map(int, self.file.read_text().split()))) if self.file.exists() else []


@pytest.fixture
def account(cluster: Cluster) -> Account:
    return Account(cluster)


def window(redis_server, cluster: Cluster) -> int:
    with redis_server.client() as admin:
        keys = Keys(cluster.namespace)
        (incarnation,) = [i.decode() for i, text in admin.hgetall(keys.channels).items() if text != b"left"]
        return int(admin.hget(keys.lease(incarnation), "window") or -1)


def test_mixed_with_ordinary_jobs(cluster, account, redis_server):
    cluster.start(["master", "slave"], channels=[{"name": "1", "slots": SLOTS}])
    chance = random.Random(1)
    with cluster.client() as client:
        items = [account.job(chance.choice([1, 1, 1, 2, 3, 4]), chance.choice([0, 0.02, 0.1])) for _ in range(80)]
        jobs = client.submit_many(items)
        client.wait(jobs, 60)
        assert {job.outcome for job in jobs} == {"succeeded"}
        attempts = sum(job.attempt for job in client.jobs("succeeded"))
    taken = account.taken()
    assert max(taken) == SLOTS and taken[-1] == 0 and len(taken) == 2 * len(jobs)
    print(f"{len(jobs)} jobs, {attempts - len(jobs)} of them given back once")
    wait_until(lambda: window(redis_server, cluster) >= SLOTS, 5, "all slots are free again")


def test_a_job_knows_how_many_it_has_and_others_see_it(cluster):
    cluster.start(["master", "slave"], channels=[{"name": "1", "slots": SLOTS}])
    with cluster.client() as client:
        gate = cluster.directory / "gate"
        wait = f"echo $JOBSCHED_SLOTS; until [ -e {gate} ]; do sleep 0.05; done"
        wide = client.submit(["sh", "-c", wait], slots=3)
        wait_until(lambda: wide.state == "running", 15, "it runs")
        wait_until(lambda: client.channels()[0].busy == 3, 5, "three slots are busy")
        other = client.submit(["true"], slots=2)
        wait_until(lambda: client.explain(other).reason == "slots", 5, "it waits for two")
        gate.touch()
        client.wait([wide, other], 15)
        assert wide.output() == b"3\n" and other.outcome == "succeeded"
        warned = cluster.run("submit", "--slots", str(SLOTS + 1), "--", "true")
        assert "no channel has ever been seen that has slots 5" in warned.stderr


@pytest.mark.parametrize("victim", ["channel 1", "dispatcher", "supervisor"])
def test_after_the_death_of(cluster, account, redis_server, victim):
    """Whatever dies while they run: what comes afterwards finds all slots, and never more."""
    daemon = cluster.daemon(["master", "slave"], channels=[{"name": "1", "slots": SLOTS}]).start()
    gate = cluster.directory / "gate"  # one for all: in which order they come back and begin is anybody's guess
    with cluster.client() as client:
        first = client.submit_many([account.job(3, gate=gate), account.job(1, gate=gate)])
        wait_until(lambda: len(account.taken()) == 2, 15, "both run")
        daemon.kill(victim)
        if victim != "dispatcher":
            account.file.unlink()  # those that had begun are dead, and begin again, as suspects one after the other
            if victim == "supervisor":
                daemon.popen.wait(10)
                daemon.start()
            wait_until(account.taken, 60, "one runs again")
        rest = client.submit_many([account.job(slots, gate=gate) for slots in (2, 1, 4)])
        gate.touch()
        client.wait([*first, *rest], 60)
        assert {job.outcome for job in (*first, *rest)} == {"succeeded"}
    taken = account.taken()
    assert max(taken) == SLOTS and taken[-1] == 0
    wait_until(lambda: window(redis_server, cluster) >= SLOTS, 5, "all slots are free again")


def test_beside_the_successor_of_a_changed_channel(cluster, account):
    daemon = cluster.daemon(
        ["master", "slave"], channels=[{"name": "1", "slots": SLOTS}], slave={"drain_timeout": 60}
    ).start()
    gate = cluster.directory / "gate"
    with cluster.client() as client:
        wide = client.submit_many([account.job(3, gate=gate)])
        wait_until(lambda: len(account.taken()) == 1, 15, "it runs")
        old = daemon.child("channel 1")
        daemon.config.write_text(daemon.config.read_text().replace("slots: 4", "slots: 4\n    labels: [new]"))
        daemon.signal("supervisor", signal.SIGHUP)
        wait_until(
            lambda: any(c.labels == ("new",) and c.state == "up" for c in client.channels()), 20, "the new one is up"
        )
        narrow = client.submit_many([account.job(1) for _ in range(6)])
        client.wait(narrow, 30)
        assert old.is_running() and max(account.taken()) == SLOTS, "one beside the three of the old process"
        gate.touch()
        client.wait(wide, 15)


def test_one_that_ends_at_once_gives_them_back(cluster, redis_server):
    cluster.start(["master", "slave"], channels=[{"name": "1", "slots": SLOTS}])
    with cluster.client() as client:
        for _ in range(3):
            job = client.submit(["/nonexistent"], slots=SLOTS)
            job.wait(15)
            assert job.cause == "not_found"
            wait_until(lambda: window(redis_server, cluster) == SLOTS, 5, "all slots are free again")


def _is_reading(admin, channel: str) -> bool:
    return any(f"/{channel}" in one["name"] and "b" in one["flags"] for one in admin.client_list())


def test_an_order_that_gets_lost_takes_no_slots_with_it(cluster, redis_server):
    daemon = cluster.start(["master", "slave"], channels=[{"name": "1", "slots": SLOTS}])
    keys = Keys(cluster.namespace)
    with cluster.client() as client, redis_server.client() as admin:
        client.submit(["true"]).wait(15)
        channel = daemon.pause("channel 1")
        wait_until(lambda: not _is_reading(admin, "1"), 5, "no answer to it is under way")
        job = client.submit(["true"], slots=SLOTS)
        wait_until(lambda: job.state == "dispatched", 5, "it is sent")
        assert window(redis_server, cluster) < SLOTS
        admin.delete(*admin.keys(keys.base + "dispatch:*"))
        channel.resume()
        job.wait(30)
        assert job.outcome == "succeeded", "it was sent once more, for all of the slots"
        wait_until(lambda: window(redis_server, cluster) >= SLOTS, 5, "all slots are free again")
