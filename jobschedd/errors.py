"""The error tree. Every error that a user may see carries an exit code and, where it can, how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class JobschedError(Exception):
    """Base of all errors of this package. ``exit_code`` is what a command line ends with."""

    exit_code = 1


class UsageError(JobschedError):
    """The caller asked for something that cannot be: a bad option, argument or job field."""

    exit_code = 2


class InvalidJob(UsageError):
    """A job description was refused; ``field`` names the offending part."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NoParent(InvalidJob):
    """A job is to run after one that has no record: it never was, or its record has expired. ``parent``: its id."""

    def __init__(self, parent: str, where: str = "after") -> None:
        super().__init__(where, f"job {parent} has no record: it never was, or it ended and its record has expired")
        self.parent = parent


class NoSuchJob(JobschedError):
    """The namespace holds no record under this id (never submitted, or past its retention)."""


class WaitTimeout(JobschedError, TimeoutError):
    """The time given for waiting is over, and a job has not ended; it goes on all the same."""


class NotEnded(JobschedError):
    """Asked for the result of a job that has none yet: wait for it first."""


class NotRead(JobschedError):
    """Asked what a job is like before anything was read of it."""


class JobFailed(JobschedError):
    """A job did not succeed. ``outcome`` and ``cause`` are words; ``error`` holds the traceback, where there is one."""

    def __init__(self, job: str, outcome: str, cause: str, error: str) -> None:
        super().__init__(f"job {job} {outcome} ({cause})" + (f": {error}" if error else ""))
        self.job = job
        self.outcome = outcome
        self.cause = cause
        self.error = error


class StoreUnavailable(JobschedError):
    """Redis cannot be reached or does not answer in time; trying again later may help."""

    exit_code = 69


class StoreRefused(JobschedError):
    """Redis answered, but cannot serve us: wrong password, missing right, too old, not Redis at all."""

    exit_code = 69


class DataLost(StoreRefused):
    """Redis has lost data that were there before: nothing is accepted or dispatched until an operator decides."""

    exit_code = 75


class NotDurable(JobschedError):
    """Jobs are accepted, but it could not be confirmed in time that they survive the loss of a server; ``ids``."""

    exit_code = 75

    def __init__(self, ids: Sequence[str], reason: str) -> None:
        jobs = f"job {ids[0]} is" if len(ids) == 1 else f"{len(ids)} jobs are"
        super().__init__(f"{jobs} accepted, but not confirmed as durable: {reason}")
        self.ids = tuple(ids)
        self.reason = reason


class Unanswered(StoreUnavailable):
    """Masters were asked and some did not answer, or none is there: what came is not all."""

    def __init__(self, answered: int, asked: int, reasons: Sequence[str] = ()) -> None:
        masters = "1 master" if asked == 1 else f"{asked} masters"
        why = "; ".join(reasons) or ("no master runs" if not asked else "")
        super().__init__(f"{answered} of {masters} answered" + (f": {why}" if why else ""))
        self.answered = answered
        self.asked = asked
        self.exit_code = 1 if answered else 69


class QueueFull(JobschedError):
    """Redis is at its memory limit: submits are refused until jobs end; results are still accepted."""

    exit_code = 75


class NotTheLeader(JobschedError):
    """A write was refused because another master holds the lead: step down."""


class ProtocolError(JobschedError):
    """A message or record that this version cannot read (malformed, oversized, of a newer version)."""


@dataclass(frozen=True)
class ConfigProblem:
    """One mistake in a configuration file: where (file, line, dotted path) and what."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ConfigError(JobschedError):
    """The configuration cannot be used; ``problems`` holds every mistake found, in file order."""

    exit_code = 78

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
