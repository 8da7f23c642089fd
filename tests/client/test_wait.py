"""Waiting and reading results, against real daemons."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import Cluster
from jobschedd import Client
from jobschedd.errors import JobFailed, NoSuchJob, NotEnded, WaitTimeout
from redis_server import RedisServer, wait_until


@pytest.fixture
def client(fleet: Cluster) -> Iterator[Client]:
    with fleet.client() as client:
        yield client


def test_how_a_command_ended(client: Client):
    job = client.submit(["sh", "-c", "echo out; echo err >&2; exit 3"]).wait(10)

    assert (job.state, job.outcome, job.cause, job.exit_code, job.signal) == ("done", "failed", "exit", 3, None)
    assert (job.output(), job.stderr()) == (b"out\n", b"err\n")
    assert (job.node, job.attempt) == ("n1", 1)
    assert job.ended and not job.succeeded
    with pytest.raises(JobFailed, match=rf"job {job.id} failed \(exit\)"):
        _ = job.result


def test_what_a_function_returned(client: Client):
    job = client.call("os.path:join", ["a", "b"]).wait(10)

    assert (job.outcome, job.result, job.error) == ("succeeded", "a/b", "")


def test_what_a_function_raised(client: Client):
    job = client.call("json:loads", ["{"]).wait(10)

    with pytest.raises(JobFailed, match=r"failed \(exception\)[\s\S]*JSONDecodeError") as failure:
        _ = job.result
    assert failure.value.cause == "exception"
    assert "Traceback" in job.error


def test_a_job_that_has_not_ended_has_no_result(client: Client):
    job = client.submit(["sleep", "30"], channel="gpu")
    with pytest.raises(NotEnded, match="wait for it first"):
        _ = job.result
    with pytest.raises(NotEnded):
        job.output()
    begin = time.monotonic()
    with pytest.raises(WaitTimeout, match="the job has not ended within 200ms"):
        job.wait(0.2)
    assert 0.15 < time.monotonic() - begin < 2

    assert job.cancel().answer in ("requested", "cancelled")
    assert (job.wait(10).outcome, job.cause) == ("cancelled", "cancelled")


def test_each_job_as_it_ends(client: Client):
    slow = client.submit(["sleep", "1"], channel="gpu")
    quick = client.submit(["true"], channel="gpu")

    assert [job.id for job in client.as_completed([slow, quick], 10)] == [quick.id, slow.id]


def test_ids_are_as_good_as_jobs(client: Client):
    job = client.submit(["true"])

    assert [each.outcome for each in client.wait([job.id, int(job.id), job], 10)] == ["succeeded"] * 3


def test_many_jobs(client: Client):
    jobs = client.submit_many({"function": "os.path:join", "args": ["a", str(number)]} for number in range(1500))

    assert client.wait(jobs, 60) == jobs
    assert [job.result for job in jobs] == [f"a/{number}" for number in range(1500)]


def test_two_wait_for_one(fleet: Cluster, client: Client):
    job = client.submit(["sleep", "0.5"])
    with fleet.client() as other, ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(one.wait, [job.id], 10) for one in (client, client, other, other)]
        assert [wait.result()[0].outcome for wait in waits] == ["succeeded"] * 4


def test_an_unknown_job_is_not_waited_for(client: Client):
    (job,) = client.wait([999_999_999], 5)

    with pytest.raises(NoSuchJob):
        _ = job.outcome


def test_a_record_that_vanishes_ends_the_wait(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobschedd.client.waiting._LOOK_AGAIN", 0.2)
    job = client.submit(["true"], delay=60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, [job], 10)
        client.session._redis.delete(client.session.keys.job(job.id))
        waiting.result()

    with pytest.raises(NoSuchJob, match="its record has expired"):
        _ = job.outcome


def test_waiting_does_not_poll(redis_server: RedisServer):
    with Client(redis_server.url, "test") as client, redis_server.client() as admin:
        job = client.submit(["true"])
        admin.config_resetstat()
        with pytest.raises(WaitTimeout):
            job.wait(2.5)
        calls = {name: about["calls"] for name, about in admin.info("commandstats").items()}

    assert calls.get("cmdstat_blmpop") == 3, "one a second"
    assert calls.get("cmdstat_get") == 1, "the registration looks at the record, and nobody after it"
    assert "cmdstat_mget" not in calls


def test_idle_latency(client: Client):
    """No wait of ours is on the way. The promise (2 ms) is for a calm machine and measured by the benchmarks."""
    client.call("os:getpid").wait(10)
    times = []
    for _ in range(100):
        begin = time.perf_counter()
        client.call("os:getpid").wait(10)
        times.append(time.perf_counter() - begin)

    assert sorted(times)[50] < 0.05, f"median {sorted(times)[50] * 1000:.1f} ms"


def test_a_retried_job_is_waited_for_again(client: Client):
    job = client.submit(["sh", "-c", "exit $JOBSCHED_ATTEMPT"]).wait(10)
    assert job.exit_code == 1

    again = client.retry(job).wait(10)
    assert (again.exit_code, again.attempt) == (2, 2)


def test_an_end_that_nobody_took_is_not_that_of_the_retry(fleet: Cluster, client: Client):
    """It waits in the inbox, record and all, when the next wait begins."""
    job = client.submit(["sh", "-c", "sleep 0.3; exit $JOBSCHED_ATTEMPT"])
    with pytest.raises(WaitTimeout):
        job.wait(0.05)
    with fleet.client() as other:
        assert other.wait([job.id], 10)[0].exit_code == 1

    again = client.retry(job).wait(10)
    assert (again.exit_code, again.attempt) == (2, 2)


def test_a_wait_outlives_a_restart_of_redis(redis_server: RedisServer, cluster: Cluster):
    cluster.start(["master", "slave"], channels=1)
    with cluster.client() as client, ThreadPoolExecutor(1) as pool:
        job = client.submit(["sleep", "1"])
        waiting = pool.submit(client.wait, [job], 30)
        wait_until(lambda: job.state in ("dispatched", "running"), 5, "the job has started")
        redis_server.restart(hard=True)

        assert waiting.result()[0].outcome == "succeeded"
