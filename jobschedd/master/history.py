"""Every attempt that ended, in SQLite (WAL) beside the collector: for questions that outlive Redis' retention."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from jobschedd.errors import ProtocolError
from jobschedd.job import Outcome, Past, Result, Spec, decode_spec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    incarnation TEXT NOT NULL,      -- of the namespace's data in Redis
    job TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    final INTEGER NOT NULL,         -- 1: the job's accepted end; 0: another try followed
    name TEXT NOT NULL,
    what TEXT NOT NULL,
    node TEXT NOT NULL,
    channel TEXT NOT NULL,
    outcome TEXT NOT NULL,
    cause TEXT NOT NULL,
    exit_code INTEGER,
    signal INTEGER,
    submitted REAL NOT NULL,        -- seconds since the epoch, as all times here
    dispatched REAL NOT NULL,
    started REAL NOT NULL,
    ended REAL NOT NULL,
    labels TEXT NOT NULL DEFAULT '',    -- ",gpu,large,"
    schedule TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    spec BLOB NOT NULL,             -- both after everything that is looked at row by row
    result BLOB NOT NULL,
    -- A job may end between two attempts, too: then its last attempt has a row that is not final and one that is.
    PRIMARY KEY (incarnation, job, attempt, final)
) WITHOUT ROWID
"""
VERSION = 2
#: What version 1 did not have. Adding it takes no time, however many rows there are.
_ADDED_IN_2 = ("labels", "schedule", "error")
#: Everything that a question can ask about, in the order of the answers: rows are read only where all of it fits. It
#: grows at its end, so that it costs the collector little. Built by whoever tidies up, where an old file lacks it.
CATALOGUE = """
CREATE INDEX IF NOT EXISTS attempts_catalogue ON attempts (
    ended, incarnation, job, attempt, final, node, channel, outcome, cause, name, labels, schedule
)
"""
_COLUMNS = (
    "incarnation, job, attempt, final, name, what, node, channel, outcome, cause, exit_code, signal,"
    " submitted, dispatched, started, ended, spec, result, labels, schedule, error"
)
#: Rows that one statement inserts: to run one costs nearly as much as to insert a row.
TOGETHER = 16
_MARKS = f"({', '.join('?' * 21)})"
_INSERT = f"INSERT OR IGNORE INTO attempts ({_COLUMNS}) VALUES {_MARKS}"
_INSERT_TOGETHER = ", ".join([_INSERT] + [_MARKS] * (TOGETHER - 1))

#: Seconds that a file locked by somebody else may hold up the collector: verdicts wait as long.
LOCK_PATIENCE = 0.5

#: Characters of an error that stand in a column of their own: its end, where the exception is. All is in ``result``.
LONGEST_ERROR = 1000

#: Bytes of a spec that is remembered: equal jobs, and all tasks of an array, have the same.
SHORT_SPEC = 512
_WORDS = {outcome: outcome.word for outcome in Outcome}

Row = tuple[str | int | float | bytes | None, ...]
#: Job, attempt, when it ended (seconds since the epoch), outcome, packed result.
End = tuple[str, int, float, Outcome, bytes]
_UNREADABLE = Spec()
_LAST_END = "SELECT job, MAX(attempt), ended, outcome, result FROM attempts WHERE final = 1 AND incarnation = ?"


def row(incarnation: str, job: str, past: Past, result: Result, packed: bytes, final: bool) -> Row:
    """One attempt's row. ``packed`` are the bytes of ``result``."""
    told = _told(past.spec) if len(past.spec) <= SHORT_SPEC else _tell(past.spec)
    return (
        incarnation,
        job,
        past.attempt,
        int(final),
        told.name,
        told.what,
        result.node,
        result.channel,
        _WORDS[result.outcome],
        result.cause,
        _small(result.exit_code),
        _small(result.signal),
        past.submitted / 1000,
        past.dispatched / 1000,
        result.started,
        result.ended,
        past.spec,
        packed,
        told.labels,
        told.schedule,
        result.error[-LONGEST_ERROR:],
    )


class _Told(NamedTuple):
    """What a spec says in columns."""

    name: str
    what: str
    labels: str
    schedule: str


def _tell(spec_bytes: bytes) -> _Told:
    try:
        spec = decode_spec(spec_bytes)
    except ProtocolError:
        spec = _UNREADABLE
    return _Told(spec.name, spec.what[:1000], label_text(spec.labels), getattr(spec, "schedule", "") or "")


