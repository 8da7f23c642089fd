"""The collector: the result channel -> job records, whoever waits, then the history.

Three steps a batch, in this order: the verdicts (one script call, fenced; they also wake the waiters), the
history (one transaction, insert-or-ignore), the deletion from the result stream. A crash between two of them
repeats a step and changes nothing. SQLite is off the latency path. Under load three batches are under way: while
the server judges one, the rows of the one before are made and written, and the next, here already, is decoded.

Lone jobs that somebody waits for are judged with their reports (see ``lua/channel.lua``): of those only the history is
left to do, a few times a second and giving way as we go, so that no end waits for a processor that we use.
"""

from __future__ import annotations

import os
import random
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from msgspec.structs import replace

from jobschedd.clock import Clock
from jobschedd.errors import NotTheLeader, ProtocolError, QueueFull, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import (
    UNCHARGED,
    Captured,
    Cause,
    Outcome,
    Past,
    Report,
    ReportKind,
    Result,
    Spec,
    State,
    decode_past,
    decode_record,
    decode_report,
    decode_result,
    decode_spec,
    encode,
)
from jobschedd.logs import get_logger
from jobschedd.master.deaths import Deaths
from jobschedd.master.history import History, Row, row, weight
from jobschedd.master.retries import Again, End, decide
from jobschedd.outage import Outage
from jobschedd.store.moves import Judged, Moves, Verb, Verdict
from jobschedd.store.results import ResultEntry, ResultStream, slices
from jobschedd.store.survey import Survey

log = get_logger(__name__)

STANDBY_POLL = 0.25
LONGEST_BACK_OFF = 2.0
#: Rows kept in memory while the history cannot be written; beyond, they are read again from the result stream.
MOST_UNWRITTEN = 20_000
MOST_UNWRITTEN_BYTES = 64 << 20
#: Seconds between two transactions; a lone row is written at once.
HISTORY_PAUSE = 0.1
#: So many rows do not wait for it.
MANY_ROWS = 1000
HISTORY_RETRY = 5.0
#: Rows of jobs judged with their reports between two chances for others to have our processor.
GIVE_WAY = 8


@dataclass(frozen=True)
class Keep:
    """How long records of ended jobs stay in Redis, in milliseconds."""

    succeeded: int
    failed: int

    def of(self, outcome: Outcome) -> int:
        """The retention of this outcome."""
        return self.succeeded if outcome is Outcome.SUCCEEDED else self.failed


class Incoming(NamedTuple):
    """A report, the entry of the result stream that holds it, and the result in it, where it brings one."""

    entry: str
    report: Report
    result: Result | None


class _Asked(NamedTuple):
    """Reports that were sent to be judged, what is to become of them, and how to wait for the verdicts."""

    reports: Sequence[Incoming]
    decisions: Sequence[End | Again | None]
    verdicts: Callable[[], list[Judged]]


