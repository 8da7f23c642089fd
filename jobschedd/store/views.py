"""What a reader of the store gets: jobs, channels and nodes as plain values, and their JSON (docs/json.md).

The JSON is an interface: fields are added, never renamed or removed. Times are seconds since the epoch, null
where there is none; absent texts are null.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from jobschedd.errors import ProtocolError
from jobschedd.job import (
    Captured,
    Flag,
    Header,
    Outcome,
    Record,
    Result,
    Spec,
    State,
    decode_record,
    decode_result,
    decode_spec,
    task_of,
)

#: Stands for the status of a job whose record has expired.
NO_RECORD = "no_record"
_NO_RESULT = Result(outcome=Outcome.NONE, cause="")


@dataclass(frozen=True)
class ArrayCounts:
    """Where the tasks of an array are. ``outcomes``: of those that have ended, by word."""

    total: int
    limit: int  # tasks at once; 0: any number
    not_started: int
    active: int  # started or on their way, retries that wait included
    outcomes: dict[str, int]

    @property
    def ended(self) -> int:
        """Tasks that have their end."""
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        parts = [f"{self.active} active", f"{self.not_started} not started"] if self.ended < self.total else []
        return ", ".join([*(f"{count} {word}" for word, count in self.outcomes.items()), *parts])

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        counts = {outcome.word: self.outcomes.get(outcome.word, 0) for outcome in Outcome if outcome}
        return {
            "tasks": self.total,
            "limit": self.limit or None,
            "not_started": self.not_started,
            "active": self.active,
        } | counts


class JobView:
    """One job as its record says at the time of reading. Raises ProtocolError where the record is unreadable."""

    def __init__(self, job_id: str, data: bytes) -> None:
        self.id = job_id
        #: Of an array, once somebody has counted: see ``Inspect.count``.
        self.counts: ArrayCounts | None = None
        #: Of a task that has not started, how its array stands.
        self.within: ArrayCounts | None = None
        self._record: Record = decode_record(data)

    @property
    def header(self) -> Header:
        """State, attempt, times: the record's fixed part."""
        return self._record.header

    @property
    def packed_spec(self) -> bytes:
        """The spec's bytes."""
        return self._record.spec

    @cached_property
    def spec(self) -> Spec:
        """What was asked for."""
        return decode_spec(self._record.spec)

    @cached_property
    def result(self) -> Result:
        """How the last attempt ended; an empty one while the job has not ended."""
        return decode_result(self._record.result) if self._record.result else _NO_RESULT

    @property
    def is_array(self) -> bool:
        """Whether it stands for many tasks."""
        return Flag.ARRAY in self.header.flags

    @property
    def ended(self) -> bool:
        """Whether the job has its accepted end."""
        return self.header.state == State.DONE

    @property
    def outcome(self) -> Outcome:
        """``Outcome.NONE`` until the end."""
        return self.header.outcome

    @property
    def status(self) -> str:
        """The one word that people want: the outcome, or the state until there is one."""
        return self.outcome.word if self.ended else self.header.state.word

    @property
    def ended_at(self) -> float:
        """Seconds since the epoch on the node's clock, or on the server's where no node ran it."""
        return self.result.ended or (self.header.since / 1000 if self.ended else 0.0)

    @property
    def due_ms(self) -> int:
        """When it may start by its own time, milliseconds since the epoch; 0 where it has none, or had it."""
        if self.header.state == State.SCHEDULED:
            return self.header.since
        return int(self.header.entry.partition("-")[0] or 0) if self.header.state == State.WAITING else 0

    def value(self) -> Any:
        """The function's return value. Raises ProtocolError where it is no JSON."""
        try:
            return msgspec.json.decode(self.result.value) if self.result.value else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"unreadable return value: {error}") from error

    def json(self, place: tuple[str, str] | None = None, output: bool = False, reason: str = "") -> dict[str, Any]:
        """As in docs/json.md. ``place``: node and channel that have it now; ``output``: with what it printed;
        ``reason``: the code of what it waits for.
        """
        header, spec, result = self.header, self.spec, self.result
        node, channel = place or (result.node, result.channel)
        task = task_of(self.id)
        fields: dict[str, Any] = {
            "id": self.id,
            "name": spec.name or None,
            "state": header.state.word,
            "outcome": self.outcome.word if self.ended else None,
            "cause": result.cause or None,
            "reason": reason or None,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "error": result.error or None,
            "kind": _kind(spec),
            "what": spec.what,
            "command": list(spec.command) if spec.command is not None else None,
            "shell": spec.shell,
            "function": spec.function,
            "args": _decoded(spec.args, []),
            "kwargs": _decoded(spec.kwargs, {}),
            "target": {
                "node": spec.node or None,
                "channel": spec.channel or None,
                "labels": list(spec.labels),
            },
            "group": spec.group or None,
            "limit_keys": {key: number or None for key, number in spec.limits.items()},
            "rates": {key: f"{count}/{ms}ms" for key, (count, ms) in spec.rates.items()},
            "resources": spec.resources,
            "avoid_failed": spec.avoid_failed,
            "priority": header.priority,
            "node": node or None,
            "channel": channel or None,
            "attempt": header.attempt,
            "tries": header.tries,
            "retries": spec.retries,
            "crashes": header.crashes,
            "cancel_requested": bool(header.flags & Flag.CANCEL_REQUESTED),
            "submitted": _seconds(header.submitted),
            "since": _seconds(0 if header.state == State.SCHEDULED else header.since),
            "due": _seconds(self.due_ms),
            "expires": _seconds(header.expires),
            "started": result.started or None,
            "ended": self.ended_at or None,
            "duration": result.duration if self.ended and result.started else None,
            "peak_rss": result.peak_rss or None,
            "cpu": result.cpu if self.ended and result.started else None,
            "pid": result.pid or None,
            "key": spec.key or None,
            "after": list(spec.after),
            "workflow": spec.workflow or None,
            "on_success": list(spec.on_success),
            "on_failure": list(spec.on_failure),
            "submitter": spec.submitter or None,
            "array": self.counts.json() if self.counts else None,
            "indices": spec.array or None,
            "array_id": task[0] if task else None,
            "index": task[1] if task else None,
            "schedule": spec.schedule or None,
            "scheduled_for": _seconds(spec.scheduled_for),
            "value": self.value() if self.outcome == Outcome.SUCCEEDED else None,
        }
        if output:
            fields |= {"stdout": _captured(result.stdout), "stderr": _captured(result.stderr)}
        return fields


