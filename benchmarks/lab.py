"""A private server and a real daemon in a temporary directory, for one measurement."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import redis

from jobschedd import Client
from jobschedd.store import embedded

CONFIG = """
role: [master, slave]
node: bench
redis: {{url: "unix://{directory}/redis.sock"}}
state_dir: {directory}
log: {{level: warning}}
slave:
  python_path: ["{root}"]
  channels: [{channels}]
"""


class Lab:
    """One server (AOF everysec), one daemon once ``start_daemon`` was called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"unix://{directory}/redis.sock"
        self._server = subprocess.Popen(embedded.command(str(directory)), stdout=subprocess.DEVNULL)
        self.daemon: subprocess.Popen[bytes] | None = None
        wait_until(lambda: embedded.answers(str(directory)), 10)
        self.redis = redis.Redis.from_url(self.url)
        self.client = Client(self.url)

    def start_daemon(self, channels: int, slots: int = 1) -> None:
        """``channels`` channels of ``slots`` slots, master and slave in one daemon; returns when all are there."""
        names = ", ".join(f'{{name: "{number + 1}", slots: {slots}}}' for number in range(channels))
        config = self.directory / "jobsched.yaml"
        config.write_text(CONFIG.format(directory=self.directory, channels=names, root=Path(__file__).parent.parent))
        self.daemon = subprocess.Popen([sys.executable, "-m", "jobschedd.cli.daemon", "run", "--config", str(config)])
        wait_until(lambda: len(self.client.channels()) == channels, 10)

    def finished(self) -> int:
        """Jobs that have ended: only their records have a time to live. One O(1) command."""
        return int(self.redis.info("keyspace").get("db0", {}).get("expires", 0))

    def processes(self) -> list[psutil.Process]:
        """The daemon's processes, job processes left out."""
        assert self.daemon is not None
        daemon = psutil.Process(self.daemon.pid)
        return [daemon, *daemon.children()]

    def server(self) -> psutil.Process:
        """The Redis server's process."""
        return psutil.Process(self._server.pid)

    def close(self) -> None:
        """Stop everything."""
        self.client.close()
        for process in filter(None, (self.daemon, self._server)):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A lab that is cleaned up."""
    directory = Path(tempfile.mkdtemp(prefix="jobsched-bench-"))
    made = Lab(directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(condition: Callable[[], Any], seconds: float, pause: float = 0.005) -> None:
    """Raises TimeoutError when ``condition`` does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the lab did not get there in time")
        time.sleep(pause)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time that these processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def ping_yardstick(lab: Lab) -> float:
    """PINGs a second by redis-benchmark, 50 clients, no pipeline: what the machine can do with Redis just now."""
    tool = shutil.which("redis-benchmark")
    if tool is None:
        return float("nan")
    socket = str(lab.directory / "redis.sock")
    command = [tool, "-s", socket, "-q", "-n", "100000", "-t", "ping_mbulk", "--csv"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return float(answer.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))
