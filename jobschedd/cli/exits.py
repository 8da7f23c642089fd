"""The exit code of ``run`` and ``wait``: the job's own, or what became of it; and the reason in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from jobschedd.cli.context import note
from jobschedd.errors import ConfigError, JobschedError, UsageError
from jobschedd.job import Cause, Outcome
from jobschedd.store.views import JobView

TIMED_OUT, OURS, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127

#: Causes that say no more than the outcome does.
SAME_WORD = {
    Outcome.TIMED_OUT: (Cause.TIMEOUT,),
    Outcome.CANCELLED: (Cause.CANCELLED,),
    Outcome.EXPIRED: (Cause.EXPIRED,),
    Outcome.SUCCEEDED: (Cause.EXIT, Cause.TASKS),
}

_BY_CAUSE = {
    Cause.NOT_FOUND: NOT_FOUND,
    Cause.IMPORT: NOT_FOUND,
    Cause.NOT_EXECUTABLE: NOT_EXECUTABLE,
    Cause.ARGV: NOT_EXECUTABLE,
    Cause.DENIED: NOT_EXECUTABLE,
    Cause.EXCEPTION: 1,
    Cause.TASKS: 1,
    Cause.RESULT_TYPE: 1,
    Cause.RESULT_TOO_LARGE: 1,
}


@contextmanager
def ours() -> Iterator[None]:
    """Around a command that ends as a job did: whatever stops *us* is told apart from that by code 125."""
    try:
        yield
    except (UsageError, ConfigError):
        raise
    except JobschedError as error:
        note(str(error))
        sys.exit(OURS)


def exit_code(view: JobView | None) -> int:
    """What a shell that ran the job itself would have said; 125 for ends that are none of the job's own."""
    if view is None or not view.ended:
        return OURS
    result = view.result
    if view.outcome == Outcome.SUCCEEDED:
        return result.exit_code or 0
    if view.outcome == Outcome.TIMED_OUT:
        return TIMED_OUT
    if view.outcome != Outcome.FAILED:
        return OURS
    if result.cause == Cause.EXIT:
        return result.exit_code or 1
    if result.signal:
        return 128 + result.signal
    return _BY_CAUSE.get(Cause(result.cause), OURS) if result.cause in set(Cause) else OURS


def reason(view: JobView | None, job_id: str) -> str:
    """Why a job did not succeed, in one line; empty where it did, or where its exit code says everything."""
    if view is None:
        return f"job {job_id} has no record any more: how it ended is not known here"
    if not view.ended or view.outcome == Outcome.SUCCEEDED:
        return ""
    result = view.result
    if result.cause == Cause.EXIT and view.outcome == Outcome.FAILED:
        return ""
    what = f"job {job_id} {view.outcome.word}"
    if result.cause and result.cause not in SAME_WORD.get(view.outcome, ()):
        what += f" ({result.cause}{_detail(view)})"
    last = result.error.strip().splitlines()[-1:]
    return what + (f": {last[0]}" if last else "")


def _detail(view: JobView) -> str:
    if view.result.cause != Cause.SIGNAL or not view.result.signal:
        return ""
    import signal

    try:
        return f" {signal.Signals(view.result.signal).name}"
    except ValueError:
        return f" {view.result.signal}"
