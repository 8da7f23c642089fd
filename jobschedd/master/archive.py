"""The history read and kept small, on a connection of its own: the collector, which writes it, waits for neither.

SQLite in WAL mode lets a reader and the writer go on side by side. Rows are deleted, and what an old file lacks is put
in, a few at a time, with room for the collector between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jobschedd.errors import ProtocolError
from jobschedd.job import decode_spec
from jobschedd.master.history import CATALOGUE, History, label_text
from jobschedd.store.attempts import COLUMNS, PAGE, Place, Query

#: Rows deleted, or mended, in one transaction: some milliseconds.
BATCH = 200
#: The same where too many bytes are the reason: then rows are large.
BATCH_OF_LARGE = 20

_KEY = "ended, incarnation, job, attempt, final"
_IDENTITY = "incarnation, job, attempt, final"
_MARKS = "(?, ?, ?, ?)"


class Archive:
    """One history file. Not for use by two threads. Every method may raise sqlite3.Error."""

    def __init__(self, path: str) -> None:
        self._history = History(path)
        self._labelled: Sequence[Any] = ("", "", -1, -1)  # up to where ``complete`` has come

    def close(self) -> None:
        """Close the file."""
        self._history.close()

    # -- questions --------------------------------------------------------------------------------------------

    def page(self, query: Query) -> tuple[list[Any], bool]:
        """(rows in the order of COLUMNS, newest first; whether there are more after them)."""
        limit = max(1, min(query.limit, PAGE))
        with self._reading() as database:
            places = self._places(database, query, limit + 1)
            rows = _rows(database, places[:limit])
        return rows, len(places) > limit

    def _places(self, database: sqlite3.Connection, query: Query, limit: int) -> list[Place]:
        """By the catalogue alone: it holds all that can be asked about."""
        conditions, values = _conditions(query)
        if query.job:
            # By the primary key, for each data of Redis that there were.
            conditions.append("incarnation IN (SELECT value FROM json_each(?)) AND job = ?")
            values += [json.dumps(_incarnations(database)), query.job]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        order = ", ".join(f"{column} DESC" for column in _KEY.split(", "))
        found = database.execute(f"SELECT {_KEY} FROM attempts {where} ORDER BY {order} LIMIT ?", (*values, limit))
        return found.fetchall()

    # -- keeping it small -------------------------------------------------------------------------------------

    def prune(self, before: float, largest: int | None) -> int:
        """Delete a few of what ended before this time, or is too much by bytes, the oldest first; how many."""
        with self._writing() as database:
            # Both times: an end without a time of its own is not an old one.
            values: tuple[float, ...] = (before, before)
            where, most = "WHERE ended < ? AND submitted < ?", BATCH
            if largest is not None and _bytes_in_use(database) > largest:
                where, values, most = "", (), BATCH_OF_LARGE
            oldest = f"SELECT {_IDENTITY} FROM attempts {where} ORDER BY {_KEY} LIMIT {most}"
            return database.execute(f"DELETE FROM attempts WHERE ({_IDENTITY}) IN ({oldest})", values).rowcount

    def complete(self) -> bool:
        """Put in what an old file lacks, a little at a time; whether there is more to do."""
        with self._writing() as database:
            if _has_index(database, "attempts_catalogue"):
                database.execute("DROP INDEX IF EXISTS attempts_by_end")  # an older program has been here since
                return False
            if rows := self._unlabelled(database):
                update = f"UPDATE attempts SET labels = ? WHERE ({_IDENTITY}) = {_MARKS}"
                found = [(_labels(spec), *place) for *place, spec in rows]
                database.executemany(update, [row for row in found if row[0]])
                self._labelled = rows[-1][:4]
                return True
            database.execute(CATALOGUE)
            database.execute("DROP INDEX IF EXISTS attempts_by_end")
            return False

    def _unlabelled(self, database: sqlite3.Connection) -> list[Any]:
        where = f"WHERE ({_IDENTITY}) > {_MARKS} ORDER BY {_IDENTITY} LIMIT {BATCH}"
        return database.execute(f"SELECT {_IDENTITY}, spec FROM attempts {where}", tuple(self._labelled)).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One view of the file for several reads; short, or the log of changes could not be folded in."""
        database = self._history.database()
        database.execute("BEGIN")
        try:
            yield database
        finally:
            database.rollback()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._history.database() as database:
            yield database


def _rows(database: sqlite3.Connection, places: Sequence[Place]) -> list[Any]:
    query = f"SELECT {', '.join(COLUMNS)} FROM attempts WHERE ({_IDENTITY}) = {_MARKS}"
    return [database.execute(query, place[1:]).fetchone() for place in places]


def _conditions(query: Query) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []

    def add(condition: str, *some: Any) -> None:
        conditions.append(condition)
        values.extend(some)

    for column in ("node", "channel", "cause", "schedule"):
        if wanted := getattr(query, column):
            add(f"{column} = ?", wanted)
    if query.outcomes:
        add(f"outcome IN ({', '.join('?' * len(query.outcomes))})", *query.outcomes)
    if query.name:
        add("name GLOB ?", query.name.replace("[!", "[^"))
    if query.label:
        add("instr(labels, ?) > 0", f",{query.label},")
    if query.final:
        add("final = 1")
    if query.since is not None:
        add("ended >= ?", query.since)
    if query.until is not None:
        add("ended < ?", query.until)
    if query.after is not None:
        add(f"({_KEY}) < (?, ?, ?, ?, ?)", *query.after)
    return conditions, values


def _incarnations(database: sqlite3.Connection) -> list[str]:
    """All that the file knows, by one step through the primary key for each."""
    found: list[str] = []
    while True:
        query = "SELECT MIN(incarnation) FROM attempts WHERE incarnation > ?"
        (after,) = database.execute(query, (found[-1] if found else "",)).fetchone()
        if after is None:
            return found
        found.append(after)


def _bytes_in_use(database: sqlite3.Connection) -> int:
    pragmas = ("page_count", "freelist_count", "page_size")
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas)
    return int((pages - free) * size)


def _has_index(database: sqlite3.Connection, name: str) -> bool:
    query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'index' AND name = ?"
    return bool(database.execute(query, (name,)).fetchone()[0])


def _labels(spec: bytes) -> str:
    try:
        return label_text(decode_spec(spec).labels)
    except ProtocolError:
        return ""
