"""Our master and our slave on the classic wire: full jobs, at most once."""

from __future__ import annotations

import signal

import pytest

from ledger import judge
from redis_server import wait_until


def test_full_jobs(classic, cluster, tmp_path):
    classic.master()
    classic.slave("1", "2", "3", slave={"python_path": [str(tmp_path)]})
    (tmp_path / "tasks_of_pair.py").write_text("def add(a, b):\n    print('adding')\n    return a + b\n")
    with cluster.client() as client:
        command = client.submit(["sh", "-c", "echo out; echo err >&2; exit 7"])
        missing = client.submit(["/no/such/program"])
        slow = client.submit(["sleep", "60"], timeout=0.3)
        call = client.call("tasks_of_pair:add", [40, 2], channel="2")
        client.wait([command, missing, slow, call], timeout=20)
        assert (command.outcome, command.cause, command.exit_code) == ("failed", "exit", 7)
        assert (command.output(), command.stderr()) == (b"out\n", b"err\n")
        assert (missing.outcome, missing.cause) == ("failed", "not_found")
        assert (slow.outcome, slow.cause) == ("timed_out", "timeout")
        assert (call.outcome, call.result, call.output(), call.channel) == ("succeeded", 42, b"adding\n", "2")
        assert {job.node for job in (command, missing, slow, call)} == {"node2"}
    done = cluster.run("run", "--", "sh", "-c", "echo hi; exit 7")
    assert (done.stdout, done.returncode) == ("hi\n", 7)


def test_a_job_that_failed_is_published_again_as_often_as_it_asks(classic, cluster):
    classic.master(["1"])
    classic.slave("1")
    with cluster.client() as client:
        job = client.submit(["false"], retries=2, retry_delay=0.05)
        job.wait(15)
        assert (job.outcome, job.attempt) == ("failed", 3)
    wait_until(lambda: len(classic.history(job.id)) == 3, 5, "every attempt in the history")


def test_an_array_that_is_held(classic, cluster):
    """At submit, and once it has begun: what has not started does not."""
    classic.master(["1"])
    classic.slave({"name": "1", "slots": 2})
    with cluster.client() as client:
        array = client.submit(["sleep", "0.3"], array="1-4%1", hold=True)
        client.submit(["true"], priority=-1).wait(10)  # the array would have begun before it
        assert array.refresh().counts.not_started == 4
        client.release([array])
        wait_until(lambda: array.refresh().counts.active, 10, cluster.logs())
        assert [changed.answer for changed in client.hold([array])] == ["done"]
        wait_until(lambda: not array.refresh().counts.active, 10, cluster.logs())
        client.submit(["true"], priority=-1).wait(10)
        assert array.refresh().counts.not_started >= 1 and not array.ended
        client.release([array])
        assert array.wait(15).outcome == "succeeded"


def test_cancel_reaches_a_running_job(classic, cluster):
    classic.master()
    classic.slave("1")
    with cluster.client() as client:
        job = client.submit(["sleep", "60"])
        wait_until(lambda: job.refresh().state == "running", 10, cluster.logs())
        assert job.cancel().answer == "requested"
        job.wait(5)
        assert job.outcome == "cancelled"


def test_a_channel_that_dies_answers_for_its_job(classic, cluster, ledger):
    """At once, not after result_timeout; and what may have run is not run again."""
    classic.master(["1"])
    slave = classic.slave("1")
    with cluster.client() as client:
        (job,) = ledger.submit(client, [ledger.item(seconds=60)])
        wait_until(lambda: job.refresh().state == "running", 10, cluster.logs())
        slave.kill("channel 1")
        job.wait(5)
        assert (job.outcome, job.cause) == ("lost", "channel_lost")
        after = client.submit(["true"])
        after.wait(10)
        assert after.outcome == "succeeded"
    assert len(ledger.events()[0]) == 1


def test_a_running_job_is_not_lost_because_it_is_long(classic, cluster, ledger):
    classic.master(["1"], result_timeout="1s")
    classic.slave("1")
    with cluster.client() as client:
        job = client.submit(["sleep", "2.5"])
        job.wait(10)
        assert job.outcome == "succeeded"


def test_a_slave_that_is_gone_for_good_has_lost_its_job(classic, cluster, ledger):
    classic.master(["1"], result_timeout="2s")
    slave = classic.slave("1")
    with cluster.client() as client:
        job = client.submit(["sleep", "60"])
        wait_until(lambda: job.refresh().state == "running", 10, cluster.logs())
        slave.pause("supervisor")
        slave.pause("channel 1")
        job.wait(10)
        assert (job.outcome, job.cause) == ("lost", "no_answer")
        slave.resume("channel 1")
        slave.resume("supervisor")


def test_drain_gives_running_jobs_their_end(classic, cluster, ledger, redis_server):
    classic.master(["1"])
    slave = classic.slave("1")
    with cluster.client() as client:
        running, waiting = ledger.submit(client, [ledger.item(seconds=1), ledger.item()])
        wait_until(lambda: running.refresh().state == "running", 10, cluster.logs())
        assert slave.stop() == 0
        running.wait(5)
        assert running.outcome == "succeeded"
        assert not waiting.refresh().ended
        slave.start()
        waiting.wait(40)
    with redis_server.client() as server:
        judge(cluster, ledger, server, within=10)


def test_an_interrupted_job_is_published_again(classic, cluster):
    classic.master(["1"])
    slave = classic.slave("1", slave={"drain_timeout": 0.2})
    with cluster.client() as client:
        job = client.submit(["sh", "-c", 'test "$JOBSCHED_ATTEMPT" != 1 || exec sleep 60'])
        only_once = client.submit(["sleep", "60"], retry_on_loss=False)
        wait_until(lambda: job.refresh().state == "running", 10, cluster.logs())
        assert slave.stop() == 0
        only_once.cancel()
        slave.start()
        job.wait(40)
        assert job.outcome == "succeeded" and job.attempt >= 2


