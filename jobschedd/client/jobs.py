"""Job: a handle on one submitted job; and what it shares with its asyncio twin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jobschedd.errors import JobFailed, NoSuchJob, NotEnded, UsageError
from jobschedd.job import Captured, Outcome
from jobschedd.submission import JOB_ID

if TYPE_CHECKING:
    from jobschedd.client.api import Cancelled, Changed, Client
    from jobschedd.client.follow import Output
    from jobschedd.client.why import Explanation
    from jobschedd.store.durability import Durability
    from jobschedd.store.views import ArrayCounts, JobView


def checked_id(value: str | int | Reading) -> str:
    """The job id that ``value`` names. Raises UsageError for what can be none."""
    text = value.id if isinstance(value, Reading) else str(value)
    if isinstance(value, bool) or JOB_ID.fullmatch(text) is None:
        raise UsageError(f"{text[:80]!r} is no job id: a job id is a number, such as 123, and of a task 123_45")
    return text


class Reading:
    """What can be read of a job, for whoever knows how to get at its record: ``_current``."""

    __slots__ = ("_view", "durability", "id")

    def __init__(self, job_id: str, view: JobView | None, durability: Durability | None) -> None:
        #: What was confirmed of its submit, where that was asked for (``durable``).
        self.durability = durability
        self._view = view
        self.id = job_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{' ' + self._view.status if self._view is not None else ''}>"

    def __hash__(self) -> int:
        return hash(self.id)

    def _current(self) -> JobView:
        raise NotImplementedError

    @property
    def is_array(self) -> bool:
        """Whether it stands for many tasks."""
        return self._current().is_array

    @property
    def view(self) -> JobView:
        """Everything that the record says, as it is now."""
        return self._current()

    @property
    def state(self) -> str:
        """Where it is: pending, scheduled, waiting, dispatched, running or done."""
        return self._current().header.state.word

    @property
    def ended(self) -> bool:
        """Whether it has its one accepted end."""
        return self._current().ended

    @property
    def outcome(self) -> str | None:
        """How it ended: succeeded, failed, timed_out, cancelled, lost, expired or skipped; None until then."""
        view = self._current()
        return view.outcome.word if view.ended else None

    @property
    def succeeded(self) -> bool:
        """Whether it has ended well."""
        return self._current().outcome == Outcome.SUCCEEDED

    @property
    def cause(self) -> str | None:
        """Why it ended that way (exit, signal, timeout, oom, not_found, ...); None until then."""
        view = self._current()
        return view.result.cause or None if view.ended else None

    @property
    def error(self) -> str:
        """What went wrong, for people: a traceback, or why it did not start. Empty where nothing did."""
        return self._current().result.error

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None where it has not ended or ended without one (a signal, never started)."""
        return self._current().result.exit_code

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended it; None where none did."""
        return self._current().result.signal

    @property
    def node(self) -> str | None:
        """Where it ran last; None until it has ended."""
        return self._current().result.node or None

    @property
    def channel(self) -> str | None:
        """The dispatch channel that it ran on last; None until it has ended."""
        return self._current().result.channel or None

    @property
    def attempt(self) -> int:
        """How often it was dispatched so far."""
        return self._current().header.attempt

    @property
    def result(self) -> Any:
        """The function's return value; None for a command. Raises JobFailed with cause and traceback, or NotEnded."""
        view = self._finished()
        if view.outcome != Outcome.SUCCEEDED:
            raise JobFailed(self.id, view.outcome.word, view.result.cause, view.result.error)
        return view.value()

    def output(self) -> bytes:
        """What it wrote to its standard output; a line in the middle says how many bytes were not kept, if any.

        Raises NotEnded: to read the output of a running job, follow it.
        """
        return _joined(self._finished().result.stdout)

    def stderr(self) -> bytes:
        """What it wrote to its standard error, as ``output``."""
        return _joined(self._finished().result.stderr)

    def _finished(self) -> JobView:
        view = self._current()
        if not view.ended:
            raise NotEnded(f"job {self.id} has not ended, it is {view.status}: wait for it first")
        return view

    def settle(self, view: JobView | None) -> None:
        """Told by a wait: this is the record at its end, or None where it is gone."""
        self._view = view if view is not None else self._view


class Job(Reading):
    """One job. Reading what may still change asks the store; once the job has ended, nothing does.

    Raises NoSuchJob where the record is gone (it ended, and its retention is over), and StoreUnavailable.
    """

    __slots__ = ("_client",)

    def __init__(
        self, client: Client, job_id: str, view: JobView | None = None, durability: Durability | None = None
    ) -> None:
        super().__init__(job_id, view, durability)
        self._client = client

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (other.id, other._client) == (self.id, self._client)

    def __hash__(self) -> int:
        return hash(self.id)

    def refresh(self) -> Job:
        """Read the record again, unless the job had ended."""
        self._current()
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Wait for the end; the job itself. Raises WaitTimeout after ``timeout`` seconds (None: no limit)."""
        self._client.wait([self], timeout)
        return self

    def follow(self) -> Iterator[Output]:
        """The job's output, piece by piece as it comes, until the job has ended."""
        return self._client.follow(self)

    @property
    def counts(self) -> ArrayCounts | None:
        """Of an array, where its tasks are now; None for any other job."""
        return self._client.read(self.id).counts

    def tasks(self, *statuses: str) -> Iterator[Job]:
        """The tasks of an array in any of these states or with any of these outcomes (none given: all), by index.

        Tasks that have not started are among them; those that succeeded and are past their retention are not.
        """
        return self._client.tasks(self, *statuses)

    def explain(self) -> Explanation:
        """Why it is where it is, and what would let it go on."""
        return self._client.explain(self)

    def hold(self, reason: str = "") -> Changed:
        """Keep it from being dispatched, while it waits."""
        return self._client.hold([self], reason)[0]

    def release(self) -> Changed:
        """Let it go on."""
        return self._client.release([self])[0]

    def cancel(self) -> Cancelled:
        """Ask for the end of the job."""
        return self._client.cancel([self])[0]

    def _current(self) -> JobView:
        if self._view is None or not self._view.ended:
            self._view = self._client.read(self.id)
        return self._view


def no_such_job(job_id: str) -> NoSuchJob:
    """The error for an id without a record."""
    return NoSuchJob(f"no job {job_id}: it never was, or it ended and its record has expired")


def _joined(captured: Captured) -> bytes:
    missing = captured.size - len(captured.head) - len(captured.tail)
    mark = b"\n... %d bytes not kept ...\n" % missing if missing > 0 else b""
    return captured.head + mark + captured.tail
