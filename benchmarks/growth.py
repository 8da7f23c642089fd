"""What a job costs as things grow: jobs that wait, channels, payloads, arrays, the history. Flat is good."""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.environments import NotHere
from benchmarks.history import ends
from benchmarks.lab import NODE, Lab, lab, wait_until
from benchmarks.own import NOOP
from benchmarks.profile import per_job, watched
from benchmarks.yardsticks import in_turns
from jobschedd.master.history import History
from jobschedd.store.keys import Keys

Figures = dict[str, Any]
#: Jobs of which one point is measured, after so many that only warm up.
MEASURED, WARM = 20_000, 2000
#: Rounds of a point that is compared with what is usual.
ROUNDS = 3
USUAL_BACKLOG, USUAL_CHANNELS = 10_000, 4
#: The largest array that is run to its end.
WHOLE = 100_000
IDLE = 8.0
#: Jobs that one call submits while a point is prepared.
SLICE = 50_000
#: Entries that a simulated channel asks for: as a real one of one slot does once it knows that its jobs are instant.
WINDOW = 513


def backlog(options: argparse.Namespace) -> Figures:
    """So many jobs wait: for a channel that is away, while others are run; and in the very line that is being run."""
    return {"points": [_with_backlog(size, options) for size in _tens(1000, options.largest)]}


def _with_backlog(size: int, options: argparse.Namespace) -> Figures:
    measured = _scaled(MEASURED, options)
    with lab() as made, lab() as other:
        for each, waiting in ((made, size), (other, USUAL_BACKLOG)):
            _submit(each, waiting, NOOP | {"channel": "away"})
            _let_rewrite_end(each)
            each.start_daemon(2)
            _live(each, NOOP, WARM)
        figures = {"size": size} | _while_rehashing(made, measured)
        _let_rehash_end(made)
        figures |= _at_work(made, measured, beside=other)
    with lab() as made, lab() as other:
        for each, waiting in ((made, size), (other, USUAL_BACKLOG)):
            _submit(each, waiting, NOOP)
            _let_rewrite_end(each)
            _let_rehash_end(each)
            each.client.drain(NODE)
            each.start_daemon(2)
        rates = in_turns(ROUNDS, lambda: _rate(made, measured), lambda: _rate(other, measured))
    return figures | {"same_line_jobs_per_s": median(rates.values), "same_line_ratio": median(rates.ratios)}


def _at_work(made: Lab, measured: int, beside: Lab) -> Figures:
    """Medians per job of some rounds of ``measured`` jobs, and the ratio of their rate to that of another lab."""
    rounds: list[Figures] = []

    def work() -> float:
        rounds.append(_round(made, measured))
        return float(rounds[-1]["jobs_per_s"])

    rates = in_turns(ROUNDS, work, lambda: float(_round(beside, measured)["jobs_per_s"]))
    return {key: median(each[key] for each in rounds) for key in rounds[0]} | {"ratio": median(rates.ratios)}


def _round(made: Lab, measured: int) -> Figures:
    with watched(made) as working:
        _live(made, NOOP, measured)
    return per_job(working, measured)


def _submit(made: Lab, count: int, item: dict[str, Any]) -> None:
    for first in range(0, count, SLICE):
        made.client.submit_many([item] * min(SLICE, count - first))


def _let_rewrite_end(made: Lab) -> None:
    """The append-only file is written anew each time it has doubled: of what was just submitted, not of what waits."""
    wait_until(lambda: not made.redis.info("persistence")["aof_rewrite_in_progress"], 300, 0.1)


def _while_rehashing(made: Lab, measured: int) -> Figures:
    """The same work where the server is still moving its keys, as it does for a while after they have doubled."""
    if not _rehashes(made):
        return {}
    moving = _round(made, measured)
    return {"rehashing_jobs_per_s": moving["jobs_per_s"], "rehashing_redis_us": moving["redis_us"]}


def _let_rehash_end(made: Lab) -> None:
    """Each access to a key moves some others to the larger table, until all are there: of what came last, the growing.

    Idle, the server moves them for one millisecond in each turn of its clock.
    """
    ordinary = str(made.redis.config_get("hz")["hz"])
    made.redis.config_set("hz", 500)
    wait_until(lambda: not _rehashes(made), 120, 1)
    made.redis.config_set("hz", ordinary)


def _rehashes(made: Lab) -> bool:
    return b"rehashing target" in made.redis.execute_command("DEBUG", "HTSTATS", "0")


def _live(made: Lab, item: dict[str, Any], jobs: int) -> None:
    """From the submit of so many to the last end."""
    before = made.finished()
    _submit(made, jobs, item)
    wait_until(lambda: made.finished() >= before + jobs, 120)


def _rate(made: Lab, measured: int) -> float:
    """Of a line that does not become shorter. Twice as many are added: more go out meanwhile than ends are taken in."""
    _submit(made, 2 * (measured + WARM), NOOP)
    before = made.finished()
    made.client.resume(NODE)
    rate = _pace(made, measured, before)
    made.client.drain(NODE)
    assert made.client.drained(NODE, 60), "the channels did not become empty"
    wait_until(lambda: not made.redis.xlen(Keys("main").results), 60)
    return rate


