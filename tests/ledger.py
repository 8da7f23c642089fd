"""The oracle: three independent accounts of the same jobs, compared.

What the submitter was told, what the jobs themselves wrote to a file that the scheduler never touches, and
which ends were accepted. Without the second, a job that was lost *and* forgotten would go unnoticed.

I1  no accepted job vanishes                  I4  no overlap of attempts where the job forbids it
I2  exactly one accepted end a job            I5  no process is left
I3  it is the end of the newest attempt       I6  the stores drain: nothing is stuck
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster import describe
from jobschedd.job import Outcome, State, decode_header
from jobschedd.store.keys import Keys
from redis_server import wait_until

# One O_APPEND write a line, as short as a job can be: no process beside the shell, except for the sleep.
_PROGRAM = r"""
say() { echo "$tag $JOBSCHED_JOB_ID $JOBSCHED_ATTEMPT $1 $$" >> "$file"; }
tag=$1 file=$2
say start
[ "$3" = 0 ] || sleep "$3"
say stop
exit "$4"
"""
# The same as a function, for the warm runners.
_MODULE = """
import os, time

def run(tag, path, seconds=0.0, fail=False):
    def say(kind):
        line = f"{tag} {os.environ['JOBSCHED_JOB_ID']} {os.environ['JOBSCHED_ATTEMPT']} {kind} {os.getpid()}\\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    say("start")
    time.sleep(seconds)
    say("stop")
    if fail:
        raise ValueError(tag)
    return tag
