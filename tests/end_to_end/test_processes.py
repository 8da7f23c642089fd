"""Which processes there are, and what becomes of them and of their jobs when one is killed."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from cluster import describe
from jobschedd.store.keys import Keys
from ledger import judge
from node_harness import alive
from redis_server import wait_until

CHANNELS = ["channel 1", "channel 2", "channel 3", "channel 4"]


class TestWhich:
    @pytest.mark.parametrize(
        ("role", "expected"),
        [
            ("slave", CHANNELS),
            ("master", ["collector", "dispatcher"]),
            (["master", "slave"], [*CHANNELS, "collector", "dispatcher"]),
        ],
        ids=["slave", "master", "both"],
    )
    def test_one_child_for_each_duty_and_no_more(self, cluster, role, expected):
        daemon = cluster.start(role, channels=4)
        assert sorted(daemon.children()) == sorted(expected)
        everything = [daemon.supervisor, *daemon.supervisor.children(recursive=True)]
        assert len(everything) == len(expected) + 1, describe(everything)
        assert daemon.stop() == 0
        cluster.assert_nothing_left()

    def test_the_embedded_server_is_one_more(self, cluster):
        cluster.redis_url = "embedded"
        daemon = cluster.start(["master", "slave"], channels=1)
        assert sorted(daemon.children()) == ["channel 1", "collector", "dispatcher", "redis"]
        assert daemon.stop() == 0
        cluster.assert_nothing_left()


def test_whoever_waits_for_a_lone_job_needs_no_collector(cluster, redis_server):
    """The verdict comes with the report; the history follows once somebody is there to write it."""
    master = cluster.start(["master", "slave"], channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        client.submit(["true"]).wait(20)
        wait_until(lambda: admin.exists(Keys(cluster.namespace).offers), 10, "the leader offers")
        collector = master.pause("collector")
        jobs = [client.submit(["true"]), client.call("builtins:str", args=[7])]
        assert [job.wait(10).outcome for job in jobs] == ["succeeded"] * 2
        assert collector.status() == psutil.STATUS_STOPPED
        assert jobs[1].result == "7"
        master.resume("collector")
        wait_until(lambda: {row.job for row in client.history()} >= {job.id for job in jobs}, 10, "they have rows")


def _finished(ledger) -> int:
    return sum(event.kind == "stop" for event in ledger.events()[0])


class TestKilledChild:
    @pytest.mark.parametrize("role", ["dispatcher", "collector", "channel 2"])
    def test_a_new_one_within_2_seconds_and_no_job_lost(self, cluster, ledger, redis_server, role):
        master = cluster.start("master")
        slave = cluster.start("slave", channels=3)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=0.03) for _ in range(120)])
        wait_until(lambda: _finished(ledger) >= 10, 20, f"some jobs have ended\n{cluster.logs()}")
        daemon = slave if role.startswith("channel") else master
        others = {name: child.pid for name, child in daemon.children().items() if name != role}
        victim = daemon.kill(role)
        daemon.successor(role, of=victim, within=2)
        assert _finished(ledger) < 120, "void: all had ended before the kill"
        now = {name: child.pid for name, child in daemon.children().items() if name != role}
        assert now == others, "nobody else was restarted"
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=30)

    @pytest.mark.parametrize("role", ["dispatcher", "collector", "channel 1"])
    def test_every_idle_child_comes_back_and_works(self, cluster, ledger, redis_server, role):
        daemon = cluster.start(["master", "slave"], channels=1)
        before = {name: child.pid for name, child in daemon.children().items()}
        daemon.successor(role, of=daemon.kill(role), within=2)
        after = {name: child.pid for name, child in daemon.children().items()}
        assert {name for name in before if before[name] != after.get(name)} == {role}
        with cluster.client() as client:
            ledger.submit(client, [ledger.item() for _ in range(5)])
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=15)

    def test_the_job_of_a_killed_channel_dies_with_it_and_runs_again(self, cluster, ledger, redis_server):
        cluster.start("master")
        slave = cluster.start("slave", channels=1)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=1)])
        wait_until(lambda: ledger.events()[0], 15, f"the job has begun\n{cluster.logs()}")
        first = psutil.Process(ledger.events()[0][0].pid)
        slave.kill("channel 1")
        wait_until(lambda: not alive(first), 2, "its process is gone")
        wait_until(lambda: len(ledger.events()[0]) >= 2, 5, f"it runs again\n{cluster.logs()}")
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=15)
        assert [(event.attempt, event.kind) for event in account.events] == [(1, "start"), (2, "start"), (2, "stop")]


class TestKilledSupervisor:
    def test_no_process_is_left_after_5_seconds(self, cluster, ledger):
        """Not even those of jobs: neither the plain one nor the one that left its session."""
        master = cluster.start("master")
        slave = cluster.start("slave", channels=3)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=300) for _ in range(2)])
            client.submit(["sh", "-c", "setsid sleep 300 & setsid sh -c 'sleep 300; true' & exec sleep 300"])

        def sleepers() -> int:
            return sum("sleep" in " ".join(_command(process)) for process in cluster.processes())

        wait_until(lambda: sleepers() >= 5 and len(ledger.events()[0]) == 2, 15, f"the jobs run\n{cluster.logs()}")
        begin = time.monotonic()
        master.kill()
        slave.kill()
        cluster.assert_nothing_left(within=5)
        print(f"nothing left after {time.monotonic() - begin:.2f} s")

    def test_a_job_of_a_killed_supervisor_is_recovered_by_the_next(self, cluster, ledger, redis_server):
        cluster.start("master")
        slave = cluster.start("slave", channels=1)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=0.5) for _ in range(3)])
        wait_until(lambda: ledger.events()[0], 15, f"a job has begun\n{cluster.logs()}")
        slave.kill()
        slave.popen.wait()
        slave.start()
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=20)


class TestStop:
    def test_sigterm_lets_running_jobs_end(self, cluster, ledger, redis_server):
        cluster.start("master")
        slave = cluster.start("slave", channels=1)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=1) for _ in range(2)])
        wait_until(lambda: ledger.events()[0], 15, f"a job has begun\n{cluster.logs()}")
        assert slave.stop() == 0
        assert [event.kind for event in ledger.events()[0]] == ["start", "stop"], "drained, and took nothing new"
        slave.start()
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=15)
        assert all(end.attempt == 1 or end.job != ledger.jobs()[0] for end in account.ends)

    def test_sigint_stops_at_once_and_the_job_runs_elsewhere(self, cluster, ledger, redis_server):
        cluster.start("master")
        slave = cluster.start("slave", channels=1)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=2)])
        wait_until(lambda: ledger.events()[0], 15, f"the job has begun\n{cluster.logs()}")
        begin = time.monotonic()
        os.kill(slave.supervisor.pid, signal.SIGINT)
        slave.popen.wait(5)
        assert time.monotonic() - begin < 1.9, "it did not wait for the job"
        cluster.start("slave", channels=1)
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=15)
        assert account.ends[0].attempt == 2


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
