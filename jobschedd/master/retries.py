"""What follows from a report: an end, or another try. Pure."""

from __future__ import annotations

import random
from typing import NamedTuple

from msgspec.structs import replace

from jobschedd.errors import ProtocolError
from jobschedd.job import (
    RETRYABLE,
    UNCHARGED,
    Cause,
    Flag,
    Header,
    Outcome,
    Report,
    ReportKind,
    Result,
    Spec,
    Target,
    decode_result,
    encode,
)

#: Crashes beyond ``max_crashes`` that are forgiven while channel processes die without any job's doing.
MOST_EXCUSED = 8


class End(NamedTuple):
    """The job is over. ``crashes``: how often its channel died under it, where that has changed."""

    outcome: Outcome
    result: bytes
    crashes: int | None = None


class Again(NamedTuple):
    """Another attempt in ``delay`` seconds; the budgets become ``tries`` and ``crashes``.

    ``job_class``: the class that the job has from now on, as text, where that changes.
    """

    delay: float
    tries: int
    crashes: int
    job_class: str = ""


def decide(
    header: Header, spec: Spec, report: Report, now: float, jitter: random.Random, excused: bool = False
) -> End | Again:
    """The consequence of ``report`` for a job whose record is (``header``, ``spec``). ``now`` in epoch seconds.

    ``excused``: channel processes die just now without any job's doing, see ``master.deaths``.
    """
    if report.kind is ReportKind.CRASHED:
        return _elsewhere(_after_crash(header, spec, report, now, excused), spec, report)
    end = End(report.outcome, report.result)
    if report.outcome is Outcome.SUCCEEDED:
        return end
    if Flag.CANCEL_REQUESTED in header.flags:
        return _cancelled(report, now) if report.cause in UNCHARGED else end
    if report.cause in UNCHARGED:
        if spec.retry_on_loss:
            return Again(0.0, header.tries, header.crashes)
        return End(Outcome.LOST, report.result)
    retryable = RETRYABLE if spec.retry_on is None else spec.retry_on
    if (
        report.outcome in (Outcome.FAILED, Outcome.TIMED_OUT)
        and report.cause in retryable
        and header.tries < spec.retries
    ):
        again = Again(back_off(spec, header.tries, jitter), header.tries + 1, header.crashes)
        return _elsewhere(again, spec, report)
    return end


def _elsewhere(decision: End | Again, spec: Spec, report: Report) -> End | Again:
    """A retry of a job that asked for it goes to another node than the one that reported."""
    if not isinstance(decision, Again) or not spec.avoid_failed:
        return decision
    try:
        node = decode_result(report.result).node if report.result else report.reason.partition("/")[0]
    except ProtocolError:
        return decision
    return decision._replace(job_class=replace(Target.of(spec), avoid=node).key()) if node else decision


def back_off(spec: Spec, tries: int, jitter: random.Random) -> float:
    """Seconds before the next try: doubled each time, capped, spread over the upper half ("equal jitter")."""
    delay = min(spec.retry_max_delay, spec.retry_delay * 2.0 ** min(tries, 60))
    return delay * jitter.uniform(0.5, 1.0)


def _after_crash(header: Header, spec: Spec, report: Report, now: float, excused: bool) -> End | Again:
    crashes = header.crashes + 1
    if Flag.CANCEL_REQUESTED in header.flags:
        why = "its channel process died while it was being cancelled"
        return _end(report, Outcome.CANCELLED, Cause.CANCELLED, why, now, crashes)
    if crashes >= spec.max_crashes + (MOST_EXCUSED if excused else 0):
        times = "once" if crashes == 1 else f"{crashes} times"
        why = f"its channel process died under it {times}; given up (max_crashes)"
        return _end(report, Outcome.FAILED, Cause.POISON, why, now, crashes)
    if not spec.retry_on_loss:
        why = "its channel process died under it"
        return _end(report, Outcome.LOST, Cause.CHANNEL_LOST, why, now, crashes)
    return Again(0.0, header.tries, crashes)


def _cancelled(report: Report, now: float) -> End:
    """Interrupted by us before the request to cancel it arrived: what the user asked for has come about."""
    try:
        result = replace(decode_result(report.result), outcome=Outcome.CANCELLED, cause=Cause.CANCELLED)
    except ProtocolError:
        return _end(report, Outcome.CANCELLED, Cause.CANCELLED, "interrupted while it was being cancelled", now)
    return End(Outcome.CANCELLED, encode(result))


def _end(report: Report, outcome: Outcome, cause: Cause, why: str, now: float, crashes: int | None = None) -> End:
    node, _, channel = report.reason.partition("/")
    result = Result(outcome=outcome, cause=cause, error=why, ended=now, node=node, channel=channel)
    return End(outcome, encode(result), crashes)