def _kind(spec: Spec) -> str:
    if spec.function is not None:
        return "function"
    return "shell" if spec.shell is not None else "command"


def _decoded(data: bytes, empty: Any) -> Any:
    try:
        return msgspec.json.decode(data) if data else empty
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _seconds(milliseconds: int) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _captured(captured: Captured) -> dict[str, Any]:
    encoding = "utf-8"
    try:
        head, tail = captured.head.decode(), captured.tail.decode()
    except UnicodeDecodeError:
        encoding = "base64"
        head, tail = base64.b64encode(captured.head).decode(), base64.b64encode(captured.tail).decode()
    return {
        "size": captured.size,
        "truncated": captured.truncated,
        "encoding": encoding,
        "head": head,
        "tail": tail,
    }


@dataclass(frozen=True)
class ChannelView:
    """One dispatch channel: an incarnation of it, or (state ``down``) what is known of its last one."""

    node: str
    channel: str
    state: str  # up, draining, drained, paused, lost (its lease is missing), down (gone)
    slots: int
    labels: tuple[str, ...]
    window: int  # entries that it takes at most, running ones included
    entries: int  # jobs that it has now, running ones included
    incarnation: str
    pid: int
    host: str
    version: str
    transport: str
    started: float
    drain_reason: str | None
    resources: dict[str, int] = field(default_factory=dict)  # what it has, in the smallest units
    most_slots: int = 1  # that one job may take
    kept_for: str | None = None  # the job for which it takes no others of the same or a lower priority
    aside: int = 0  # results of data that were given up, kept on its node

    @property
    def name(self) -> str:
        """``node/channel``; of a subscriber that is none of ours, only the channel is known."""
        return f"{self.node}/{self.channel}" if self.node else self.channel

    @property
    def busy(self) -> int:
        """Slots in use, as far as the store can tell: what one job has beside its first is missing from the window."""
        more = max(0, self.slots - self.window) if self.window > 0 else 0
        return min(self.entries + more, self.slots)

    @property
    def free_slots(self) -> int:
        """Slots that a job may take now; what is only expected to be free in a moment does not count."""
        return max(0, min(self.slots, self.window - self.entries))

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return asdict(self) | {"labels": list(self.labels), "busy": self.busy, "started": self.started or None}


