"""AsyncClient: the same client for asyncio programs.

Its calls are the blocking client's, made in a few threads. That costs two hops between threads a call, and at most
``threads`` calls are under way at once. It buys that there is one client, with one set of repeats and one meaning; and
that cancellation is harmless: a task that is cancelled leaves its call to a thread, which reads the reply that belongs
to it, so that no connection is ever out of step. Waits need no thread each: all of them share one connection and the
one thread that blocks on it (waits.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar, Unpack

from jobschedd.client.api import CHUNK, Cancelled, Changed, Client, Options
from jobschedd.client.follow import Output
from jobschedd.client.jobs import Job, Reading, checked_id, no_such_job
from jobschedd.client.waiting import too_late
from jobschedd.client.waits import End, Waits, gathered
from jobschedd.client.why import Explanation
from jobschedd.client.workflow import Workflow
from jobschedd.errors import NotRead
from jobschedd.links import Refs
from jobschedd.store.attempts import Attempt
from jobschedd.store.durability import Durability
from jobschedd.store.views import ArrayCounts, ChannelView, JobView, NodeView

Answer = TypeVar("Answer")
Item = TypeVar("Item")

#: Attempts, or jobs of a listing, that one hop between threads brings.
_STEP = 100
#: Seconds between two looks whether a drain is over.
_LOOK_AGAIN = 0.2


class AsyncJob(Reading):
    """One job. Its properties tell what was read last, and after the end nothing changes any more.

    They raise NotRead before the first ``refresh`` or ``wait``, and NoSuchJob where the record is gone.
    """

    __slots__ = ("_client", "_gone")

    def __init__(
        self, client: AsyncClient, job_id: str, view: JobView | None = None, durability: Durability | None = None
    ) -> None:
        super().__init__(job_id, view, durability)
        self._client = client
        self._gone = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncJob) and (other.id, other._client) == (self.id, self._client)

    def __hash__(self) -> int:
        return hash(self.id)

    async def refresh(self) -> AsyncJob:
        """Read the record again, unless the job had ended."""
        if self._view is None or not self._view.ended:
            self._view = await self._client._read(self.id)
        return self

    async def wait(self, timeout: float | None = None) -> AsyncJob:
        """Wait for the end; the job itself. Raises WaitTimeout after ``timeout`` seconds (None: no limit)."""
        await self._client.wait([self], timeout)
        return self

    def follow(self) -> AsyncIterator[Output]:
        """The job's output, piece by piece as it comes, until the job has ended."""
        return self._client.follow(self)

    @property
    def counts(self) -> ArrayCounts | None:
        """Of an array, where its tasks were when it was read last; None for any other job."""
        return self._current().counts

    def tasks(self, *statuses: str) -> AsyncIterator[AsyncJob]:
        """The tasks of an array in any of these states or with any of these outcomes (none given: all), by index."""
        return self._client.tasks(self, *statuses)

    async def explain(self) -> Explanation:
        """Why it is where it is."""
        return await self._client.explain(self)

    async def hold(self, reason: str = "") -> Changed:
        """Keep it from being dispatched, until it is released."""
        return (await self._client.hold([self], reason))[0]

    async def release(self) -> Changed:
        """Let it go on."""
        return (await self._client.release([self]))[0]

    async def cancel(self) -> Cancelled:
        """Ask for the end of the job."""
        return (await self._client.cancel([self]))[0]

    def settle(self, view: JobView | None) -> None:
        """Told by a wait: this is the record at its end, or None where it is gone."""
        super().settle(view)
        self._gone = self._view is None

    def _current(self) -> JobView:
        if self._gone:
            raise no_such_job(self.id)
        if self._view is None:
            raise NotRead(f"job {self.id} has not been read yet: await job.refresh() or job.wait() first")
        return self._view


class AsyncWorkflow:
    """Collects jobs, as ``Workflow`` does; at the end of the ``async with`` block all are submitted, or none."""

    def __init__(self, client: AsyncClient, name: str = "") -> None:
        self._client = client
        self._workflow = Workflow(client._client, name)
        #: How jobs are added: each gives a node, for the ``after`` of others.
        self.submit, self.shell, self.call = self._workflow.submit, self._workflow.shell, self._workflow.call
        self.add, self.after_all = self._workflow.add, self._workflow.after_all

    async def __aenter__(self) -> AsyncWorkflow:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._workflow.nodes and not self._workflow.id:
            await self.commit()

    async def commit(self) -> None:
        """Submit all of it, in one step; the end of the block does that."""
        await self._client._run(self._workflow.commit)

    @property
    def id(self) -> str:
        """That of its first job; empty before the submit."""
        return self._workflow.id

    @property
    def jobs(self) -> list[AsyncJob]:
        """Its jobs, in the order in which they were added."""
        return [self._client._ours(job) for job in self._workflow.jobs]

    async def wait(self, timeout: float | None = None) -> list[AsyncJob]:
        """Wait until all of them have ended."""
        return await self._client.wait(self.jobs, timeout)


