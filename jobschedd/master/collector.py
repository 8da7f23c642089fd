"""The collector: the result channel -> job records, whoever waits, then the history.

Three steps a batch, in this order: the verdicts (one script call, fenced; they also wake the waiters), the
history (one transaction, insert-or-ignore), the deletion from the result stream. A crash between two of them
repeats a step and changes nothing. SQLite is off the latency path.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobschedd.clock import Clock
from jobschedd.errors import NotTheLeader, ProtocolError, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import (
    Outcome,
    Record,
    Report,
    ReportKind,
    Result,
    decode_record,
    decode_report,
    decode_result,
    decode_spec,
)
from jobschedd.logs import get_logger
from jobschedd.master.history import History, Row, packed_result, row
from jobschedd.master.retries import Again, End, decide
from jobschedd.outage import Outage
from jobschedd.store.moves import Moves, Verb, Verdict
from jobschedd.store.results import ResultEntry, ResultStream
from jobschedd.store.survey import Survey

log = get_logger(__name__)

STANDBY_POLL = 0.25
LONGEST_BACK_OFF = 2.0
#: Rows kept in memory while the history cannot be written; beyond, they are read again from the result stream.
MOST_UNWRITTEN = 20_000
HISTORY_RETRY = 5.0


@dataclass(frozen=True)
class Keep:
    """How long records of ended jobs stay in Redis, in milliseconds."""

    succeeded: int
    failed: int

    def of(self, outcome: Outcome) -> int:
        """The retention of this outcome."""
        return self.succeeded if outcome is Outcome.SUCCEEDED else self.failed


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
        identity: str,
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
        self._proposed_identity = identity
        self._identity = ""
        self._fence = ""
        self._random = random.Random()
        self._unwritten: list[tuple[str, Row | None]] = []
        self._read_again = False
        self._history_due = 0.0
        self._outage = Outage(log, clock, LONGEST_BACK_OFF)

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object], beat: Callable[[str], None]) -> None:
        """Until ``stopping``. Redis away or the lead lost: step back, wait a little, go on."""
        while not stopping():
            try:
                beat(self.step(wait))
                self._outage.over()
            except NotTheLeader:
                log.warning("lost the lead: standing by")
                self._fence = ""
            except (StoreUnavailable, StoreRefused) as error:
                self._fence = ""
                beat(f"waiting for Redis: {error}")
                wait(self._outage.failed(error))
        self._history.close()

    def step(self, wait: Callable[[float], object]) -> str:
        """One turn; answers what to tell the supervisor."""
        if not self._fence and not self._begin():
            wait(STANDBY_POLL)
            return "standing by"
        entries = self._results.read(self._block)
        if entries:
            failpoint("collector.read.after")
            self._collect(entries)
        if self._unwritten and self._clock.boottime() >= self._history_due:
            self._write_history()
        return "collecting"

    def _begin(self) -> bool:
        """Whether our instance leads; a new lead starts at the oldest uncollected entry."""
        fence = self._moves.leader()
        if fence is None or not fence.startswith(self._instance + ":"):
            return False
        self._identity = self._survey.identity(self._proposed_identity)
        self._results.rewind()
        self._unwritten.clear()
        self._fence = fence
        return True

    # -- verdicts ---------------------------------------------------------------------------------------------

    def _collect(self, entries: Sequence[ResultEntry]) -> None:
        reports: list[tuple[str, Report]] = []
        ended: list[tuple[str, str]] = []
        for entry in entries:
            if (report := self._read_report(entry)) is not None:
                reports.append((entry.id, report))
            elif b"ended" in entry.fields:
                ended.append((entry.id, entry.fields[b"ended"].decode(errors="replace")))
        if reports:
            self._judge(reports)
        if ended:
            self._note_ended(ended)
        self._write_history()

    def _read_report(self, entry: ResultEntry) -> Report | None:
        """None for what is no report; what nobody can read is buried, once, and dropped."""
        data = entry.fields.get(b"report")
        if data is None:
            if b"ended" not in entry.fields:
                self._bury(entry, "a message without a report", repr(dict(entry.fields)).encode())
            return None
        if len(data) > 2 * self._max_payload:
            self._bury(entry, f"a report of {len(data)} bytes", data)
            return None
        try:
            report = decode_report(data)
        except ProtocolError as error:
            self._bury(entry, str(error), data)
            return None
        if report.kind is ReportKind.UNREADABLE:
            self._bury(entry, f"in a dispatch stream: {report.reason}", report.sample)
            return None
        return report

    def _bury(self, entry: ResultEntry, reason: str, sample: bytes) -> None:
        log.warning("dead-lettered a message", reason=reason)
        self._moves.bury(reason, sample, f"results {entry.id}")
        self._moves.delete_collected([entry.id])

    def _judge(self, reports: Sequence[tuple[str, Report]]) -> None:
        decisions = self._decide([report for _, report in reports])
        arguments: list[Any] = []
        for (_, report), decision in zip(reports, decisions, strict=True):
            arguments += self._ask(report, decision)
        verdicts = self._moves.collect(self._fence, arguments)
        failpoint("collector.verdict.after")
        for (entry_id, report), decision, (verdict, record) in zip(reports, decisions, verdicts, strict=True):
            self._unwritten.append((entry_id, self._row_of(report, decision, verdict, record)))

    def _decide(self, reports: Sequence[Report]) -> list[End | Again | None]:
        """Ends and further tries. Only a job that did not succeed needs its record looked at first."""
        doubtful = [r for r in reports if r.kind is ReportKind.CRASHED or self._is_bad(r)]
        records = dict(zip((r.job for r in doubtful), self._survey.records([r.job for r in doubtful]), strict=True))
        return [self._decision(report, records.get(report.job)) for report in reports]

    @staticmethod
    def _is_bad(report: Report) -> bool:
        return report.kind is ReportKind.RESULT and report.outcome is not Outcome.SUCCEEDED

    def _decision(self, report: Report, record: bytes | None) -> End | Again | None:
        if report.kind not in (ReportKind.RESULT, ReportKind.CRASHED):
            return None
        if record is None:
            return End(report.outcome, report.result)
        try:
            whole = decode_record(record)
            return decide(whole.header, decode_spec(whole.spec), report, self._clock.now(), self._random)
        except ProtocolError as error:
            log.warning("a job's record cannot be read", job=report.job, error=error)
            return End(report.outcome, report.result)

    def _ask(self, report: Report, decision: End | Again | None) -> list[Any]:
        head = [report.job, report.attempt, report.entry]
        match decision:
            case End(outcome, result):
                return [Verb.DONE, *head, int(outcome), result, self._keep.of(outcome), ""]
            case Again(delay, tries, crashes):
                return [Verb.RETRY, *head, round(delay * 1000), tries, crashes, ""]
            case None:
                verb = Verb.START if report.kind is ReportKind.STARTED else Verb.RETURN
                return [verb, *head, self._keep.failed, "", "", ""]

    # -- history ----------------------------------------------------------------------------------------------

    def _row_of(
        self, report: Report, decision: End | Again | None, verdict: Verdict, record: bytes | None
    ) -> Row | None:
        if verdict in (Verdict.STALE, Verdict.UNKNOWN):
            log.info(
                "refused a report", job=report.job, attempt=report.attempt, kind=report.kind, why=verdict.name.lower()
            )
            return None
        if record is None or decision is None:
            return None
        packed = decision.result if isinstance(decision, End) else report.result
        return self._row(report.job, record, packed, isinstance(decision, End))

    def _row(self, job: str, record: bytes, packed: bytes, final: bool) -> Row | None:
        try:
            whole: Record = decode_record(record)
            result = decode_result(packed or whole.result) if packed or whole.result else _nothing_known()
        except ProtocolError as error:
            log.warning("not in the history: unreadable", job=job, error=error)
            return None
        return row(self._identity, job, whole.header, whole.spec, result, packed or packed_result(result), final)

    def _note_ended(self, ended: Sequence[tuple[str, str]]) -> None:
        """Ends that no channel reported (cancelled before it started, expired, lost): the record has the result."""
        records = self._survey.records([job for _, job in ended])
        for (entry_id, job), record in zip(ended, records, strict=True):
            self._unwritten.append((entry_id, None if record is None else self._row(job, record, b"", True)))

    def _write_history(self) -> None:
        if not self._unwritten:
            return
        try:
            self._history.add([made for _, made in self._unwritten if made is not None])
        except sqlite3.Error as error:
            self._history_failed(error)
            return
        failpoint("collector.history.after")
        self._moves.delete_collected([entry_id for entry_id, _ in self._unwritten])
        failpoint("collector.delete.after")
        self._unwritten.clear()
        if self._read_again:
            self._read_again = False
            self._results.rewind()

    def _history_failed(self, error: sqlite3.Error) -> None:
        """Jobs go on: what is not in the history stays in the result stream."""
        self._history_due = self._clock.boottime() + HISTORY_RETRY
        log.error("cannot write the history; results wait in Redis", file=self._history.path, error=error)
        if len(self._unwritten) > MOST_UNWRITTEN:
            self._unwritten.clear()
            self._read_again = True


def _nothing_known() -> Result:
    return Result(outcome=Outcome.NONE, cause="")
