"""The history read and kept small: against a plain list, beside a writer, and from a file of the first format."""

from __future__ import annotations

import random
import sqlite3
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from jobschedd.job import Outcome, Past, Result, Spec, encode
from jobschedd.master import archive as archive_module
from jobschedd.master.archive import BATCH, Archive
from jobschedd.master.history import History, row
from jobschedd.store.attempts import COLUMNS, Attempt, Query

OUTCOMES = [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT]


def made_row(number: int, **fields: Any) -> Any:
    """One end; ``fields``: of the result, and name, labels, attempt, final, identity."""
    own = {"identity": "data", "attempt": 1, "final": True, "name": "", "labels": ()} | {
        name: fields.pop(name) for name in ("identity", "attempt", "final", "name", "labels") if name in fields
    }
    spec = Spec(command=("run", str(number)), name=own["name"], labels=own["labels"])
    given = {"outcome": Outcome.SUCCEEDED, "cause": "exit", "node": "n1", "channel": "1", "ended": float(number)}
    result = Result(**(given | fields))
    past = Past(own["attempt"], 1000, 2000, encode(spec))
    return row(own["identity"], str(number), past, result, encode(result), own["final"])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def stored(path: str, rows: list[Any]) -> Archive:
    history = History(path)
    history.add(rows)
    history.close()
    return Archive(path)


def test_rows_in_any_number(path):
    """Most are inserted in groups; those that are there already are left alone."""
    history = History(path)
    history.add([made_row(3, name="first"), made_row(20, name="first")])
    history.add([made_row(number, name="second") for number in range(1, 41)])
    history.add([])
    names = dict(history.database().execute("SELECT CAST(job AS INTEGER), name FROM attempts"))
    assert names == {number: "first" if number in (3, 20) else "second" for number in range(1, 41)}


def everything(archive: Archive, query: Query) -> list[Attempt]:
    """All pages, each asked for after the last row of the one before."""
    found: list[Attempt] = []
    more = True
    while more:
        rows, more = archive.page(query)
        found += [Attempt(*each) for each in rows]
        query = replace(query, after=found[-1].place if found else None)
    return found


def jobs_of(archive: Archive, **query: Any) -> list[str]:
    return [attempt.job for attempt in everything(archive, Query(**query))]


def test_a_row_is_read_as_it_was_written(path: str):
    archive = stored(
        path,
        [
            made_row(
                7, name="greet", labels=("b", "gpu"), exit_code=3, outcome=Outcome.FAILED, started=5.5, error="oops"
            )
        ],
    )
    (attempt,) = everything(archive, Query())
    assert attempt.json() == {
        "job": "7", "attempt": 1, "final": True, "name": "greet", "what": "run 7", "outcome": "failed",
        "cause": "exit", "exit_code": 3, "signal": None, "error": "oops", "node": "n1", "channel": "1",
        "labels": ["b", "gpu"], "schedule": None, "submitted": 1.0, "dispatched": 2.0, "started": 5.5, "ended": 7.0,
        "duration": 1.5, "identity": "data",
    }  # fmt: skip


def test_the_columns_are_those_of_an_attempt():
    assert len(COLUMNS) == len(Attempt.__struct_fields__)
    assert COLUMNS[0] == "incarnation" and COLUMNS[16] == "labels"


@pytest.mark.parametrize("seed", range(5))
def test_every_filter_gives_what_a_plain_list_gives(path: str, seed: int):
    chance = random.Random(seed)
    rows = []
    for number in range(1, 400):
        rows.append(
            made_row(
                number,
                identity=chance.choice(["data", "older"]),
                final=chance.random() < 0.8,
                attempt=chance.randint(1, 3),
                name=chance.choice(["etl-1", "etl-2", "Etl-1", "x[1]", ""]),
                labels=chance.choice([(), ("gpu",), ("gpu", "large"), ("gpu2",)]),
                outcome=chance.choice(OUTCOMES),
                cause=chance.choice(["exit", "oom"]),
                node=chance.choice(["n1", "n2"]),
                channel=chance.choice(["1", "2"]),
                ended=float(chance.randint(1, 50)),  # many at the same time
            )
        )
    archive = stored(path, rows)
    known = sorted((attempt for attempt in everything(archive, Query())), key=lambda one: one.place, reverse=True)
    assert len(known) == len(rows) and known == everything(archive, Query(limit=7))
    for _ in range(30):
        wanted: dict[str, Any] = {
            "job": str(chance.randint(1, 400)),
            "node": "n2",
            "channel": "2",
            "name": chance.choice(["etl-*", "etl-?", "e*1", "[!e]*", "nothing"]),
            "label": chance.choice(["gpu", "large", "gp"]),
            "cause": "oom",
            "outcomes": ("failed", "timed_out"),
            "since": 10.0,
            "until": 30.0,
            "final": True,
        }
        chosen = {name: wanted[name] for name in chance.sample(sorted(wanted), chance.randint(0, 4))}
        expected = [attempt for attempt in known if _fits(attempt, chosen)]
        assert everything(archive, Query(limit=chance.choice([3, 500]), **chosen)) == expected, chosen


def _fits(attempt: Attempt, wanted: dict[str, Any]) -> bool:
    tests = {
        "name": lambda value: fnmatchcase(attempt.name, value),
        "label": lambda value: value in attempt.labels,
        "outcomes": lambda value: attempt.outcome in value,
        "since": lambda value: attempt.ended >= value,
        "until": lambda value: attempt.ended < value,
        "final": lambda value: attempt.final == 1,
    }
    return all(
        tests.get(name, lambda value, name=name: getattr(attempt, name) == value)(value)
        for name, value in wanted.items()
    )