def _pace(made: Lab, measured: int, before: int = 0) -> float:
    """Jobs that end per second, of a line that goes on; the first ``WARM`` left out. ``before``: had ended already."""
    wait_until(lambda: made.finished() >= before + WARM, 120)
    first, began = made.finished(), time.monotonic()
    wait_until(lambda: made.finished() >= first + measured - WARM, 120)
    return (made.finished() - first) / (time.monotonic() - began)


def channels(options: argparse.Namespace) -> Figures:
    """A master, and so many simulated channels that answer at once (see ``benchmarks.fleet``): idle, and at work."""
    _allow_files(2 * options.channels + 500)
    sizes = sorted({1, 4, *_tens(10, options.channels), options.channels})
    return {"points": [_with_channels(size, options) for size in sizes]}


def _allow_files(needed: int) -> None:
    """For us and for those that we start: the server has two connections of each channel, as has the fleet."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, most)))
    except (OSError, ValueError):
        raise NotHere(f"{needed} open files are not allowed (ulimit -n {most})") from None


def _with_channels(size: int, options: argparse.Namespace) -> Figures:
    measured = _scaled(MEASURED, options)
    with lab() as made, lab() as other, _all_there(made, size):
        figures = {"size": size} | _idle(made)
        with _all_there(other, USUAL_CHANNELS):
            for each in (made, other):
                _live(each, NOOP, WARM)
            return figures | _at_work(made, measured, beside=other)


@contextlib.contextmanager
def _all_there(made: Lab, size: int) -> Iterator[None]:
    """A master, and so many channels."""
    made.redis.config_set("maxclients", 2 * size + 100)
    made.start_master()
    with _fleet(made, size):
        wait_until(lambda: len(made.client.channels()) == size, 60, 0.1)
        yield


@contextlib.contextmanager
def _fleet(made: Lab, size: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.fleet", made.url, str(size), str(WINDOW)]
    fleet = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert fleet.stdout is not None
        assert fleet.stdout.readline().strip() == "ready", "the simulated channels did not come up"
        yield
    finally:
        fleet.terminate()
        fleet.wait(10)


def _idle(made: Lab) -> Figures:
    """Percent of a processor, per kind of process."""
    with watched(made) as figures:
        time.sleep(IDLE)
    percent = {role: 100 * used / figures["seconds"] for role, used in figures["cpu"].items()}
    return {
        "idle_redis_percent": 100 * figures["cost"].cpu / figures["seconds"],
        "idle_dispatcher_percent": percent["dispatcher"],
        "idle_collector_percent": percent["collector"],
        "idle_commands_per_s": figures["cost"].commands.total() / figures["seconds"],
        "connections": int(made.redis.info("clients")["connected_clients"]),
    }


def payload(options: argparse.Namespace) -> Figures:
    """A function with one argument of so many bytes."""
    return {"points": [_with_payload(size, options) for size in (10, 100, 1000, 10_000, 100_000)]}


def _with_payload(size: int, options: argparse.Namespace) -> Figures:
    jobs = max(200, min(_scaled(MEASURED, options), 100_000_000 // size))
    item = {"function": "benchmarks.functions:take", "args": ["x" * size]}
    with lab() as made:
        made.start_daemon(2)
        _live(made, item, jobs // 10)
        with watched(made) as working:
            _live(made, item, jobs)
    return {"size": size} | per_job(working, jobs)


def array(options: argparse.Namespace) -> Figures:
    """One array of so many tasks: what its submit takes, what it occupies before it starts, what a task costs."""
    return {"points": [_with_array(size, options) for size in _tens(1000, min(options.largest, 9_999_999))]}


def _with_array(size: int, options: argparse.Namespace) -> Figures:
    """The cost of a task only where the whole array is run: else some would be half-way at the end."""
    with lab() as made:
        made.client.submit_many([NOOP])
        memory, began = made.redis.info("memory")["used_memory"], time.perf_counter()
        made.client.submit_many([NOOP | {"array": f"1-{size}"}])
        figures = {
            "size": size,
            "submit_ms": 1000 * (time.perf_counter() - began),
            "bytes_before_start": made.redis.info("memory")["used_memory"] - memory,
        }
        before = made.finished()
        made.start_daemon(2)
        if size > WHOLE:
            return figures | {"jobs_per_s": _pace(made, _scaled(MEASURED, options))}
        with watched(made) as working:
            wait_until(lambda: made.finished() >= before + size, 120)
    return figures | per_job(working, size)


def history(options: argparse.Namespace) -> Figures:
    """A row that is added to a history of so many, in batches as the collector writes them."""
    points = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "history.db"
        written, made, rows = History(str(path)), ends(options.largest + 10 * MEASURED), 0
        for size in _tens(1000, options.largest):
            rows += _add(written, made, size - rows)
            began = time.process_time()
            rows += _add(written, made, 10_000)
            used = time.process_time() - began
            points.append({"size": size, "row_us": 1e6 * used / 10_000, "row_bytes": _size(path) / rows})
        written.close()
    return {"points": points}


def _add(written: History, made: Iterator[Any], count: int) -> int:
    for first in range(0, max(0, count), 1000):
        written.add(list(islice(made, min(1000, count - first))))
    return max(0, count)


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))


def _tens(first: int, most: int) -> Iterator[int]:
    size = first
    while size <= most:
        yield size
        size *= 10


def _scaled(count: int, options: argparse.Namespace) -> int:
    return max(2 * WARM, round(count * options.scale))


SERIES: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "backlog": backlog,
    "channels": channels,
    "payload": payload,
    "array": array,
    "history": history,
}
