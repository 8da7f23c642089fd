"""Where the time of a job goes: processor time of each process, work of the server for each move, and a job's journey.

The journey is of lone jobs on an idle system, told by the server's MONITOR: which call came when.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import psutil

from benchmarks.counters import Cost, counted
from benchmarks.lab import Lab, lab, wait_until
from benchmarks.life import costs_of_moves
from benchmarks.own import NOOP, TRUE
from jobschedd.store.scripts import REPORT, script

Figures = dict[str, Any]
FUNCTIONS, COMMANDS, SAMPLES = 40_000, 3000, 300
BATCH = 1000
#: Steps of a job's journey, each from the call before. The submit dispatches it, to the channel that was offered.
JOURNEY = ("submitted", "reported", "in the submitter's hands")


def measure(options: argparse.Namespace) -> Figures:
    """All three."""
    return {
        "functions": _processes(NOOP, max(100, round(FUNCTIONS * options.scale)), options.runs),
        "commands": _processes(TRUE, max(100, round(COMMANDS * options.scale)), options.runs),
        "moves": _moves(options.runs),
        "journey": _journeys(max(20, round(SAMPLES * options.scale))),
    }


# -- processor time --------------------------------------------------------------------------------------------------


@contextmanager
def watched(made: Lab) -> Iterator[Figures]:
    """Filled at the end: seconds, ``cpu`` (seconds by kind of process), ``cost`` of the server."""
    figures: Figures = {}
    with counted(made.redis) as cost:
        before, began = _used(made), time.monotonic()
        yield figures
        figures["seconds"] = time.monotonic() - began
        after = _used(made)
    figures["cost"] = cost
    figures["cpu"] = {role: used - before.get(role, 0.0) for role, used in after.items()}


def _used(made: Lab) -> dict[str, float]:
    used = {}
    for role, processes in made.roles().items():
        times = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                times.append(process.cpu_times())
        used[role] = sum(each.user + each.system for each in times)
        if role == "channels":
            used["jobs' processes"] = sum(each.children_user + each.children_system for each in times)
    return used


def per_job(figures: Figures, jobs: int) -> Figures:
    """Of what was ``watched``."""
    cost: Cost = figures["cost"]
    return {
        "jobs_per_s": jobs / figures["seconds"],
        "redis_us": 1e6 * cost.cpu / jobs,
        "script_us": cost.script_microseconds / jobs,
        "commands": cost.calls / jobs,
        "script_calls": cost.script_calls / jobs,
        "bytes_in": cost.bytes_in / jobs,
        "bytes_out": cost.bytes_out / jobs,
        **{f"{role}_us": 1e6 * used / jobs for role, used in figures["cpu"].items()},
    }


def _processes(item: dict[str, Any], jobs: int, runs: int) -> dict[str, list[float]]:
    """A daemon that has warmed up gets so many jobs at once and runs them."""
    with lab() as made:
        made.start_daemon(2)
        _live(made, item, jobs // 10)
        found = []
        for _ in range(runs):
            with watched(made) as figures:
                client = _live(made, item, jobs)
            found.append(per_job(figures, jobs) | {"client_us": 1e6 * client / jobs})
    return {key: [each[key] for each in found] for key in found[0]}


def _live(made: Lab, item: dict[str, Any], jobs: int) -> float:
    """Processor seconds of the submit."""
    before, began = made.finished(), time.process_time()
    made.client.submit_many([item] * jobs)
    client = time.process_time() - began
    wait_until(lambda: made.finished() >= before + jobs, 120)
    return client


# -- the server's work -----------------------------------------------------------------------------------------------


def _moves(runs: int) -> dict[str, Figures]:
    """Of each move, called once for a thousand jobs, per job."""
    lives = [costs_of_moves(BATCH) for _ in range(runs)]
    return {move: _told([life[move] for life in lives]) for move in lives[0]}


def _told(costs: list[Cost]) -> Figures:
    return {
        "commands": costs[0].calls / BATCH,
        "us": [
            cost.microseconds.total() / BATCH if not cost.script_calls else cost.script_microseconds / BATCH
            for cost in costs
        ],
        "bytes_in": costs[0].bytes_in / BATCH,
        "bytes_out": costs[0].bytes_out / BATCH,
    }


# -- the journey -----------------------------------------------------------------------------------------------------


def _journeys(samples: int) -> dict[str, list[float]]:
    """Microseconds of each step: a function on a warm channel, one at a time."""
    with lab() as made:
        made.start_daemon(2)
        for _ in range(20):
            _lone(made)
        seen = _Seen(made)
        steps = []
        for _ in range(samples):
            began, ended = _lone(made)
            steps.append([began, *seen.since(began), ended])
        seen.stop()
    hops = [[1e6 * (later - earlier) for earlier, later in pairwise(each)] for each in steps]
    return {name: list(times) for name, times in zip(JOURNEY, zip(*hops, strict=True), strict=True)}


def _lone(made: Lab) -> tuple[float, float]:
    began = time.time()
    (job,) = made.client.submit_many([NOOP])
    job.wait(10)
    return began, time.time()


class _Seen(threading.Thread):
    """Which of the calls of a journey the server saw when; its clock is ours, for it runs here."""

    CALLS = (script("submit").function, REPORT)

    def __init__(self, made: Lab) -> None:
        super().__init__(daemon=True)
        self._made = made
        self._calls: list[tuple[float, str]] = []
        self._listening = threading.Event()
        self.start()
        assert self._listening.wait(10)

    def run(self) -> None:
        """Until the connection ends."""
        with suppress(Exception), self._made.redis.monitor() as monitor:
            self._listening.set()
            for seen in monitor.listen():
                words = seen["command"].split(" ", 2)
                if len(words) > 1 and words[1] in self.CALLS:
                    self._calls.append((seen["time"], words[1]))

    def since(self, moment: float) -> list[float]:
        """When each call came, the first after ``moment`` and after the one before it."""
        times: list[float] = []
        for call in self.CALLS:
            after = times[-1] if times else moment
            wait_until(partial(self._first, call, after), 5, 0.001)
            times.append(self._first(call, after) or 0.0)
        return times

    def _first(self, call: str, after: float) -> float | None:
        return next((when for when, name in self._calls if name == call and when >= after), None)

    def stop(self) -> None:
        """No more."""
        self._calls = []
