"""``python -m benchmarks``: everything, from the yardsticks to docs/performance.md.

Without names all parts run, and a run that was broken off goes on with what is missing from it. With names these parts
run (again), and what they find stands beside the rest: ``python -m benchmarks peers --only rq,huey``. ``page`` writes
docs/performance.md from what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import growth, own, page, peers, profile
from benchmarks.environments import NotHere
from benchmarks.history import history
from benchmarks.lab import lab
from benchmarks.results import Figures, Results
from benchmarks.yardsticks import others, yardsticks

#: Seconds that one unit may take before it is given up; a growth beyond a million may take as many times longer.
PATIENCE = 420
QUICK = ("noop", "submitting", "latency", "commands")


@dataclass(frozen=True)
class Unit:
    """What is measured in one go and kept in one file."""

    name: str
    measure: Callable[[argparse.Namespace], Figures]


def main() -> int:
    """0 when everything that was asked for was measured; a peer that is not here counts as measured."""
    options = _options()
    results = Results(options.results)
    if options.names == ["page"]:
        page.write(results, options.page)
        return 0
    settings = {name: getattr(options, name) for name in ("runs", "scale", "largest", "channels")}
    wanted = [unit for name in options.names or PARTS for unit in PARTS[name](options)]
    if options.names:
        results.note(settings)
    else:
        results.begin(options.fresh, settings)
        wanted = [unit for unit in wanted if not results.has(unit.name)]
    failed = [unit.name for unit in wanted if not _measured(unit, options, results)]
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    elif not options.names:
        results.complete()
    if not options.names:
        page.write(results, options.page)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", choices=[[], *PARTS, "page"], metavar="PART", help=", ".join([*PARTS, "page"])
    )
    parser.add_argument("--quick", action="store_true", help="our own part only, small, once; no page")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help="peers or parts of growth, by name"
    )
    parser.add_argument("--runs", type=int, default=3, help="of each measurement")
    parser.add_argument("--scale", type=float, default=1.0, help="how much work, of what is usual")
    parser.add_argument("--largest", type=int, default=1_000_000, help="growth: jobs that wait, rows, indices at most")
    parser.add_argument("--channels", type=int, default=1000, help="growth: simulated channels at most")
    parser.add_argument("--results", type=Path, default=None, help="directory of what was measured")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="what to write")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever is there")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON, one line a unit")
    options = parser.parse_args()
    if options.quick:
        options.names, options.runs, options.scale = options.names or list(QUICK), 1, min(options.scale, 0.25)
    default = "quick" if options.quick else "results"
    options.results = options.results or Results().directory.with_name(default)
    return options


def _measured(unit: Unit, options: argparse.Namespace, results: Results) -> bool:
    """Measure it, keep it, say so."""
    began, before = time.monotonic(), others()
    try:
        with _within(PATIENCE * max(1, options.largest // 1_000_000)):
            figures = unit.measure(options)
    except NotHere as error:
        figures = {"not_here": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one of them, the others are measured
        print(f"{unit.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        results.put_failure(unit.name, f"{type(error).__name__}: {error}")
        return False
    figures["others_percent"] = [before, others()]
    results.put(unit.name, figures)
    if options.json:
        print(json.dumps({unit.name: figures}), flush=True)
    else:
        print(f"{unit.name} ({time.monotonic() - began:.0f} s; others use {before:.0f} % of a processor)")
        print("\n".join(_told(figures)), flush=True)
    return True


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _told(figures: Figures, indent: int = 1) -> Iterator[str]:
    """Every number, several of one kind as their median with their range."""
    for key, value in figures.items():
        margin = "    " * indent
        if isinstance(value, dict):
            yield f"{margin}{key}"
            yield from _told(value, indent + 1)
        elif isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
            spread = f"   ({min(value):,.2f} - {max(value):,.2f})" if len(value) > 1 else ""
            yield f"{margin}{key:32} {statistics.median(value):>12,.2f}{spread}"
        elif isinstance(value, int | float):
            yield f"{margin}{key:32} {value:>12,.2f}"
        elif isinstance(value, str):
            yield f"{margin}{key:32} {value}"


# -- the parts -------------------------------------------------------------------------------------------------------


def _repeated(measure: Callable[..., Figures], once: bool = False, **sizes: int) -> Callable[..., list[Unit]]:
    """One of our own measurements, several times over: each figure with its values. ``sizes``: what --scale scales."""

    def several(options: argparse.Namespace) -> Figures:
        scaled = {name: max(20, round(size * options.scale)) for name, size in sizes.items()}
        runs = [measure(**scaled) for _ in range(1 if once else options.runs)]
        return {key: [run[key] for run in runs] for key in runs[0]}

    return lambda options: [Unit(measure.__name__, several)]


def _yardsticks(name: str) -> Callable[..., list[Unit]]:
    def measure(options: argparse.Namespace) -> Figures:
        runs = []
        for _ in range(options.runs):
            with lab() as made:
                runs.append(yardsticks(made.url, made.socket))
        return {key: [run[key] for run in runs] for key in runs[0]}

    return lambda options: [Unit(name, measure)]


def _peers(options: argparse.Namespace) -> list[Unit]:
    def measuring(name: str) -> Callable[[argparse.Namespace], Figures]:
        return lambda options: peers.measure(name, options.runs, options.scale)

    return [Unit(f"peer-{name}", measuring(name)) for name in _chosen(peers.PEERS, options)]


def _growth(options: argparse.Namespace) -> list[Unit]:
    return [Unit(f"growth-{name}", growth.SERIES[name]) for name in _chosen(growth.SERIES, options)]


def _chosen(known: Any, options: argparse.Namespace) -> list[str]:
    unknown = [name for name in options.only if name not in peers.PEERS and name not in growth.SERIES]
    if unknown:
        sys.exit(f"--only: {unknown[0]} is unknown; known are {', '.join([*peers.PEERS, *growth.SERIES])}")
    return [name for name in known if not options.only or name in options.only]


PARTS: dict[str, Callable[[argparse.Namespace], list[Unit]]] = {
    "yardsticks": _yardsticks("yardsticks-before"),
    "noop": _repeated(own.noop, jobs=40_000),
    "submitting": _repeated(own.submitting, jobs=50_000),
    "latency": _repeated(own.latency, samples=500),
    "commands": _repeated(own.commands, jobs=1500),
    "peers": _peers,
    "profile": lambda options: [Unit("profile", profile.measure)],
    "growth": _growth,
    "startup": _repeated(own.startup),
    "idle": _repeated(own.idle, once=True),
    "control": _repeated(own.control, jobs=50_000),
    "delayed": _repeated(own.delayed, once=True, waiting=1_000_000, due=3000),
    "history": _repeated(history, once=True, rows=1_000_000),
    "yardsticks-after": _yardsticks("yardsticks-after"),
}


if __name__ == "__main__":
    sys.exit(main())
