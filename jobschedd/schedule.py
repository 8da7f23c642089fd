"""A schedule: what to submit again and again, when, and by which policies. From what a user wrote; no I/O."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from jobschedd.cron import Cron
from jobschedd.durations import parse_duration
from jobschedd.errors import InvalidJob, ProtocolError
from jobschedd.job import Flag, Spec, Submission, decode_spec, encode
from jobschedd.recurrence import Dst, Recurrence, time_zone
from jobschedd.submission import point_in_time, submission

#: A job id begins with a digit, the name of a schedule does not: ``explain`` takes either.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}", re.ASCII)
SHORTEST_EVERY = 1000
LONGEST_JITTER = 86_400_000
MOST_CATCH_UP = 10_000
#: What a submit takes and a schedule's job cannot have: the schedule says when, and the fire is the key.
_NOT_FOR_A_FIRE = {
    "delay": "the schedule says when",
    "at": "the schedule says when; for one time only: jobsched submit --at",
    "key": "each fire has a key of its own",
    "key_scope": "each fire has a key of its own",
    "hold": "pause the schedule instead",
    "after": "its jobs wait for nobody; have it submit a workflow",
    "ref": "its jobs wait for nobody; have it submit a workflow",
    "array": "each time has one job; have that submit the array",
    "all": "each time has one job; have that submit the others",
    "all_nodes": "each time has one job; have that submit the others",
    "follow": "nobody waits for it",
}


class CatchUp(enum.StrEnum):
    """What becomes of the times that passed while no master led."""

    NONE = "none"
    LAST = "last"  # the last of them runs
    ALL = "all"  # all run, the newest catch_up_max of them at most


class IfRunning(enum.StrEnum):
    """What becomes of a time at which the job of the time before has not ended."""

    SKIP = "skip"
    QUEUE = "queue"  # it waits for that end
    REPLACE = "replace"  # that job is cancelled; this one waits for its end
    ALLOW = "allow"  # both run


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One schedule as Redis keeps it (JSON). Times in milliseconds. Optional fields may be added, never reused."""

    name: str
    job: dict[str, Any]  # as a line of JSONL
    cron: str = ""
    every: int = 0
    timezone: str = "UTC"
    dst: Dst = Dst.RUN_ONCE
    catch_up: CatchUp = CatchUp.LAST
    catch_up_max: int = 100
    if_running: IfRunning = IfRunning.SKIP
    jitter: int = 0
    start: int = 0
    end: int = 0

    @property
    def timing(self) -> str:
        """Text that changes when its times do."""
        return f"{self.cron}|{self.every}|{self.timezone}|{self.dst}|{self.start}|{self.end}"

    @property
    def revision(self) -> str:
        """Text that changes whenever anything does."""
        return hashlib.sha256(pack(self)).hexdigest()[:16]

    def recurrence(self) -> Recurrence:
        """Its times. Raises ValueError where they cannot be read."""
        return Recurrence(
            cron=Cron.parse(self.cron) if self.cron else None,
            every=self.every,
            zone=time_zone(self.timezone),
            dst=self.dst,
            start=self.start,
            end=self.end,
        )

    def template(self) -> Template:
        """What each fire submits. Raises InvalidJob."""
        return Template(self)


class Template:
    """Makes the job of one time out of a schedule, without checking it all again."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._submission = submission({"name": schedule.name, **schedule.job})
        self._spec: Spec = decode_spec(self._submission.spec)

    def fire(self, moment: int) -> Submission:
        """The job of the time ``moment``: its key is the fire's id, its start a little later where there is jitter."""
        key = fire_id(self._schedule.name, moment)
        spec = msgspec.structs.replace(self._spec, key=key, schedule=self._schedule.name, scheduled_for=moment)
        at = moment + jitter_of(key, self._schedule.jitter) if self._schedule.jitter else 0
        flags = self._submission.flags | Flag.KEYED
        return msgspec.structs.replace(self._submission, spec=encode(spec), key=key, flags=flags, at_ms=at)


def fire_id(name: str, moment: int) -> str:
    """The same for the same time of the same schedule, whoever fires it."""
    text = datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds" if moment % 1000 else "seconds")
    return f"schedule:{name}@{text.removesuffix('+00:00')}Z"


