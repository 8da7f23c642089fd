"""What a command costs beside the bare spawn of one: CommandRun against a loop of posix_spawn and wait.

``python -m benchmarks.spawn`` prints both rates and their ratio. The two alternate in short rounds of one run, so
that whatever else the machine does hits both alike; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

from jobschedd.job import Order, Outcome, Result, Spec
from jobschedd.slave.loop import Loop
from jobschedd.slave.process import CommandRun
from jobschedd.slave.processtree import become_subreaper
from jobschedd.slave.settings import ExecutionSettings

COMMAND = ("/bin/true",)


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds, in commands per second."""

    bare: float
    run: float

    @property
    def ratio(self) -> float:
        """1.0 would be: capture, time limits, clean-up and bookkeeping for nothing."""
        return self.run / self.bare


def bare(count: int, in_flight: int) -> float:
    """Commands per second of posix_spawn and wait alone, nothing captured."""
    begin = time.perf_counter()
    started = ended = 0
    while ended < count:
        while started < count and started - ended < in_flight:
            os.posix_spawn(COMMAND[0], COMMAND, os.environ)
            started += 1
        os.wait()
        ended += 1
    return count / (time.perf_counter() - begin)


def run(count: int, in_flight: int, loop: Loop, settings: ExecutionSettings) -> float:
    """Commands per second of CommandRun, both outputs captured."""
    order = Order("1", 1, "1-0", Spec(command=COMMAND, timeout=3600))
    started = ended = 0

    def start() -> None:
        nonlocal started
        started += 1
        CommandRun(order, 0, loop, settings, end, lambda pid, ticks: None).start()

    def end(_: CommandRun, result: Result) -> None:
        nonlocal ended
        assert result.outcome is Outcome.SUCCEEDED, result
        ended += 1
        if started < count:
            start()

    begin = time.perf_counter()
    for _ in range(in_flight):
        start()
    while ended < count:
        loop.run_once()
    return count / (time.perf_counter() - begin)


def measure(rounds: int = 7, count: int = 600, in_flight: int = 2) -> Figures:
    """Alternate both; the first round of each only warms up."""
    become_subreaper()
    loop = Loop()
    with tempfile.TemporaryDirectory() as workdir:
        settings = ExecutionSettings(node="bench", channel="bench", workdir=workdir)
        pairs = [(bare(count, in_flight), run(count, in_flight, loop, settings)) for _ in range(rounds + 1)][1:]
    loop.close()
    return Figures(*(statistics.median(rates) for rates in zip(*pairs, strict=True)))


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=600, help="commands per round")
    parser.add_argument("--in-flight", type=int, default=2)
    options = parser.parse_args()
    figures = measure(options.rounds, options.count, options.in_flight)
    print(
        f"{' '.join(COMMAND)}, {options.in_flight} in flight: "
        f"posix_spawn {figures.bare:.0f}/s, captured and cleaned up {figures.run:.0f}/s, ratio {figures.ratio:.2f}"
    )


if __name__ == "__main__":
    main()