AnyAsyncJob = str | int | AsyncJob


class AsyncClient:
    """A connection to one namespace, for one event loop. As ``Client``, which says what each method does and raises.

    ``async with AsyncClient() as client`` gives its connections up at the end. ``threads``: calls under way at once.

    A task may be cancelled in any call. A cancelled submit has happened or not, as after a lost reply; ``key`` makes it
    safe to repeat.
    """

    def __init__(
        self, url: str | None = None, namespace: str | None = None, *, patience: float = 30.0, threads: int = 8
    ) -> None:
        self._client = Client(url, namespace, patience=patience)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._waits = Waits(self._client.session, self._run)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel every wait and give the connections up. A closed client connects again when it is used."""
        self._waits.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    @property
    def namespace(self) -> str:
        """The namespace that this client works in."""
        return self._client.namespace

    # -- submitting -------------------------------------------------------------------------------------------

    async def submit(self, command: Sequence[str], **options: Unpack[Options]) -> AsyncJob:
        """Submit a command (a list of texts; no shell)."""
        return self._ours(await self._run(lambda: self._client.submit(command, **options)))

    async def shell(self, line: str, **options: Unpack[Options]) -> AsyncJob:
        """Submit a line for the node's shell."""
        return self._ours(await self._run(lambda: self._client.shell(line, **options)))

    async def call(
        self,
        function: str | Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> AsyncJob:
        """Submit a call of ``module:function`` with arguments that JSON can say."""
        return self._ours(await self._run(lambda: self._client.call(function, args, kwargs, **options)))

    async def submit_many(
        self,
        items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        durable: bool | int = False,
        durable_within: float | str = 10.0,
    ) -> list[AsyncJob]:
        """Submit many jobs; the jobs in order. All items are checked before the first is submitted."""
        known = [item async for item in _each(items)]
        submit = partial(self._client.submit_many, known, durable=durable, durable_within=durable_within)
        return [self._ours(job) for job in await self._run(submit)]

    async def submit_stream(
        self, items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]
    ) -> AsyncIterator[AsyncJob]:
        """Submit jobs while ``items`` go by, in flat memory; each job once it is accepted."""
        first, refs = 0, Refs()
        chunk: list[Mapping[str, Any]] = []
        async for item in _each(items):
            chunk.append(item)
            if len(chunk) == CHUNK:
                async for job in self._streamed(chunk, first, refs):
                    yield job
                first, chunk = first + len(chunk), []
        async for job in self._streamed(chunk, first, refs):
            yield job

    def workflow(self, name: str = "") -> AsyncWorkflow:
        """Jobs that depend on each other, collected in an ``async with`` block and submitted at its end."""
        return AsyncWorkflow(self, name)

    async def _streamed(self, chunk: Sequence[Mapping[str, Any]], first: int, refs: Refs) -> AsyncIterator[AsyncJob]:
        jobs, error = await self._run(lambda: gathered(self._client._stream(chunk, first, refs)))
        for job in jobs:
            yield self._ours(job)
        if error is not None:
            raise error

    # -- waiting ----------------------------------------------------------------------------------------------

    async def wait(self, jobs: Iterable[AnyAsyncJob], timeout: float | None = None) -> list[AsyncJob]:
        """Wait until all have ended; the jobs in the order given."""
        handles = [self._handle(job) for job in jobs]
        async for _ in self._completed(handles, timeout):
            pass
        return handles

    async def wait_group(self, group: str, timeout: float | None = None) -> list[AsyncJob]:
        """Wait until no job of this group waits or runs; those that were waited for."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        waited: list[AsyncJob] = []
        while ids := await self._run(lambda: self._client._unended(group)):
            waited += await self.wait(ids, None if deadline is None else deadline - loop.time())
        return waited

    def as_completed(self, jobs: Iterable[AnyAsyncJob], timeout: float | None = None) -> AsyncIterator[AsyncJob]:
        """Each job once it has ended, the first first."""
        return self._completed([self._handle(job) for job in jobs], timeout)

    async def _completed(self, handles: Sequence[AsyncJob], timeout: float | None) -> AsyncIterator[AsyncJob]:
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        waiting: dict[str, list[AsyncJob]] = {}
        for job in handles:
            waiting.setdefault(job.id, []).append(job)
        total = len(waiting)
        told: asyncio.Queue[str] = asyncio.Queue()
        ends = {job_id: self._end(job_id, told) for job_id in waiting}
        try:
            while waiting:
                job_id = await _within(told, deadline)
                if job_id is None:
                    raise too_late(len(waiting), total, timeout or 0.0)
                view = await ends[job_id]
                for job in waiting.pop(job_id):
                    job.settle(view)
                    yield job
        finally:
            for end in ends.values():
                end.cancel()

    def _end(self, job_id: str, told: asyncio.Queue[str]) -> End:
        end = self._waits.end(job_id)
        end.add_done_callback(lambda _: told.put_nowait(job_id))
        return end

    async def follow(self, job: AnyAsyncJob) -> AsyncIterator[Output]:
        """The output of a job, piece by piece as it comes, until it has ended: a connection and a thread of its own."""
        handle = self._handle(job)
        follower = await self._run(lambda: self._client.follower(handle.id))
        async for piece in self._stepped(follower.pieces, 1):
            if piece is not None:
                yield piece
        handle.settle(follower.view)

    # -- reading and changing ---------------------------------------------------------------------------------

    async def job(self, job_id: AnyAsyncJob) -> AsyncJob:
        """The job with this id."""
        text = checked_id(job_id)
        return AsyncJob(self, text, await self._read(text))

    async def jobs(self, *statuses: str, limit: int = 0, name: str = "", group: str = "") -> AsyncIterator[AsyncJob]:
        """Jobs in any of these states or with any of these outcomes (none given: all), newest first."""
        find = partial(self._client.jobs, *statuses, limit=limit, name=name, group=group)
        async for job in self._stepped(find, _STEP):
            yield self._ours(job)

    async def tasks(self, array: AnyAsyncJob, *statuses: str) -> AsyncIterator[AsyncJob]:
        """The tasks of an array, by index, in any of these states or with any of these outcomes (none given: all)."""
        array_id = checked_id(array)
        async for job in self._stepped(lambda: self._client.tasks(array_id, *statuses), _STEP):
            yield self._ours(job)

    async def history(self, **which: Any) -> AsyncIterator[Attempt]:
        """Attempts that ended, newest first. Raises Unanswered, at the end too, where not every master answered."""
        histories = self._client.history(**which)
        async for attempt in self._stepped(lambda: iter(histories), _STEP):
            yield attempt
        if histories.problem is not None:
            raise histories.problem

    async def cancel(self, jobs: AnyAsyncJob | Iterable[AnyAsyncJob]) -> list[Cancelled]:
        """Ask for the end of jobs, one answer each."""
        ids = _ids(jobs)
        return await self._run(lambda: self._client.cancel(ids))

    async def matching(
        self,
        *statuses: str,
        name: str = "",
        node: str = "",
        channel: str = "",
        group: str = "",
        labels: Sequence[str] = (),
    ) -> AsyncIterator[list[tuple[str, int]]]:
        """Jobs that match everything given: chunks of (id, milliseconds since the epoch at which its state began)."""
        find = partial(self._client.matching, *statuses, name=name, node=node, channel=channel, group=group)
        async for chunk in self._stepped(lambda: find(labels=labels), 1):
            yield chunk

    async def hold(self, jobs: AnyAsyncJob | Iterable[AnyAsyncJob], reason: str = "", by: str = "") -> list[Changed]:
        """Keep jobs that wait from being dispatched, until they are released."""
        ids = _ids(jobs)
        return await self._run(lambda: self._client.hold(ids, reason, by))

    async def release(self, jobs: AnyAsyncJob | Iterable[AnyAsyncJob]) -> list[Changed]:
        """Let held jobs go on."""
        ids = _ids(jobs)
        return await self._run(lambda: self._client.release(ids))

    async def prioritise(self, jobs: AnyAsyncJob | Iterable[AnyAsyncJob], priority: int) -> list[Changed]:
        """Give jobs that wait another priority, -100 to 100."""
        ids = _ids(jobs)
        return await self._run(lambda: self._client.prioritise(ids, priority))

    async def retry_failed(self, array: AnyAsyncJob) -> int:
        """Run those tasks of an array once more that did not succeed; how many that are."""
        array_id = checked_id(array)
        return await self._run(lambda: self._client.retry_failed(array_id))

    async def retried(self, job: AnyAsyncJob) -> str:
        """As ``retry``; where the job is now: pending, or waiting for what it is to run after."""
        job_id = checked_id(job)
        return await self._run(lambda: self._client.retried(job_id))

    async def retry_many(self, ends: Sequence[tuple[str, int]]) -> list[str]:
        """Run ended jobs once more: (id, when it ended in ms), as ``matching`` gives them."""
        return await self._run(lambda: self._client.retry_many(ends))

    async def set_limit(self, key: str, limit: int | str) -> None:
        """Have at most ``limit`` jobs of a key at a time (a number), or so many starts within a period (``10/m``)."""
        await self._run(lambda: self._client.set_limit(key, limit))

    async def remove_limit(self, key: str) -> bool:
        """Take back what was set for a key; whether anything was."""
        return await self._run(lambda: self._client.remove_limit(key))

    async def explain(self, job: AnyAsyncJob) -> Explanation:
        """Why a job is where it is: a stable ``reason`` code and one ``sentence``."""
        job_id = checked_id(job)
        return await self._run(lambda: self._client.explain(job_id))

    async def retry(self, job: AnyAsyncJob) -> AsyncJob:
        """Run an ended job once more, with fresh budgets."""
        job_id = checked_id(job)
        return self._ours(await self._run(lambda: self._client.retry(job_id)))

    # -- the fleet --------------------------------------------------------------------------------------------

    async def channels(self) -> list[ChannelView]:
        """Every dispatch channel that is or was."""
        return await self._run(self._client.channels)

    async def nodes(self) -> list[NodeView]:
        """Every node that is or was."""
        return await self._run(self._client.nodes)

    async def drain(
        self, name: str, reason: str = "", by: str = "", deadline: float | str | None = None, then: str = "wait"
    ) -> None:
        """Send nothing new to a node, a channel or NODE/CHANNEL, until it is resumed."""
        await self._run(lambda: self._client.drain(name, reason, by, deadline, then))

    async def pause(self, name: str, reason: str = "", by: str = "") -> None:
        """The same for a while: nobody waits for it to become empty."""
        await self._run(lambda: self._client.pause(name, reason, by))

    async def pause_group(self, group: str, reason: str = "", by: str = "") -> None:
        """Dispatch no job of this group, until it is resumed."""
        await self._run(lambda: self._client.pause_group(group, reason, by))

    async def resume_group(self, group: str) -> bool:
        """Take that back."""
        return await self._run(lambda: self._client.resume_group(group))

    async def drained(self, name: str, timeout: float | None = None) -> bool:
        """Wait until nothing is left on a drained node or channel; False when it is not after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not await self._run(lambda: self._client.drained(name, 0)):
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            return False
        return True

    async def resume(self, name: str) -> bool:
        """Take a drain back; whether there was one."""
        return await self._run(lambda: self._client.resume(name))

    # -- how it is done ---------------------------------------------------------------------------------------

    async def _run(self, call: Callable[[], Answer]) -> Answer:
        """In a thread. When the task is cancelled, a call that has begun goes on to its end without us."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="jobsched")
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _stepped(self, begin: Callable[[], Iterator[Item]], count: int) -> AsyncIterator[Item]:
        """What a blocking iterator yields, ``count`` at a time, in one thread of its own."""
        pool, loop = ThreadPoolExecutor(1, thread_name_prefix="jobsched"), asyncio.get_running_loop()
        iterator: Iterator[Item] = iter(())
        try:
            iterator = await loop.run_in_executor(pool, begin)
            while True:
                items, error = await loop.run_in_executor(pool, lambda: gathered(islice(iterator, count)))
                for item in items:
                    yield item
                if error is not None:
                    raise error
                if len(items) < count:
                    return
        finally:
            if close := getattr(iterator, "close", None):
                pool.submit(close)  # after its present step: it has connections to give up
            pool.shutdown(wait=False)

    async def _read(self, job_id: str) -> JobView:
        return await self._run(lambda: self._client.read(job_id))

    def _ours(self, job: Job) -> AsyncJob:
        return AsyncJob(self, job.id, job._view, job.durability)

    def _handle(self, job: AnyAsyncJob) -> AsyncJob:
        return job if isinstance(job, AsyncJob) and job._client is self else AsyncJob(self, checked_id(job))


def _ids(jobs: AnyAsyncJob | Iterable[AnyAsyncJob]) -> list[str]:
    return [checked_id(job) for job in ([jobs] if isinstance(jobs, str | int | AsyncJob) else jobs)]


async def _within(told: asyncio.Queue[str], deadline: float | None) -> str | None:
    try:
        async with asyncio.timeout_at(deadline):
            return await told.get()
    except TimeoutError:
        return None


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
