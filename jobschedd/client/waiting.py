"""Waiting for many jobs at once: the store tells, nobody polls."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

from jobschedd.client.session import Session
from jobschedd.durations import format_duration
from jobschedd.errors import StoreUnavailable, WaitTimeout
from jobschedd.failpoints import failpoint
from jobschedd.store.listen import BLOCK, Inbox
from jobschedd.store.views import JobView

#: Jobs that one call registers; it answers with the records of those that had ended.
_REGISTER = 200
#: Seconds between looks at jobs that nobody told of, and how many are looked at: a safety net, not a poll.
_LOOK_AGAIN, _LOOK_AT = 5.0, 1000
_FETCH = 100

Ended = tuple[str, JobView | None]


def ended(session: Session, ids: Iterable[str], timeout: float | None) -> Iterator[Ended]:
    """Each job as it ends; with None for one whose record is gone. Raises WaitTimeout, StoreUnavailable."""
    waiting = dict.fromkeys(ids)
    total = len(waiting)
    deadline = None if timeout is None else time.monotonic() + timeout
    with session.inbox() as inbox:
        yield from _register(session, inbox, waiting, list(waiting))
        failpoint("client.wait.registered")
        looked = time.monotonic()
        while waiting:
            left = BLOCK if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise _too_late(len(waiting), total, timeout or 0.0)
            try:
                told = inbox.take(left)
            except StoreUnavailable:
                # What was on its way to us may be lost: registering again tells of it.
                inbox.forget()
                yield from _register(session, inbox, waiting, list(waiting))
                continue
            if told:
                failpoint("client.wait.told")
            yield from _fetch(session, inbox, waiting, told)
            if time.monotonic() - looked > _LOOK_AGAIN:
                some = list(islice(waiting, _LOOK_AT))
                for job_id in some:  # to the end of the queue
                    del waiting[job_id]
                    waiting[job_id] = None
                yield from _register(session, inbox, waiting, some)
                looked = time.monotonic()


def _register(session: Session, inbox: Inbox, waiting: dict[str, None], ids: list[str]) -> Iterator[Ended]:
    for start in range(0, len(ids), _REGISTER):
        some = ids[start : start + _REGISTER]
        records = session.patiently(lambda some=some: inbox.watch(some))  # type: ignore[misc]
        for job_id, record in zip(some, records, strict=True):
            if record != b"":
                del waiting[job_id]
                yield job_id, None if record is None else JobView(job_id, record)


def _fetch(session: Session, inbox: Inbox, waiting: dict[str, None], told: list[str]) -> Iterator[Ended]:
    mine = [job_id for job_id in dict.fromkeys(told) if job_id in waiting]
    for start in range(0, len(mine), _FETCH):
        some = mine[start : start + _FETCH]
        records = session.patiently(lambda some=some: session.inspect.records(some))  # type: ignore[misc]
        again = []
        for job_id, record in zip(some, records, strict=True):
            view = None if record is None else JobView(job_id, record)
            if view is not None and not view.ended:
                again.append(job_id)  # told of an end before the last: somebody retried it
                continue
            del waiting[job_id]
            yield job_id, view
        yield from _register(session, inbox, waiting, again)


def _too_late(missing: int, total: int, timeout: float) -> WaitTimeout:
    what = "the job has" if total == 1 else f"{missing} of {total} jobs have"
    return WaitTimeout(f"{what} not ended within {format_duration(timeout)}")
