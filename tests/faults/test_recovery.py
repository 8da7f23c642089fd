"""How long until work goes on, with the time bounds that users get: nothing is divided by ten here.

FAULTS_ROUNDS sets how often each fault is repeated; the scorecard asks for more than the few of ``make faults``.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable

import psutil
import pytest

from cluster import Cluster, Daemon
from faults.scene import let_pass, of_account, tallied
from jobschedd.config.model import Timing
from ledger import SUCCESS, Ledger, judge
from node_harness import alive
from redis_server import RedisServer, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(0)]
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "3"))
OUTAGE = float(os.environ.get("FAULTS_OUTAGE", "5"))
BOUNDS = {field: getattr(Timing(), field) for field in ("heartbeat", "lease", "leader_lease", "reap_scan", "block")} | {
    "term_grace": 10.0
}


class Clinic:
    """A fleet with the bounds of production, and its recoveries so far."""

    def __init__(self, cluster: Cluster, ledger: Ledger, server: RedisServer) -> None:
        self.cluster, self.ledger, self.server = cluster, ledger, server
        self.client = cluster.client()
        self.seconds: list[float] = []

    def daemon(self, role: str, **how: object) -> Daemon:
        """One that is ready."""
        return self.cluster.start(role, timing=BOUNDS, **how)

    def starts(self) -> int:
        """Jobs begun so far."""
        return sum(event.kind == "start" for event in self.ledger.events()[0])

    def running_job(self, seconds: float = 1, **options: object) -> None:
        """One job that has begun and takes a while."""
        before = self.starts()
        self.ledger.submit(self.client, [self.ledger.item(seconds=seconds, max_crashes=200, **options)])
        wait_until(lambda: self.starts() > before, 30, f"it has begun\n{self.cluster.logs()}")

    def recovery(self, since: float, before: int, within: float, what: str) -> None:
        """Note how long it takes from ``since`` until more than ``before`` jobs have begun."""
        wait_until(lambda: self.starts() > before, within, f"{what}\n{self.cluster.logs()}", every=0.005)
        self.seconds.append(time.monotonic() - since)


@pytest.fixture
def clinic(cluster, ledger, redis_server):
    clinic = Clinic(cluster, ledger, redis_server)
    with clinic.client:
        yield clinic


def _measured(clinic: Clinic, fault: str, bound: float, one: Callable[[], None]) -> None:
    with tallied("recovery", fault, bound=bound) as figures:
        for _ in range(ROUNDS):
            one()
        with clinic.server.client() as client:
            account = judge(clinic.cluster, clinic.ledger, client, within=60, expected=SUCCESS)
        figures["times"] = [round(each, 3) for each in clinic.seconds]
        figures |= of_account(account)
    print(f"{fault}: median {statistics.median(clinic.seconds):.2f} s, worst {max(clinic.seconds):.2f} s")
    assert max(clinic.seconds) <= bound


def test_a_killed_channel(clinic):
    """From the kill until its job begins again."""
    clinic.daemon("master")
    slave = clinic.daemon("slave", channels=1)

    def one() -> None:
        clinic.running_job()
        begin, before = time.monotonic(), clinic.starts()
        slave.kill("channel 1")
        clinic.recovery(begin, before, 5, "the job begins again")
        wait_until(lambda: clinic.ledger.events()[0][-1].kind == "stop", 10, "it ends")

    _measured(clinic, "channel process killed", 2.0, one)


def test_a_killed_node(clinic):
    """Everything of it at once, until its job begins on another."""
    clinic.daemon("master")
    other: list[Daemon] = [clinic.daemon("slave", channels=1)]

    def one() -> None:
        victim = other.pop()
        clinic.running_job(seconds=3)
        other.append(clinic.daemon("slave", channels=1))
        begin, before = time.monotonic(), clinic.starts()
        _kill_at_once(victim)
        clinic.recovery(begin, before, 30, "the job begins on the other node")

    _measured(clinic, "node lost", 17.0, one)


def _replaced_master(clinic: Clinic, end: Callable[[Daemon], float], within: float) -> Callable[[], None]:
    leader = [clinic.daemon("master")]
    clinic.daemon("slave", channels=1)

    def one() -> None:
        standby = clinic.daemon("master")
        let_pass(0.5)
        clinic.running_job()
        wait_until(lambda: clinic.ledger.events()[0][-1].kind == "stop", 10, "the channel is free")
        before = clinic.starts()
        begin = end(leader.pop())
        clinic.ledger.submit(clinic.client, [clinic.ledger.item()])
        clinic.recovery(begin, before, within, "the next master dispatches")
        leader.append(standby)

    return one


def test_a_killed_leader(clinic):
    """From the kill of all its processes at once until the standby's first dispatch begins."""

    def end(leader: Daemon) -> float:
        begin = time.monotonic()
        _kill_at_once(leader)
        return begin

    _measured(clinic, "leading master killed", 12.0, _replaced_master(clinic, end, 20))


def test_an_orderly_hand_over(clinic):
    """From the end of the former leader; until then it does its work."""

    def end(leader: Daemon) -> float:
        assert leader.stop() == 0
        return time.monotonic()

    _measured(clinic, "leading master stopped in order", 0.5, _replaced_master(clinic, end, 20))


def test_redis_away(clinic):
    """FAULTS_OUTAGE seconds without it; from its return until the next job begins."""
    clinic.daemon("master")
    clinic.daemon("slave", channels=1)

    def one() -> None:
        clinic.running_job()
        clinic.ledger.submit(clinic.client, [clinic.ledger.item()])
        clinic.server.kill()
        let_pass(OUTAGE)
        begin, before = time.monotonic(), clinic.starts()
        clinic.server.start()
        clinic.recovery(begin, before, 15, "work goes on")

    _measured(clinic, f"Redis killed, back after {OUTAGE:g} s", 5.0, one)


def test_a_killed_supervisor(clinic):
    """From the kill until no process of the node is left."""
    clinic.daemon("master")

    def one() -> None:
        slave = clinic.daemon("slave", channels=2)
        clinic.running_job(node=slave.name)
        processes = [slave.supervisor, *slave.supervisor.children(recursive=True)]
        begin = time.monotonic()
        slave.kill()
        slave.popen.wait(5)
        wait_until(lambda: not any(map(alive, processes)), 5, "nothing is left")
        clinic.seconds.append(time.monotonic() - begin)
        slave.start()

    _measured(clinic, "supervisor killed, nothing left", 5.0, one)


def _kill_at_once(daemon: Daemon) -> None:
    """As a machine that loses its power: nobody may react to the death of another."""
    processes = [daemon.supervisor, *daemon.supervisor.children(recursive=True)]
    for do in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a job that has just ended
                do(process)
    daemon.popen.wait(5)
