"""Schedules in Redis: what users do to them, what the leader does with them, and what there is to read."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.job import Submission
from jobschedd.schedule import Schedule, pack, unpack
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.moves import new_record
from jobschedd.store.scripts import script

Read = TypeVar("Read")

#: A master that has not said for so long that it is there is forgotten.
FORGET_MASTER = 86_400_000


class Fired(msgspec.Struct, frozen=True):
    """One line of a schedule's past. ``what``: fired, skipped, replaced; ``job``: its own, or the one in its way."""

    time: str  # the time that it stands for, in milliseconds
    at: float  # when that was decided, in milliseconds of the server's clock
    what: str
    job: str = ""


@dataclass(frozen=True)
class Master:
    """What a master said last. ``at``: milliseconds of the server's clock."""

    name: str
    at: float
    schedules: tuple[str, ...] = ()  # name:revision of those in its configuration


class _Said(msgspec.Struct):
    at: float
    says: str


class _Told(msgspec.Struct):
    schedules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """A schedule and where it stands. Times in milliseconds; 0: never."""

    schedule: Schedule
    revision: str = ""
    origin: str = "user"  # user, config
    cursor: int = 0  # every time up to here has been dealt with
    paused: dict[str, Any] | None = None  # reason, since (seconds), by
    waiting: tuple[int, ...] = ()  # times whose jobs wait for the end of the job before
    job: str = ""  # the last one fired
    fired_for: int = 0
    fired_at: int = 0
    fired: int = 0  # how often
    skipped: int = 0
    missed: int = 0


@dataclass(frozen=True)
class Fire:
    """One turn of one schedule, see ``lua/fire.lua``. ``how``: time, pass, queued."""

    stored: Stored
    cursor: int
    time: int
    how: str
    missed: int = 0
    submission: Submission | None = None


@dataclass(frozen=True)
class Answer:
    """What became of it: fired, skipped, queued, passed, busy, early or changed; and the job that it is about."""

    word: str
    job: str


class Schedules:
    """The schedules of one namespace. Every method raises StoreUnavailable or StoreRefused."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client: Any = client
        self._keys = keys

    def _call(self, name: str, *args: Any) -> Any:
        with translated():
            return script(name).call(self._client, self._keys, *args)

    # -- reading ----------------------------------------------------------------------------------------------

    def all(self) -> tuple[list[Stored], list[str]]:
        """(every schedule, by name; the names of those that this version cannot read)."""
        with translated():
            definitions = self._client.hgetall(self._keys.schedules)
        names = sorted(name.decode() for name in definitions)
        states = self._states(names)
        found, unreadable = [], []
        for name, state in zip(names, states, strict=True):
            try:
                found.append(_stored(definitions[name.encode()], state))
            except ProtocolError:
                unreadable.append(name)
        return found, unreadable

    def one(self, name: str) -> Stored | None:
        """One schedule. Raises ProtocolError where it cannot be read."""
        with translated():
            definition = self._client.hget(self._keys.schedules, name)
        return None if definition is None else _stored(definition, self._states([name])[0])

    def _states(self, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.hgetall(self._keys.schedule(name))
            return list(pipeline.execute())

    def fires(self, name: str, limit: int = 10) -> list[Fired]:
        """What a schedule did last, the newest first."""
        with translated():
            lines = self._client.lrange(self._keys.fires(name), 0, limit - 1)
        return [fire for line in lines if (fire := _read(line, Fired)) is not None]

    def masters(self) -> list[Master]:
        """Every master that was there within a day."""
        with translated():
            said = self._client.hgetall(self._keys.configurations)
        found = []
        for name, text in said.items():
            outer = _read(text, _Said)
            told = _read(outer.says.encode(), _Told) if outer is not None else None
            if outer is not None and told is not None:
                found.append(Master(name.decode(errors="replace"), outer.at, told.schedules))
        return sorted(found, key=lambda master: master.name)

    def now(self) -> int:
        """The server's clock, in milliseconds."""
        with translated():
            seconds, micro = self._client.time()
        return int(seconds) * 1000 + int(micro) // 1000

    # -- users ------------------------------------------------------------------------------------------------

    def add(self, schedule: Schedule, replace: bool = False) -> str:
        """added, changed or unchanged; or exists (another one), configured (it belongs to the leader's file)."""
        what = (pack(schedule), schedule.revision, schedule.timing)
        return _text(self._call("schedule", "replace" if replace else "add", schedule.name, *what))

    def remove(self, name: str) -> str:
        """removed; or unknown, configured."""
        return _text(self._call("schedule", "remove", name))

    def pause(self, name: str, reason: str, by: str) -> str:
        """paused; or unknown, already."""
        said = {"reason": reason, "since": time.time(), "by": by}
        return _text(self._call("schedule", "pause", name, json.dumps(said)))

    def resume(self, name: str) -> str:
        """resumed, from the next time on; or unknown, already."""
        return _text(self._call("schedule", "resume", name))

    # -- masters ----------------------------------------------------------------------------------------------

    def present(self, master: str, schedules: Sequence[Schedule]) -> int:
        """Say that a master is there, and what its file says; the server's clock in milliseconds."""
        says = {"schedules": [f"{one.name}:{one.revision}" for one in schedules]}
        return int(self._call("present", master, json.dumps(says), FORGET_MASTER))

    def own(self, fence: str, schedules: Sequence[Schedule]) -> list[tuple[str, str]]:
        """Have exactly these of those that come from a file: (added, changed, taken or removed; name)."""
        arguments: list[Any] = [fence]
        for one in schedules:
            arguments += [one.name, pack(one), one.revision, one.timing]
        return [(_text(word), _text(name)) for word, name in self._call("timetable", *arguments)]

    def fire(self, fence: str, fires: Sequence[Fire], keep_ms: int) -> tuple[int, list[Answer]]:
        """(the server's clock, what became of each). Raises NotTheLeader, QueueFull: then nothing was done."""
        arguments: list[Any] = [fence]
        for one in fires:
            schedule = one.stored.schedule
            arguments += [schedule.name, one.stored.revision, one.cursor, one.time, one.how, one.missed]
            arguments += [schedule.if_running.value, schedule.catch_up_max, keep_ms, *_job(one.submission)]
        now, *answers = self._call("fire", *arguments)
        return int(now), [Answer(_text(word), _text(job)) for word, job in answers]


def _job(job: Submission | None) -> tuple[Any, ...]:
    if job is None:
        return ("", 0, 0, 0, "", "")
    return (job.target.key(), job.priority, job.at_ms, job.expires_ms, job.key, new_record(job))


def _stored(definition: bytes, state: dict[bytes, bytes]) -> Stored:
    told = {name.decode(): value.decode(errors="replace") for name, value in state.items()}
    numbers = {
        name: int(told.get(name) or 0) for name in ("cursor", "fired_for", "fired_at", "fired", "skipped", "missed")
    }
    return Stored(
        schedule=unpack(definition),
        revision=told.get("revision", ""),
        origin=told.get("origin", "user"),
        paused=json.loads(told["paused"]) if "paused" in told else None,
        waiting=tuple(int(moment) for moment in told.get("waiting", "").split()),
        job=told.get("job", ""),
        **numbers,
    )


def _read(data: bytes, kind: type[Read]) -> Read | None:
    """None for what somebody else has written there."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
