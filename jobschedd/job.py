"""Job, State, Outcome, the legal transitions and the wire formats. No I/O.

A job's *record* in Redis is one packed string: a fixed header (``Header``), the spec (msgpack of ``Spec``,
opaque to the store) and, once the job is done, its result (msgpack of ``Result``). Before changing any of
these formats: readers of version N must accept what N-1 wrote; add optional fields only, never reuse one;
raise ``RECORD_VERSION`` when the header changes; the scripts in ``store/lua`` read the header by offset.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from jobschedd.amounts import SLOTS
from jobschedd.errors import ProtocolError
from jobschedd.labels import matches

RECORD_VERSION: Final = 1
#: Bytes that one message (spec or result) may have unless configured otherwise.
MAX_PAYLOAD: Final = 1 << 20
HIGHEST_PRIORITY: Final = 100


class State(enum.IntEnum):
    """Where a job is."""

    PENDING = 1  # waits for a channel with room
    SCHEDULED = 2  # waits for its time (a delay, or a retry's back-off)
    WAITING = 3  # waits for other jobs
    DISPATCHED = 4  # in a channel's dispatch stream
    RUNNING = 5  # its channel said that it runs
    DONE = 6  # has exactly one accepted end: see Outcome

    @property
    def word(self) -> str:
        """The name that users read and type."""
        return _WORDS[self]


class Outcome(enum.IntEnum):
    """How a job ended."""

    NONE = 0
    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    LOST = 5
    EXPIRED = 6
    SKIPPED = 7

    @property
    def word(self) -> str:
        """The name that users read and type."""
        return _OUTCOME_WORDS[self]


# Looking up what is asked for at every job is ten times as fast as making it anew.
_STATES: Final = {int(state): state for state in State}
_OUTCOMES: Final = {int(outcome): outcome for outcome in Outcome}
_WORDS: Final = {state: state.name.lower() for state in State}
_OUTCOME_WORDS: Final = {outcome: outcome.name.lower() for outcome in Outcome}


class Cause(enum.StrEnum):
    """Why a job ended the way it did."""

    EXIT = "exit"  # its own exit code
    SIGNAL = "signal"  # killed by a signal that we did not send
    TIMEOUT = "timeout"  # ran longer than its timeout
    CANCELLED = "cancelled"  # a user asked
    OOM = "oom"  # out of memory
    NOT_FOUND = "not_found"  # the command does not exist
    NOT_EXECUTABLE = "not_executable"  # it exists, but cannot be executed
    CWD = "cwd"  # the working directory cannot be entered
    ARGV = "argv"  # arguments or environment that no process can be given
    DENIED = "denied"  # the node's allow list says no
    IMPORT = "import"  # the function cannot be imported
    EXCEPTION = "exception"  # the function raised
    RESULT_TYPE = "result_type"  # the return value is not JSON
    RESULT_TOO_LARGE = "result_too_large"
    UNREADABLE = "unreadable"  # the channel cannot read the job's spec
    RESOURCE = "resource"  # the node ran out of processes, memory or files while starting it
    CHANNEL_LOST = "channel_lost"  # the channel process died under it
    NODE_LOST = "node_lost"  # the node stopped renewing its lease
    DRAIN = "drain"  # interrupted by an orderly stop
    LEASE = "lease"  # overlap: forbid, and the node was cut off for too long
    POISON = "poison"  # took its channel down max_crashes times
    EXPIRED = "expired"  # not started in time
    NO_RECEIVER = "no_receiver"  # pubsub: the dispatch reached nobody
    NO_ANSWER = "no_answer"  # pubsub: dispatched, and never answered
    ECHO = "echo"  # pubsub: a foreign program said the id again, and nothing more
    DEPENDENCY = "dependency"  # a job it waits for can never meet the condition
    TASKS = "tasks"  # an array, as a whole: how its tasks ended
    MAX_FAILURES = "max_failures"  # not started because too many other tasks of its array failed


#: Failures that another try may mend. The others would fail again the same way.
RETRYABLE: Final = frozenset(
    {Cause.EXIT, Cause.SIGNAL, Cause.TIMEOUT, Cause.OOM, Cause.EXCEPTION, Cause.RESOURCE, Cause.NO_RECEIVER}
)

#: Interruptions that are nobody's fault: the job goes back to pending and is charged nothing.
UNCHARGED: Final = frozenset({Cause.DRAIN, Cause.NODE_LOST, Cause.LEASE})

#: Every legal change of state: (move, from, to). ``None`` means "no record yet".
TRANSITIONS: Final = frozenset(
    {
        ("submit", None, State.PENDING),
        ("submit", None, State.SCHEDULED),
        ("submit", None, State.WAITING),
        ("submit", None, State.DISPATCHED),  # to a channel that was offered to the next of its class
        ("unblock", State.WAITING, State.PENDING),  # what it waited for has come
        ("unblock", State.WAITING, State.SCHEDULED),  # and its own time has not
        ("unblock", State.WAITING, State.DONE),  # skipped: it never will
        ("fire", None, State.PENDING),  # a schedule's time has come
        ("fire", None, State.SCHEDULED),  # with jitter
        ("replace", State.PENDING, State.DONE),  # by the next fire of its schedule
        ("replace", State.SCHEDULED, State.DONE),
        ("replace", State.WAITING, State.DONE),
        ("promote", State.SCHEDULED, State.PENDING),
        ("dispatch", State.PENDING, State.DISPATCHED),
        ("dispatch", State.PENDING, State.RUNNING),  # an array, as a whole: its first task goes out
        ("dispatch", State.SCHEDULED, State.RUNNING),
        ("dispatch", State.RUNNING, State.DONE),  # its last task ended on its way
        ("expire", State.SCHEDULED, State.DONE),
        ("expire", State.PENDING, State.DONE),
        ("expire", State.WAITING, State.DONE),
        ("expire", State.RUNNING, State.DONE),  # an array that has nothing left
        ("dispatch", State.PENDING, State.DONE),  # expired, or cancelled while it went back
        ("publish", State.PENDING, State.DISPATCHED),  # pubsub
        ("publish", State.PENDING, State.SCHEDULED),  # nobody was subscribed: to be sent again
        ("publish", State.PENDING, State.DONE),  # expired, or cancelled while it went back
        ("publish", State.PENDING, State.RUNNING),  # an array
        ("publish", State.SCHEDULED, State.RUNNING),
        ("publish", State.RUNNING, State.DONE),
        ("start", State.DISPATCHED, State.RUNNING),
        ("return", State.DISPATCHED, State.PENDING),
        ("return", State.RUNNING, State.PENDING),
        ("return", State.DISPATCHED, State.DONE),  # cancelled meanwhile
        ("return", State.RUNNING, State.DONE),
        ("collect", State.DISPATCHED, State.DONE),
        ("collect", State.RUNNING, State.DONE),
        ("collect", State.DISPATCHED, State.SCHEDULED),  # a retry
        ("collect", State.RUNNING, State.SCHEDULED),
        ("collect", State.DISPATCHED, State.PENDING),  # a retry without delay
        ("collect", State.RUNNING, State.PENDING),
        ("requeue", State.DISPATCHED, State.PENDING),
        ("requeue", State.RUNNING, State.PENDING),
        ("requeue", State.DISPATCHED, State.DONE),  # lost, where retry_on_loss is off; or cancelled meanwhile
        ("requeue", State.RUNNING, State.DONE),
        ("cancel", State.PENDING, State.DONE),
        ("cancel", State.SCHEDULED, State.DONE),
        ("cancel", State.WAITING, State.DONE),
        ("cancel", State.RUNNING, State.DONE),  # an array of which no channel has a task
        ("retry", State.DONE, State.PENDING),
        ("retry", State.DONE, State.WAITING),  # it never started, and what it waits for has not come
        ("again", State.DONE, State.PENDING),  # an array
        ("restore", None, State.DISPATCHED),  # after Redis lost data: a channel still has it
        ("restore", State.PENDING, State.DISPATCHED),
        ("restore", State.SCHEDULED, State.DISPATCHED),
        ("restore", State.WAITING, State.DISPATCHED),
        ("restore", State.DISPATCHED, State.DISPATCHED),
        ("restore", State.RUNNING, State.DISPATCHED),
        ("settle", State.PENDING, State.DONE),  # after Redis lost data: the history knows its end
        ("settle", State.SCHEDULED, State.DONE),
        ("settle", State.WAITING, State.DONE),
        ("settle", State.DISPATCHED, State.DONE),
        ("settle", State.RUNNING, State.DONE),
        ("recover", State.DISPATCHED, State.PENDING),  # its order, or the report on it, is gone from Redis
        ("recover", State.RUNNING, State.PENDING),
        ("recover", State.DISPATCHED, State.DONE),
        ("recover", State.RUNNING, State.DONE),
    }
)


class Overlap(enum.StrEnum):
    """May a new attempt run while an old one, cut off from Redis, still does?"""

    ALLOW = "allow"
    FORBID = "forbid"


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to run and by which rules, as the submitter asked for it. Exactly one of command, shell, function."""

    command: tuple[str, ...] | None = None
    shell: str | None = None
    function: str | None = None
    args: bytes = b""  # JSON array text; empty means none
    kwargs: bytes = b""  # JSON object text; empty means none
    name: str = ""
    channel: str = ""
    node: str = ""
    labels: tuple[str, ...] = ()  # label expressions, all of which must hold
    priority: int = 0
    retries: int = 0
    retry_delay: float = 1.0  # seconds before the first retry; doubles each time
    retry_max_delay: float = 300.0
    retry_on: tuple[str, ...] | None = None  # causes; None means RETRYABLE
    timeout: float = 0.0  # seconds of wall time; 0 means none
    lost_after: float = 0.0  # seconds beyond the lease before a silent node's job is given to another
    overlap: Overlap = Overlap.ALLOW
    retry_on_loss: bool = True
    max_crashes: int = 2
    env: dict[str, str] = {}
    cwd: str = ""
    stdin: bytes = b""
    submitter: str = ""
    key: str = ""  # idempotency key
    key_scope: str = ""  # how long it is taken: while the record lives, or until the job has ended, or is dispatched
    group: str = ""  # who shares the fleet with whom
    limits: dict[str, int] = {}  # concurrency keys, each with the number that came with the job (0: none did)
    resources: dict[str, int] = {}  # what it needs of its channel's, see jobschedd.amounts
    avoid_failed: bool = False  # a retry goes to another node than the one where it failed, where there is one
    rates: dict[str, tuple[int, int]] = {}  # key -> starts, and the milliseconds within which no more may begin
    after: tuple[str, ...] = ()  # "ID:ok", "ID:any", "ID:fail": what must have ended before, and how
    workflow: str = ""  # the id of its workflow, which is that of its first job
    array: str = ""  # indices of a job array, and %limit: "1-100:2%5" (shortened); its tasks carry it too
    all_nodes: bool = False  # one task for each place
    on_success: tuple[str, ...] = ()  # hooks of the masters that are told when it has succeeded
    on_failure: tuple[str, ...] = ()  # and when it has ended in any other way, unless a user cancelled it
    schedule: str = ""  # the schedule that fired it
    scheduled_for: int = 0  # and for which of its times, in milliseconds since the epoch

    @property
    def slots(self) -> int:
        """How many slots of its channel it takes at once."""
        return self.resources.get(SLOTS, 1) if self.resources else 1

    @property
    def hook_flag(self) -> Flag:
        """The flag of a record whose end hooks are told of because it names them."""
        return Flag.HOOKED if self.on_success or self.on_failure else Flag.NONE

    @property
    def what(self) -> str:
        """One line that says what runs, for people."""
        if self.function is not None:
            return f"{self.function}()"
        if self.shell is not None:
            return self.shell
        return " ".join(self.command or ())


