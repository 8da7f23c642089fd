"""A private server and a real daemon in a temporary directory, for one measurement."""

from __future__ import annotations

import contextlib
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
from jobschedd.store.keys import Keys

#: Keys with a time to live that are no ended job (leases, the lead, memories of submits): fewer than these.
OTHER_KEYS = 10
NODE = "bench"
MASTER = """
role: [master]
node: {node}
redis: {{url: "unix://{directory}/redis.sock"}}
state_dir: {directory}
log: {{level: warning}}
"""
BOTH = (
    MASTER.replace("[master]", "[master, slave]")
    + """
slave:
  python_path: ["{root}"]
  channels: [{channels}]
"""
)


class Lab:
    """One server (AOF everysec), one daemon once ``start_daemon`` was called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "jobsched.yaml"
        self.socket = f"{directory}/redis.sock"
        self.url = f"unix://{self.socket}"
        # DEBUG tells what INFO does not: whether the server is still moving its keys to a larger table.
        command = (*embedded.command(str(directory)), "--enable-debug-command", "local")
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.daemon: subprocess.Popen[bytes] | None = None
        wait_until(lambda: embedded.answers(str(directory)), 10)
        self.redis = redis.Redis.from_url(self.url)
        self.client = Client(self.url)

    def start_daemon(self, channels: int, slots: int = 1) -> None:
        """``channels`` channels of ``slots`` slots, master and slave in one daemon; returns when all are there."""
        names = ", ".join(f'{{name: "{number + 1}", slots: {slots}}}' for number in range(channels))
        self._start(BOTH.format(node=NODE, directory=self.directory, channels=names, root=Path(__file__).parent.parent))
        wait_until(lambda: len(self.client.channels()) == channels, 10, 0.005)

    def start_master(self) -> None:
        """A master alone; returns when it leads."""
        self._start(MASTER.format(node=NODE, directory=self.directory))
        wait_until(lambda: self.redis.exists(Keys("main").leader), 10)

    def _start(self, config: str) -> None:
        self.config.write_text(config)
        command = [sys.executable, "-m", "jobschedd.cli.daemon", "run", "--config", str(self.config)]
        self.daemon = subprocess.Popen(command)

    def finished(self) -> int:
        """Jobs that have ended: only their records have a time to live. One O(1) command."""
        return int(self.redis.info("keyspace").get("db0", {}).get("expires", 0))

    def processes(self) -> list[psutil.Process]:
        """The daemon's processes, job processes left out."""
        assert self.daemon is not None
        daemon = psutil.Process(self.daemon.pid)
        return [daemon, *daemon.children()]

    def roles(self) -> dict[str, list[psutil.Process]]:
        """The processes of each kind: supervisor, dispatcher, collector, channels, runners; what is there of them."""
        supervisor, *children = self.processes()
        found: dict[str, list[psutil.Process]] = {"supervisor": [supervisor]}
        for child in children:
            role = " ".join(child.cmdline()).strip("\0 ").removeprefix("jobschedd: ")
            kind = "channels" if role.startswith("channel") else role
            found.setdefault(kind, []).append(child)
        found["runners"] = [runner for channel in found.get("channels", ()) for runner in channel.children()]
        return found

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


def wait_until(condition: Callable[[], Any], seconds: float, pause: float = 0.02) -> None:
    """Raises TimeoutError when ``condition`` does not come true in time. Each look takes time of what is measured."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the lab did not get there in time")
        time.sleep(pause)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time that these processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
