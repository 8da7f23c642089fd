"""``python -m benchmarks.reliability``: break everything, measure what becomes of the jobs, write docs/reliability.md.

Only what was measured is written. The figures come from the tests of faults, each of which appends a line to a
tally; ``--tally FILE`` writes the page again from the tally of an earlier run. ``--peers`` measures the peers, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
TESTS = ("test_matrix.py", "test_nemesis.py", "test_recovery.py", "test_mutations.py", "test_poison.py")
Line = dict[str, Any]


def main() -> int:
    """Run, then write; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the nemesis")
    parser.add_argument("--jobs", type=int, default=90_000, help="of the nemesis")
    parser.add_argument("--rounds", type=int, default=20, help="of each recovery")
    parser.add_argument("--outage", type=float, default=60, help="seconds that Redis is away")
    parser.add_argument("--peers", action="store_true", help="measure the peers too; installs them from the registry")
    parser.add_argument("--tally", type=Path, help="only write the page, from the tally of an earlier run")
    options = parser.parse_args()
    code, tally = 0, options.tally
    if tally is None:
        tally = Path(tempfile.mkdtemp(prefix="reliability-")) / "tally.jsonl"
        code = _run(tally, options)
        print(f"the tally of this run: {tally}")
    lines = [json.loads(line) for line in tally.read_text().splitlines()]
    _write(_figures(lines))
    return code


def _run(tally: Path, options: argparse.Namespace) -> int:
    settings = {
        "FAULTS_TALLY": str(tally),
        "FAULTS_SEED": str(options.seed),
        "FAULTS_JOBS": str(options.jobs),
        "FAULTS_ROUNDS": str(options.rounds),
        "FAULTS_OUTAGE": str(options.outage),
    }
    about = {"kind": "about", "seed": options.seed, **_about()}
    tally.write_text(json.dumps(about) + "\n")
    tests = [str(ROOT / "tests" / "faults" / name) for name in TESTS]
    # One after the other: times are measured.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    code = subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=False).returncode
    if options.peers:
        with open(tally, "ab") as file:
            subprocess.run([sys.executable, "-m", "benchmarks.peers"], cwd=ROOT, stdout=file, check=True)
    return code


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
    about = next((line for line in lines if line["kind"] == "about"), {})
    runs = [line for line in lines if line["kind"] not in ("about", "peer")]
    peers = [line for line in lines if line["kind"] == "peer"]
    parts = [_setting(about), _safety(runs), _blows(runs), _recoveries(runs), _peers(peers)]
    return "\n\n".join(part for part in parts if part)


def _setting(about: Line) -> str:
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in about.items() if name != "kind") + "."


def _safety(runs: Sequence[Line]) -> str:
    """What the oracle found, kind by kind. A run that failed is shown as such, not left out."""
    rows = [
        "| run | cases | failed | accepted jobs | lost | ended twice | orphans | starts again |",
        "|---|" + "--:|" * 7,
    ]
    totals: Counter[str] = Counter()
    for kind in ("matrix", "nemesis", "recovery", "poison"):
        of_kind = [run for run in runs if run["kind"] == kind]
        if not of_kind:
            continue
        count: Counter[str] = Counter(cases=len(of_kind))
        for run in of_kind:
            if run["passed"]:
                count["jobs"] += run["jobs"]
                count["again"] += run["starts"] - run["jobs"]
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
    return "\n".join(rows) + "\n\nOf fewer than a hundred times, p99 is the worst."


def _peers(lines: Sequence[Line]) -> str:
    """Side by side, in the order of the measurements."""
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


def _write(figures: str) -> None:
    text = PAGE.read_text()
    new, count = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{figures}\n\n{END}", text, flags=re.DOTALL
    )
    assert count == 1, f"{PAGE} must hold {BEGIN} and {END}, once"
    PAGE.write_text(new)


if __name__ == "__main__":
    sys.exit(main())
