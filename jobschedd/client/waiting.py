"""Waiting for many jobs at once: the store tells, nobody polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from jobschedd.client.session import Session
from jobschedd.durations import format_duration
from jobschedd.errors import StoreUnavailable, WaitTimeout
from jobschedd.failpoints import failpoint
from jobschedd.store.listen import BLOCK, Inbox, Told
from jobschedd.store.views import JobView

#: Jobs that one call registers; it answers with the records of those that had ended.
_REGISTER = 200
#: Seconds between looks at jobs that nobody told of, and how many are looked at: a safety net, not a poll.
_LOOK_AGAIN, _LOOK_AT = 5.0, 1000
_FETCH = 100
#: The attempt whose end is news, of a job that is not registered yet: whatever the inbox brings may be old.
_NOT_KNOWN = 1 << 62

Ended = tuple[str, JobView | None]


def ended(session: Session, ids: Iterable[str], timeout: float | None) -> Iterator[Ended]:
    """Each job as it ends; with None for one whose record is gone. Raises WaitTimeout, StoreUnavailable."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with session.inbox() as inbox:
        watch = Watch(session, inbox)
        total = watch.add(ids)
        if total != 1 or not watch.is_told_already():
            yield from watch.register()
        failpoint("client.wait.registered")
        while len(watch):
            left = BLOCK if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise too_late(len(watch), total, timeout or 0.0)
            yield from watch.turn(left)


class Watch:
    """The jobs that one inbox waits for. One thread takes turns; others may add, register and drop meanwhile."""

    def __init__(self, session: Session, inbox: Inbox) -> None:
        self._session = session
        self._inbox = inbox
        self._waiting: dict[str, int] = {}  # the attempt (at least) whose end is news
        self._lock = threading.Lock()
        self._looked = time.monotonic()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ids: Iterable[str]) -> int:
        """Wait for these too, once they are registered; for how many in all."""
        with self._lock:
            self._waiting.update(dict.fromkeys(ids, _NOT_KNOWN))
            return len(self._waiting)

    def drop(self, job_id: str) -> None:
        """Nobody waits for this one any more."""
        with self._lock:
            self._waiting.pop(job_id, None)

    def is_told_already(self) -> bool:
        """Whether the end of the only job comes to the inbox without registering."""
        (job_id,) = self._waiting
        if not self._session.habit.is_told(job_id, self._inbox):
            return False
        self._expect(job_id, 1)
        return True

    def register(self, ids: Iterable[str] | None = None) -> Iterator[Ended]:
        """Ask to be told of these (None: of all); at once those that had ended."""
        with self._lock:
            some = [job_id for job_id in (self._waiting if ids is None else ids) if job_id in self._waiting]
        for start in range(0, len(some), _REGISTER):
            part = some[start : start + _REGISTER]
            records = self._session.patiently(lambda part=part: self._inbox.watch(part))  # type: ignore[misc]
            for job_id, record in zip(part, records, strict=True):
                if isinstance(record, int):
                    self._expect(job_id, record)
                elif record != b"":
                    yield from self._ended(job_id, None if record is None else JobView(job_id, record))

    def turn(self, patience: float) -> Iterator[Ended]:
        """What ended, waiting for the first up to ``patience`` seconds (1 s at most)."""
        try:
            told = self._inbox.take(patience)
        except StoreUnavailable:
            # What was on its way to us may be lost: registering again tells of it.
            self._inbox.forget()
            yield from self.register()
            return
        if told:
            failpoint("client.wait.told")
        yield from self._read(told)
        if time.monotonic() - self._looked > _LOOK_AGAIN:
            yield from self._look_again()

    def _look_again(self) -> Iterator[Ended]:
        with self._lock:
            some = list(islice(self._waiting, _LOOK_AT))
            for job_id in some:  # to the end of the queue
                self._waiting[job_id] = self._waiting.pop(job_id)
        yield from self.register(some)
        self._looked = time.monotonic()

    def _expect(self, job_id: str, attempt: int) -> None:
        with self._lock:
            if job_id in self._waiting:
                self._waiting[job_id] = attempt

    def _read(self, told: list[Told]) -> Iterator[Ended]:
        """What was brought along, where it is news; the others are fetched."""
        others = []
        for job_id, record in told:
            view = None if record is None else JobView(job_id, record)
            if view is not None and view.header.attempt >= self._waiting.get(job_id, _NOT_KNOWN):
                yield from self._ended(job_id, view)
            else:
                others.append(job_id)
        yield from self._fetch(others)

    def _fetch(self, told: list[str]) -> Iterator[Ended]:
        with self._lock:
            mine = [job_id for job_id in dict.fromkeys(told) if job_id in self._waiting]
        for start in range(0, len(mine), _FETCH):
            some = mine[start : start + _FETCH]
            records = self._session.patiently(
                lambda some=some: self._session.inspect.records(some)  # type: ignore[misc]
            )
            again = []
            for job_id, record in zip(some, records, strict=True):
                view = None if record is None else JobView(job_id, record)
                if view is not None and not view.ended:
                    again.append(job_id)  # told of an end before the last: somebody retried it
                else:
                    yield from self._ended(job_id, view)
            yield from self.register(again)

    def _ended(self, job_id: str, view: JobView | None) -> Iterator[Ended]:
        """Once: a thread that registers it and the one that is told may both see its end."""
        with self._lock:
            if job_id not in self._waiting:
                return
            del self._waiting[job_id]
        yield job_id, view


def too_late(missing: int, total: int, timeout: float) -> WaitTimeout:
    """The error of a wait of ``total`` jobs in all."""
    what = "the job has" if total == 1 else f"{missing} of {total} jobs have"
    return WaitTimeout(f"{what} not ended within {format_duration(timeout)}")
