"""``python -m benchmarks [NAME...]``: throughput, latency, commands, idle cost, submitting; each with its yardstick."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.history import history
from benchmarks.lab import Lab, cpu_seconds, lab, ping_yardstick, wait_until

NOOP = {"function": "benchmarks.functions:nothing"}
TRUE = {"command": ["/bin/true"]}
Figures = dict[str, Any]


def noop(jobs: int = 40_000) -> Figures:
    """No-op functions drained by two channels: filled first, then timed from the first end to the last."""
    with lab() as made:
        ping = ping_yardstick(made)
        made.client.submit_many([NOOP] * jobs)
        rate = _drain(made, jobs)
        return {"jobs_per_s": rate, "yardstick_ping_per_s": ping, "ratio": rate / ping}


def _drain(made: Lab, jobs: int, channels: int = 2) -> float:
    made.start_daemon(channels)
    wait_until(made.finished, 30, 0.001)
    first, began = made.finished(), time.monotonic()
    wait_until(lambda: made.finished() >= jobs, 120)
    return (jobs - first) / (time.monotonic() - began)


def submitting(jobs: int = 50_000) -> Figures:
    """From Python dicts in bulk, and one by one."""
    with lab() as made:
        ping = ping_yardstick(made)
        began = time.monotonic()
        made.client.submit_many([NOOP] * jobs)
        bulk = jobs / (time.monotonic() - began)
        began = time.monotonic()
        for _ in range(2000):
            made.client.submit(["/bin/true"])
        singly = 2000 / (time.monotonic() - began)
        return {"bulk_per_s": bulk, "singly_per_s": singly, "yardstick_ping_per_s": ping, "ratio": singly / ping}


def control(jobs: int = 50_000) -> Figures:
    """Many jobs at once, chosen by a filter from as many others: cancelled, held, retried; nothing runs beside it."""
    with lab() as made:
        ping = ping_yardstick(made)
        items = [NOOP | {"name": f"{name}-{number}"} for number in range(jobs) for name in ("etl", "other")]
        made.client.submit_many(items)
        figures: Figures = {"yardstick_ping_per_s": ping}
        for verb, statuses, change in (
            ("hold", "pending", lambda chunk: made.client.hold(job for job, _ in chunk)),
            ("release", "pending", lambda chunk: made.client.release(job for job, _ in chunk)),
            ("priority", "pending", lambda chunk: made.client.prioritise((job for job, _ in chunk), 5)),
            ("cancel", "pending", lambda chunk: made.client.cancel(job for job, _ in chunk)),
            ("retry", "cancelled", made.client.retry_many),
        ):
            began, changed = time.monotonic(), 0
            for chunk in made.client.matching(statuses, name="etl-*"):
                changed += len(change(chunk))
            assert changed == jobs, f"{verb}: {changed} of {jobs}"
            figures[f"{verb}_per_s"] = jobs / (time.monotonic() - began)
        return figures | {"ratio": figures["cancel_per_s"] / ping}


def latency(samples: int = 500) -> Figures:
    """Idle: submit -> result in the submitter's hands, one at a time; beside a bare pub/sub round trip."""
    with lab() as made:
        made.start_daemon(2)
        figures: Figures = {}
        for name, item in (("function", NOOP), ("command", TRUE)):
            times = [_round_trip(made, item) for _ in range(samples + 20)][20:]
            figures[f"{name}_p50_ms"] = statistics.median(times) * 1000
            figures[f"{name}_p99_ms"] = statistics.quantiles(times, n=100)[98] * 1000
        figures["yardstick_pubsub_p50_ms"] = _pubsub_round_trip(made, samples)
        figures["ratio"] = figures["function_p50_ms"] / figures["yardstick_pubsub_p50_ms"]
        return figures


def _round_trip(made: Lab, item: dict[str, Any]) -> float:
    began = time.perf_counter()
    (job,) = made.client.submit_many([item])
    job.wait(10)
    took = time.perf_counter() - began
    assert job.outcome == "succeeded", (job.outcome, job.error)
    return took


