"""A workflow of random shape, with random failures, under random kills: nobody is early, nobody waits for ever."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from faults.scene import Scene, of_account, tallied
from ledger import SUCCESS, Account
from redis_server import wait_until

SEED = int(os.environ.get("FAULTS_SEED", "1"))
#: Failures on purpose, and those of runners that were killed twice.
FAILURES = frozenset({("failed", "exception"), ("failed", "signal"), ("failed", "oom"), ("skipped", "dependency")})
VICTIMS = ["channel 1", "channel 2", "dispatcher", "collector"]
CONDITIONS = ["ok", "any", "any", "any", "any", "fail"]


def shape(chance: random.Random, jobs: int) -> list[dict[str, str]]:
    """What each job waits for: mostly others near to it, now and then one far away."""
    after: list[dict[str, str]] = []
    for number in range(jobs):
        reach = number if chance.random() < 0.1 else min(number, 100)
        parents = (
            {number - 1 - chance.randrange(reach) for _ in range(chance.choice([0, 1, 1, 2, 3]))} if reach else set()
        )
        after.append({f"j{parent}": chance.choice(CONDITIONS) for parent in parents})
    return after


# A few jobs must take a while, or all are over before the first blow.
@pytest.mark.parametrize(("jobs", "seconds"), [(150, 0.3), pytest.param(10_000, 0, marks=pytest.mark.faults)])
def test_a_workflow_of_random_shape_under_kills(cluster, ledger, redis_server, jobs, seconds):
    chance = random.Random(SEED)
    conditions = shape(chance, jobs)
    scene = Scene(cluster, ledger, redis_server)
    with tallied("shape", "kills", jobs=jobs, seed=SEED) as figures, scene.client as client:
        scene.start(slots=8)
        items = [ledger.function(seconds, retries=1, retry_delay=0.05, max_crashes=50) for _ in range(jobs)]
        with client.workflow("shape") as workflow:
            for number, (item, after) in enumerate(zip(items, conditions, strict=True)):
                item["kwargs"]["fail"] = chance.random() < 0.05
                pairs = [f"{parent}:{condition}" for parent, condition in after.items()]
                workflow.add(item | {"ref": f"j{number}", "after": pairs})
        ids = {f"j{number}": node.id for number, node in enumerate(workflow.nodes)}
        for item, node in zip(items, workflow.nodes, strict=True):
            ledger.accepted(item, node.id)
        blows: Counter[str] = Counter()
        while not ended(client, workflow.id):
            strike(scene, chance, blows)
        account = scene.verdict(within=30, expected=SUCCESS | FAILURES)
        outcomes = {end.job: end.outcome for end in account.ends}
        for number, after in enumerate(conditions):
            met = all(holds(condition, outcomes[ids[parent]]) for parent, condition in after.items())
            assert met == (outcomes[ids[f"j{number}"]] != "skipped"), f"j{number} waited for {after}"
        assert_order(
            account, {ids[f"j{number}"]: [ids[ref] for ref in after] for number, after in enumerate(conditions)}
        )
        figures |= of_account(account) | {"blows": dict(blows), "outcomes": dict(Counter(outcomes.values()))}
        assert blows and {"succeeded", "failed", "skipped"} <= set(outcomes.values()), "void: nothing much happened"


def ended(client, workflow: str) -> bool:
    view = client.inspect.workflow(workflow)
    assert view is not None
    return view.ended


def strike(scene: Scene, chance: random.Random, blows: Counter[str]) -> None:
    """SIGKILL to one process that is there; on with the next once another few jobs have begun, or nothing moves."""
    before = scene.started()
    alive = {name: daemon for daemon in (scene.master, scene.slave) for name in daemon.children() if name in VICTIMS}
    if alive:
        victim = chance.choice(sorted(alive))
        alive[victim].kill(victim)
        blows[victim] += 1
    step = chance.randint(20, 200)
    try:
        wait_until(lambda: scene.started() >= before + step, 5, "", every=0.2)
    except pytest.fail.Exception:
        return


def holds(condition: str, outcome: str) -> bool:
    return condition == "any" or (outcome == "succeeded") == (condition == "ok")


def assert_order(account: Account, parents: dict[str, list[str]]) -> None:
    """By the jobs' own account: when a job begins, no attempt of those before it is still to come."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, event in enumerate(account.events):
        first.setdefault(event.job, place)
        last[event.job] = place
    for job, before in parents.items():
        for parent in before:
            if job in first and parent in last:
                assert last[parent] < first[job], f"job {job} began before {parent}, which it waited for, had ended"
