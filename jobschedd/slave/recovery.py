"""What a channel says for its dead predecessors: their spooled results, what they were running, then goodbye."""

from __future__ import annotations

import contextlib
import os
import signal

from jobschedd.clock import Clock
from jobschedd.errors import ProtocolError
from jobschedd.failpoints import failpoint
from jobschedd.job import Cause, Flag, Outcome, Report, ReportKind, Result, encode
from jobschedd.logs import get_logger
from jobschedd.slave.processtree import status_of
from jobschedd.slave.register import Start
from jobschedd.slave.spool import Home, Predecessor
from jobschedd.store.channel import ChannelStore, OrderEntry

log = get_logger(__name__)


def settle_predecessors(home: Home, store: ChannelStore, channel: str, clock: Clock) -> None:
    """Speak for every dead incarnation of this channel, oldest first. Repeatable: each entry is taken only once."""
    for predecessor in home.predecessors():
        kill_survivors(predecessor)
        # Its window closes in the same step: what becomes pending again must not be sent to the dead.
        sent = store.report_of(predecessor.incarnation, predecessor.unsent, window=0)
        failpoint("channel.recovery.sent")
        look = _rebooted if predecessor.rebooted else _crashed
        crashed = look(predecessor, store, channel, clock)
        store.report_of(predecessor.incarnation, crashed, window=0)
        failpoint("channel.recovery.crashed")
        store.leave(predecessor.incarnation)
        failpoint("channel.recovery.left")
        home.discard(predecessor)
        failpoint("channel.recovery.discarded")
        log.notice(
            "spoke for a dead channel process",
            channel=channel,
            incarnation=predecessor.incarnation,
            results_sent=sum(sent),
            were_running=len(crashed),
            rebooted=predecessor.rebooted,
        )


def kill_survivors(predecessor: Predecessor) -> None:
    """End the job processes that outlived their channel process; a pid alone proves nothing, its start time does.

    In another boot neither does.
    """
    if predecessor.rebooted:
        return
    for start in predecessor.started:
        if start.running and start.pid and _is_same(start):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(start.pid, signal.SIGKILL)


def _is_same(start: Start) -> bool:
    status = status_of(start.pid)
    return status is not None and status.identity.start == start.starttime


def _crashed(predecessor: Predecessor, store: ChannelStore, channel: str, clock: Clock) -> list[tuple[str, bytes]]:
    spooled = {entry for entry, _ in predecessor.unsent}
    running = {start.entry for start in predecessor.started if start.running}
    started = {start.entry for start in predecessor.started} - spooled
    reports = []
    for entry in store.entries_of(predecessor.incarnation, sorted(started)):
        report = _report(entry, entry.id in running, predecessor.incarnation, channel, clock)
        if report is not None:
            reports.append((entry.id, encode(report)))
    return reports


def _rebooted(predecessor: Predecessor, store: ChannelStore, channel: str, clock: Clock) -> list[tuple[str, bytes]]:
    """Every order that it had: after a crash of the machine nobody knows which of them it had begun."""
    spooled = {entry for entry, _ in predecessor.unsent}
    reports = []
    for entry in store.all_entries_of(predecessor.incarnation):
        fields = None if entry.id in spooled else _fields(entry)
        if fields is not None:
            lost = _lost(entry.id, *fields[:2], predecessor.incarnation, channel, Cause.NODE_LOST, _REBOOTED, clock)
            reports.append((entry.id, encode(lost)))
    return reports


def _fields(entry: OrderEntry) -> tuple[str, int, Flag] | None:
    """Job, attempt and flags of an order; None for what is no order."""
    try:
        return entry.fields[b"job"].decode("ascii"), int(entry.fields[b"attempt"]), Flag(int(entry.fields[b"flags"]))
    except (KeyError, ValueError, ProtocolError):
        return None


def _report(entry: OrderEntry, was_running: bool, incarnation: str, channel: str, clock: Clock) -> Report | None:
    """None for a job that had ended: only its result is lost, and it may run again, uncharged."""
    fields = _fields(entry)
    if fields is None:
        return None
    job, attempt, flags = fields
    if was_running:
        return Report(
            kind=ReportKind.CRASHED, job=job, attempt=attempt, entry=entry.id, incarnation=incarnation, reason=channel
        )
    if Flag.NO_RETRY_ON_LOSS not in flags:
        return None
    why = "it ended, but its channel process died before the result was kept"
    return _lost(entry.id, job, attempt, incarnation, channel, Cause.CHANNEL_LOST, why, clock)


_REBOOTED = "its node was rebooted"


def _lost(
    entry: str, job: str, attempt: int, incarnation: str, channel: str, cause: Cause, why: str, clock: Clock
) -> Report:
    node, _, name = channel.partition("/")
    result = Result(outcome=Outcome.LOST, cause=cause, error=why, ended=clock.now(), node=node, channel=name)
    return Report(
        kind=ReportKind.RESULT,
        job=job,
        attempt=attempt,
        entry=entry,
        incarnation=incarnation,
        outcome=Outcome.LOST,
        cause=cause,
        result=encode(result),
    )
