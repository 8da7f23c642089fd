"""What jobschedd does by itself: each of these is one measurement, beside what the machine can do just then."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

from benchmarks.lab import OTHER_KEYS, Lab, cpu_seconds, lab, wait_until
from benchmarks.yardsticks import in_turns, ping, round_trips, spawn

NOOP = {"function": "benchmarks.functions:nothing"}
TRUE = {"command": ["/bin/true"]}
Figures = dict[str, Any]


def noop(jobs: int = 40_000) -> Figures:
    """No-op functions drained by two channels: filled first, then timed from the first end to the last."""
    with lab() as made:
        pings = ping(made.socket)
        made.client.submit_many([NOOP] * jobs)
        rate = _drain(made, jobs)
        return {"jobs_per_s": rate, "yardstick_ping_per_s": pings, "ratio": rate / pings}


def _drain(made: Lab, jobs: int, channels: int = 2) -> float:
    made.start_daemon(channels)
    wait_until(lambda: made.finished() > OTHER_KEYS, 30, 0.001)
    first, began = made.finished(), time.monotonic()
    wait_until(lambda: made.finished() >= jobs, 120)
    return (jobs - first) / (time.monotonic() - began)


def submitting(jobs: int = 50_000) -> Figures:
    """From Python dicts in bulk, and one by one; from a file by ``jobsched submit``, its start included."""
    with lab() as made:
        pings = ping(made.socket)
        began = time.monotonic()
        made.client.submit_many([NOOP] * jobs)
        bulk = jobs / (time.monotonic() - began)
        began = time.monotonic()
        for _ in range(2000):
            made.client.submit(["/bin/true"])
        singly = 2000 / (time.monotonic() - began)
        lines = made.directory / "jobs.jsonl"
        lines.write_text('{"command": ["/bin/true"]}\n' * jobs)
        by_file = jobs / _took(_client(made, "submit", "--file", str(lines)))
        return {
            "bulk_per_s": bulk,
            "file_lines_per_s": by_file,
            "singly_per_s": singly,
            "yardstick_ping_per_s": pings,
            "ratio": singly / pings,
        }


def startup(rounds: int = 11) -> Figures:
    """Whole processes, from their start to their end; and from a daemon's start to the first result."""
    with lab() as made:
        (job,) = made.client.submit_many([NOOP])
        began = time.monotonic()
        made.start_daemon(2)
        job.wait(30)
        first = time.monotonic() - began
        check = [sys.executable, "-m", "jobschedd.cli.daemon", "check", "--config", str(made.config)]
        submit = _client(made, "submit", "--", "/bin/true")
        bare = [sys.executable, "-c", "pass"]
        medians = {
            name: 1000 * statistics.median(_took(command) for _ in range(rounds))
            for name, command in (("submit_ms", submit), ("check_ms", check), ("yardstick_python_ms", bare))
        }
        return {"first_result_s": first, **medians, "ratio": medians["submit_ms"] / medians["yardstick_python_ms"]}


def _client(made: Lab, *words: str) -> list[str]:
    return [sys.executable, "-m", "jobschedd.cli.client", "--redis", made.url, *words]


def _took(command: list[str]) -> float:
    began = time.monotonic()
    # Without a timeout: with one, the library looks for the end every 50 ms.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def control(jobs: int = 50_000) -> Figures:
    """Many jobs at once, chosen by a filter from as many others: cancelled, held, retried; nothing runs beside it."""
    with lab() as made:
        pings = ping(made.socket)
        items = [NOOP | {"name": f"{name}-{number}"} for number in range(jobs) for name in ("etl", "other")]
        made.client.submit_many(items)
        figures: Figures = {"yardstick_ping_per_s": pings}
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
        return figures | {"ratio": figures["cancel_per_s"] / pings}


def latency(samples: int = 500) -> Figures:
    """Idle: submit -> result in the submitter's hands, one at a time; beside a bare pub/sub round trip."""
    with lab() as made:
        made.start_daemon(2)
        figures: Figures = {}
        for name, item in (("function", NOOP), ("command", TRUE)):
            times = [_round_trip(made, item) for _ in range(samples + 20)][20:]
            figures[f"{name}_p50_ms"] = statistics.median(times) * 1000
            figures[f"{name}_p99_ms"] = statistics.quantiles(times, n=100)[98] * 1000
        figures["yardstick_pubsub_p50_ms"] = statistics.median(round_trips(made.url, samples)) * 1000
        figures["ratio"] = figures["function_p50_ms"] / figures["yardstick_pubsub_p50_ms"]
        return figures


def _round_trip(made: Lab, item: dict[str, Any]) -> float:
    began = time.perf_counter()
    (job,) = made.client.submit_many([item])
    job.wait(10)
    took = time.perf_counter() - began
    assert job.outcome == "succeeded", (job.outcome, job.error)
    return took


def commands(rounds: int = 5, jobs: int = 1500) -> Figures:
    """/bin/true with captured output, two in flight: by one channel of two slots, and by two of one, as peers have it.

    A bare posix_spawn loop, two in flight, runs before and after each round: other load on the machine hits both alike.
    """
    figures: Figures = {}
    for name, channels, slots in (("one_channel", 1, 2), ("two_channels", 2, 1)):
        with lab() as made:
            made.start_daemon(channels, slots)
            _drained(made, jobs // 5)  # warm
            rates = in_turns(rounds, partial(_drained, made, jobs), spawn)
        figures[f"{name}_jobs_per_s"] = statistics.median(rates.values)
        figures[f"{name}_ratio"] = statistics.median(rates.ratios)
        figures["yardstick_spawn_per_s"] = statistics.median(rates.paces)
    figures["ratio"] = figures["one_channel_ratio"]
    return figures


def _drained(made: Lab, jobs: int) -> float:
    """Commands a second, from the submit to the last end."""
    before, began = made.finished(), time.monotonic()
    made.client.submit_many([TRUE] * jobs)
    wait_until(lambda: made.finished() >= before + jobs, 120)
    return jobs / (time.monotonic() - began)


def delayed(waiting: int = 1_000_000, due: int = 3000, seconds: float = 30.0) -> Figures:
    """How late jobs start that become due at random moments, while a million wait for tomorrow; what those cost."""
    with lab() as made:
        made.start_daemon(2)
        time.sleep(2)
        before, server_before = _resident(made), made.redis.info("memory")["used_memory"]
        for _ in range(waiting // 10_000):
            made.client.submit_many([NOOP | {"delay": "1d"}] * 10_000)
        time.sleep(2)
        grown, per_job = _resident(made) - before, made.redis.info("memory")["used_memory"] - server_before
        begin = time.time() + 3
        moments = sorted(begin + random.uniform(0, seconds) for _ in range(due))
        jobs = made.client.submit_many([NOOP | {"at": moment} for moment in moments])
        made.client.wait(jobs, seconds + 60)
        late = [job.view.result.started - moment for job, moment in zip(jobs, moments, strict=True)]
        return {
            "late_p50_ms": statistics.median(late) * 1000,
            "late_p99_ms": statistics.quantiles(late, n=100)[98] * 1000,
            "late_max_ms": max(late) * 1000,
            "daemon_grown_mib": grown / 2**20,
            "redis_bytes_per_waiting_job": per_job / waiting,
        }


def _resident(made: Lab) -> int:
    return sum(process.memory_full_info().uss for process in made.processes())


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
