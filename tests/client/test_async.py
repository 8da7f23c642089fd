"""The asyncio twin against real daemons: the same meaning, cheap waits, and no harm from cancelled tasks."""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from cluster import Cluster
from jobschedd import AsyncClient, Client, Job
from jobschedd.client import AsyncJob
from jobschedd.errors import (
    InvalidJob,
    JobFailed,
    NoSuchJob,
    NotEnded,
    NotRead,
    StoreUnavailable,
    UsageError,
    WaitTimeout,
)
from redis_server import RedisServer


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine; it may take a minute."""

    @wraps(test)
    def wrapped(*args: Any, **how: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **how), 60))

    return wrapped


def connected(fleet: Cluster, **how: Any) -> AsyncClient:
    return AsyncClient(fleet.redis_url, fleet.namespace, **how)


async def until(condition: Callable[[], Awaitable[bool]], what: str, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.01)


def test_it_has_every_method_of_the_other():
    """With the same parameters, but for what only a blocking program can use."""

    def methods(kind: type) -> dict[str, list[str]]:
        found = {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}
        return {name: list(inspect.signature(one).parameters) for name, one in found.items() if callable(one)}

    blocking, twin = methods(Client), methods(AsyncClient)
    assert set(blocking) - set(twin) == {"read", "follower"}
    ours = {name: parameters for name, parameters in blocking.items() if name in twin}
    del ours["history"], twin["history"]
    assert twin == ours
    assert set(methods(Job)) == set(methods(AsyncJob))


@run
async def test_how_jobs_ended(fleet: Cluster):
    async with connected(fleet) as client:
        job = await client.submit(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert await job.wait(10) is job
        assert (job.state, job.outcome, job.cause, job.exit_code) == ("done", "failed", "exit", 3)
        assert (job.output(), job.stderr(), job.node, job.attempt) == (b"out\n", b"err\n", "n1", 1)
        with pytest.raises(JobFailed):
            _ = job.result
        joined = await (await client.call("os.path:join", ["a", "b"])).wait(10)
        assert joined.result == "a/b"
        said = await (await client.shell("echo $0")).wait(10)
        assert said.succeeded
        again = await (await client.retry(job)).wait(10)
        assert again.attempt == 2 and again == job and len({again, job}) == 1
        assert [one.id async for one in client.jobs("failed", limit=1)] == [job.id]
        assert {channel.name for channel in await client.channels()} == {"n1/1", "n1/gpu"}
        assert [node.node for node in await client.nodes()] == ["n1"]
        assert (await client.job(int(job.id))).exit_code == 3


@run
async def test_what_was_not_read_is_not_told(fleet: Cluster):
    async with connected(fleet) as client:
        job = await client.submit(["sleep", "30"], channel="gpu")
        with pytest.raises(NotRead, match=r"await job\.refresh\(\) or job\.wait\(\) first"):
            _ = job.state
        await job.refresh()
        with pytest.raises(NotEnded):
            job.output()
        with pytest.raises(WaitTimeout, match="the job has not ended within 200ms"):
            await job.wait(0.2)
        assert (await job.cancel()).answer in ("requested", "cancelled")
        assert (await job.wait(10)).outcome == "cancelled"
        (gone,) = await client.wait([999_999_999], 5)
        with pytest.raises(NoSuchJob):
            _ = gone.outcome
        with pytest.raises(NoSuchJob):
            await client.job(999_999_999)
        with pytest.raises(InvalidJob, match="timeout"):
            await client.submit(["true"], timeout="soon")
        with pytest.raises(UsageError):
            await client.wait(["x"])


@run
async def test_many_jobs_and_streams_of_them(fleet: Cluster):
    async def items() -> AsyncIterator[dict[str, Any]]:
        for number in range(700):
            yield {"function": "os.path:join", "args": ["a", str(number)]}

    async with connected(fleet) as client:
        jobs = await client.submit_many(items())
        assert [job.result for job in await client.wait(jobs, 40)] == [f"a/{number}" for number in range(700)]
        streamed = [job async for job in client.submit_stream({"command": ["true"]} for _ in range(30))]
        seen = [job.id async for job in client.as_completed([*streamed, streamed[0].id], 30)]
        assert sorted(seen) == sorted([*(job.id for job in streamed), streamed[0].id])
        some = client.submit_stream([{"command": ["true"]}, {"command": 3}])
        assert (await anext(some)).id
        with pytest.raises(InvalidJob, match="item 1"):
            await anext(some)
        with pytest.raises(InvalidJob, match="item 2"):
            await client.submit_many([{"command": ["true"]}, {"command": ["true"]}, {}])


@run
async def test_a_workflow(fleet: Cluster):
    async with connected(fleet) as client:
        async with client.workflow("flow") as w:
            first = w.submit(["true"])
            w.submit(["true"], after=first)
        assert [job.outcome for job in await w.wait(20)] == ["succeeded"] * 2 and w.id == first.id
        refs = [{"command": ["true"], "ref": f"r{n}", **({"after": f"r{n - 1}"} if n else {})} for n in range(3)]
        assert len(await client.wait([job async for job in client.submit_stream(refs)], 20)) == 3


@run
async def test_a_group(fleet: Cluster):
    async with AsyncClient(fleet.redis_url, fleet.namespace) as client:
        jobs = [await client.submit(["sleep", "0.3"], group="night") for _ in range(2)]
        waited = await client.wait_group("night", 20)
        assert {job.id for job in waited} <= {job.id for job in jobs}
        assert [(await job.refresh()).outcome for job in jobs] == ["succeeded"] * 2
        assert await client.wait_group("night", 20) == []


@run
async def test_an_array(fleet: Cluster):
    async with connected(fleet) as client:
        array = await client.shell("test $JOBSCHED_ARRAY_INDEX != 2", array="1-3", channel="gpu")
        assert (await array.wait(20)).outcome == "failed"
        tasks = [(task.id, task.outcome) async for task in array.tasks()]
        assert tasks == [(f"{array.id}_{n}", "failed" if n == 2 else "succeeded") for n in (1, 2, 3)]
        await array.refresh()
        assert array.is_array and await client.retry_failed(array) == 1
        with pytest.raises(UsageError, match="is no array"):
            [task async for task in client.tasks(await client.submit(["true"]))]


@run
async def test_the_first_to_end_comes_first(fleet: Cluster):
    async with connected(fleet) as client:
        slow = await client.submit(["sleep", "1"], channel="gpu")
        quick = await client.submit(["true"], channel="gpu")
        assert [job.id async for job in client.as_completed([slow, quick], 10)] == [quick.id, slow.id]


@run
async def test_output_as_it_comes(fleet: Cluster):
    async with connected(fleet) as client:
        job = await client.shell("for i in 1 2 3; do echo $i; sleep 0.2; done", follow=True)
        assert b"".join([piece.data async for piece in job.follow()]) == b"1\n2\n3\n"
        assert job.outcome == "succeeded"
        with pytest.raises(NoSuchJob):
            async for _ in client.follow(999_999_999):
                pass
        endless = await client.shell("while :; do echo x; sleep 0.05; done", channel="gpu", follow=True)
        async for _ in endless.follow():
            break
        await endless.cancel()
        assert (await endless.wait(10)).outcome == "cancelled"


@run
async def test_attempts_of_the_past(fleet: Cluster):
    async with connected(fleet) as client:
        job = await (await client.submit(["true"], name="async-history")).wait(10)

        async def is_there() -> bool:
            return [one.job async for one in client.history(name="async-history")] == [job.id]

        await until(is_there, "the attempt is in the history")


@run
async def test_a_thousand_waits_share_one_thread_and_one_connection(fleet: Cluster):
    async with connected(fleet) as client:
        jobs = await client.submit_many([{"command": ["true"], "delay": 60}] * 1000)
        waits = [asyncio.create_task(job.wait(40)) for job in jobs]

        async def registered() -> bool:
            listener = client._waits._listener
            return listener is not None and len(listener.watch) == 1000 and client._waits._enrolling is None

        await until(registered, "all of them are registered")
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("jobsched waits") == 1 and sum(name.startswith("jobsched_") for name in names) <= 8
        session = client._client.session

        async def blocked() -> bool:
            ours = [each for each in session._redis.client_list() if each["name"].endswith(session._name)]
            return [each["cmd"] for each in ours].count("blmpop") == 1

        await until(blocked, "one connection waits")
        await client.cancel(jobs)
        assert {job.outcome for job in await asyncio.gather(*waits)} == {"cancelled"}
        assert client._waits._ends == {} and len(client._waits._listener.watch) == 0


@run
async def test_two_tasks_wait_for_one_job_and_one_gives_up(fleet: Cluster):
    async with connected(fleet) as client:
        job = await client.submit(["sleep", "1"], channel="gpu")
        impatient, patient = asyncio.create_task(job.wait()), asyncio.create_task(client.wait([job.id], 10))
        await asyncio.sleep(0.1)
        impatient.cancel()
        assert [one.outcome for one in await patient] == ["succeeded"]
        assert impatient.cancelled()


@pytest.mark.parametrize("seed", range(3))
@run
async def test_a_storm_of_cancelled_tasks(fleet: Cluster, seed: int):
    """Tasks are cancelled at any moment of any call; whoever is not is told what is true of its own job."""
    chance = random.Random(seed)
    told: list[tuple[str, Any, str]] = []

    async def one(client: AsyncClient, number: int) -> None:
        job = await client.call("os.path:join", ["storm", str(number)], name=f"storm-{seed}-{number}")
        await job.refresh()
        assert job.view.spec.name == f"storm-{seed}-{number}", "somebody else's answer"
        await job.wait(30)
        told.append((job.id, job.result, f"storm/{number}"))

    async with connected(fleet, threads=3) as client:
        tasks = [asyncio.create_task(one(client, number)) for number in range(300)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(chance.uniform(0, 0.02))
            for task in chance.sample(tasks, 3):
                if chance.random() < 0.5 and len([one for one in tasks if one.cancelled()]) < 200:
                    task.cancel()
        errors = [task.exception() for task in tasks if not task.cancelled()]
        assert errors == [None] * len(errors)
        assert told and all(result == expected for _, result, expected in told)
        assert len({job_id for job_id, _, _ in told}) == len(told)
        after = await client.submit_many({"function": "os.path:join", "args": ["a", str(n)]} for n in range(20))
        assert [job.result for job in await client.wait(after, 20)] == [f"a/{n}" for n in range(20)]
        assert client._waits._ends == {}


@run
async def test_a_submit_that_is_cancelled_happened_or_did_not(fleet: Cluster):
    async with connected(fleet, threads=2) as client:
        tasks = [asyncio.create_task(client.submit(["true"], key=f"cancelled-{n}", delay=60)) for n in range(100)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        again = [await client.submit(["true"], key=f"cancelled-{n}", delay=60) for n in range(100)]
        assert len({job.id for job in again}) == 100
        kept = [(one, task.result()) for one, task in zip(again, tasks, strict=True) if not task.cancelled()]
        assert len(kept) >= 50 and all(one == before for one, before in kept)
        await client.cancel(again)


@run
async def test_waits_outlive_a_restart_of_redis(redis_server: RedisServer, cluster: Cluster):
    cluster.start(["master", "slave"], channels=[{"name": "1", "slots": 8}])
    async with AsyncClient(cluster.redis_url, cluster.namespace) as client:
        jobs = await client.submit_many([{"function": "time:sleep", "args": [0.005]}] * 1000)
        waits = [asyncio.create_task(job.wait(50)) for job in jobs]
        await jobs[50].wait(30)
        await asyncio.get_running_loop().run_in_executor(None, lambda: redis_server.restart(hard=True))
        more = await client.submit(["true"])
        ended: list[AsyncJob] = await asyncio.gather(*waits)
        assert {job.outcome for job in ended} == {"succeeded"}
        assert (await more.wait(20)).outcome == "succeeded"


@run
async def test_patience_ends_for_whoever_waits(redis_server: RedisServer):
    async with AsyncClient(redis_server.url, "test", patience=0.5) as client:
        job = await client.submit(["true"])
        waiting = asyncio.create_task(job.wait())
        await asyncio.sleep(0.1)
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            await waiting
        with pytest.raises(StoreUnavailable):
            await client.submit(["true"])
        redis_server.start()
        assert (await client.submit(["true"])).id


@run
async def test_a_closed_client_connects_again(fleet: Cluster):
    client = connected(fleet)
    job = await client.submit(["sleep", "0.5"], channel="gpu")
    waiting = asyncio.create_task(job.wait())
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await job.wait(10)).outcome == "succeeded"
    await client.close()
