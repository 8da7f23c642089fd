"""Silence instead of death: stopped processes, a stalled Redis, a whole node gone, a master that is replaced."""

from __future__ import annotations

import contextlib
import time

import psutil
import pytest

from ledger import judge
from node_harness import alive
from redis_server import wait_until

LEASE = 1.5


def _started(ledger) -> int:
    return sum(event.kind == "start" for event in ledger.events()[0])


def _pass(seconds: float) -> None:
    """Let an outage last; nothing observable happens meanwhile."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 5, "time passes", every=0.05)


def test_a_stopped_channel_loses_its_job_to_another_and_its_late_result_is_refused(cluster, ledger, redis_server):
    cluster.start("master")
    slave = cluster.start("slave", channels=1)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=2)])
        wait_until(lambda: _started(ledger) == 1, 10, f"the job has begun\n{cluster.logs()}")
        slave.pause("channel 1")
        cluster.start("slave", channels=1)
        wait_until(lambda: _started(ledger) == 2, 8, f"another channel runs it\n{cluster.logs()}")
        slave.resume("channel 1")
        ledger.submit(client, [ledger.item() for _ in range(10)])
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=20)
    assert [end.attempt for end in account.ends if end.job == ledger.jobs()[0]] == [2]


def test_a_stopped_channel_hands_its_exclusive_job_over_without_overlap(cluster, ledger, redis_server):
    """Cut off from Redis, a node ends a job that forbids overlap before its lease does."""
    cluster.start("master")
    cluster.start("slave", channels=2)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=0.5, overlap="forbid") for _ in range(6)])
        wait_until(lambda: _started(ledger) >= 2, 10, f"they have begun\n{cluster.logs()}")
        redis_server.pause()
        _pass(3 * LEASE)
        redis_server.resume()
    with redis_server.client() as client:
        judge(cluster, ledger, client, within=30)


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
def test_a_node_that_is_cut_off_from_redis(cluster, ledger, redis_server, overlap):
    """Its job goes to another node. Where it forbids an overlap, the first node has ended it by then."""
    with redis_server.client() as admin:
        admin.acl_setuser("cut", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], categories=["+@all"])
        cluster.start("master")
        login = {"url": cluster.redis_url, "username": "cut", "password": "secret"}
        cluster.start("slave", channels=1, redis=login)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=4, overlap=overlap)])
        wait_until(lambda: _started(ledger) == 1, 10, f"the job has begun\n{cluster.logs()}")
        cluster.start("slave", channels=1)
        admin.acl_setuser("cut", enabled=False)
        admin.client_kill_filter(user="cut")
        wait_until(lambda: _started(ledger) == 2, 8, f"the other node runs it\n{cluster.logs()}")
        first, second = (event.pid for event in ledger.events()[0])
        assert alive(second)
        assert alive(first) == (overlap == "allow")
        admin.acl_setuser("cut", enabled=True)
        account = judge(cluster, ledger, admin, within=20)
        assert [end.attempt for end in account.ends] == [2]


def test_a_follower_misses_nothing_of_what_was_written_while_redis_was_away(cluster, redis_server):
    """A restart that may even forget the end of the live output: the channel says again what it holds."""
    cluster.start("master")
    cluster.start("slave", channels=1)
    with cluster.client() as client:
        job = client.submit(["sh", "-c", "for i in $(seq 24); do echo $i; sleep 0.1; done"])
        seen: list[str] = []
        away = False
        for piece in client.follower(job.id).pieces():
            if piece is not None:
                assert not piece.missing
                seen += piece.data.decode().split()
            if len(seen) >= 3 and not away:
                away = True
                redis_server.kill()
                _pass(0.7)
                redis_server.start()
        assert seen == [str(number) for number in range(1, 25)]


def test_a_stalled_redis_requeues_nobody(cluster, ledger, redis_server):
    """All leases end at once, and nobody had a chance to renew: what runs goes on, once."""
    cluster.start("master")
    cluster.start("slave", channels=3)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=6) for _ in range(3)])
        wait_until(lambda: _started(ledger) == 3, 10, f"all run\n{cluster.logs()}")
        redis_server.pause()
        _pass(2 * LEASE)
        redis_server.resume()
    with redis_server.client() as client:
        account = judge(cluster, ledger, client, within=30)
    assert [event.attempt for event in account.events] == [1] * 6, "each ran once"


def test_everything_of_a_node_dies_at_once(cluster, ledger, redis_server):
    """As in a crash of its container: the jobs run elsewhere; what survived of them ends at the next start."""
    cluster.start("master")
    slave = cluster.start("slave", channels=2)
    with cluster.client() as client:
        long_at_first = ["sh", "-c", '[ "$JOBSCHED_ATTEMPT" = 1 ] && exec sleep 300; exit 0']
        jobs = [client.submit(long_at_first) for _ in range(2)]
        wait_until(lambda: len(_sleepers(cluster)) == 2, 10, f"two run\n{cluster.logs()}")
        ledger.submit(client, [ledger.item() for _ in range(4)])
        daemons = [slave.supervisor, *slave.children().values()]
        for process in daemons:
            process.suspend()  # nobody may react to the death of another
        for process in daemons:
            process.kill()
        slave.popen.wait(5)
        assert len(_sleepers(cluster)) == 2, "void: they died with their node"
        cluster.start("slave", channels=2)
        client.wait(jobs, timeout=10)
        assert [job.outcome for job in jobs] == ["succeeded"] * 2
    slave.start()
    wait_until(lambda: not _sleepers(cluster), 5, f"what survived has ended\n{cluster.logs()}")
    with redis_server.client() as client:
        judge(cluster, ledger, client, within=30)


def _sleepers(cluster) -> list[psutil.Process]:
    found = []
    for process in cluster.processes():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["sleep"]:
                found.append(process)
    return found


def test_a_second_master_stands_by_and_takes_over(cluster, ledger, redis_server):
    first = cluster.start("master")
    second = cluster.start("master")
    cluster.start("slave", channels=2)
    wait_until(lambda: "standing by" in second.log(), 5, f"the second waits\n{cluster.logs()}")
    assert "standing by" not in first.log()
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(40)])
        wait_until(lambda: _started(ledger) >= 10, 10, f"some have begun\n{cluster.logs()}")
        first.kill()
        ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(40)])
    before = _started(ledger)
    took = wait_until(lambda: _started(ledger) > before + 4, 5, f"the second leads\n{cluster.logs()}")
    print(f"taken over after {took:.2f} s")
    with redis_server.client() as client:
        judge(cluster, ledger, client, within=20)


def test_a_stopped_leader_changes_nothing_after_its_return(cluster, ledger, redis_server):
    first = cluster.start("master")
    cluster.start("master")
    cluster.start("slave", channels=2)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(60)])
        wait_until(lambda: _started(ledger) >= 6, 10, f"some have begun\n{cluster.logs()}")
        first.pause("dispatcher")
        first.pause("collector")
        before = _started(ledger)
        wait_until(lambda: _started(ledger) > before + 10, 8, f"the second leads\n{cluster.logs()}")
        first.resume("dispatcher")
        first.resume("collector")
        ledger.submit(client, [ledger.item() for _ in range(20)])
    with redis_server.client() as client:
        judge(cluster, ledger, client, within=20)
