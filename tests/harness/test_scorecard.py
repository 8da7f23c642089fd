"""The scorecard's run: what is in its tally is not run again, and what is not is."""

from __future__ import annotations

import argparse
import json

from benchmarks.reliability import RECOVERIES, _figures, _phases, _read
from faults.test_matrix import MATRIX

OPTIONS = argparse.Namespace(
    seed=7, jobs=40_000, rounds=20, cycles=100, outage=3.0, long_outages=3, at_a_time=2, peers=False
)


def batches(lines):
    return [batch for phase in _phases(lines, OPTIONS) for lane in phase for batch in lane]


def missing(lines):
    return [test.rpartition("/")[2] for batch in batches(lines) for test in batch.tests]


def everything():
    for point, fault in MATRIX:
        yield {"kind": "matrix", "point": point, "fault": fault, "passed": True, "jobs": 100, "starts": 101}
    names = {**dict.fromkeys(RECOVERIES, 20), "Redis killed, back after 3 s": 100, "Redis killed, back after 60 s": 3}
    for fault, count in names.items():
        times = [0.1] * count
        yield {"kind": "recovery", "fault": fault, "bound": 2, "times": times, "passed": True, "jobs": 1, "starts": 1}
    yield {"kind": "nemesis", "fault": "all", "seed": 7, "passed": True, "jobs": 40_000, "starts": 40_000}
    for kind in ("poison", "paused"):
        yield {"kind": kind, "fault": "x", "passed": True, "jobs": 1, "starts": 1}
    yield {"kind": "stale", "fault": "x", "passed": True, "writes": 10_000, "accepted": 0}


def test_at_first_everything_is_missing():
    found = missing([])
    assert sum("test_matrix.py" in test for test in found) == len(MATRIX) == len(set(found) & set(found[: len(MATRIX)]))
    assert sum("test_redis_away" in test for test in found) == 10 + 1
    assert sum("test_nemesis.py" in test for test in found) == 3


def test_at_last_nothing_is():
    assert missing(list(everything())) == []


def test_what_failed_is_not_tried_until_it_passes():
    lines = [{**line, "passed": False} for line in everything()]
    assert missing(lines) == []
    assert "| matrix | 174 | 174 |".replace("174", str(len(MATRIX))) in _figures(lines)


def test_what_is_missing_is_run_and_under_another_seed():
    lines = [line for line in everything() if line["fault"] != "node lost"]
    lines = [line for line in lines if (line.get("point"), line["fault"]) != ("collector.read.after", "stop")]
    lines = [{**line, "jobs": 30_000} if line["kind"] == "nemesis" else line for line in lines]
    assert missing(lines) == [
        "test_matrix.py::test_broken_between_two_effects[collector.read.after-stop]",
        "test_nemesis.py::test_for_as_long_as_it_takes",
        *["test_recovery.py::test_a_killed_node"] * 2,
    ]
    assert batches(lines)[1].settings == {"FAULTS_SEED": "8", "FAULTS_JOBS": "10000"}
    assert batches(lines)[2].settings == {"FAULTS_ROUNDS": "10"}


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path, capsys):
    tally = tmp_path / "tally"
    tally.write_text(json.dumps({"kind": "about"}) + '\n{"kind": "matr')
    assert _read(tally) == [{"kind": "about"}]
    assert "matr" in capsys.readouterr().err