def test_an_answer_that_nobody_heard_is_found(classic, cluster, ledger):
    """The whole master is away while the job ends."""
    master = classic.master(["1"])
    classic.slave("1")
    with cluster.client() as client:
        (job,) = ledger.submit(client, [ledger.item(seconds=1)])
        wait_until(lambda: job.refresh().state == "running", 10, cluster.logs())
        assert master.stop() == 0
        wait_until(lambda: len(ledger.events()[0]) == 2, 10, "it has ended")
        assert not job.refresh().ended
        master.start()
        job.wait(10)
        assert job.outcome == "succeeded"


def test_a_job_for_a_node_or_a_label(classic, cluster):
    classic.master(["1", "2"])
    cluster.start("slave", transport="pubsub", node="left", channels=[{"name": "1", "labels": ["fast"]}])
    cluster.start("slave", transport="pubsub", node="right", channels=["2"])
    with cluster.client() as client:
        jobs = [client.submit(["true"], node="right") for _ in range(5)]
        jobs += [client.submit(["true"], labels=["fast"]) for _ in range(5)]
        nobody = client.submit(["true"], labels=["gpu"])
        client.wait(jobs, timeout=20)
        assert [job.node for job in jobs] == ["right"] * 5 + ["left"] * 5
        assert nobody.refresh().state == "pending"


def test_two_slaves_of_one_name_run_a_job_once(classic, cluster, ledger, redis_server):
    """Names are global on this wire: both hear the id, one takes the job."""
    classic.master(["1"])
    cluster.start("slave", transport="pubsub", node="left", channels=["1"])
    cluster.start("slave", transport="pubsub", node="right", channels=["1"])
    with cluster.client() as client:
        jobs = ledger.submit(client, [ledger.item() for _ in range(30)])
        client.wait(jobs, timeout=20)
    with redis_server.client() as server:
        account = judge(cluster, ledger, server, within=10)
    assert len([event for event in account.events if event.kind == "start"]) == 30


def test_the_master_sees_the_fleet(classic, cluster):
    classic.master(["1"])
    classic.slave({"name": "1", "slots": 2})
    with cluster.client() as client:
        client.submit_many([{"command": ["sleep", "60"]} for _ in range(4)])

        def view():
            (channel,) = client.channels()
            return channel.transport, channel.state, channel.window, channel.entries

        wait_until(lambda: view() == ("pubsub", "up", 0, 2), 10, f"as many as it has slots\n{cluster.logs()}")
        assert len(list(client.jobs("pending"))) == 2


def test_a_channel_without_anybody_is_avoided_where_there_are_others(classic, cluster):
    """Each is tried once; after that a job that may go anywhere goes where somebody is."""
    classic.master(["1", "2", "3"])
    classic.slave("2")
    with cluster.client() as client:
        first = client.submit_many([{"command": ["true"]} for _ in range(6)])
        client.wait(first, timeout=20)
        assert sum(job.attempt - 1 for job in first) <= 2
        started = client.submit(["true"])
        started.wait(2)
        assert (started.attempt, started.channel) == (1, "2")


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True], ids=["shutdown", "sigkill"])
def test_redis_restarts_in_mid_load(classic, cluster, ledger, redis_server, hard):
    """Work goes on, no job is started twice, every job has its end, and who ended without Redis is answered for."""
    daemons = [classic.master(), classic.slave("1", "2", "3")]
    with cluster.client() as client:
        jobs = ledger.submit(client, [ledger.item(seconds=0.1) for _ in range(90)])
    wait_until(lambda: len(ledger.events()[0]) >= 40, 20, cluster.logs())
    before = [{role: child.pid for role, child in daemon.children().items()} for daemon in daemons]
    redis_server.kill() if hard else redis_server.stop()
    wait_until(lambda: cluster.logs().count("waiting for Redis") >= 5, 10, "everybody has noticed")
    redis_server.start()
    with cluster.client() as client:
        ended = client.wait(jobs, timeout=40)
        assert len(ended) == 90
        assert {(job.outcome, job.attempt) for job in jobs} == {("succeeded", 1)}
    assert [{role: child.pid for role, child in daemon.children().items()} for daemon in daemons] == before
    with redis_server.client() as server:
        judge(cluster, ledger, server, within=20)


@pytest.mark.slow
def test_killed_processes_never_make_a_job_run_twice(classic, cluster, ledger, redis_server):
    """SIGKILL to every process of ours in turn: at most one start a job, exactly one end."""
    master = classic.master(result_timeout="4s")
    slave = classic.slave("1", "2", "3")
    with cluster.client() as client:
        jobs = ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(150)])
        for daemon, role in (
            (slave, "channel 1"),
            (master, "dispatcher"),
            (slave, "channel 2"),
            (master, "collector"),
            (slave, "channel 3"),
        ):
            at = len(ledger.events()[0])
            wait_until(lambda at=at: len(ledger.events()[0]) >= at + 20, 20, cluster.logs())
            daemon.successor(role, of=daemon.signal(role, signal.SIGKILL))
        client.wait(jobs, timeout=60)
        ends = {job.id: (job.outcome, job.cause) for job in jobs}
    lost = [end for end in ends.values() if end[0] != "succeeded"]
    assert len(lost) <= 9, f"a kill costs what the process had in its hands: {lost}"
    assert set(lost) <= {("lost", "channel_lost"), ("lost", "no_answer")}
    starts = [event.job for event in ledger.events()[0] if event.kind == "start"]
    assert len(starts) == len(set(starts))