@dataclass(frozen=True)
class WorkflowView:
    """Jobs that were submitted as one workflow. Its id is that of the first of them; the others follow it."""

    id: str
    jobs: int
    name: str
    statuses: dict[str, int]  # status (outcome, or state before the end) -> jobs; NO_RECORD: theirs is gone

    @property
    def ids(self) -> list[str]:
        """Its jobs' ids; no job comes before one that it waits for."""
        return [str(int(self.id) + number) for number in range(self.jobs)]

    @property
    def ended(self) -> bool:
        """Whether all of its jobs have."""
        return not {state.word for state in State} & set(self.statuses)

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return {"id": self.id, "name": self.name or None, "jobs": self.jobs, "statuses": self.statuses}


@dataclass(frozen=True)
class NodeView:
    """All channels of one node together."""

    node: str
    state: str  # up, draining, drained, paused, lost, down; degraded: some of its channels are up
    channels: tuple[str, ...]
    channels_up: int
    slots: int
    entries: int
    busy: int
    labels: tuple[str, ...]
    host: str
    versions: tuple[str, ...]
    started: float

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        lists = {name: list(getattr(self, name)) for name in ("channels", "labels", "versions")}
        return asdict(self) | lists | {"started": self.started or None}


def by_node(channels: list[ChannelView]) -> list[NodeView]:
    """The nodes that these channels are on, by name."""
    nodes: dict[str, list[ChannelView]] = {}
    for channel in channels:
        if channel.node:
            nodes.setdefault(channel.node, []).append(channel)
    return [_node(name, nodes[name]) for name in sorted(nodes)]


def _node(name: str, channels: list[ChannelView]) -> NodeView:
    present = [channel for channel in channels if channel.state in ("up", "draining", "drained", "paused")]
    states = {channel.state for channel in channels}
    if states == {"up"}:
        state = "up"
    elif "up" in states:
        state = "degraded" if states & {"lost", "down"} else "up"
    else:
        state = next(word for word in ("draining", "drained", "paused", "lost", "down") if word in states)
    return NodeView(
        node=name,
        state=state,
        channels=tuple(sorted({channel.channel for channel in channels})),
        channels_up=len({channel.channel for channel in channels if channel.state == "up"}),
        slots=sum(channel.slots for channel in present),
        entries=sum(channel.entries for channel in channels),
        busy=sum(channel.busy for channel in present),
        labels=tuple(sorted({label for channel in present or channels for label in channel.labels})),
        host=next((channel.host for channel in channels if channel.host), ""),
        versions=tuple(sorted({channel.version for channel in present if channel.version})),
        started=min((channel.started for channel in present if channel.started), default=0.0),
    )


@dataclass(frozen=True)
class Counts:
    """How many jobs are where. Pending may count a few that went another way since."""

    pending: int
    scheduled: int
    waiting: int  # for other jobs
    active: int  # dispatched or running
    submitted: int  # ids given out so far
    uncollected: int  # messages with reports, and ends that are judged and in no history yet
    cancelling: int
    dead_letters: int
    held: int = 0  # by users; those whose turn has come are not among the pending

    def json(self) -> dict[str, int]:
        """As in docs/json.md."""
        return asdict(self)