def _pubsub_round_trip(made: Lab, samples: int) -> float:
    echo = (
        "import redis,sys\n"
        "r=redis.Redis.from_url(sys.argv[1]); p=r.pubsub(); p.subscribe('ask')\n"
        "for m in p.listen():\n"
        "    if m['type']=='message': r.publish('answer', m['data'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", echo, made.url])
    try:
        subscriber = made.redis.pubsub()
        subscriber.subscribe("answer")
        subscriber.get_message(timeout=1)
        wait_until(lambda: made.redis.publish("ask", "0"), 10)
        assert subscriber.get_message(timeout=5)
        times = []
        for _ in range(samples):
            began = time.perf_counter()
            made.redis.publish("ask", "1")
            assert subscriber.get_message(timeout=5)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1000
    finally:
        process.kill()
        process.wait()


def commands(rounds: int = 5, jobs: int = 1500) -> Figures:
    """/bin/true with captured output, two in flight: by one channel of two slots, and by two of one, as peers have it.

    A bare posix_spawn loop, two in flight, runs before and after each round: other load on the machine hits both alike.
    """
    figures: Figures = {}
    for name, channels, slots in (("one_channel", 1, 2), ("two_channels", 2, 1)):
        with lab() as made:
            made.start_daemon(channels, slots)
            _drained(made, jobs // 5)  # warm
            rates, bare = [], [spawn_yardstick()]
            for _ in range(rounds):
                rates.append(_drained(made, jobs))
                bare.append(spawn_yardstick())
        spawns = [(before + after) / 2 for before, after in pairwise(bare)]
        figures[f"{name}_jobs_per_s"] = statistics.median(rates)
        figures[f"{name}_ratio"] = statistics.median(rate / spawn for rate, spawn in zip(rates, spawns, strict=True))
    figures["yardstick_spawn_per_s"] = statistics.median(spawns)
    figures["ratio"] = figures["one_channel_ratio"]
    return figures


def _drained(made: Lab, jobs: int) -> float:
    """Commands a second, from the submit to the last end."""
    before, began = made.finished(), time.monotonic()
    made.client.submit_many([TRUE] * jobs)
    wait_until(lambda: made.finished() >= before + jobs, 120)
    return jobs / (time.monotonic() - began)


def spawn_yardstick(count: int = 1500) -> float:
    """Bare posix_spawn and wait of /bin/true a second, two in flight."""
    running: set[int] = set()
    began = time.monotonic()
    for _ in range(count):
        if len(running) == 2:
            running.discard(os.waitpid(-1, 0)[0])
        running.add(os.posix_spawn("/bin/true", ["/bin/true"], {}))
    for pid in running:
        os.waitpid(pid, 0)
    return count / (time.monotonic() - began)


def idle(seconds: float = 20.0) -> Figures:
    """CPU and memory of master and slave with four channels and nothing to do."""
    with lab() as made:
        made.start_daemon(4)
        time.sleep(3)
        processes = made.processes()
        before, server_before = cpu_seconds(processes), cpu_seconds([made.server()])
        time.sleep(seconds)
        used = cpu_seconds(processes) - before
        server = cpu_seconds([made.server()]) - server_before
        memory = sum(process.memory_full_info().pss for process in processes)
        return {
            "cpu_percent": 100 * used / seconds,
            "redis_cpu_percent": 100 * server / seconds,
            "pss_mib": memory / 2**20,
            "processes": len(processes),
        }


BENCHMARKS: dict[str, Callable[[], Figures]] = {
    "noop": noop,
    "submitting": submitting,
    "control": control,
    "latency": latency,
    "commands": commands,
    "idle": idle,
    "history": history,
}


def main() -> None:
    """Run the named benchmarks (all, by default), each several times; medians with their range."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": platform.platform(), "cpus": os.cpu_count()}
    report["python"] = platform.python_version()
    for name in options.names or BENCHMARKS:
        runs = [BENCHMARKS[name]() for _ in range(1 if name == "idle" else options.runs)]
        report[name] = {key: _spread([run[key] for run in runs]) for key in runs[0]}
        if not options.json:
            print(f"{name}: {(BENCHMARKS[name].__doc__ or '').strip()}")
            for key, (median, low, high) in report[name].items():
                print(f"    {key:28} {median:>12,.2f}   ({low:,.2f} - {high:,.2f})", flush=True)
    if options.json:
        print(json.dumps(report, indent=2))


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    main()
