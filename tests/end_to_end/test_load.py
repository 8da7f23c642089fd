"""A thousand jobs while processes die, and a Redis that goes away in the middle of its work."""

from __future__ import annotations

import itertools
import time

import pytest

from ledger import Account, judge, read_ends
from redis_server import wait_until

JOBS = 1000


def _finished(ledger) -> int:
    return sum(event.kind == "stop" for event in ledger.events()[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["item", "function"], ids=["commands", "functions"])
def test_a_thousand_jobs_while_a_channel_is_killed_every_second(cluster, ledger, redis_server, kind):
    """1,000 accepted ends: none missing, none double, none wrongly poison."""
    cluster.start("master")
    slave = cluster.start("slave", channels=3, slave={"python_path": [ledger.python_path]})
    make = getattr(ledger, kind)
    with cluster.client() as client:
        for _ in range(10):
            ledger.submit(client, [make(seconds=0.02) for _ in range(JOBS // 10)])
    kills = 0
    begin = time.monotonic()
    for channel in itertools.cycle(("channel 1", "channel 2", "channel 3")):
        due = begin + kills + 1
        wait_until(lambda due=due: time.monotonic() >= due or _finished(ledger) >= JOBS, 2, "a second", 0.05)
        if _finished(ledger) >= JOBS:
            break
        assert kills < 60, f"{_finished(ledger)} of {JOBS} jobs have ended after a minute\n{cluster.logs()}"
        victim = slave.kill(channel)
        kills += 1
        slave.successor(channel, of=victim, within=2)
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=30)
    again = sum(event.kind == "start" for event in account.events) - JOBS
    print(f"{kills} kills, {again} starts again")
    assert kills >= 3 and again, "void: no kill hit a running job"
    assert len(account.ends) == JOBS
    # On a machine so slow that a lease ends before the new process is up, what had just ended may run again too.
    late = sum("channel is lost" in line for line in cluster.logs().splitlines())
    stories = _stories(account)
    # A runner is at the next function while the channel takes the result of the last.
    each = 1 if kind == "item" else 2
    assert again <= each * kills + late, f"a kill costs what ran in its one slot, no more\n{_repeated(stories)}"


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True], ids=["shutdown", "sigkill"])
def test_redis_restarts_in_mid_load(cluster, ledger, redis_server, hard):
    """Work goes on within 5 s of its return, nothing is lost, and none of our processes had to be restarted."""
    daemons = [cluster.start("master"), cluster.start("slave", channels=3)]
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(180)])
    wait_until(lambda: _finished(ledger) >= 60, 20, f"a part has ended\n{cluster.logs()}")
    before = [{role: child.pid for role, child in daemon.children().items()} for daemon in daemons]
    redis_server.kill() if hard else redis_server.stop()
    wait_until(lambda: not _grows(ledger, 0.3), 5, "nothing starts without Redis")
    redis_server.start()
    at_return = len(ledger.events()[0])
    took = wait_until(lambda: len(ledger.events()[0]) > at_return, 5, f"work goes on\n{cluster.logs()}")
    print(f"work went on {took:.2f} s after Redis was back")
    assert len(read_ends(cluster.history())) < 180, "void: all had ended before"
    wait_until(lambda: _finished(ledger) >= 180, 60, f"everything has ended\n{cluster.logs()}")
    assert [{role: child.pid for role, child in daemon.children().items()} for daemon in daemons] == before
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=20)
    assert not [event for event in account.events if event.attempt > 1], "an outage requeues nothing that still runs"


def _grows(ledger, seconds: float) -> bool:
    before = len(ledger.events()[0])
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 1, "time passes", every=0.05)
    return len(ledger.events()[0]) > before


def _stories(account: Account) -> dict[str, list[str]]:
    """Job -> what happened to it, such as "1 start", "2 start", "2 stop"."""
    stories: dict[str, list[str]] = {}
    for event in account.events:
        stories.setdefault(event.job, []).append(f"{event.attempt} {event.kind}")
    return stories


def _starts(story: list[str]) -> int:
    return sum("start" in happened for happened in story)


def _repeated(stories: dict[str, list[str]]) -> str:
    return "\n".join(f"job {job}: {', '.join(story)}" for job, story in stories.items() if _starts(story) > 1)