def jitter_of(key: str, most: int) -> int:
    """Milliseconds from 0 to ``most``, decided by the fire's id."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % (most + 1)


def pack(schedule: Schedule) -> bytes:
    """The JSON that Redis keeps."""
    return msgspec.json.encode(schedule, order="deterministic")


def unpack(data: bytes) -> Schedule:
    """Raises ProtocolError for what this version cannot read."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable schedule: {error}") from error


def schedule(item: Mapping[str, Any]) -> Schedule:
    """Check what a user wrote: fields of a schedule and of a job in one mapping. Raises InvalidJob naming the field."""
    if not isinstance(item, Mapping):
        raise InvalidJob("schedule", f"must be an object with fields such as name, cron and command, not {item!r:.60}")
    values = {name: _FIELDS[name](name, item[name]) for name in _FIELDS if item.get(name) is not None}
    if "name" not in values:
        raise InvalidJob("name", "is missing: every schedule has one")
    if ("cron" in values) == ("every" in values):
        raise InvalidJob("cron", "give one of cron and every")
    job = {name: value for name, value in item.items() if name not in _FIELDS and value is not None}
    found = Schedule(job=_job(values["name"], job), **values)
    _check(found)
    return found


def _job(name: str, job: dict[str, Any]) -> dict[str, Any]:
    for field, why in _NOT_FOR_A_FIRE.items():
        if field in job:
            raise InvalidJob(field, f"cannot be given for a schedule: {why}")
    submission({"name": name, **job})
    if isinstance(job.get("stdin"), bytes | bytearray):
        try:
            job = job | {"stdin": bytes(job["stdin"]).decode()}
        except UnicodeDecodeError:
            raise InvalidJob("stdin", "must be text in UTF-8 for a schedule") from None
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(job, enc_hook=_plain))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise InvalidJob("job", f"cannot keep a value of type {type(value).__name__}")


def _check(found: Schedule) -> None:
    if found.every and found.dst is not Dst.RUN_ONCE:
        raise InvalidJob("dst", "is for cron: an interval knows no wall clock")
    if found.every and found.timezone != "UTC":
        raise InvalidJob("timezone", "is for cron: an interval knows no wall clock (give start to choose its anchor)")
    if found.end and found.end < found.start:
        raise InvalidJob("end", "lies before start")
    recurrence = found.recurrence()
    if next(recurrence.after(max(found.start - 1, 0)), None) is None:
        raise InvalidJob("cron", "never comes between start and end")


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise InvalidJob(
            field, f"{value!r:.80} is no name of a schedule: a letter, then letters, digits, '.', '_', '-'; at most 64"
        )
    return str(value)


def _cron(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be text such as '0 3 * * *', not {type(value).__name__}")
    try:
        Cron.parse(value)
    except ValueError as error:
        raise InvalidJob(field, str(error)) from None
    return " ".join(value.split())


def _milliseconds(shortest: int, longest: int) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        try:
            found = round(parse_duration(value) * 1000)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidJob(field, str(error)[:200]) from None
        if not shortest <= found <= longest:
            raise InvalidJob(field, f"must be between {shortest / 1000:g} and {longest / 1000:g} seconds")
        return found

    return check


def _zone(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be the name of a time zone, not {type(value).__name__}")
    try:
        time_zone(value)
    except ValueError as error:
        raise InvalidJob(field, str(error)) from None
    return str(value)


def _choice(kind: type[enum.StrEnum]) -> Callable[[str, Any], Any]:
    def check(field: str, value: Any) -> enum.StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise InvalidJob(field, f"{value!r:.60} must be {' or '.join(kind)}") from None

    return check


def _most(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CATCH_UP:
        raise InvalidJob(field, f"{value!r:.60} must be a whole number from 1 to {MOST_CATCH_UP}")
    return value


def _moment(field: str, value: Any) -> int:
    try:
        return round(point_in_time(value).timestamp() * 1000)
    except InvalidJob as error:
        raise InvalidJob(field, error.problem) from None


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "name": _name,
    "cron": _cron,
    "every": _milliseconds(SHORTEST_EVERY, 366 * 86_400_000),
    "timezone": _zone,
    "dst": _choice(Dst),
    "catch_up": _choice(CatchUp),
    "catch_up_max": _most,
    "if_running": _choice(IfRunning),
    "jitter": _milliseconds(0, LONGEST_JITTER),
    "start": _moment,
    "end": _moment,
}
_decoder = msgspec.json.Decoder(Schedule)