_told = lru_cache(maxsize=1024)(_tell)


def weight(made: Row) -> int:
    """About how many bytes a row has: those of its spec and result."""
    spec, result = made[16:18]
    assert isinstance(spec, bytes) and isinstance(result, bytes)
    return len(spec) + len(result)


def label_text(labels: Sequence[str]) -> str:
    """How the labels of a job stand in their column: each between commas."""
    return f",{','.join(labels)}," if labels else ""


def _small(number: int | None) -> int | None:
    """None for what no process can have ended with, and no column can hold."""
    return number if number is not None and abs(number) < 1 << 32 else None


class History:
    """The database file; created private. Every method may raise sqlite3.Error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def add(self, rows: Sequence[Row], give_way: Callable[[], object] | None = None) -> None:
        """Insert in one transaction; rows that are there already are left alone. ``give_way`` is called every few."""
        try:
            with self.database() as database:
                whole = len(rows) - len(rows) % TOGETHER
                database.executemany(_INSERT_TOGETHER, _together(rows[:whole], give_way))
                database.executemany(_INSERT, rows[whole:])
        except sqlite3.Error:
            self.close()  # the next try opens the file anew: it may be another one by then
            raise

    def highest_id(self) -> int:
        """The highest job id that ever ended here; 0 for none."""
        (highest,) = self.database().execute("SELECT MAX(CAST(job AS INTEGER)) FROM attempts").fetchone()
        return int(highest or 0)

    def ends_of(self, incarnation: str, jobs: Sequence[str]) -> list[End]:
        """(job, attempt, ended, outcome, result) of the last accepted end of each of these jobs that has one."""
        query = f"{_LAST_END} AND job IN (SELECT value FROM json_each(?)) GROUP BY job"
        return _ends(self.database().execute(query, (incarnation, json.dumps(list(jobs)))))

    def ends_of_tasks(self, incarnation: str, array: str, after: str, most: int) -> list[End]:
        """The same of tasks of an array, by id as text: those behind ``after`` ("" for the first), ``most`` at most."""
        query = f"{_LAST_END} AND job > ? AND job < ? GROUP BY job ORDER BY job LIMIT ?"
        behind_all = f"{array}{chr(ord('_') + 1)}"
        return _ends(self.database().execute(query, (incarnation, after or f"{array}_", behind_all, most)))

    def close(self) -> None:
        """Close the file."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def database(self) -> sqlite3.Connection:
        """The connection, opened at first use: the file is made, or brought to this version's format, where need be."""
        if self._database is None:
            self._create_file()
            self._database = sqlite3.connect(self.path, timeout=LOCK_PATIENCE)
            self._set_up(self._database)
        return self._database

    def _create_file(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path) or ".", mode=0o700, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise sqlite3.OperationalError(f"{self.path}: {error.strerror}") from error

    @staticmethod
    def _set_up(database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        # A power cut may cost the last rows, never the file: the result stream is trimmed after the commit, and
        # the record in Redis stays for its retention.
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            return
        if version > VERSION:
            raise sqlite3.DatabaseError(f"the file is of a newer version of jobschedd (format {version})")
        with database:
            database.execute("BEGIN IMMEDIATE")  # two processes may open an old file at once
            _migrate(database)


def _together(rows: Sequence[Row], give_way: Callable[[], object] | None) -> Iterator[Row]:
    for at in range(0, len(rows), TOGETHER):
        yield tuple(chain.from_iterable(rows[at : at + TOGETHER]))
        if give_way is not None:
            give_way()


def _ends(found: Iterable[tuple[str, int, float, str, bytes]]) -> list[End]:
    words = {outcome.word: outcome for outcome in Outcome}
    return [(job, attempt, ended, words[word], result) for job, attempt, ended, word, result in found]


def _migrate(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.execute(_SCHEMA)
        database.execute(CATALOGUE)
    elif version == 1:
        # A program of version 1 that found a file of version 2 has written its own number into it, and no more.
        there = {column for _, column, *_ in database.execute("PRAGMA table_info(attempts)")}
        for column in sorted(set(_ADDED_IN_2) - there):
            database.execute(f"ALTER TABLE attempts ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
    database.execute(f"PRAGMA user_version = {VERSION}")