"""
_LINE = re.compile(r"(\S+) (\S+) (\d+) (start|stop) (\d+)")
SHOWN = 20
SUCCESS = frozenset({("succeeded", "exit")})


@dataclass(frozen=True)
class Told:
    """What the submitter knows of one submission. ``tag`` is its own name for it, known to the job too."""

    tag: str
    answer: str  # "accepted", "refused", or "unknown" when the answer was lost
    job: str = ""
    forbids_overlap: bool = False


@dataclass(frozen=True)
class Event:
    """One line of the ledger, written by a job."""

    tag: str
    job: str
    attempt: int
    kind: str  # start, stop
    pid: int = 0


@dataclass(frozen=True)
class End:
    """One accepted end: a final row of the history."""

    job: str
    attempt: int
    outcome: str
    cause: str = ""


@dataclass(frozen=True)
class Now:
    """What the record of a job says."""

    state: str
    attempt: int
    outcome: str


@dataclass
class Account:
    """Everything that is known about a run."""

    told: Sequence[Told]
    events: Sequence[Event]
    ends: Sequence[End]
    records: Mapping[str, Now]
    stuck: Sequence[str] = ()
    left: Sequence[str] = ()
    damaged: Sequence[str] = ()  # lines of the ledger that cannot be read
    expected: frozenset[tuple[str, str]] = SUCCESS


@dataclass
class Violations:
    """What is wrong, readable."""

    lines: list[str] = field(default_factory=list)

    def add(self, invariant: str, text: str) -> None:
        self.lines.append(f"{invariant}: {text}")

    def __str__(self) -> str:
        counts = Counter(line.partition(":")[0] for line in self.lines)
        summary = ", ".join(f"{name} {count} times" for name, count in sorted(counts.items()))
        rest = [] if len(self.lines) <= SHOWN else [f"... and {len(self.lines) - SHOWN} more"]
        return "\n".join([f"{len(self.lines)} violations ({summary})", *self.lines[:SHOWN], *rest])


def check(account: Account) -> Violations:
    """Compare the accounts. An empty result means that every invariant held."""
    found = Violations()
    starts: dict[str, list[Event]] = defaultdict(list)
    for event in account.events:
        starts[event.job].append(event)
    ends: dict[str, list[End]] = defaultdict(list)
    for end in account.ends:
        ends[end.job].append(end)
    _check_submissions(account, starts, ends, found)
    _check_ends(account, starts, ends, found)
    _check_events(account, starts, ends, found)
    for text in account.damaged:
        found.add("ledger", f"unreadable line {text!r}")
    for text in account.left:
        found.add("I5", f"a process is left: {text}")
    for text in account.stuck:
        found.add("I6", text)
    return found


def _check_submissions(
    account: Account, events: Mapping[str, list[Event]], ends: Mapping[str, list[End]], found: Violations
) -> None:
    jobs_of: dict[str, set[str]] = defaultdict(set)
    for event in account.events:
        jobs_of[event.tag].add(event.job)
    known: dict[str, str] = {}
    for told in account.told:
        jobs = jobs_of.get(told.tag, set())
        if told.answer == "refused" and jobs:
            found.add("I1", f"submission {told.tag} was refused, yet ran as {_list(jobs)}")
        if told.answer == "unknown" and len(jobs) > 1:
            found.add("I2", f"submission {told.tag}, whose answer was lost, ran as several jobs: {_list(jobs)}")
        if told.answer != "accepted":
            continue
        if told.job in known:
            found.add("I2", f"submissions {known[told.job]} and {told.tag} got the same id {told.job}")
        known[told.job] = told.tag
        if jobs - {told.job}:
            found.add("I2", f"submission {told.tag} is job {told.job}, but also ran as {_list(jobs - {told.job})}")
        if not ends.get(told.job):
            ran = "ran" if events.get(told.job) else "never ran"
            now = account.records.get(told.job)
            state = f"its record says {now.state}, attempt {now.attempt}" if now else "it has no record"
            found.add("I1", f"job {told.job} (submission {told.tag}) has no accepted end; it {ran}; {state}")


def _check_ends(
    account: Account, events: Mapping[str, list[Event]], ends: Mapping[str, list[End]], found: Violations
) -> None:
    of_the_ledger = {told.job for told in account.told} | events.keys()  # a test may run other jobs beside
    for job, accepted in ends.items():
        if len(accepted) > 1:
            shown = "; ".join(f"attempt {end.attempt}: {end.outcome} {end.cause}" for end in accepted)
            found.add("I2", f"job {job} has {len(accepted)} accepted ends: {shown}")
        end = accepted[-1]
        newest = max((event.attempt for event in events.get(job, ())), default=0)
        if newest > end.attempt:
            found.add("I3", f"job {job}: the end of attempt {end.attempt} counts, but attempt {newest} was started")
        now = account.records.get(job)
        if now is not None and (now.state, now.attempt, now.outcome) != ("done", end.attempt, end.outcome):
            found.add(
                "I3",
                f"job {job}: history says attempt {end.attempt} {end.outcome}, "
                f"its record says {now.state}, attempt {now.attempt} {now.outcome}",
            )
        if account.expected and (end.outcome, end.cause) not in account.expected:
            found.add("outcome", f"job {job} ended {end.outcome} ({end.cause})")
        stopped = any(e.kind == "stop" and e.attempt == end.attempt for e in events.get(job, ()))
        if end.outcome == "succeeded" and not stopped and job in of_the_ledger:
            found.add("truth", f"job {job} counts as succeeded, but its attempt {end.attempt} never finished")


def _check_events(
    account: Account, events: Mapping[str, list[Event]], ends: Mapping[str, list[End]], found: Violations
) -> None:
    accepted = {told.job: told for told in account.told if told.answer == "accepted"}
    lost_answers = {told.tag for told in account.told if told.answer == "unknown"}
    for job, of_job in events.items():
        for (attempt, kind), times in Counter((event.attempt, event.kind) for event in of_job).items():
            if times > 1:
                found.add("fence", f"job {job}: attempt {attempt} wrote {kind} {times} times: it ran twice")
        if job not in accepted and not all(event.tag in lost_answers for event in of_job):
            found.add("I1", f"job {job} ran, but was never accepted ({of_job[0].tag})")
        if job not in accepted and not ends.get(job):
            found.add("I1", f"job {job}, whose id was never told, ran and has no accepted end")
        if job in accepted and accepted[job].forbids_overlap:
            _check_overlap(job, of_job, found)


def _check_overlap(job: str, events: Sequence[Event], found: Violations) -> None:
    newest = 0
    for event in events:
        if event.attempt < newest:
            found.add("I4", f"job {job}: attempt {event.attempt} still ran ({event.kind}) after {newest} began")
        newest = max(newest, event.attempt)


def _list(jobs: Iterable[str]) -> str:
    return ", ".join(f"job {job}" for job in sorted(jobs))


class Ledger:
    """A file that jobs append to, and the submitter's own log."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger"
        self.path.touch(mode=0o666)
        self.python_path = str(directory)
        (directory / "ledger_job.py").write_text(_MODULE)
        self.told: list[Told] = []
        self._tags = 0

    def item(self, seconds: float = 0, exit_code: int = 0, **options: Any) -> dict[str, Any]:
        """A new job, as ``Client.submit_many`` takes it; its ``name`` is its tag."""
        tag = self._tag()
        command = ["sh", "-c", _PROGRAM, "ledger-job", tag, str(self.path), f"{seconds:g}", str(exit_code)]
        return {"command": command, "name": tag, **options}

    def function(self, seconds: float = 0, **options: Any) -> dict[str, Any]:
        """As ``item``, but a function: the slave's ``python_path`` must hold ``self.python_path``."""
        tag = self._tag()
        kwargs = {"tag": tag, "path": str(self.path), "seconds": seconds}
        return {"function": "ledger_job:run", "kwargs": kwargs, "name": tag, **options}

    def _tag(self) -> str:
        self._tags += 1
        return f"t{self._tags}"

    def accepted(self, item: Mapping[str, Any], job: object) -> None:
        """The submitter was told this id."""
        self._tell(item, "accepted", str(job))

    def refused(self, item: Mapping[str, Any]) -> None:
        """The submitter was told that there is no job."""
        self._tell(item, "refused")

    def unknown(self, item: Mapping[str, Any]) -> None:
        """The answer was lost: the job may exist or not."""
        self._tell(item, "unknown")

    def submit(self, client: Any, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Submit through the Python client and write down what it says; the jobs that it answered with."""
        from jobschedd.errors import QueueFull, StoreUnavailable, UsageError

        try:
            jobs = client.submit_many(items)
        except StoreUnavailable:
            for item in items:
                self.unknown(item)
            return []
        except (UsageError, QueueFull):
            for item in items:
                self.refused(item)
            return []
        for item, job in zip(items, jobs, strict=True):
            self.accepted(item, job.id)
        return list(jobs)

    def jobs(self) -> list[str]:
        """The ids of everything that was accepted."""
        return [told.job for told in self.told if told.answer == "accepted"]

    def events(self) -> tuple[list[Event], list[str]]:
        """(what the jobs wrote, lines that cannot be read)."""
        events, damaged = [], []
        for line in self.path.read_text().splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                damaged.append(line)
                continue
            tag, job, attempt, kind, pid = match.groups()
            events.append(Event(tag, job, int(attempt), kind, int(pid)))
        return events, damaged

    def _tell(self, item: Mapping[str, Any], answer: str, job: str = "") -> None:
        self.told.append(Told(item["name"], answer, job, item.get("overlap") == "forbid"))


def read_ends(histories: Iterable[Path]) -> list[End]:
    """The final rows of the masters' histories; one that two masters wrote down alike counts once."""
    found: dict[tuple[str, str, int, str], End] = {}
    for path in histories:
        for incarnation, job, attempt, outcome, cause in _final_rows(path):
            found.setdefault((incarnation, job, attempt, outcome), End(job, attempt, outcome, cause))
    return list(found.values())


def _final_rows(path: Path) -> list[Any]:
    """Of a file that somebody may just be creating: a moment later, a reader that may not write can read it."""
    until = time.monotonic() + 2
    while True:
        too_late = time.monotonic() > until
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            if database.execute("SELECT name FROM sqlite_master WHERE name = 'attempts'").fetchone() is None:
                return []
            query = "SELECT incarnation, job, attempt, outcome, cause FROM attempts WHERE final = 1 ORDER BY attempt"
            return database.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if too_late or not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                raise
            time.sleep(0.01)
        finally:
            database.close()


def read_records(client: redis.Redis, namespace: str, jobs: Sequence[str]) -> dict[str, Now]:
    """What the records of these jobs say; those without one are left out."""
    keys = Keys(namespace)
    found = {}
    for begin in range(0, len(jobs), 1000):
        part = jobs[begin : begin + 1000]
        for job, record in zip(part, client.mget([keys.job(job) for job in part]), strict=True):
            if record is not None:
                header = decode_header(record)
                found[job] = Now(State(header.state).word, header.attempt, Outcome(header.outcome).word)
    return found


def find_stuck(client: redis.Redis, namespace: str) -> list[str]:
    """Work that nobody takes away, in an idle namespace: one line for each key that should be empty or gone."""
    keys = Keys(namespace)
    stuck = []
    for key in sorted(key.decode() for key in client.scan_iter(f"{keys.base}*", count=1000)):
        name = key.removeprefix(keys.base)
        kind = name.partition(":")[0]
        if kind in ("dispatch", "results") and (entries := client.xlen(key)):
            stuck.append(f"{name} still holds {entries} entries")
        elif kind == "pending" and name != "pending" and (waiting := client.llen(key)):
            stuck.append(f"{name} still holds {waiting} ids")
        elif name in ("scheduled", "expiring", "waiting") and (due := client.zcard(key)):
            stuck.append(f"{name} still holds {due} ids")
        elif kind in ("awaits", "dependents", "unblocking"):
            stuck.append(f"{name} is still there")
        elif name == "cancelling" and (open_requests := client.scard(key)):
            stuck.append(f"{name} still holds {open_requests} ids")
        elif name == "suspects" and (suspects := client.hlen(key)):
            stuck.append(f"{name} still holds {suspects} incarnations")
        elif name == "dead" and (letters := client.xlen(key)):
            stuck.append(f"{letters} dead letters, the first: {client.xrange(key, count=1)}")
    return stuck


def wait_for_ends(
    read: Callable[[], Sequence[End]],
    jobs: Sequence[str],
    within: float,
    what: str = "",
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Wait until every one of ``jobs`` has an accepted end in the history. ``meanwhile`` is called now and then."""

    def missing() -> set[str]:
        meanwhile()
        return set(jobs) - {end.job for end in read()}

    try:
        wait_until(lambda: not missing(), within, "", every=0.1)
    except pytest.fail.Exception:
        left = sorted(missing())
        shown = ", ".join(left[:SHOWN]) + (" ..." if len(left) > SHOWN else "")
        pytest.fail(f"not within {within:g} s: {len(left)} of {len(jobs)} jobs have no end: {shown}\n{what}")


def judge(
    cluster: Any,
    ledger: Ledger,
    client: redis.Redis,
    within: float,
    apart: Container[str] = (),
    meanwhile: Callable[[], object] = lambda: None,
    **options: Any,
) -> Account:
    """Wait for the ends of all that was accepted, then for quiet; stop all daemons; compare the accounts.

    Fails the test when an invariant is broken. The account is returned for what a test adds. ``apart``: jobs that
    the test itself looks after, because more than one end was asked for. ``meanwhile``: called while it waits.
    """
    wait_for_ends(lambda: read_ends(cluster.history()), ledger.jobs(), within, cluster.logs(), meanwhile)
    records = read_records(client, cluster.namespace, ledger.jobs())
    stuck = settled(lambda: find_stuck(client, cluster.namespace), within=5)
    for daemon in cluster.daemons:
        if daemon.running():
            assert daemon.stop() == 0, f"{daemon.name} ended with {daemon.popen.returncode}\n{daemon.log()}"
    left = settled(lambda: [line for line in describe(cluster.processes()).splitlines() if line], within=5)
    events, damaged = ledger.events()
    events = [event for event in events if event.job not in apart]
    ends = [end for end in read_ends(cluster.history()) if end.job not in apart]
    account = Account(ledger.told, events, ends, records, stuck, left, damaged, **options)
    violations = check(account)
    if violations.lines:
        pytest.fail(f"{violations}\n{cluster.logs()}")
    return account


def settled(read: Callable[[], Sequence[str]], within: float) -> Sequence[str]:
    """What ``read`` still returns after ``within`` seconds; at once when that is nothing."""
    try:
        wait_until(lambda: not read(), within, "", every=0.05)
    except pytest.fail.Exception:
        return read()
    return ()
