"""``python -m benchmarks.reliability``: break everything, measure what becomes of the jobs, write docs/reliability.md.

Only what was measured is written. The figures come from the tests of faults, each case of which appends a line to a
tally. ``--tally FILE`` goes on with what is missing from it: a run that was cut short loses nothing. A case that failed
stays failed. ``--write`` only writes the page again; ``--peers`` measures the peers, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import queue
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "tests" / "faults"
PAGE = ROOT / "docs" / "reliability.md"
#: What of the page is written: the figures, and the peers' (which stay as they are where none were measured).
PLACES = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("figures", "peers")}
Line = dict[str, Any]
#: Seconds that one batch may take before it is ended; what it has written counts.
PATIENCE = 1500
#: Cases of the matrix that one process of pytest runs, and jobs of one nemesis.
BATCH, PORTION = 12, 15_000
#: Recoveries that one process measures.
CHUNK = 10
#: Fault as it is tallied -> its test in test_recovery.py.
RECOVERIES = {
    "channel process killed": "test_a_killed_channel",
    "node lost": "test_a_killed_node",
    "leading master killed": "test_a_killed_leader",
    "leading master stopped in order": "test_an_orderly_hand_over",
    "supervisor killed, nothing left": "test_a_killed_supervisor",
}


@dataclass(frozen=True)
class Batch:
    """What one process of pytest runs."""

    tests: Sequence[str]
    settings: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Run what is missing, then write; 0 when every case was run and passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the first nemesis")
    parser.add_argument("--jobs", type=int, default=90_000, help="accepted under the nemesis, in all")
    parser.add_argument("--rounds", type=int, default=20, help="of each recovery")
    parser.add_argument("--cycles", type=int, default=100, help="of a Redis that goes away and comes back")
    parser.add_argument("--outage", type=float, default=3, help="seconds that it is away in each cycle")
    parser.add_argument("--long-outages", type=int, default=3, help="cycles of 60 s beside")
    parser.add_argument("--at-a-time", type=int, default=2, help="processes of pytest where no time is measured")
    parser.add_argument("--peers", action="store_true", help="measure the peers too; installs them from the registry")
    parser.add_argument("--tally", type=Path, help="go on with this one")
    parser.add_argument("--write", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    tally = options.tally or Path(tempfile.mkdtemp(prefix="reliability-")) / "tally.jsonl"
    print(f"the tally of this run: {tally}", flush=True)
    if not options.write:
        _run(tally, options)
    lines = _read(tally)
    _write(lines)
    missing = sum(len(batch.tests) for phase in _phases(lines, options) for lane in phase for batch in lane)
    failed = [line for line in lines if line.get("passed") is False]
    for line in failed:
        print(f"failed: {line['kind']} {line.get('point', '')} {line['fault']}: {line.get('violations')}")
    late = [line for line in lines if line["kind"] == "recovery" and max(line.get("times", [0])) > line["bound"]]
    for line in late:
        print(f"late: {line['fault']}: {max(line['times'])} s, promised are {line['bound']:g} s")
    print(f"{len(lines)} lines, {len(failed)} failed, {len(late)} late, {missing} not run: see {PAGE}")
    return 1 if failed or late or missing else 0


# -- what to run ------------------------------------------------------------------------------------------------------


def _run(tally: Path, options: argparse.Namespace) -> None:
    with open(tally, "a") as file:
        file.write(json.dumps({"kind": "about", "seed": options.seed, **_about()}) + "\n")
    watcher = _Watcher(tally)
    watcher.start()
    for phase in _phases(_read(tally), options):
        lanes = [threading.Thread(target=_run_lane, args=(lane, tally)) for lane in phase]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    watcher.stop()
    if options.peers and not any(line["kind"] == "peer" for line in _read(tally)):
        with open(tally, "ab") as file:
            subprocess.run([sys.executable, "-m", "benchmarks.survival"], cwd=ROOT, stdout=file, check=True)


def _phases(lines: Sequence[Line], options: argparse.Namespace) -> Iterator[list[Iterator[Batch]]]:
    """One after the other; each has lanes that run side by side. What is in ``lines`` is not run again."""
    safety: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    for batch in (*_cases(lines), *_singles(lines)):
        safety.put(batch)
    yield [_drained(safety) for _ in range(options.at_a_time)]
    yield [_nemeses(lines, options)]
    long = "Redis killed, back after 60 s"
    short = f"Redis killed, back after {options.outage:g} s"
    away = "test_redis_away"
    yield [
        _rounds(lines, short, away, options.cycles, {"FAULTS_OUTAGE": f"{options.outage:g}"}),
        _rounds(lines, "node lost", RECOVERIES["node lost"], options.rounds),
        (
            batch
            for fault, test in RECOVERIES.items()
            if fault != "node lost"
            for batch in _rounds(lines, fault, test, options.rounds)
        ),
    ]
    yield [_rounds(lines, long, away, options.long_outages, {"FAULTS_OUTAGE": "60"})]


def _drained(batches: queue.SimpleQueue[Batch]) -> Iterator[Batch]:
    while True:
        try:
            yield batches.get_nowait()
        except queue.Empty:
            return


def _cases(lines: Sequence[Line]) -> Iterator[Batch]:
    sys.path.append(str(ROOT / "tests"))
    from faults.test_matrix import CASES, MATRIX, TESTED_AS

    done = {(line["point"], line["fault"]) for line in lines if line["kind"] == "matrix"}
    names = {
        "client": "test_a_submitter_broken_in_its_call",
        "rebuild": "test_a_rebuild_broken_between_two_steps",
        "daemon": "test_broken_between_two_effects",
    }
    missing = [
        f"{FAULTS}/test_matrix.py::{names[TESTED_AS.get(CASES[point].who, 'daemon')]}[{point}-{fault}]"
        for point, fault in MATRIX
        if (point, fault) not in done
    ]
    for first in range(0, len(missing), BATCH):
        yield Batch(missing[first : first + BATCH])


def _singles(lines: Sequence[Line]) -> Iterator[Batch]:
    kinds = {line["kind"] for line in lines}
    for kind, test in {
        "poison": "test_poison.py",
        "stale": "test_leadership.py::TestStaleWrites",
        "paused": "test_leadership.py::TestHandOver::test_a_leader_that_pauses_again_and_again",
    }.items():
        if kind not in kinds:
            yield Batch([f"{FAULTS}/{test}"])


def _nemeses(lines: Sequence[Line], options: argparse.Namespace) -> Iterator[Batch]:
    done = [line for line in lines if line["kind"] == "nemesis"]
    left = options.jobs - sum(line.get("jobs", PORTION) for line in done)
    for number in range(len(done), len(done) + math.ceil(max(0, left) / PORTION)):
        portion = min(PORTION, left)
        left -= portion
        settings = {"FAULTS_SEED": str((options.seed + number) % (1 << 32)), "FAULTS_JOBS": str(portion)}
        yield Batch([f"{FAULTS}/test_nemesis.py::test_for_as_long_as_it_takes"], settings)


def _rounds(
    lines: Sequence[Line], fault: str, test: str, wanted: int, more: dict[str, str] | None = None
) -> Iterator[Batch]:
    runs = [line for line in lines if line["kind"] == "recovery" and line["fault"] == fault]
    left = wanted - sum(len(run.get("times", [])) or CHUNK for run in runs)
    while left > 0:
        rounds = min(CHUNK, left)
        left -= rounds
        yield Batch([f"{FAULTS}/test_recovery.py::{test}"], {"FAULTS_ROUNDS": str(rounds)} | (more or {}))


# -- running it -------------------------------------------------------------------------------------------------------


def _run_lane(batches: Iterator[Batch], tally: Path) -> None:
    for batch in batches:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *batch.tests]
        settings = {"FAULTS_TALLY": str(tally)} | batch.settings
        with open(tally.with_suffix(".log"), "ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)
            try:
                if process.wait(PATIENCE) != 0:
                    print(f"not all passed: {' '.join(batch.tests)}; see {log.name}", flush=True)
            except subprocess.TimeoutExpired:
                print(f"ended after {PATIENCE} s: {' '.join(batch.tests)}", flush=True)
                process.terminate()
                process.wait()


class _Watcher(threading.Thread):
    """One line of progress for each case that has ended."""

    def __init__(self, tally: Path) -> None:
        super().__init__(daemon=True)
        self._tally = tally
        self._told = tally.stat().st_size
        self._stopped = threading.Event()
        self._begin = time.monotonic()

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            self._tell()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._tell()

    def _tell(self) -> None:
        with open(self._tally, "rb") as file:
            file.seek(self._told)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._told += len(whole)
        for text in whole.splitlines():
            line = json.loads(text)
            if line["kind"] in ("about", "peer"):
                continue
            verdict = "ok" if line["passed"] else "FAILED"
            what = f"{line['kind']} {line.get('point', '')} {line['fault']}"
            took = f"{line['seconds']:.0f} s, {line.get('jobs', line.get('writes', 0))} jobs or writes"
            print(f"{time.monotonic() - self._begin:6.0f} s  {verdict:6} {what} ({took})", flush=True)


def _read(tally: Path) -> list[Line]:
    if not tally.exists():
        return []
    lines = []
    for text in tally.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the last line of a run that was cut short
            print(f"left out of the tally: {text[:80]!r}", file=sys.stderr)
    return lines


def _about() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    server = subprocess.run([_server(), "--version"], text=True, capture_output=True, check=False)
    return {
        "jobschedd": f"{importlib.metadata.version('jobschedd')} ({commit.stdout.strip() or 'no checkout'})",
        "server": server.stdout.strip()[:60],
        "redis-py": importlib.metadata.version("redis"),
        "Python": platform.python_version(),
        "kernel": platform.release(),
        "processors": str(os.cpu_count()),
    }


def _server() -> str:
    sys.path.append(str(ROOT / "tests"))
    from redis_server import server_binary

    return server_binary()


def _figures(lines: Sequence[Line]) -> str:
    about = _about_all([line for line in lines if line["kind"] == "about"])
    runs = [line for line in lines if line["kind"] not in ("about", "peer")]
    parts = [_setting(about), _safety(runs), _stale(runs), _blows(runs), _recoveries(runs)]
    return "\n\n".join(part for part in parts if part)


def _about_all(abouts: Sequence[Line]) -> Line:
    """Of a tally that was gone on with, all that it was measured with."""
    names = dict.fromkeys(name for about in abouts for name in about if name not in ("kind", "seed"))
    return {name: " and ".join(dict.fromkeys(str(about.get(name, "?")) for about in abouts)) for name in names}


def _stale(runs: Sequence[Line]) -> str:
    found = [run for run in runs if run["kind"] == "stale" and "writes" in run]
    told = ", ".join(f"of {run['fault']} {run['accepted']} of {run['writes']:,}" for run in found)
    return f"Stale writes accepted: {told}." if found else ""


def _setting(about: Line) -> str:
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in about.items() if name != "kind") + "."


def _safety(runs: Sequence[Line]) -> str:
    """What the oracle found, kind by kind. A run that failed is shown as such, not left out."""
    rows = [
        "| run | cases | failed | accepted jobs | lost | ended twice | orphans | starts again |",
        "|---|" + "--:|" * 7,
    ]
    totals: Counter[str] = Counter()
    for kind in ("matrix", "nemesis", "recovery", "poison", "paused"):
        of_kind = [run for run in runs if run["kind"] == kind]
        if not of_kind:
            continue
        count: Counter[str] = Counter(cases=len(of_kind))
        for run in of_kind:
            if run["passed"]:
                count["jobs"] += run["jobs"]
                count["again"] += max(0, run["starts"] - run["jobs"])
            else:
                count["failed"] += 1
        totals += count
        rows.append(_safety_row(kind, count))
    if totals:
        rows.append(_safety_row("**all**", totals))
    note = (
        "A case passes only when the oracle finds every invariant held: no accepted job without an end, none with two, "
        "no process left, no store with a rest. So the zeros are those of the passed cases; a failed one has no zero."
    )
    return "\n".join(rows) + f"\n\n{note}"


def _safety_row(name: str, count: Counter[str]) -> str:
    zero = "0" if count["failed"] == 0 else f"0 in {count['cases'] - count['failed']} cases"
    cells = [count["cases"], count["failed"], f"{count['jobs']:,}", zero, zero, zero, max(0, count["again"])]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def _blows(runs: Sequence[Line]) -> str:
    blows: Counter[str] = Counter()
    for run in runs:
        blows.update(run.get("blows", {}))
    seeds = sorted({run["seed"] for run in runs if run["kind"] == "nemesis"})
    if not blows:
        return ""
    told = ", ".join(f"{name} {count}" for name, count in sorted(blows.items()))
    return f"What the nemesis did (seeds {', '.join(map(str, seeds))}), {blows.total()} blows that hit: {told}."


def _recoveries(runs: Sequence[Line]) -> str:
    times: dict[tuple[str, float], list[float]] = defaultdict(list)
    for run in runs:
        if run["kind"] == "recovery":
            times[run["fault"], run["bound"]] += run.get("times", [])
    if not times:
        return ""
    rows = ["| fault | promised | p50 | p99 | times |", "|---|--:|--:|--:|--:|"]
    for (fault, bound), each in times.items():
        if each:
            cells = [f"{bound:g} s", f"{_quantile(each, 0.5):.2f} s", f"{_quantile(each, 0.99):.2f} s", str(len(each))]
            rows.append(f"| {fault} | " + " | ".join(cells) + " |")
        else:
            rows.append(f"| {fault} | {bound:g} s | failed | failed | 0 |")
    return (
        "\n".join(rows)
        + "\n\nOf fewer than a hundred times, p99 is the worst. Up to three of these were measured side by side."
    )


def _peers(lines: Sequence[Line]) -> str:
    """Side by side, in the order of the measurements."""
    lines = [line for line in lines if line["kind"] == "peer"]
    if not lines:
        return ""
    head = "scheduler | settings | fault | jobs | never ended | never began | ended more than once | starts again"
    rows = [f"| {head} | last end |", "|---|---|---|" + "--:|" * 6]
    for line in lines:
        names = [f"{line['name']} {line['version']}", line["tuning"] or "default", line["fault"]]
        keys = ("jobs", "never ended", "never began", "ended more than once", "starts again")
        rows.append(
            f"| {' | '.join(names)} | "
            + " | ".join(str(line[key]) for key in keys)
            + f" | {line['last end after']} s |"
        )
    quiet = ", ".join(sorted({f"{line['quiet']:g}" for line in lines}))
    note = (
        f'"Never": nothing more had happened for {quiet} s. All workers killed five times, every two seconds; or Redis '
        "(with AOF) twice, for two seconds. Whatever ended was started again at once. Two jobs of 0.25 s at a time. "
        "Of jobschedd the workers are the slave; its master was left alone. Each line is one run: how many jobs a kill "
        "hits is a matter of chance, and somebody who knows a peer better may tune it better."
    )
    return "\n".join(rows) + f"\n\n{note}"


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed: of few values, p99 is the worst."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _write(lines: Sequence[Line]) -> None:
    text = PAGE.read_text()
    for name, new in {"figures": _figures(lines), "peers": _peers(lines)}.items():
        begin, end = PLACES[name]
        found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.DOTALL)
        assert len(found) == 1, f"{PAGE} must hold {begin} and {end}, once"
        if new:
            text = text.replace(found[0], f"{begin}\n\n{new}\n\n{end}")
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
