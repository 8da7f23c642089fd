"""Workflow: jobs that depend on each other, submitted in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jobschedd.client.jobs import Job
from jobschedd.errors import InvalidJob, NotEnded, UsageError
from jobschedd.links import BadItem, ordered
from jobschedd.submission import submission

if TYPE_CHECKING:
    from jobschedd.client.api import Client


class Node:
    """A job of a workflow: for the ``after`` of others at once, and a ``job`` once the workflow is submitted."""

    __slots__ = ("_job", "ref")

    def __init__(self, ref: str) -> None:
        self.ref = ref
        self._job: Job | None = None

    @property
    def id(self) -> str:
        """Its job's id; before the submit what others call it by."""
        return self._job.id if self._job is not None else self.ref

    @property
    def job(self) -> Job:
        """The job. Raises NotEnded before the workflow is submitted."""
        if self._job is None:
            raise NotEnded(f"{self.ref} is no job yet: its workflow is submitted at the end of the with block")
        return self._job

    def become(self, job: Job) -> None:
        """Told by the submit."""
        self._job = job

    def __repr__(self) -> str:
        return f"<Node {self.ref}{'' if self._job is None else ' ' + repr(self._job)}>"


class Workflow:
    """Collects jobs; at the end of the ``with`` block all are submitted, or, after any error, none."""

    def __init__(self, client: Client, name: str = "") -> None:
        self.name = name
        self.nodes: list[Node] = []
        self._client = client
        self._items: list[dict[str, Any]] = []
        self._id = ""

    def __enter__(self) -> Workflow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._items:
            self.commit()

    def submit(self, command: Sequence[str], **options: Any) -> Node:
        """A command, with the options of ``Client.submit``; ``after`` may name nodes, and ``ref`` what it is called."""
        return self.add({"command": command, **options})

    def shell(self, line: str, **options: Any) -> Node:
        """A line for the node's shell, likewise."""
        return self.add({"shell": line, **options})

    def call(
        self,
        function: str | Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Node:
        """A function, likewise."""
        from jobschedd.client.api import importable

        name = function if isinstance(function, str) else importable(function)
        return self.add({"function": name, "args": args, "kwargs": kwargs or {}, **options})

    def add(self, item: Mapping[str, Any]) -> Node:
        """A job with the keys of a JSONL line."""
        if self._id:
            raise UsageError(f"workflow {self._id} is submitted: begin another one")
        node = Node(item.get("ref") or f"job.{len(self.nodes) + 1}")
        self._items.append({**item, "ref": node.ref})
        self.nodes.append(node)
        return node

    def after_all(self, command: Sequence[str], **options: Any) -> Node:
        """A command that runs when all jobs so far have ended, however they did."""
        return self.submit(command, after=[(node, "any") for node in self.nodes], **options)

    def commit(self) -> None:
        """Submit all of it, in one step; the end of the ``with`` block does that.

        Raises InvalidJob, its message beginning with the job's ref, QueueFull, StoreUnavailable.
        """
        checked = []
        for node, item in zip(self.nodes, self._items, strict=True):
            try:
                checked.append(submission(item))
            except InvalidJob as error:
                raise InvalidJob(f"{node.ref}: {error.field}", error.problem) from None
        try:
            order = ordered(checked)
        except BadItem as error:
            ref = self.nodes[min(error.number, len(self.nodes) - 1)].ref
            raise InvalidJob(f"{ref}: {error.field}", error.problem) from None
        ids = self._client.session.submit([checked[number] for number in order], workflow=self.name)
        for number, job_id in zip(order, ids, strict=True):
            self.nodes[number].become(Job(self._client, job_id))
        self._id = ids[0]

    @property
    def id(self) -> str:
        """That of its first job, which names the workflow; empty before the submit."""
        return self._id

    @property
    def jobs(self) -> list[Job]:
        """Its jobs, in the order in which they were added."""
        return [node.job for node in self.nodes]

    def wait(self, timeout: float | None = None) -> list[Job]:
        """Wait until all of them have ended, as ``Client.wait``."""
        return self._client.wait(self.jobs, timeout)