class Captured(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output stream of a job: its first and its last bytes, and how many there were."""

    head: bytes = b""
    tail: bytes = b""
    size: int = 0

    @property
    def truncated(self) -> bool:
        """Whether bytes between head and tail were dropped."""
        return self.size > len(self.head) + len(self.tail)


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one attempt ended, as its channel saw it. Times are seconds since the epoch on the node's clock."""

    outcome: Outcome
    cause: str
    exit_code: int | None = None
    signal: int | None = None
    error: str = ""  # one or more lines for people: errno text, traceback, why not started
    value: bytes = b""  # the function's return value, JSON text
    started: float = 0.0
    ended: float = 0.0
    duration: float = 0.0  # seconds by CLOCK_BOOTTIME
    peak_rss: int = 0  # bytes
    cpu: float = 0.0  # seconds, user + system
    pid: int = 0
    node: str = ""
    channel: str = ""
    stdout: Captured = Captured()
    stderr: Captured = Captured()
    escalated: bool = False  # it ignored TERM and was killed
    output_open: bool = False  # something still held its output when it ended


class Order(msgspec.Struct, frozen=True):
    """One dispatch of one job to one channel: what a channel process receives and its executor runs."""

    job: str
    attempt: int
    entry: str  # id of the dispatch entry: with job and attempt, the fence of every answer
    spec: Spec
    follow_until: float = 0.0  # seconds since the epoch: stream output live until then
    crashes: int = 0  # times it ran when its channel process died: then it runs alone
    gpus: tuple[int, ...] = ()  # which of the channel's GPUs are its own


class ReportKind(enum.StrEnum):
    """What a channel has to say about a dispatch entry."""

    STARTED = "started"  # still running after the first moments
    RESULT = "result"  # ended
    RETURN = "return"  # not started: put it back in front, charge nothing
    CRASHED = "crashed"  # it ran when the channel process died
    UNREADABLE = "unreadable"  # a foreign or malformed entry: dead-letter it


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message on the result stream. (job, attempt, entry) is the fence that the collector checks."""

    kind: ReportKind
    job: str
    attempt: int
    entry: str
    incarnation: str
    outcome: Outcome = Outcome.NONE
    cause: str = ""
    result: bytes = b""  # msgpack of Result
    time: float = 0.0
    reason: str = ""
    sample: bytes = b""  # of an unreadable entry: its first bytes


Wire = TypeVar("Wire", Spec, Result, Report)

_encode = msgspec.msgpack.Encoder()
_decode_spec = msgspec.msgpack.Decoder(Spec)
_decode_result = msgspec.msgpack.Decoder(Result)
_decode_report = msgspec.msgpack.Decoder(Report)


def encode(value: msgspec.Struct) -> bytes:
    """The wire bytes of a Spec, Result or Report."""
    return _encode.encode(value)


def decode_spec(data: bytes) -> Spec:
    """Raises ProtocolError when ``data`` is no spec that this version can read."""
    return _checked(_decode_spec, data, "spec")


def decode_result(data: bytes) -> Result:
    """Raises ProtocolError when ``data`` is no result that this version can read."""
    return _checked(_decode_result, data, "result")


def decode_report(data: bytes) -> Report:
    """Raises ProtocolError when ``data`` is no report that this version can read."""
    return _checked(_decode_report, data, "report")


def _checked(decoder: msgspec.msgpack.Decoder[Wire], data: bytes, what: str) -> Wire:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"unreadable {what}: {error}") from error


class Flag(enum.IntFlag):
    """Bits of the record's flags."""

    NONE = 0
    CANCEL_REQUESTED = 1  # a user asked to cancel it while a channel had it
    NO_RETRY_ON_LOSS = 2  # at most one start: lost is lost
    FOLLOWED = 4  # somebody asked for live output
    KEYED = 8  # submitted under an idempotency key, named in the spec
    HELD = 64  # a user holds it while it waits: not to be dispatched
    PARKED = 128  # its turn came while it was held: it stands in no list
    HOLDS = 2048  # counts against a limit while a channel has it: see what ``holds`` says
    AWAITED = 256  # other jobs wait for its end
    ARRAY = 512  # stands for many tasks, see store/lua/array.lua
    TASK = 1024  # one of them
    HOOKED = 4096  # names hooks that are told of its end


#: Each u48 as its lower 32 and its upper 16 bits.
_HEADER: Final = struct.Struct("<BBBBII IH IH BBHI IH 8s IH I I")
_NOBODY: Final = bytes(8)
HEADER_SIZE: Final = _HEADER.size


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The fixed part of a record. All times are server time in milliseconds since the epoch; 0 means none.

    Layout, little-endian (``store/lua/record.lua`` reads and writes it by offset)::

         0 u8  version                 24 u8  state         \
         1 u8  priority + 100          25 u8  outcome       |
         2 u8  tries                   26 u16 flags         |
         3 u8  crashes                 28 u32 attempt       |  what a move rewrites, in one piece
         4 u32 class                   32 u48 since         |
         8 u32 waiter                  38 8   incarnation   |
        12 u48 submitted               46 u48 entry, time   |
        18 u48 expires                 52 u32 entry, number /
                                       56 u32 length of the spec

    ``tries``: failures charged so far. ``crashes``: times it ran when its channel process died.
    ``since``: when the state began; for SCHEDULED when the job is due. Of one that is WAITING the entry's
    time says when it is due besides, its number which time of waiting this is, and the incarnation for how many jobs
    it waits still (see ``store/lua/record.lua``).
    """

    state: State
    outcome: Outcome = Outcome.NONE
    flags: Flag = Flag.NONE
    priority: int = 0
    tries: int = 0
    crashes: int = 0
    attempt: int = 0
    job_class: int = 0
    waiter: int = 0
    submitted: int = 0
    since: int = 0
    expires: int = 0
    incarnation: str = ""
    entry: str = ""

    def pack(self, spec_length: int) -> bytes:
        """The header's bytes, to be followed by a spec of ``spec_length`` bytes."""
        entry_time, _, entry_number = (self.entry or "0-0").partition("-")
        return _HEADER.pack(
            RECORD_VERSION,
            self.priority + HIGHEST_PRIORITY,
            self.tries,
            self.crashes,
            self.job_class,
            self.waiter,
            *_halves(self.submitted),
            *_halves(self.expires),
            self.state,
            self.outcome,
            self.flags,
            self.attempt,
            *_halves(self.since),
            bytes.fromhex(self.incarnation) if self.incarnation else _NOBODY,
            *_halves(int(entry_time)),
            int(entry_number),
            spec_length,
        )


def _halves(number: int) -> tuple[int, int]:
    """A u48 as its lower 32 and its upper 16 bits."""
    return number & 0xFFFFFFFF, number >> 32


def task_of(job_id: str) -> tuple[str, int] | None:
    """Array and index where this is the id of a task (``123_45``); None for any other job."""
    array, separator, index = job_id.partition("_")
    return (array, int(index)) if separator else None


def decode_header(data: bytes) -> Header:
    """Raises ProtocolError for bytes that are no header of this version."""
    _check_layout(data)
    _, priority, tries, crashes, job_class, waiter, *rest = _HEADER.unpack_from(data)
    submitted, submitted_high, expires, expires_high, state, outcome, flags, attempt, *rest = rest
    since, since_high, incarnation, time, time_high, number, _ = rest
    time |= time_high << 32
    try:
        return Header(
            state=_STATES[state],
            outcome=_OUTCOMES[outcome],
            flags=flags_of(flags),
            priority=priority - HIGHEST_PRIORITY,
            tries=tries,
            crashes=crashes,
            attempt=attempt,
            job_class=job_class,
            waiter=waiter,
            submitted=submitted | submitted_high << 32,
            since=since | since_high << 32,
            expires=expires | expires_high << 32,
            incarnation="" if incarnation == _NOBODY else incarnation.hex(),
            entry=f"{time}-{number}" if time or number else "",
        )
    except KeyError as error:
        raise ProtocolError(f"unreadable record: no state or outcome has the number {error}") from error


@functools.lru_cache(maxsize=1024)
def flags_of(number: int) -> Flag:
    """``Flag(number)``, remembered: making one takes longer than all the rest of a header."""
    return Flag(number)


class Record(msgspec.Struct, frozen=True):
    """A whole record: header, spec bytes and, once done, result bytes."""

    header: Header
    spec: bytes
    result: bytes


class Past(NamedTuple):
    """What the history keeps of a record that was dispatched. Times in milliseconds since the epoch; 0: none."""

    attempt: int
    submitted: int
    dispatched: int
    spec: bytes


#: Submitted, attempt, time of the entry, length of the spec.
_PAST: Final = struct.Struct("<12xIH10xI14xIH4xI")


def decode_past(data: bytes) -> Past:
    """A third of the work of ``decode_record``, of which there is one for each end. Raises ProtocolError."""
    _check_layout(data)
    submitted, submitted_high, attempt, time, time_high, length = _PAST.unpack_from(data)
    spec = data[HEADER_SIZE : HEADER_SIZE + length]
    return Past(attempt, submitted | submitted_high << 32, time | time_high << 32, spec)


def _check_layout(data: bytes) -> None:
    if len(data) < HEADER_SIZE:
        raise ProtocolError(f"record too short: {len(data)} bytes")
    if data[0] != RECORD_VERSION:
        raise ProtocolError(f"record of version {data[0]}; this program reads version {RECORD_VERSION}")


def decode_record(data: bytes) -> Record:
    """Raises ProtocolError for bytes that are no record of this version."""
    header = decode_header(data)
    end = HEADER_SIZE + int.from_bytes(data[56:60], "little")
    return Record(header, data[HEADER_SIZE:end], data[end:])


class Target(msgspec.Struct, frozen=True):
    """Where a job may run and what it counts against: its class. Empty means anywhere, and nothing."""

    channel: str = ""
    node: str = ""
    labels: tuple[str, ...] = ()
    group: str = ""
    limits: tuple[tuple[str, int], ...] = ()  # as in Spec, by key
    rates: tuple[tuple[str, int, int], ...] = ()
    resources: tuple[tuple[str, int], ...] = ()
    avoid: str = ""  # a node, to be taken only where no other will do

    @classmethod
    def of(cls, spec: Spec) -> Target:
        """The class of a job that has not failed anywhere."""
        if not (spec.labels or spec.resources or spec.limits or spec.rates):
            return _simple_target(spec.channel, spec.node, spec.group)
        return cls(
            channel=spec.channel,
            node=spec.node,
            labels=tuple(sorted(spec.labels)),
            group=spec.group,
            resources=tuple(sorted(spec.resources.items())),
            limits=tuple(sorted(spec.limits.items())),
            rates=tuple(sorted((key, count, ms) for key, (count, ms) in spec.rates.items())),
        )

    def key(self) -> str:
        """The class as text: ``node/channel+label+label``, then what it counts against: ``?g:group;l:key=3;...``."""
        place = "/".join((self.node, self.channel)) + "".join(f"+{label}" for label in self.labels)
        terms = [f"g:{self.group}"] if self.group else []
        terms += [f"u:{name}={amount}" for name, amount in self.resources]
        terms += [f"x:{self.avoid}"] if self.avoid else []
        terms += [f"l:{key}={number}" for key, number in self.limits]
        terms += [f"r:{key}={count}/{ms}" for key, count, ms in self.rates]
        return place + ("?" + ";".join(terms) if terms else "")

    @classmethod
    def from_key(cls, key: str) -> Target:
        """The inverse of ``key``. Raises ValueError for one that this version cannot read."""
        where, _, terms = key.partition("?")
        place, *labels = where.split("+")
        node, _, channel = place.partition("/")
        read: dict[str, Any] = {"limits": [], "rates": [], "resources": []}
        for term in filter(None, terms.split(";")):
            kind, _, text = term.partition(":")
            name, _, amount = text.partition("=")
            match kind:
                case "g":
                    read["group"] = text
                case "x":
                    read["avoid"] = text
                case "u":
                    read["resources"].append((name, int(amount)))
                case "l":
                    read["limits"].append((name, int(amount)))
                case "r":
                    count, _, ms = amount.partition("/")
                    read["rates"].append((name, int(count), int(ms)))
                case _:
                    raise ValueError(f"a class of a newer version: {key[:200]}")
        several = {name: tuple(value) for name, value in read.items() if isinstance(value, list)}
        return cls(channel=channel, node=node, labels=tuple(labels), **{**read, **several})

    def admits(self, node: str, channel: str, labels: frozenset[str]) -> bool:
        """Whether this channel may run a job of this class."""
        return (
            (not self.channel or self.channel == channel)
            and (not self.node or self.node == node)
            and (labels.issuperset(self.labels) or all(matches(label, labels) for label in self.labels))
        )

    @property
    def slots(self) -> int:
        """How many slots of a channel each job of this class takes at once."""
        return dict(self.resources).get(SLOTS, 1) if self.resources else 1

    @property
    def amounts(self) -> dict[str, int]:
        """What it asks for beside slots."""
        return {name: amount for name, amount in self.resources if name != SLOTS}

    def fits(self, resources: Mapping[str, int], slots: int) -> bool:
        """Whether a channel that has so much could run a job of this class, were it alone there."""
        return self.slots <= slots and all(resources.get(name, 0) >= amount for name, amount in self.amounts.items())


@functools.lru_cache(maxsize=1024)
def _simple_target(channel: str, node: str, group: str) -> Target:
    """Jobs by the thousand have one: that it is the same object makes it equal at once."""
    return Target(channel=channel, node=node, group=group)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one task of a job for all nodes runs: its own spec and class."""

    name: str  # NODE or NODE/CHANNEL
    target: Target
    spec: bytes


class Array(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a submission an array: a bitmap of its indices (bit 7 of byte 0 is index 0), or its places."""

    total: int
    todo: bytes = b""
    limit: int = 0  # tasks at once; 0 means any number
    most_failures: int = 0  # that many failed tasks stop the rest; 0 means none
    places: tuple[Place, ...] = ()


NODES, CHANNELS = "nodes", "channels"


def place_of(spec: Spec, node: str, channel: str) -> Place:
    """The task of a job for all nodes on this node, or on this channel of it."""
    own = msgspec.structs.replace(spec, node=node, channel=channel or spec.channel, key="")
    return Place(name=f"{node}/{channel}" if channel else node, target=Target.of(own), spec=encode(own))


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A checked job on its way into the store. Times in milliseconds; 0 means none."""

    spec: bytes
    target: Target = Target()
    priority: int = 0
    flags: Flag = Flag.NONE
    delay_ms: int = 0
    at_ms: int = 0  # since the epoch
    expires_ms: int = 0  # from the submit on
    key: str = ""
    after: tuple[str, ...] = ()  # as in the spec; before they are resolved, also "REF:ok" of the same call
    ref: str = ""  # what other jobs of the same call name it by
    id: int = 0  # where it was reserved; 0: the store gives one
    array: Array | None = None
    everywhere: str = ""  # NODES or CHANNELS: the store's knowledge of them turns it into an array, see Submission.at

    def at(self, places: Sequence[tuple[str, str]]) -> Submission:
        """As an array with one task for each (node, channel); an empty channel means any of that node."""
        assert self.array is not None
        spec = decode_spec(self.spec)
        found = tuple(place_of(spec, node, channel) for node, channel in places)
        return msgspec.structs.replace(
            self, array=msgspec.structs.replace(self.array, total=len(found), places=found), everywhere=""
        )

    @property
    def size(self) -> int:
        """About how many bytes it takes to hand it in; a condition counts as many as it costs the server in time."""
        size = len(self.spec) + 200 * len(self.after)
        if self.array is None:
            return size
        return size + len(self.array.todo) + sum(len(place.spec) for place in self.array.places)
