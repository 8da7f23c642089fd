"""One process is killed once, between two of its effects, in the middle of a load: for every point there is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobschedd.failpoints import FAILPOINTS
from ledger import SUCCESS, judge
from redis_server import wait_until

# How many passages go by first, so that it happens in mid-load; 1 where there are few.
NTH = {
    "dispatcher.requeue.before": 1,
    "dispatcher.requeue.after": 1,
    "dispatcher.promote.after": 1,
    "channel.register.after": 1,
    "channel.return.before": 1,
    "supervisor.fork.after": 1,
}
# A function whose process is killed has failed, as one that crashes its interpreter: this one, and no other.
FAILS_ITS_JOB = {"runner.start.registered", "runner.result.before"}
DAEMON_POINTS = [name for name in FAILPOINTS if not name.startswith("client.")]


@pytest.mark.slow
@pytest.mark.parametrize("name", DAEMON_POINTS)
def test_killed_between_two_effects(cluster, ledger, redis_server, name):
    marker = cluster.directory / "hit"
    setting = {"JOBSCHED_FAILPOINTS": f"{name}:kill:{NTH.get(name, 3)}:{marker}"}
    of_master = name.startswith(("dispatcher.", "collector."))
    cluster.start("master", environment=setting if of_master else {})
    how = {"python_path": [ledger.python_path]}
    slave = cluster.start("slave", channels=2, slave=how, environment={} if of_master else setting)
    with cluster.client() as client:
        ledger.submit(client, [ledger.function() for _ in range(60)])
        ledger.submit(client, [ledger.function(seconds=0.3) for _ in range(6)])
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(40)])
        ledger.submit(client, [ledger.item(delay=0.5) for _ in range(4)])
        if name.startswith("dispatcher.requeue"):
            wait_until(lambda: len(ledger.events()[0]) > 40, 15, f"some have ended\n{cluster.logs()}")
            slave.kill("channel 1")
    failure = frozenset({("failed", "signal")} if name in FAILS_ITS_JOB else ())
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=30, expected=SUCCESS | failure)
    failed = [end.job for end in account.ends if end.outcome == "failed"]
    assert len(failed) == len(failure), f"these jobs failed: {failed}"
    assert marker.exists(), f"void: {name} was never passed"


SUBMITTER = """
import json, sys
from jobschedd import Client
client = Client(sys.argv[1], namespace=sys.argv[2])
print(*(job.id for job in client.submit_many(json.load(sys.stdin))), flush=True)
"""


@pytest.mark.parametrize(("name", "ran"), [("client.submit.before", False), ("client.submit.after", True)])
def test_a_submitter_killed_in_its_call(cluster, ledger, redis_server, name, ran):
    """Nobody knows the ids: the jobs are all there or none is, and what is there ends once."""

    cluster.start("master")
    cluster.start("slave", channels=2)
    items = [ledger.item() for _ in range(5)]
    submitter = subprocess.run(
        [sys.executable, "-c", SUBMITTER, cluster.redis_url, cluster.namespace],
        input=json.dumps(items),
        text=True,
        capture_output=True,
        env=cluster.environment(JOBSCHED_FAILPOINTS=f"{name}:kill"),
        check=False,
    )
    assert (submitter.returncode, submitter.stdout) == (-9, ""), submitter.stderr
    for item in items:
        ledger.unknown(item)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item()])  # comes last: when it has ended, the others have
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=15)
    assert len(account.ends) == (6 if ran else 1)
