"""Questions to a history of a million rows, as ``jobsched history`` asks them, and what a busy clerk costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, lab
from jobschedd.job import Outcome, Past, Result, Spec, encode
from jobschedd.master.history import History, row

Figures = dict[str, Any]
ROWS, BATCH = 1_000_000, 10_000
EXPORTED = 100_000
#: When the first of them ended: a second apart, the last of them has just ended.
EPOCH = time.time() - ROWS
QUESTIONS: dict[str, dict[str, Any]] = {
    "newest": {},
    "node": {"node": "node-7"},
    "rare_node": {"node": "node-rare"},
    "outcome": {"outcomes": ["timed_out"]},
    "name": {"name": "etl-*-77?"},
    "label": {"label": "gpu"},
    "day": {"since": EPOCH + 500_000, "until": EPOCH + 586_400},
    "several": {"node": "node-3", "outcomes": ["failed"], "name": "etl-*", "since": EPOCH + 100_000},
    "nothing": {"cause": "poison"},
    "job": {"job": "123456"},
}


def history(rows: int = ROWS) -> Figures:
    """Seconds a question of 50 rows takes in all, and rows a second of an export."""
    with lab() as made:
        _fill(made.directory / "history.db", rows)
        made.start_daemon(1)
        figures: Figures = {}
        for name, question in QUESTIONS.items():
            ask = lambda question=question: list(made.client.history(limit=50, **question))  # noqa: E731
            figures[f"{name}_s"] = statistics.median(_timed(ask) for _ in range(3))
        figures["export_rows_per_s"] = _export_rate(made, min(rows, EXPORTED))
        return figures


def _export_rate(made: Lab, rows: int) -> float:
    began = time.monotonic()
    count = sum(1 for _ in made.client.history(limit=rows))
    assert count == rows
    return count / (time.monotonic() - began)


def _timed(ask: Callable[[], object]) -> float:
    began = time.monotonic()
    ask()
    return time.monotonic() - began


def _fill(path: Path, rows: int) -> None:
    """A file as the collector writes it, of ``rows`` ends a second apart."""
    written = History(str(path))
    made = ends(rows)
    while batch := list(islice(made, BATCH)):
        written.add(batch)
    written.close()


def ends(rows: int) -> Iterator[Any]:
    """Rows of jobs that ended, a second apart."""
    random_of = random.Random(1)
    for number in range(1, rows + 1):
        node = "node-rare" if number % 100_000 == 7 else f"node-{random_of.randrange(20)}"
        outcome = random_of.choices([Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT], weights=[989, 10, 1])[0]
        labels = ("gpu",) if number % 50 == 0 else ()
        spec = encode(Spec(command=("run", str(number)), name=f"etl-{number % 20}-{number % 1000}", labels=labels))
        ended = EPOCH + number
        result = Result(outcome=outcome, cause="exit", node=node, channel="1", started=ended - 0.5, ended=ended)
        milliseconds = int(ended * 1000)
        past = Past(1, milliseconds, milliseconds, spec)
        yield row("data", str(number), past, result, encode(result), True)