class Collector:
    """One per master instance. It writes only while ``instance`` leads."""

    def __init__(
        self,
        *,
        moves: Moves,
        survey: Survey,
        results: ResultStream,
        history: History,
        instance: str,
        clock: Clock,
        block: float,
        keep: Keep,
        max_payload: int,
    ) -> None:
        self._moves = moves
        self._survey = survey
        self._results = results
        self._history = history
        self._instance = instance
        self._clock = clock
        self._block = block
        self._keep = keep
        self._max_payload = max_payload
        self._identity = ""
        self._fence = ""
        self._random = random.Random()
        self._deaths = Deaths()
        self._asked: _Asked | None = None  # the reports that the server judges now
        self._judged: list[tuple[Incoming, End | Again | None, Judged]] = []  # those of which no rows were made yet
        self._unwritten: list[tuple[str, Row | None]] = []
        self._unwritten_bytes = 0
        self._read_again = False
        self._written: dict[str, None] = {}  # entries that are in the history, and still in the result stream
        self._written_from: list[str] = []  # jobs judged with their reports, whose rows are among the unwritten
        self._judged_due = 0.0  # boot time at which such jobs are looked for
        self._history_due = 0.0
        self._history_fails = False
        self._outage = Outage(log, clock, LONGEST_BACK_OFF)

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object], beat: Callable[[str], None]) -> None:
        """Until ``stopping``. Redis away or the lead lost: step back, wait a little, go on."""
        self._open_history()
        while not stopping():
            try:
                beat(self.step(wait))
                self._outage.over()
            except NotTheLeader:
                log.warning("lost the lead: standing by")
                self._fence = ""
                self._results.rewind()
            except (StoreUnavailable, StoreRefused, QueueFull) as error:
                self._fence = ""
                self._forget_verdicts()  # a server that comes back with older data may know nothing of their verdicts
                beat(f"waiting for Redis: {error}")
                wait(self._outage.failed(error))
        self._finish()
        self._history.close()

    def _finish(self) -> None:
        """What was judged goes into the history and out of the result stream, whoever leads by now."""
        self._history_due = 0.0
        try:
            with suppress(NotTheLeader):
                self._hear_verdicts()
            self._make_rows()
            if self._fence:
                self._judged_due = 0.0
                with suppress(NotTheLeader):  # who leads now takes them in
                    self._take_in_judged()
            self._delete_written()
            self._write_history()
        except (StoreUnavailable, StoreRefused, QueueFull) as error:
            log.warning("left in the result stream what was judged: the next master goes on", error=error)

    def step(self, wait: Callable[[float], object]) -> str:
        """One turn; answers what to tell the supervisor."""
        if not self._fence and not self._begin():
            wait(STANDBY_POLL)
            return "standing by"
        entries = self._results.read(self._patience())
        if entries:
            failpoint("collector.read.after")
            for some in slices(entries):
                self._collect(some)
        if not self._results.reads_ahead:
            self._hear_verdicts()
            self._delete_written()
            self._make_rows()
            self._take_in_judged()
            self._write_history()
        return "collecting"

    def _patience(self) -> float:
        due = self._history_due if self._unwritten else self._judged_due
        return max(0.0, min(self._block, due - self._clock.boottime()))

    def _begin(self) -> bool:
        """Whether our instance leads; a new lead starts at the oldest uncollected entry."""
        fence = self._moves.leader()
        if fence is None or not fence.startswith(self._instance + ":"):
            return False
        # Drawn anew each time: an emptied Redis must not get the identity that it had.
        self._identity = self._survey.identity(secrets.token_hex(8))
        self._forget_verdicts()
        self._start_over()
        failpoint("collector.begin.after")
        self._fence = fence
        return True

    # -- verdicts ---------------------------------------------------------------------------------------------

    def _collect(self, entries: Sequence[ResultEntry]) -> None:
        reports: list[Incoming] = []
        ended: list[tuple[str, str]] = []
        for entry in entries:
            if entry.reports:
                reports += self._read_reports(entry)
            elif b"judged" in entry.fields:
                self._await_more_judged(entry.id)
            elif (job := entry.fields.get(b"ended")) is not None:
                ended.append((entry.id, job.decode(errors="replace")))
            else:
                self._bury(entry, "a message without a report", repr(dict(entry.fields)).encode())
        if reports:
            self._judge(reports)
        if ended:
            self._hear_verdicts()
            self._make_rows()
            self._note_ended(ended)

    def _read_reports(self, entry: ResultEntry) -> list[Incoming]:
        """What nobody can read is buried, once, and costs those nothing that came with it."""
        incoming = []
        for at, data in enumerate(entry.reports):
            try:
                report = decode_report(data)
            except ProtocolError as error:
                self._bury_report(entry, at, str(error), data)
                continue
            if report.kind is ReportKind.UNREADABLE:
                self._bury_report(entry, at, f"in a dispatch stream: {report.reason}", report.sample)
            elif report.kind is ReportKind.RESULT:
                incoming.append(self._mended(entry.id, report, len(data)))
            else:
                incoming.append(Incoming(entry.id, report, None))
        if not incoming and len(entry.reports) > 1:
            self._keep_row(entry.id, None)  # with which it leaves the stream
        return incoming

    def _mended(self, entry: str, report: Report, size: int) -> Incoming:
        """A bad result must not cost the job its end: its dispatch entry is gone, nobody reports it again."""
        outcome, cause = report.outcome or Outcome.FAILED, report.cause or Cause.UNREADABLE
        try:
            result = decode_result(report.result)
            problem = "" if report.outcome else "its channel reported no outcome"
        except ProtocolError as error:
            result, problem = Result(outcome=outcome, cause=cause, ended=self._clock.now()), str(error)
        if size > 2 * self._max_payload:
            problem = f"its output was dropped: the report had {size} bytes (max_payload: {self._max_payload})"
        if not problem:
            return Incoming(entry, report, result)
        log.warning("mended a report", job=report.job, attempt=report.attempt, problem=problem)
        value = result.value if len(result.value) <= self._max_payload else b""
        stdout, stderr = Captured(size=result.stdout.size), Captured(size=result.stderr.size)
        why = "\n".join(filter(None, (result.error[: self._max_payload // 4], problem)))
        result = replace(result, outcome=outcome, cause=cause, error=why, value=value, stdout=stdout, stderr=stderr)
        return Incoming(entry, replace(report, outcome=outcome, cause=cause, result=encode(result)), result)

    def _bury(self, entry: ResultEntry, reason: str, sample: bytes) -> None:
        log.warning("dead-lettered a message", reason=reason)
        self._moves.bury(reason, sample, f"results {entry.id}", entry.id)

    def _bury_report(self, entry: ResultEntry, at: int, reason: str, sample: bytes) -> None:
        """Its neighbours are still to be collected."""
        if len(entry.reports) == 1:
            self._bury(entry, reason, sample)
            return
        log.warning("dead-lettered a report", reason=reason)
        self._moves.bury(reason, sample, f"results {entry.id} report {at + 1}", entry.id, alone=False)

    def _judge(self, reports: Sequence[Incoming]) -> None:
        if not all(_is_success(incoming.report) for incoming in reports):
            self._hear_verdicts()  # what is decided rests on what became of those before
        decisions = self._decide([incoming.report for incoming in reports])
        arguments = self._arguments(reports, decisions)
        self._hear_verdicts()
        self._delete_written()
        self._results.receive_ahead()
        self._asked = _Asked(reports, decisions, self._moves.begin_collect(self._fence, arguments))
        # While the server judges these, those before go into the history.
        self._make_rows()
        self._write_history()

    def _hear_verdicts(self) -> None:
        """Wait for those that were asked for, if any."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        self._judged = list(zip(asked.reports, asked.decisions, asked.verdicts(), strict=True))
        failpoint("collector.verdict.after")
        for incoming, _, (verdict, _) in self._judged:
            if verdict is Verdict.ACCEPTED:
                self._learn_of_deaths(incoming.report)

    def _make_rows(self) -> None:
        """Of the reports that were judged last."""
        judged, self._judged = self._judged, []
        for incoming, decision, (verdict, record) in judged:
            self._keep_row(incoming.entry, self._row_of(incoming, decision, verdict, record))

    def _learn_of_deaths(self, report: Report) -> None:
        if report.kind is ReportKind.CRASHED:
            self._deaths.died(report.incarnation, report.job, self._clock.boottime())
        elif report.kind is ReportKind.RESULT and report.cause not in UNCHARGED:
            self._deaths.cleared(report.job)

    def _decide(self, reports: Sequence[Report]) -> list[End | Again | None]:
        """Ends and further tries. Only a job that did not succeed needs its record looked at first."""
        doubtful = [r.job for r in reports if not _is_success(r) and r.kind in (ReportKind.RESULT, ReportKind.CRASHED)]
        records = dict(zip(doubtful, self._survey.records(doubtful), strict=True))
        return [
            End(report.outcome, report.result)
            if _is_success(report)
            else self._decision(report, records.get(report.job))
            for report in reports
        ]

    def _decision(self, report: Report, record: bytes | None) -> End | Again | None:
        if report.kind not in (ReportKind.RESULT, ReportKind.CRASHED):
            return None
        if record is None:
            return End(report.outcome, report.result)
        try:
            whole = decode_record(record)
        except ProtocolError as error:
            log.warning("a job's record cannot be read", job=report.job, error=error)
            return End(report.outcome, report.result)
        try:
            spec = decode_spec(whole.spec)
        except ProtocolError:
            spec = Spec()  # its channel cannot have read it, either
        excused = report.kind is ReportKind.CRASHED and self._deaths.without_culprit(self._clock.boottime())
        return decide(whole.header, spec, report, self._clock.now(), self._random, excused)

    def _arguments(self, reports: Sequence[Incoming], decisions: Sequence[End | Again | None]) -> list[Any]:
        """Successes in a row, which is nearly all there is, say once what they have in common."""
        arguments: list[Any] = []
        counted = -1  # where the number of those of the present row stands
        for (_, report, _), decision in zip(reports, decisions, strict=True):
            if not _is_success(report):
                arguments += self._ask(report, decision)
                counted = -1
                continue
            if counted < 0:
                counted = len(arguments) + 1
                arguments += (Verb.SUCCEEDED, 0, self._keep.succeeded)
            arguments[counted] += 1
            arguments += (report.job, report.attempt, report.entry, report.result)
        return arguments

    def _ask(self, report: Report, decision: End | Again | None) -> list[Any]:
        head = [report.job, report.attempt, report.entry]
        match decision:
            case End(outcome, result, crashes):
                counted = "" if crashes is None else crashes
                return [Verb.DONE, *head, int(outcome), result, self._keep.of(outcome), counted, ""]
            case Again(delay, tries, crashes, job_class):
                return [Verb.RETRY, *head, round(delay * 1000), tries, crashes, self._keep.failed, job_class]
            case None:
                verb = Verb.START if report.kind is ReportKind.STARTED else Verb.RETURN
                return [verb, *head, self._keep.failed, "", "", "", ""]

    # -- history ----------------------------------------------------------------------------------------------

    def _row_of(
        self, incoming: Incoming, decision: End | Again | None, verdict: Verdict, record: bytes | None
    ) -> Row | None:
        report = incoming.report
        if verdict is not Verdict.ACCEPTED and report.cause != Cause.NO_RECEIVER:  # which only the history is to know
            word = verdict.name.lower()
            log.info("refused a report", job=report.job, attempt=report.attempt, kind=report.kind, why=word)
        if record is None or decision is None:
            return None
        try:
            past = decode_past(record)
            if verdict is Verdict.DUPLICATE:
                return self._row(report.job, past, decode_record(record).result, None, True)
            if verdict is Verdict.STALE:
                past = past._replace(attempt=report.attempt, dispatched=_time_of(report.entry))
                return self._row(report.job, past, *self._own_result(incoming), False)
            if isinstance(decision, Again) or decision.result == report.result:
                packed, result = self._own_result(incoming)
            else:
                packed, result = decision.result, None
            return self._row(report.job, past, packed, result, isinstance(decision, End))
        except ProtocolError as error:
            log.warning("not in the history: unreadable", job=report.job, error=error)
            return None

    def _own_result(self, incoming: Incoming) -> tuple[bytes, Result]:
        """How the attempt itself went, whatever follows for its job."""
        if incoming.result is not None:
            return incoming.report.result, incoming.result
        node, _, channel = incoming.report.reason.partition("/")
        result = Result(
            outcome=Outcome.LOST,
            cause=Cause.CHANNEL_LOST,
            error="its channel process died under it",
            ended=self._clock.now(),
            node=node,
            channel=channel,
        )
        return encode(result), result

    def _row(self, job: str, past: Past, packed: bytes, result: Result | None, final: bool) -> Row:
        return row(self._identity, job, past, result or decode_result(packed), packed, final)

    def _note_ended(self, ended: Sequence[tuple[str, str]]) -> None:
        """Ends that no channel reported (cancelled before it started, expired, lost): the record has the result."""
        records = self._survey.records([job for _, job in ended])
        for (entry, job), record in zip(ended, records, strict=True):
            self._keep_row(entry, None if record is None else self._row_of_ended(job, record))

    def _await_more_judged(self, entry: str) -> None:
        """An entry says that a job was judged with its report: for a moment others may join it, which wake nobody."""
        self._keep_row(entry, None)
        self._judged_due = min(self._judged_due, self._clock.boottime() + HISTORY_PAUSE)
        self._history_due = max(self._history_due, self._judged_due)

    def _take_in_judged(self) -> None:
        """Those that were judged with their reports; more of them only when these are in the history.

        The server is asked even where there are none: so who has lost the lead hears of it, whatever is collected.
        """
        now = self._clock.boottime()
        if self._written_from or now < self._judged_due:
            return
        try:
            judged = self._moves.judged(self._fence)
        except StoreRefused as error:
            self._judged_due = now + HISTORY_RETRY
            log.error("cannot read which jobs were judged with their reports; they wait in Redis", error=error)
            return
        for count, (job, record) in enumerate(judged.items(), 1):
            self._keep_row("", self._row_of_ended(job, record))
            self._written_from.append(job)
            if count % GIVE_WAY == 0:
                os.sched_yield()
        self._judged_due = now + (HISTORY_PAUSE if self._written_from else self._block)

    def _row_of_ended(self, job: str, record: bytes) -> Row | None:
        """None when it has not ended: somebody retried it since, or the message is not ours."""
        try:
            whole = decode_record(record)
            if whole.header.state is not State.DONE:
                return None
            return self._row(job, decode_past(record), whole.result, None, True)
        except ProtocolError as error:
            log.warning("not in the history: unreadable", job=job, error=error)
            return None

    def _keep_row(self, entry: str, made: Row | None) -> None:
        self._unwritten.append((entry, made))
        self._unwritten_bytes += 0 if made is None else weight(made)

    def _open_history(self) -> None:
        """Before the first end: to make a new file, which is forced to the disk, would hold up its verdict."""
        try:
            self._history.database()
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot open the history yet", file=self._history.path, error=error)

    def _write_history(self) -> None:
        if not (self._unwritten or self._read_again) or not self._may_write():
            self._bound_memory()
            return
        rows = [made for _, made in self._unwritten if made is not None]
        try:
            # Lone jobs come one by one: each would wait for what we have in hand.
            self._history.add(rows, os.sched_yield if self._written_from else None)
        except (sqlite3.Error, OSError) as error:
            self._history_due = self._clock.boottime() + HISTORY_RETRY
            self._history_fails = True
            log.error("cannot write the history; results wait in Redis", file=self._history.path, error=error)
            self._bound_memory()
            return
        self._history_fails = False
        failpoint("collector.history.after")
        self._written.update((entry, None) for entry, _ in self._unwritten if entry)
        if self._asked is None:  # else the server has verdicts to give first
            self._delete_written()
        if self._written_from:
            self._moves.delete_judged(self._written_from)
            failpoint("collector.delete.after")
        self._history_due = self._clock.boottime() + HISTORY_PAUSE
        if self._read_again:
            self._start_over()
        else:
            self._forget_rows()

    def _delete_written(self) -> None:
        if self._written:
            self._moves.delete_collected(self._written)
            self._written.clear()
            failpoint("collector.delete.after")

    def _may_write(self) -> bool:
        are_many = len(self._unwritten) >= MANY_ROWS and not self._history_fails
        return are_many or self._clock.boottime() >= self._history_due

    def _bound_memory(self) -> None:
        """Jobs go on without a history: what is not in it stays in the result stream, and is judged again."""
        if len(self._unwritten) > MOST_UNWRITTEN or self._unwritten_bytes > MOST_UNWRITTEN_BYTES:
            self._forget_rows()
            self._read_again = True

    def _start_over(self) -> None:
        """Read the result stream from its oldest entry on."""
        self._results.rewind()
        self._forget_rows()
        self._read_again = False
        self._judged_due = 0.0

    def _forget_verdicts(self) -> None:
        self._asked = None
        self._judged = []
        self._written.clear()
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._unwritten.clear()
        self._written_from.clear()
        self._unwritten_bytes = 0


def _is_success(report: Report) -> bool:
    return report.outcome is Outcome.SUCCEEDED and report.kind is ReportKind.RESULT


def _time_of(entry: str) -> int:
    """When an entry was made, in milliseconds; 0 for the name of none."""
    time = entry.partition("-")[0]
    return int(time) if time.isdecimal() and time.isascii() else 0
