"""Schedules, as a program sees them: ``client.schedules``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from jobschedd.client.session import Session
from jobschedd.errors import NoSuchSchedule, UsageError
from jobschedd.recurrence import Occurrence
from jobschedd.schedule import Schedule, fire_id, jitter_of, schedule
from jobschedd.store.schedules import Fired, Master, Stored
from jobschedd.store.schedules import Schedules as Store

_MOST_SHOWN = 1000


@dataclass(frozen=True)
class Coming:
    """A time to come. ``at``: seconds since the epoch; ``local``: in the schedule's zone; ``note``: on the clocks."""

    at: float
    local: datetime
    runs: bool
    note: str
    starts: float  # ``at`` and its jitter

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return {
            "at": self.at,
            "local": self.local.isoformat(),
            "runs": self.runs,
            "note": self.note or None,
            "starts": self.starts,
        }


class Schedules:
    """What there is to do with schedules. Raises StoreUnavailable and StoreRefused everywhere."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def _store(self) -> Store:
        self._session.reach()
        return Store(self._session.inspect.client, self._session.keys)

    def add(self, item: Mapping[str, Any] | None = None, *, replace: bool = False, **fields: Any) -> Schedule:
        """Add one: ``name``, ``cron`` or ``every``, what to run, and any option of a schedule or a submit.

        The same once more changes nothing. Raises InvalidJob naming the field; UsageError where another one has this
        name (``replace``: it is changed) or it belongs to the master's configuration.
        """
        wanted = schedule({**(item or {}), **fields})
        answer = self._session.patiently(lambda: self._store.add(wanted, replace))
        if answer == "configured":
            raise _configured(wanted.name)
        if answer == "exists":
            raise UsageError(f"there is another schedule {wanted.name}: replace it (--replace), or take another name")
        return wanted

    def all(self) -> list[Stored]:
        """All of them, by name."""
        return self._session.patiently(lambda: self._store.all())[0]

    def get(self, name: str) -> Stored:
        """One of them. Raises NoSuchSchedule."""
        found = self._session.patiently(lambda: self._store.one(name))
        if found is None:
            raise _unknown(name)
        return found

    def fires(self, name: str, limit: int = 10) -> list[Fired]:
        """What it did last, the newest first."""
        return self._session.patiently(lambda: self._store.fires(name, limit))

    def next(self, name: str, count: int = 10) -> list[Coming]:
        """Its next times, paused or not. Raises NoSuchSchedule."""
        stored = self.get(name)
        return coming(stored.schedule, max(stored.cursor, round(time.time() * 1000)), count)

    def remove(self, name: str) -> None:
        """Jobs that it has fired stay. Raises NoSuchSchedule; UsageError for one of the master's configuration."""
        answer = self._session.patiently(lambda: self._store.remove(name))
        if answer == "configured":
            raise _configured(name)
        if answer == "unknown":
            raise _unknown(name)

    def pause(self, name: str, reason: str = "", by: str = "") -> bool:
        """Let its times pass until it is resumed; False where it was paused already. Raises NoSuchSchedule."""
        answer = self._session.patiently(lambda: self._store.pause(name, reason, by))
        if answer == "unknown":
            raise _unknown(name)
        return answer == "paused"

    def resume(self, name: str) -> bool:
        """From its next time on; False where it was not paused. Raises NoSuchSchedule."""
        answer = self._session.patiently(lambda: self._store.resume(name))
        if answer == "unknown":
            raise _unknown(name)
        return answer == "resumed"

    def masters(self) -> list[Master]:
        """What each master's configuration says of schedules."""
        return self._session.patiently(lambda: self._store.masters())


def coming(wanted: Schedule, after_ms: int, count: int) -> list[Coming]:
    """The next times of a schedule, stored or not."""
    recurrence = wanted.recurrence()
    found = islice(recurrence.occurrences(after_ms), min(count, _MOST_SHOWN))
    return [_coming(wanted, occurrence) for occurrence in found]


def _coming(wanted: Schedule, occurrence: Occurrence) -> Coming:
    jitter = jitter_of(fire_id(wanted.name, occurrence.at), wanted.jitter) if wanted.jitter else 0
    return Coming(
        at=occurrence.at / 1000,
        local=datetime.fromtimestamp(occurrence.at / 1000, wanted.recurrence().zone),
        runs=occurrence.runs,
        note=occurrence.note,
        starts=(occurrence.at + jitter) / 1000,
    )


def _configured(name: str) -> UsageError:
    return UsageError(
        f"schedule {name} comes from the master's configuration: change it there (master.schedules) and reload; "
        f"or pause it: jobsched schedule pause {name}"
    )


def _unknown(name: str) -> NoSuchSchedule:
    return NoSuchSchedule(f"no schedule {name}; there are: jobsched schedule list")