@pytest.mark.parametrize(
    "query", [Query(), Query(node="n1", name="a*", label="gpu", since=1.0, after=(5.0, "data", "5", 1, 1))]
)
def test_a_question_is_answered_by_the_catalogue(path: str, query: Query):
    stored(path, [made_row(1)])
    conditions, values = archive_module._conditions(query)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    with sqlite3.connect(path) as database:
        order = "ended DESC, incarnation DESC, job DESC, attempt DESC, final DESC"
        statement = f"EXPLAIN QUERY PLAN SELECT {archive_module._KEY} FROM attempts {where} ORDER BY {order}"
        plan = " ".join(line[3] for line in database.execute(statement, values))
    database.close()
    assert "COVERING INDEX attempts_catalogue" in plan and "TEMP B-TREE" not in plan


class TestPruning:
    def test_what_is_too_old_goes_a_few_at_a_time(self, path: str):
        archive = stored(path, [made_row(number) for number in range(1, 2 * BATCH + 51)])
        assert [archive.prune(float(BATCH + 11), None) for _ in range(3)] == [BATCH, 10, 0]
        assert jobs_of(archive, until=float(BATCH + 12)) == [str(BATCH + 11)]

    def test_an_end_without_a_time_is_as_old_as_its_submit(self, path: str):
        archive = stored(path, [made_row(1, ended=0.0)])
        assert archive.prune(1.0, None) == 0
        assert archive.prune(1.5, None) == 1

    def test_what_is_too_much_goes_oldest_first(self, path: str):
        filler = "x" * 5000
        archive = stored(path, [made_row(number, error=filler) for number in range(1, 601)])
        largest = 1_500_000
        while archive.prune(0.0, largest):
            pass
        left = [int(job) for job in jobs_of(archive)]
        assert left == list(range(600, 600 - len(left), -1)) and 50 < len(left) <= 400
        assert archive.prune(0.0, largest) == 0

    def test_a_writer_goes_on_meanwhile(self, path: str):
        archive, history = stored(path, [made_row(number) for number in range(1, 500)]), History(path)
        for number in range(1000, 1100):
            assert archive.prune(600.0, None) in (BATCH, 99, 0)
            history.add([made_row(number)])
        assert len(jobs_of(archive)) == 100
        history.close()

    def test_a_reader_does_not_hold_up_the_writer(self, path: str):
        archive, history = stored(path, [made_row(number) for number in range(1, 10)]), History(path)
        with archive._reading() as database:
            database.execute("SELECT COUNT(*) FROM attempts").fetchone()
            history.add([made_row(99)])
        assert "99" in jobs_of(archive)
        history.close()


class TestFirstFormat:
    SCHEMA = """
        CREATE TABLE attempts (
            incarnation TEXT NOT NULL, job TEXT NOT NULL, attempt INTEGER NOT NULL, final INTEGER NOT NULL,
            name TEXT NOT NULL, what TEXT NOT NULL, node TEXT NOT NULL, channel TEXT NOT NULL, outcome TEXT NOT NULL,
            cause TEXT NOT NULL, exit_code INTEGER, signal INTEGER, submitted REAL NOT NULL, dispatched REAL NOT NULL,
            started REAL NOT NULL, ended REAL NOT NULL, spec BLOB NOT NULL, result BLOB NOT NULL,
            PRIMARY KEY (incarnation, job, attempt, final)
        ) WITHOUT ROWID;
        CREATE INDEX attempts_by_end ON attempts (ended);
        PRAGMA user_version = 1;
    """

    @pytest.fixture
    def old(self, path: str) -> str:
        """As the version before wrote it: 450 rows, every third with a label."""
        with sqlite3.connect(path) as database:
            database.executescript(self.SCHEMA)
            rows = [made_row(number, labels=("gpu",) if number % 3 == 0 else ()) for number in range(1, 451)]
            database.executemany(f"INSERT INTO attempts VALUES ({', '.join('?' * 18)})", [each[:18] for each in rows])
        database.close()
        return path

    def test_it_is_brought_up_to_date_in_place(self, old: str):
        archive, history = Archive(old), History(old)
        history.add([made_row(999, labels=("gpu",))])
        assert len(jobs_of(archive)) == 451, "asked before it is complete"
        turns = 1
        while archive.complete():
            history.add([made_row(1000 + turns)])
            turns += 1
        assert turns > 2, "not all of it in one transaction"
        assert len(jobs_of(archive, label="gpu")) == 151
        assert not archive.complete()
        with sqlite3.connect(old) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
            assert "attempts_catalogue" in names and "attempts_by_end" not in names
        database.close()
        history.close()

    def test_two_open_it_at_once(self, old: str):
        first, second = History(old), History(old)
        first.add([made_row(998)])
        second.add([made_row(999)])
        assert len(jobs_of(Archive(old))) == 452

    def test_a_file_of_ours_that_an_older_program_has_opened(self, path: str):
        """It wrote its own version into it, and its index; for rows it found no room."""
        stored(path, [made_row(1, labels=("gpu",))]).close()
        with sqlite3.connect(path) as database:
            database.executescript("CREATE INDEX attempts_by_end ON attempts (ended); PRAGMA user_version = 1")
        database.close()
        archive = stored(path, [made_row(2, labels=("gpu",))])
        assert sorted(jobs_of(archive, label="gpu")) == ["1", "2"]
        assert not archive.complete()
        with sqlite3.connect(path) as database:
            assert not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts_by_end'").fetchall()
        database.close()

    def test_a_file_of_a_newer_version_is_left_alone(self, old: str):
        with sqlite3.connect(old) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        with pytest.raises(sqlite3.Error, match="newer version"):
            History(old).add([made_row(999)])
