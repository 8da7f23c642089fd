"""What the machine can do just now, with nothing of anybody's scheduler: every figure is shown beside one of these."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import psutil
import redis

_ECHO = """
import redis, sys
client = redis.Redis.from_url(sys.argv[1])
heard = client.pubsub()
heard.subscribe("ask")
for message in heard.listen():
    if message["type"] == "message":
        client.publish("answer", message["data"])
"""


def ping(socket: str, count: int = 100_000) -> float:
    """PINGs a second by redis-benchmark, 50 clients, no pipeline; NaN where that program is not installed."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if tool is None:
        return float("nan")
    command = [tool, "-s", socket, "-q", "-n", str(count), "-t", "ping_mbulk", "--csv"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return float(answer.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))


def spawn(count: int = 1500, in_flight: int = 2) -> float:
    """Bare posix_spawn and wait of /bin/true a second."""
    running: set[int] = set()
    began = time.monotonic()
    for _ in range(count):
        if len(running) == in_flight:
            running.discard(os.waitpid(-1, 0)[0])
        running.add(os.posix_spawn("/bin/true", ["/bin/true"], {}))
    for pid in running:
        os.waitpid(pid, 0)
    return count / (time.monotonic() - began)


def round_trips(url: str, samples: int) -> list[float]:
    """Seconds from a publish to the answer that another process publishes, one after the other."""
    process = subprocess.Popen([sys.executable, "-c", _ECHO, url])
    try:
        with redis.Redis.from_url(url) as client, client.pubsub() as heard:
            heard.subscribe("answer")
            heard.get_message(timeout=1)
            deadline = time.monotonic() + 10
            while not client.publish("ask", "0"):
                assert time.monotonic() < deadline, "nobody subscribed"
                time.sleep(0.01)
            assert heard.get_message(timeout=5)
            times = []
            for _ in range(samples):
                began = time.perf_counter()
                client.publish("ask", "1")
                assert heard.get_message(timeout=5)
                times.append(time.perf_counter() - began)
            return times
    finally:
        process.kill()
        process.wait()


class Rounds(NamedTuple):
    """What each round gave, and beside it the mean of what a yardstick gave just before and after."""

    values: list[float]
    paces: list[float]

    @property
    def ratios(self) -> list[float]:
        """Of each round."""
        return [value / pace for value, pace in zip(self.values, self.paces, strict=True)]


def in_turns(rounds: int, work: Callable[[], float], yardstick: Callable[[], float]) -> Rounds:
    """Both tell so many a second. In turns: other load on the machine hits both alike, and its speed changes."""
    values, bare = [], [yardstick()]
    for _ in range(rounds):
        values.append(work())
        bare.append(yardstick())
    return Rounds(values, [(before + after) / 2 for before, after in pairwise(bare)])


def yardsticks(url: str, socket: str, samples: int = 500) -> dict[str, Any]:
    """All of them once."""
    times = round_trips(url, samples)
    return {
        "ping_per_s": ping(socket),
        "spawn_2_per_s": spawn(),
        "spawn_4_per_s": spawn(in_flight=4),
        "pubsub_p50_ms": statistics.median(times) * 1000,
        "pubsub_p99_ms": statistics.quantiles(times, n=100)[98] * 1000,
    }


def others(seconds: float = 1.0) -> float:
    """Percent of one processor that anybody uses while we do nothing."""
    return psutil.cpu_percent(seconds) * (psutil.cpu_count() or 1)
