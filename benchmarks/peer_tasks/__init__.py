"""The same jobs for every scheduler of the comparison, imported by their own workers from their own environments.

Settings come from the environment: ``PEER_REDIS``, the address of a server; ``PEER_SETTINGS``, one of ``default``,
``tuned`` (to survive, see ``benchmarks.survival``) and ``fast`` (see ``benchmarks.peers``); ``PEER_SLOTS``, how many
jobs a worker process may have at a time, where that is no option of its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

REDIS = os.environ.get("PEER_REDIS", "")
SETTINGS = os.environ.get("PEER_SETTINGS", "default")
SLOTS = int(os.environ.get("PEER_SLOTS", "1"))
#: Where a scheduler keeps results, if it can keep them apart: then the size of this database is how many have ended.
RESULTS = f"{REDIS.rpartition('/')[0]}/1"
WARM_UP = 20


def work(number: int, seconds: float) -> None:
    """Says in the ledger that it starts, takes its time, says that it stops."""
    _say("start", number)
    time.sleep(seconds)
    _say("stop", number)


def nothing() -> None:
    """The shortest job there is."""


def true() -> None:
    """A command, as one runs it in Python; nothing is captured."""
    subprocess.run(["/bin/true"], check=True)


def main(
    *,
    submit: Callable[[int, float], None] | None = None,
    fill: Callable[[str, int], None],
    round_trip: Callable[[], None],
) -> None:
    """``submit COUNT SECONDS`` (jobs of the ledger), ``fill TASK COUNT`` or ``latency SAMPLES``; figures as JSON."""
    verb, *rest = sys.argv[1:]
    if verb == "submit":
        assert submit is not None
        submit(int(rest[0]), float(rest[1]))
    elif verb == "fill":
        began = time.perf_counter()
        fill(rest[0], int(rest[1]))
        print(json.dumps(time.perf_counter() - began))
    elif verb == "latency":
        print(json.dumps([timed(round_trip) for _ in range(int(rest[0]) + WARM_UP)][WARM_UP:]))


def timed(do: Callable[[], None]) -> float:
    """Seconds."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _say(kind: str, number: int) -> None:
    fd = os.open(os.environ["PEER_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{kind} {number}\n".encode())
    os.fsync(fd)
    os.close(fd)
