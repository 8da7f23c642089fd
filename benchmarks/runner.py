"""How many functions per second one warm runner executes, fed through one loop as a channel does it.

python -m benchmarks.runner [--jobs N] [--ahead N] [--function MODULE:NAME]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from jobschedd.job import Order, Outcome, Result, Spec
from jobschedd.slave.functions import FunctionRunner
from jobschedd.slave.loop import Loop
from jobschedd.slave.register import Register
from jobschedd.slave.settings import ExecutionSettings


def measure(jobs: int, ahead: int, spec: Spec) -> dict[str, float]:
    """Run ``jobs`` orders of ``spec`` with ``ahead`` in flight; figures per second and microseconds per job."""
    with tempfile.TemporaryDirectory() as directory:
        loop = Loop()
        settings = ExecutionSettings(node="bench", channel="1", workdir=directory, runner_recycle=1 << 30)
        register = Register.create(Path(directory), "0" * 16, 1)
        ended = failed = 0
        spent = 0.0

        def on_end(_order: Order, result: Result) -> None:
            nonlocal ended, failed, spent
            ended += 1
            spent += result.cpu
            failed += result.outcome is not Outcome.SUCCEEDED

        runner = FunctionRunner(0, loop, settings, register.fd, register.offset_of(0), on_end)
        orders = [Order(job=str(n), attempt=1, entry=f"1700000000000-{n}", spec=spec) for n in range(jobs + 1)]
        began = time.perf_counter()
        runner.submit(orders[0])
        while ended < 1:
            loop.run_once()
        first = time.perf_counter() - began
        spent = 0.0
        began, cpu, submitted = time.perf_counter(), _cpu(), 1
        while ended <= jobs:
            while submitted <= jobs and runner.in_flight < ahead:
                runner.submit(orders[submitted])
                submitted += 1
            loop.run_once()
        elapsed, cpu = time.perf_counter() - began, _cpu() - cpu
        runner.close()
        register.close()
        loop.close()
    return {
        "first": first * 1e3,
        "rate": jobs / elapsed,
        "channel": cpu / jobs * 1e6,
        "runner": spent / jobs * 1e6,
        "failed": failed,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one line per depth."""
    parser = argparse.ArgumentParser(description="functions per second of one warm runner")
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--ahead", type=int, nargs="*", default=[1, 8, 64, 256])
    parser.add_argument("--function", default="builtins:bool")
    parser.add_argument("--args", default="", help="a JSON array")
    options = parser.parse_args()
    spec = Spec(function=options.function, args=options.args.encode(), timeout=60.0)
    for ahead in options.ahead:
        found = measure(options.jobs if ahead > 1 else options.jobs // 10, ahead, spec)
        print(
            f"{ahead:4d} in flight: {found['rate']:8,.0f} functions/s; CPU per job: channel {found['channel']:5.1f} us,"
            f" runner {found['runner']:5.1f} us; first one after {found['first']:.0f} ms; failed {found['failed']:.0f}"
        )


if __name__ == "__main__":
    main()
