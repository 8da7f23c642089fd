"""Somebody deletes one key of ours, or all of a kind: nothing is stuck, it is repaired or somebody is told.

The kinds are those of the table in ``jobschedd/store/keys.py``: one without a line here fails.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

import jobschedd.store.keys
from jobschedd import Client
from jobschedd.errors import StoreUnavailable
from jobschedd.store.keys import Keys
from ledger import find_stuck, judge, settled
from redis_server import wait_until

KEYS = Keys("test")
#: All of the table: its first column, with ``<...>`` for what varies.
KINDS = re.findall(r"^([a-z]\S*) +(?:string|hash|set|zset|list|stream) ", jobschedd.store.keys.__doc__ or "", re.M)

#: Whose loss stops everything, on purpose, until an operator decides.
ALARMS = {"identity", "mark"}
#: Whose loss costs what nobody else knows, and nothing else: the value says what.
COSTS = {
    "job:<id>": "the job: whoever waits for it is told that it is gone",
    "operation:<c>": "a lost reply of a submit within the hour may submit twice",
    "once:<key>": "an idempotency key is free again",
    "drains": "what was drained gets jobs again",
    "dead": "dead letters",
    "output:<id>": "live output up to now",
    "restored": "the account of the last rebuild",
    "loss": "is told anew while data are lost",
    "abandoned": "a node that was away during the loss keeps its results aside without being told why",
    "rebuilt": "a node that was away during a rebuild does not announce what it has",
    "announced": "as rebuilt",
    "suspects": "a dead channel is waited for anew",
}
#: pubsub's own; its jobs are at most once. Their loss is tested below, or is one answer's.
PUBSUB = {"sent", "sent:<channel>", "wires", "listening", "published", "taken:<id>", "answer:<id>"}
REPAIRED = [kind for kind in KINDS if kind not in ALARMS | PUBSUB | COSTS.keys()]
#: The others: with "make faults".
OFTEN = {"pending", "pending:<c>:<p>", "dispatch:<i>", "next-id", "classes"}


def delete(admin: Any, kind: str) -> int:
    """All keys of this kind; how many there were."""
    pattern = KEYS.base + re.sub("<.*?>", "*", kind)
    found = [key for key in admin.scan_iter(pattern, count=1000) if key.count(b":") == pattern.count(":")]
    return int(admin.delete(*found)) if found else 0


def test_the_table_is_read():
    assert len(KINDS) > 30 and {"identity", "job:<id>", "pending:<c>:<p>"} <= set(KINDS)
    assert ALARMS | PUBSUB | COSTS.keys() <= set(KINDS), "of keys that are no more"


def _load(cluster: Any, ledger: Any, client: Any) -> None:
    """Jobs in every state: two run, others wait for these, for room, and for their time."""
    first = ledger.submit(client, [ledger.item(seconds=1.5, channel=name) for name in ("1", "2")])
    ledger.submit(client, [ledger.item(after=[job.id]) for job in first])
    wait_until(lambda: len(ledger.events()[0]) == 2, 15, f"two run\n{cluster.logs()}")
    ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(6)])
    ledger.submit(client, [ledger.item(priority=50, channel="2") for _ in range(3)])
    ledger.submit(client, [ledger.item(delay=2) for _ in range(2)])


@pytest.mark.parametrize("kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.faults) for k in REPAIRED])
def test_repaired(cluster, ledger, redis_server, kind):
    cluster.start("master")
    cluster.start("slave", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        _load(cluster, ledger, client)
        expiring = client.submit(["true"], channel="nowhere", expires=3)
        running = client.submit(["sleep", "300"], channel="1", priority=100)
        wait_until(lambda: running.state == "dispatched" or running.state == "running", 10, "a channel has it")
        client.cancel([running])
        delete(admin, kind)
        ledger.submit(client, [ledger.item() for _ in range(3)])
        ledger.submit(client, [ledger.item(channel="2") for _ in range(3)])
        client.wait([expiring, running], timeout=30)
        assert (expiring.outcome, running.outcome) == ("expired", "cancelled")
        account = judge(cluster, ledger, admin, within=30, apart={expiring.id, running.id})
        starts = sum(event.kind == "start" for event in account.events)
    again = 2 if kind in ("dispatch:<i>", "results") else 0
    assert starts <= len(ledger.told) + again, "a repair is no reason to run again what did run"


@pytest.mark.parametrize("kind", ["awaits:<id>", "dependents:<id>", "waiting"])
def test_nobody_starts_before_what_it_waits_for(cluster, redis_server, kind):
    """The key comes back, with what it held; the jobs that had ended are not waited for anew."""
    cluster.start("master")
    cluster.start("slave", channels=2)
    go = cluster.directory / "go"
    with cluster.client() as client, redis_server.client() as admin:
        ended = client.submit(["true"])
        first, second = client.submit_many([{"shell": f"until [ -e {go} ]; do sleep 0.1; done; echo"}] * 2)
        child = client.submit(["test", "-e", str(go)], after=[ended.id, first.id, second.id])
        wait_until(lambda: admin.smembers(KEYS.awaits(child.id)) == {first.id.encode(), second.id.encode()}, 10, "one")
        assert delete(admin, kind)
        again = {"awaits:<id>": KEYS.awaits(child.id), "waiting": KEYS.waiting}
        again |= {"dependents:<id>": KEYS.base + f"dependents:{first.id}"}
        wait_until(lambda: admin.exists(again[kind]), 20, f"it is back\n{cluster.logs()}")
        assert child.state == "waiting"
        go.touch()
        assert child.wait(20).outcome == "succeeded"


@pytest.mark.faults
@pytest.mark.parametrize("master", ["kept", "killed", "away"])
@pytest.mark.parametrize("kind", ["pending", "pending:<c>:<p>", "scheduled", "classes", "channels", "next-id", "epoch"])
def test_repaired_by_a_master_that_remembers_nothing(cluster, ledger, redis_server, kind, master):
    """The keys go at the worst moment: before a dispatcher that has them in memory is replaced."""
    first = cluster.start("master")
    cluster.start("slave", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        _load(cluster, ledger, client)
        if master == "away":
            first.stop()
        elif master == "killed":
            first.pause("dispatcher")
        delete(admin, kind)
        if master == "away":
            first.start()
        elif master == "killed":
            first.successor("dispatcher", of=first.kill("dispatcher"))
        ledger.submit(client, [ledger.item(channel="1") for _ in range(3)])
        judge(cluster, ledger, admin, within=30)


@pytest.mark.parametrize("kind", sorted(ALARMS))
def test_alarmed(cluster, redis_server, kind):
    master = cluster.start("master")
    with redis_server.client() as admin:
        wait_until(lambda: admin.exists(KEYS.identity) and admin.exists(KEYS.leader), 10, "somebody leads")
        wait_until(lambda: int(admin.get(KEYS.mark) or 0) >= 2, 10, "and has looked twice")
        assert delete(admin, kind) == 1
        wait_until(lambda: admin.exists(KEYS.loss), 3, f"it is noticed\n{master.log()}")
        doctor = cluster.run("doctor")
        assert doctor.returncode == 1 and "jobsched rebuild" in doctor.stdout


@pytest.mark.faults
@pytest.mark.parametrize("kind", sorted(COSTS))
def test_what_cannot_be_repaired_costs_nobody_else(cluster, ledger, redis_server, kind):
    master = cluster.start("master")
    cluster.start("slave", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        gone = [client.submit(["sleep", "1"]), client.submit(["true"], channel="nowhere"), client.submit(["true"])]
        wait_until(lambda: gone[2].state == "done", 10, "one has ended")
        delete(admin, kind)
        _load(cluster, ledger, client)
        if kind == "job:<id>":
            assert cluster.run("wait", *(job.id for job in gone)).returncode == 125
        else:
            client.cancel(gone[1:2])
            client.wait(gone, timeout=20)
        if kind == "job:<id>":
            admin.delete(KEYS.pending_list(2, 0))  # there the id of one stays for ever, and does no harm
        judge(cluster, ledger, admin, within=30, apart={job.id for job in gone})
    assert "Traceback" not in master.log()


@pytest.mark.faults
@pytest.mark.parametrize("kind", sorted(PUBSUB))
def test_on_the_classic_wire_every_job_ends(cluster, redis_server, kind):
    """At most once: what is lost with a key ends lost, nothing stays, and the next jobs run."""
    how: dict[str, Any] = {"transport": "pubsub"}
    cluster.start("master", master={"channels": ["1", "2"], "result_timeout": 3}, **how)
    cluster.start("slave", channels=2, **how)
    with cluster.client() as client, redis_server.client() as admin:
        jobs = [client.submit(["sleep", "1"]) for _ in range(4)]
        wait_until(lambda: admin.exists(KEYS.sent_channels), 10, f"some are sent\n{cluster.logs()}")
        delete(admin, kind)
        jobs += [client.submit(["true"]) for _ in range(4)]
        client.wait(jobs, timeout=30)
        assert {job.outcome for job in jobs} <= {"succeeded", "lost"}
        assert client.submit(["true"]).wait(20).outcome == "succeeded"
        # An id of which Redis forgot that it was sent, before the channel looked, is a foreign one: a dead letter.
        assert not settled(lambda: [one for one in find_stuck(admin, "test") if "dead letter" not in one], within=10)


def test_a_counter_of_ids_that_is_gone_is_waited_for(cluster, redis_server):
    """No id twice: not even of jobs that are submitted before a master has put it right."""
    master = cluster.start("master")
    with cluster.client() as client, redis_server.client() as admin:
        first = client.submit(["true"], channel="nowhere")
        assert master.stop() == 0
        delete(admin, "next-id")
        told = pytest.raises(StoreUnavailable, match="counter of job ids is gone")
        with Client(redis_server.url, "test", patience=0.5) as hasty, told:
            hasty.submit(["true"])
        master.start()
        second = client.submit(["true"], channel="nowhere")
        assert int(second.id) > int(first.id) + 1000
        wait_until(lambda: "the counter of job ids was gone" in master.log(), 5, "what was mended is told")
