"""Client: what a program does with jobs. Each method imports what it alone needs: most programs submit and wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from jobschedd.client.jobs import Job, checked_id, no_such_job
from jobschedd.client.session import Durable, Session
from jobschedd.durations import parse_duration
from jobschedd.errors import InvalidJob, NoParent, NoSuchJob, UsageError
from jobschedd.job import HIGHEST_PRIORITY, Flag, Outcome, Place, State, Submission, place_of
from jobschedd.limits import Rate, check_key, group_key, parse_limit
from jobschedd.links import Refs, targets
from jobschedd.store.moves import CancelAnswer, HoldAnswer, RetryAnswer
from jobschedd.submission import CATCH_UP_MS, NAME, submission

if TYPE_CHECKING:
    from jobschedd.client.follow import Follower, Output
    from jobschedd.client.history import Histories
    from jobschedd.client.schedules import Schedules
    from jobschedd.client.why import Explanation
    from jobschedd.client.workflow import Workflow
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import ChannelView, JobView, NodeView

#: Jobs, and bytes, that one call of the submit script carries at most.
CHUNK, CHUNK_BYTES = 500, 4 << 20
#: Seconds between two looks at whether a drained channel is empty.
_LOOK_AGAIN = 0.2
#: Milliseconds that the record of a cancelled job is kept.
KEEP_CANCELLED = 7 * 86_400_000

AnyJob = str | int | Job


class Options(TypedDict, total=False):
    """What may be asked for with a job: the options of ``jobsched submit``. Durations: seconds, or text like ``5m``."""

    name: str
    channel: str  # CHANNEL or NODE/CHANNEL
    node: str
    labels: str | Sequence[str]  # label expressions such as "gpu && !spot", all of which must hold
    priority: int  # -100 to 100, higher first
    delay: float | str
    at: datetime | str | float
    expires: float | str
    retries: int
    retry_delay: float | str
    retry_max_delay: float | str
    retry_on: Sequence[str]
    timeout: float | str
    lost_after: float | str
    overlap: str  # allow or forbid
    retry_on_loss: bool
    max_crashes: int
    env: Mapping[str, str]
    cwd: str
    stdin: str | bytes
    submitter: str
    key: str  # idempotency key: the same key gives the same job
    key_scope: str  # for how long: record (as long as it has one), running (until it ends), pending (until dispatched)
    follow: bool  # live output from the start
    avoid_failed: bool  # a retry goes to another node than the one where it failed, where there is one
    group: str  # who shares the fleet with whom
    slots: int  # of its channel's, taken at once
    cpus: float | str
    memory: int | str  # bytes, or text like 16G
    gpus: int
    resources: Sequence[str] | Mapping[str, int | str]  # other names: "license=1"
    limit_keys: Sequence[str] | Mapping[str, int | None]  # "db=3": with at most 3 jobs of this key at a time
    rates: Sequence[str] | Mapping[str, str]  # "api=10/m": with at most 10 starts of this key a minute
    hold: bool  # not dispatched before it is released
    after: Any  # a job or its id, "ID:any", (job, "fail"), or a list of these: runs when all these conditions hold
    array: str  # a job array: its indices, such as 1-100 or 1,3,7-9 or 0-98:2, and %N behind them: so many at once
    all: bool  # a task on each node that matches, those that are away included until it expires (1d unless given)
    all_channels: bool  # the same on each channel
    max_failures: int  # of an array: so many failed tasks stop what has not started
    durable: bool | int  # return once it is on the server's disk (True), and on so many replicas (a number)
    durable_within: float | str  # how long to wait for that, 10 s by default; then NotDurable


class Cancelled(NamedTuple):
    """What became of a request: ``cancelled``, ``requested`` (a channel ends it), ``ended`` or ``unknown``."""

    id: str
    answer: str
    outcome: str | None  # of a job that had ended before


class Changed(NamedTuple):
    """What became of a wish: ``done``, ``not_waiting`` (a channel has it; not held), ``ended``, ``unknown``,
    ``in_array`` (a task that has not started: name its array) or ``by_tasks`` (a job for all nodes: name its tasks).
    """

    id: str
    answer: str


class Client:
    """A connection to one namespace. Safe to share between threads; a forked child connects anew.

    ``url``: where Redis is (default: $JOBSCHED_REDIS_URL, else the configuration file). ``namespace``: default is
    $JOBSCHED_NAMESPACE, else the configuration file's where the URL came from there, else ``main``. ``patience``:
    seconds for which a call is repeated while Redis is away; the very first contact fails at once. A repeated call has
    one effect.

    Raises ConfigError where nothing says where Redis is; every method StoreUnavailable and StoreRefused.
    """

    def __init__(self, url: str | None = None, namespace: str | None = None, *, patience: float = 30.0) -> None:
        self.session = Session(url, namespace, patience)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections up. A closed client connects again when it is used."""
        self.session.close()

    @property
    def namespace(self) -> str:
        """The namespace that this client works in."""
        return self.session.namespace

    # -- submitting -------------------------------------------------------------------------------------------

    def submit(self, command: Sequence[str], **options: Unpack[Options]) -> Job:
        """Submit a command (a list of texts; no shell).

        Raises InvalidJob naming the field; QueueFull; DataLost; with ``durable`` NotDurable, whose ``ids`` name the
        job: it is accepted all the same.
        """
        return self._submit_one({"command": command, **options})

    def shell(self, line: str, **options: Unpack[Options]) -> Job:
        """Submit a line for the node's shell, as ``submit`` otherwise."""
        return self._submit_one({"shell": line, **options})

    def call(
        self,
        function: str | Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Submit a call of ``module:function`` with arguments that JSON can say. Raises as ``submit``."""
        name = function if isinstance(function, str) else importable(function)
        return self._submit_one({"function": name, "args": args, "kwargs": kwargs or {}, **options})

    def submit_many(
        self, items: Iterable[Mapping[str, Any]], *, durable: bool | int = False, durable_within: float | str = 10.0
    ) -> list[Job]:
        """Submit many jobs, each a mapping with the keys of a JSONL line; the jobs in order. ``durable`` as an option.

        All items are checked before the first is submitted: InvalidJob means that none was, and its message starts
        with the item's number, from 0. An item may have a ``ref``, by which the ``after`` of later ones names it. For a
        stream without end, or in flat memory, use ``submit_stream``.
        """
        refs = Refs()
        checked = [_numbered(number, item, refs) for number, item in enumerate(items)]
        wish = durable_wish(durable, durable_within)
        self._insist_on_parents(checked)
        return [job for chunk in _chunks(checked) for job in self._submit_chunk(chunk, wish, refs)]

    def submit_stream(self, items: Iterable[Mapping[str, Any]]) -> Iterator[Job]:
        """Submit jobs while ``items`` go by, in flat memory; each job once it is accepted.

        Raises InvalidJob at a bad item, after what came before it was submitted and yielded.
        """
        return self._stream(items, 0, Refs())

    def _stream(self, items: Iterable[Mapping[str, Any]], first: int, refs: Refs) -> Iterator[Job]:
        """``first``: number of the first item, for messages; ``refs``: of what was submitted before."""
        chunk: list[Submission] = []
        error: InvalidJob | None = None
        size = 0
        for number, item in enumerate(items, first):
            try:
                one = _numbered(number, item, refs)
            except InvalidJob as problem:
                error = problem
                break
            if len(chunk) == CHUNK or (chunk and size + one.size > CHUNK_BYTES):
                yield from self._submit_chunk(chunk, refs=refs)
                chunk, size = [], 0
            chunk.append(one)
            size += one.size
        if chunk:
            yield from self._submit_chunk(chunk, refs=refs)
        if error is not None:
            raise error

    def workflow(self, name: str = "") -> Workflow:
        """Jobs that depend on each other, collected in a ``with`` block and submitted at its end, all or none.

        with client.workflow("nightly") as w:
            extract = w.submit(["./extract"])
            load = w.submit(["./load"], after=extract)
        w.wait()
        """
        from jobschedd.client.workflow import Workflow

        return Workflow(self, name)

    def _insist_on_parents(self, checked: Sequence[Submission]) -> None:
        """Where it takes several calls, none may be made when a later one would be refused."""
        if len(checked) <= 1 or not any(one.after for one in checked):
            return
        ids = {target: number for number, one in enumerate(checked) for target in targets(one) if target[0].isdigit()}
        missing = self.session.patiently(lambda: self.session.inspect.missing(list(ids)))
        if missing is not None:
            raise NoParent(missing, f"item {ids[missing]}: after")

    def _submit_chunk(
        self, chunk: Sequence[Submission], durable: Durable | None = None, refs: Refs | None = None
    ) -> list[Job]:
        ids = self.session.submit(chunk, durable, refs)
        return [Job(self, job_id, durability=durable.confirmed if durable else None) for job_id in ids]

    def _submit_one(self, item: Mapping[str, Any]) -> Job:
        job = dict(item)
        durable = durable_wish(job.pop("durable", False), job.pop("durable_within", 10.0))
        return self._submit_chunk([Refs().check(submission(job))], durable)[0]

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(self, jobs: Iterable[AnyJob], timeout: float | None = None) -> list[Job]:
        """Wait until all have ended; the jobs in the order given. Raises WaitTimeout, StoreUnavailable.

        A job without a record (never submitted, or ended and past its retention) counts as ended: reading it then
        raises NoSuchJob.
        """
        handles = [self._handle(job) for job in jobs]
        for _ in self._completed(handles, timeout):
            pass
        return handles

    def wait_group(self, group: str, timeout: float | None = None) -> list[Job]:
        """Wait until no job of this group waits or runs, those included that are submitted meanwhile; these jobs.

        Those that had ended before are not among them. Raises WaitTimeout, StoreUnavailable.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        waited: list[Job] = []
        while ids := self._unended(group):
            left = None if deadline is None else deadline - time.monotonic()
            waited += self.wait(ids, left)
        return waited

    def _unended(self, group: str) -> list[str]:
        """Jobs go from one state to the next meanwhile: who waits is looked at before and after who runs."""
        waiting, active = ("pending", "scheduled", "waiting"), ("dispatched", "running")
        found: dict[str, None] = {}
        for words in (waiting, active, waiting):
            found |= {job_id: None for chunk in self.matching(*words, group=group) for job_id, _ in chunk}
        return list(found)

    def as_completed(self, jobs: Iterable[AnyJob], timeout: float | None = None) -> Iterator[Job]:
        """Each job once it has ended, the first first. Raises as ``wait``."""
        return self._completed([self._handle(job) for job in jobs], timeout)

    def _completed(self, handles: list[Job], timeout: float | None) -> Iterator[Job]:
        from jobschedd.client.waiting import ended

        waiting: dict[str, list[Job]] = {}
        for job in handles:
            waiting.setdefault(job.id, []).append(job)
        for job_id, view in ended(self.session, waiting, timeout):
            for job in waiting.pop(job_id):
                job.settle(view)
                yield job

    def follow(self, job: AnyJob) -> Iterator[Output]:
        """The output of a job, piece by piece as it comes, until it has ended. Raises NoSuchJob."""
        handle = self._handle(job)
        follower = self.follower(handle)
        for piece in follower.pieces():
            if piece is not None:
                yield piece
        handle.settle(follower.view)

    def follower(self, job: AnyJob) -> Follower:
        """The same by hand: it tells of quiet moments too. Raises NoSuchJob."""
        from jobschedd.client.follow import Follower

        job_id = checked_id(job)
        self.read(job_id)
        return Follower(self.session, job_id)

    # -- reading and changing ---------------------------------------------------------------------------------

    def job(self, job_id: AnyJob) -> Job:
        """The job with this id. Raises NoSuchJob, UsageError for what is no id."""
        text = checked_id(job_id)
        return Job(self, text, self.read(text))

    def read(self, job_id: str) -> JobView:
        """The record of a job as it is now. Raises NoSuchJob."""
        view = self.session.patiently(lambda: self.session.inspect.job(job_id))
        if view is None:
            raise no_such_job(job_id)
        return view

    def explain(self, job: AnyJob) -> Explanation:
        """Why a job is where it is: a stable ``reason`` code and one ``sentence``. Raises UsageError for no id."""
        from jobschedd.client.why import explain

        job_id = checked_id(job)
        return self.session.patiently(lambda: explain(self.inspect, job_id, self.session.inspect.job(job_id)))

    def jobs(self, *statuses: str, limit: int = 0, name: str = "", group: str = "") -> Iterator[Job]:
        """Jobs in any of these states or with any of these outcomes (none given: all), newest first.

        ``limit``: at most so many (0: all); ``name``: a shell-style pattern; ``group``: of this one only. Raises
        UsageError for an unknown word.
        """
        states, outcomes = statuses_of(statuses)
        return (Job(self, view.id, view) for view in self.inspect.jobs(states, outcomes, limit, name, group))

    def tasks(self, array: AnyJob, *statuses: str) -> Iterator[Job]:
        """The tasks of an array, by index: see ``Job.tasks``. The first step raises NoSuchJob, UsageError."""
        view = self.read(checked_id(array))
        if not view.is_array:
            raise UsageError(f"job {view.id} is no array: it has no tasks")
        states, outcomes = statuses_of(statuses)
        for task in self.inspect.tasks(view.id, states, outcomes):
            yield Job(self, task.id, task)

    def cancel(self, jobs: AnyJob | Iterable[AnyJob]) -> list[Cancelled]:
        """Ask for the end of jobs, one answer each. A success that came first stays a success."""
        some = [jobs] if isinstance(jobs, str | int | Job) else jobs
        ids = [checked_id(job) for job in some]
        answers: list[Cancelled] = []
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            replies = self.session.patiently(
                lambda part=part: self.session.moves.cancel(part, KEEP_CANCELLED)  # type: ignore[misc]
            )
            answers += [_cancelled(job_id, *reply) for job_id, reply in zip(part, replies, strict=True)]
        return answers

    def matching(
        self,
        *statuses: str,
        name: str = "",
        node: str = "",
        channel: str = "",
        group: str = "",
        labels: Sequence[str] = (),
    ) -> Iterator[list[tuple[str, int]]]:
        """Jobs in any of these states or with any of these outcomes that match everything given, as the server finds
        them: chunks of (id, milliseconds since the epoch at which its state began). They may be changed meanwhile.

        ``name``: a shell-style pattern. ``node``, ``channel`` match where a job asked for them, and where it is or was.
        Raises UsageError for an unknown word.
        """
        states, outcomes = statuses_of(statuses)
        if not statuses:
            states = set(State)
        return self.inspect.matching(
            states, outcomes, name=name, node=node, channel=channel, group=group, labels=labels
        )

    def hold(self, jobs: AnyJob | Iterable[AnyJob], reason: str = "", by: str = "") -> list[Changed]:
        """Keep jobs that wait from being dispatched, until they are released. They may expire, or be cancelled.

        Of an array that has begun, what has not started is held.
        """
        return self._change(jobs, lambda ids: self.session.moves.hold(ids, reason, by))

    def release(self, jobs: AnyJob | Iterable[AnyJob]) -> list[Changed]:
        """Let held jobs go on."""
        return self._change(jobs, lambda ids: self.session.moves.release(ids))

    def prioritise(self, jobs: AnyJob | Iterable[AnyJob], priority: int) -> list[Changed]:
        """Give jobs that wait another priority, -100 to 100. Raises UsageError."""
        if not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
            raise UsageError(
                f"{priority} is no priority: it is a number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}"
            )
        return self._change(jobs, lambda ids: self.session.moves.prioritise(ids, priority))

    def _change(self, jobs: AnyJob | Iterable[AnyJob], move: Callable[[list[str]], list[HoldAnswer]]) -> list[Changed]:
        some = [jobs] if isinstance(jobs, str | int | Job) else jobs
        ids = [checked_id(job) for job in some]
        changed: list[Changed] = []
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            answers = self.session.patiently(lambda part=part: move(part))  # type: ignore[misc]
            changed += [Changed(job_id, answer.name.lower()) for job_id, answer in zip(part, answers, strict=True)]
        return changed

    def retry_many(self, ends: Sequence[tuple[str, int]]) -> list[str]:
        """Run ended jobs once more, as ``retry``: (id, when it ended in ms), as ``matching`` gives them.

        The ids of those that are pending (or waiting) now; the others had not ended, or ended anew since.
        """
        again: list[str] = []
        for start in range(0, len(ends), CHUNK):
            part = ends[start : start + CHUNK]
            ids, times = [job_id for job_id, _ in part], [ended for _, ended in part]
            answers = self.session.patiently(
                lambda ids=ids, times=times: self.session.moves.retry(ids, times)  # type: ignore[misc]
            )
            good = (RetryAnswer.PENDING, RetryAnswer.WAITING)
            again += [job_id for job_id, answer in zip(ids, answers, strict=True) if answer in good]
        return again

    def retry_failed(self, array: AnyJob) -> int:
        """Run those tasks of an array once more that did not succeed (failed, timed out, lost, expired, cancelled).

        How many that are. The array need not have ended. Raises NoSuchJob, UsageError where it is no array, or is being
        cancelled.
        """
        job_id = checked_id(array)
        view = self.read(job_id)
        if not view.is_array:
            raise UsageError(f"job {job_id} is no array: to run it once more, retry it")
        return self._retry_array(view, False)

    def _retry_array(self, view: JobView, everything: bool) -> int:
        ended = view.header.since if view.ended else 0
        places: list[tuple[int, Place, Flag, int]] = []
        if view.spec.all_nodes:
            named = enumerate(self.session.patiently(lambda: self.session.inspect.place_names(view.id)), 1)
            flags = view.header.flags & Flag.NO_RETRY_ON_LOSS | Flag.TASK
            places = [
                (index, place_of(view.spec, *name.partition("/")[::2]), flags, view.header.priority)
                for index, name in named
            ]
        answer, count = self.session.patiently(
            lambda: self.session.moves.retry_array(
                view.id, ended, everything=everything, expires_ms=CATCH_UP_MS, places=places
            )
        )
        if answer == RetryAnswer.UNKNOWN:
            raise no_such_job(view.id)
        if answer == RetryAnswer.NOT_ENDED and not ended:
            raise UsageError(f"job {view.id} is being cancelled, or was stopped: wait for its end, then retry it")
        return count

    def retry(self, job: AnyJob) -> Job:
        """Run an ended job once more, with fresh budgets; of an array, all its tasks.

        Raises NoSuchJob, UsageError where it has not ended.

        One that never started (it was skipped, cancelled, expired) is subject to its conditions (``after``) again.
        """
        self.retried(job)
        return Job(self, checked_id(job))

    def retried(self, job: AnyJob) -> str:
        """As ``retry``; where the job is now: pending, or waiting for what it is to run after."""
        job_id = checked_id(job)
        view = self.read(job_id)
        if not view.ended:
            raise UsageError(f"job {job_id} has not ended: there is nothing to retry")
        if view.is_array:
            self._retry_array(view, True)
            return "pending"
        # Of this very end: when the answer to a first call was lost, the second changes nothing.
        ended = view.header.since
        (answer,) = self.session.patiently(lambda: self.session.moves.retry([job_id], [ended]))
        if answer == RetryAnswer.KEY_TAKEN:
            raise UsageError(f"job {job_id}: another job has its key {view.spec.key!r} now")
        if answer == RetryAnswer.UNKNOWN:
            raise no_such_job(job_id)
        return (State.WAITING if answer == RetryAnswer.WAITING else State.PENDING).word

    def history(
        self,
        *,
        job: AnyJob | None = None,
        node: str = "",
        channel: str = "",
        name: str = "",
        label: str = "",
        cause: str = "",
        schedule: str = "",
        outcomes: Iterable[str] = (),
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        final: bool = False,
        limit: int = 0,
    ) -> Histories:
        """Attempts that ended, newest first, from the histories of all live masters; they outlive the records.

        ``channel``: CHANNEL or NODE/CHANNEL; ``name``: a shell-style pattern; ``since``, ``until``: when they ended, in
        seconds since the epoch; ``final``: only accepted ends; ``limit``: at most so many. Raises UsageError; iterating
        raises Unanswered where no master answers. Where some do not, ``problem`` says so afterwards.
        """
        from jobschedd.client.history import Histories
        from jobschedd.store.attempts import Query

        owner, _, channel = channel.rpartition("/")
        words = tuple(outcomes)
        states, _ = statuses_of(words)
        if states:
            raise UsageError("a history is of what has ended: ask for outcomes")
        query = Query(
            job="" if job is None else checked_id(job),
            node=node or owner,
            channel=channel,
            name=name,
            label=label,
            cause=cause,
            schedule=schedule,
            outcomes=tuple(word.strip().lower() for word in words),
            since=_timestamp(since),
            until=_timestamp(until),
            final=final,
        )
        return Histories(self.session, query, limit)

    # -- the fleet --------------------------------------------------------------------------------------------

    def channels(self) -> list[ChannelView]:
        """Every dispatch channel that is or was."""
        return self.session.patiently(self.inspect.channels)

    def nodes(self) -> list[NodeView]:
        """Every node that is or was."""
        return self.session.patiently(self.inspect.nodes)

    def drain(
        self, name: str, reason: str = "", by: str = "", deadline: float | str | None = None, then: str = "wait"
    ) -> None:
        """Send nothing new to a node, a channel or NODE/CHANNEL, until it is resumed. What runs there goes on.

        ``deadline``: for so long (seconds, or text like ``5m``); then, by ``then``: it goes on all the same (``wait``),
        it is interrupted, charged nothing, and runs elsewhere (``requeue``), or it is cancelled (``kill``).
        Raises UsageError.
        """
        if then not in ("wait", "requeue", "kill"):
            raise UsageError(f"{then!r} is none of wait, requeue, kill")
        within = _seconds("deadline", deadline)
        self.session.patiently(lambda: self.session.moves.drain(name, reason, by, within, then))

    def pause(self, name: str, reason: str = "", by: str = "") -> None:
        """The same for a while: nothing new, until it is resumed, and nobody waits for it to become empty."""
        self.session.patiently(lambda: self.session.moves.drain(name, reason, by, pause=True))

    def pause_group(self, group: str, reason: str = "", by: str = "") -> None:
        """Dispatch no job of this group, until it is resumed. What runs goes on. Raises UsageError for no name."""
        name = _paused_group(group)
        self.session.patiently(lambda: self.session.moves.drain(name, reason, by, pause=True))

    def resume_group(self, group: str) -> bool:
        """Take that back; whether the group was paused."""
        return self.resume(_paused_group(group))

    def drained(self, name: str, timeout: float | None = None) -> bool:
        """Wait until nothing is left on a drained node or channel; False when it is not after ``timeout`` seconds.

        Raises UsageError where it is not drained, or is resumed meanwhile.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self.session.patiently(lambda: self._is_empty(name)):
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(_LOOK_AGAIN)
        return True

    def _is_empty(self, name: str) -> bool:
        drain = self.inspect.drains().get(name)
        if drain is None:
            raise UsageError(f"{name} is not drained")
        # Before a leader has heard of it, it may send one more.
        heard = bool(drain.get("heard")) or self.inspect.leader() is None
        return heard and not any(
            view.entries for view in self.inspect.channels() if name in (view.node, view.channel, view.name)
        )

    def resume(self, name: str) -> bool:
        """Take a drain or a pause back; whether there was one."""
        return self.session.patiently(lambda: self.session.moves.resume(name))

    def set_limit(self, key: str, limit: int | str) -> None:
        """Have at most ``limit`` jobs of a key at a time (a number), or so many starts within a period (``10/m``).

        Keys: a name that jobs bring along, ``group:NAME``, ``node:NAME``, ``channel:[NODE/]NAME``. Raises UsageError.
        """
        try:
            checked, parsed = check_key(key), parse_limit(limit)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if isinstance(parsed, Rate) and key.startswith(("node:", "channel:")):
            raise UsageError(f"{key}: a place has a number of jobs at a time, not a rate")
        self.session.patiently(lambda: self.session.moves.set_limit(checked, parsed))

    def remove_limit(self, key: str) -> bool:
        """Take back what was set for a key; whether anything was."""
        return self.session.patiently(lambda: self.session.moves.remove_limit(key))

    @property
    def schedules(self) -> Schedules:
        """What runs again and again."""
        from jobschedd.client.schedules import Schedules

        return Schedules(self.session)

    @property
    def inspect(self) -> Inspect:
        """The read path, for whoever needs more of it."""
        self.session.reach()
        return self.session.inspect

    def _handle(self, job: AnyJob) -> Job:
        return job if isinstance(job, Job) and job._client is self else Job(self, checked_id(job))


def _paused_group(group: str) -> str:
    if NAME.fullmatch(group) is None:
        raise UsageError(f"{group[:100]!r} is no name of a group")
    return group_key(group)


def _timestamp(moment: float | datetime | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment


def durable_wish(durable: bool | int, within: float | str) -> Durable | None:
    """What a submitter asks for; None for nothing. Raises InvalidJob."""
    if not isinstance(durable, int) or durable < 0:
        raise InvalidJob("durable", "must be true, or a number of replicas")
    try:
        seconds = parse_duration(within) if isinstance(within, str) else float(within)
    except (TypeError, ValueError) as error:
        raise InvalidJob("durable_within", str(error)) from None
    if not durable:
        return None
    return Durable(0 if durable is True else durable, max(0.001, min(seconds, 86_400.0)))


def _seconds(field: str, value: float | str | None) -> float | None:
    try:
        return parse_duration(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{field}: {error}") from None


def statuses_of(words: Iterable[str]) -> tuple[set[State], set[Outcome]]:
    """The states and outcomes that these words name. Raises UsageError for others."""
    states = {state.word: state for state in State}
    outcomes = {outcome.word: outcome for outcome in Outcome if outcome}
    chosen = [word.strip().lower() for word in words]
    for word in chosen:
        if word not in states and word not in outcomes:
            known = ", ".join((*states, *outcomes))
            raise UsageError(f"{word!r} is neither a state nor an outcome: there are {known}")
    return (
        {states[word] for word in chosen if word in states},
        {outcomes[word] for word in chosen if word in outcomes},
    )


def _numbered(number: int, item: Mapping[str, Any], refs: Refs) -> Submission:
    try:
        return refs.check(submission(item))
    except InvalidJob as error:
        raise InvalidJob(f"item {number}: {error.field}", error.problem) from None


def _chunks(submissions: list[Submission]) -> Iterator[list[Submission]]:
    chunk: list[Submission] = []
    size = 0
    for one in submissions:
        if len(chunk) == CHUNK or (chunk and size + one.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += one.size
    if chunk:
        yield chunk


def _cancelled(job_id: str, answer: CancelAnswer, outcome: Outcome) -> Cancelled:
    return Cancelled(job_id, answer.name.lower(), outcome.word if outcome else None)


def importable(function: Callable[..., Any]) -> str:
    """``module:function``, as another machine can import it. Raises InvalidJob."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if not module or module == "__main__" or "<" in name:
        raise InvalidJob("function", f"{name!r} cannot be imported on another machine: put it at the top of a module")
    return f"{module}:{name}"


__all__ = ["AnyJob", "Cancelled", "Client", "NoSuchJob", "Options", "statuses_of"]
