"""What every run of faults shares: a small fleet, its load, and the verdict of the oracle, written down."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster import TIMING, Cluster, Daemon
from ledger import SUCCESS, Account, Ledger, judge
from redis_server import RedisServer, wait_until

#: A file to which each run of faults appends one line of JSON with its figures, for the scorecard.
TALLY = "FAULTS_TALLY"
#: Longer than any lease of a test, and than the scan that notices its end.
SILENCE = TIMING["lease"] + 4 * TIMING["reap_scan"]


#: Whatever happens, hooks want to know of it: one that takes it, one that never does.
HOOKS = [
    {"name": "takes", "on": ["success", "failure", "late"], "start_within": "1ms", "command": ["true"]},
    {"name": "refuses", "on": ["success"], "command": ["false"], "retries": 1},
]


class Scene:
    """A master and a slave of two channels, one of them with two slots; over one Redis, with one ledger."""

    def __init__(self, cluster: Cluster, ledger: Ledger, redis_server: RedisServer) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.redis = redis_server
        self.client = cluster.client()
        self.master: Daemon
        self.slave: Daemon
        self.pubsub = False

    def start(
        self,
        *,
        on_master: str = "",
        on_slave: str = "",
        pubsub: bool = False,
        slots: int = 2,
        output_limit: int | None = None,
        hooked: bool = False,
    ) -> None:
        """Both daemons, with the failpoints that these settings name."""
        self.pubsub = pubsub
        wire: dict[str, Any] = {"transport": "pubsub"} if pubsub else {}
        master: dict[str, Any] = {"channels": ["1", "2"], "result_timeout": 5} if pubsub else {}
        master |= {"hooks": HOOKS} if hooked else {}
        limit = {} if output_limit is None else {"output_limit": output_limit}
        self.master = self.cluster.daemon("master", master=master, environment=_armed(on_master), **wire)
        self.slave = self.cluster.daemon(
            "slave",
            channels=[{"name": "1"}, {"name": "2", "slots": slots}],
            slave={"python_path": [self.ledger.python_path], **limit},
            environment=_armed(on_slave),
            **wire,
        )
        for daemon in (self.master, self.slave):
            daemon.launch()

    def load(self) -> None:
        """A hundred jobs: commands and functions, instant and not, some later, some after others.

        Failures of a runner are repeated.
        """
        ledger, client = self.ledger, self.client
        ledger.submit(client, [ledger.function(retries=1, retry_delay=0.1) for _ in range(50)])
        ledger.submit(client, [ledger.function(seconds=0.3, retries=1, retry_delay=0.1) for _ in range(6)])
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(40)])
        ledger.submit(client, [ledger.item(delay=0.5) for _ in range(4)])
        chain = [ledger.item(ref=f"c{number}", after=f"c{number - 1}:any" if number else ()) for number in range(5)]
        ledger.submit(client, [*chain, ledger.item(after=[f"c{number}:any" for number in range(5)])])

    def started(self) -> int:
        """Jobs that have begun so far, attempts counted."""
        return sum(event.kind == "start" for event in self.ledger.events()[0])

    def under_way(self, jobs: int = 10) -> None:
        """Wait until so many have begun."""
        wait_until(lambda: self.started() >= jobs, 20, f"{jobs} have begun\n{self.cluster.logs()}")

    def stopped(self) -> list[psutil.Process]:
        """Processes of ours that SIGSTOP holds."""
        found = []
        for process in self.cluster.processes():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
        return found

    def keep_up(self) -> None:
        """What a service manager does: a daemon that ended is started again."""
        for daemon in self.cluster.daemons:
            if daemon.popen is not None and not daemon.running():
                daemon.launch()

    def keep_up_until(self, condition: Callable[[], object], within: float, what: str) -> None:
        """Wait, with a service manager at work."""

        def met() -> bool:
            self.keep_up()
            return bool(condition())

        wait_until(met, within, f"{what}\n{self.cluster.logs()}", every=0.05)

    def verdict(self, within: float = 30, expected: frozenset[tuple[str, str]] = SUCCESS) -> Account:
        """The oracle's, with the service manager at work until all has ended; fails the test."""
        with self.redis.client() as client:
            return judge(self.cluster, self.ledger, client, within, expected=expected, meanwhile=self.keep_up)


def _armed(setting: str) -> dict[str, str]:
    return {"JOBSCHED_FAILPOINTS": setting} if setting else {}


def let_pass(seconds: float) -> None:
    """Let a fault last; nothing observable happens meanwhile."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 10, "time passes", every=0.05)


def resume(processes: list[psutil.Process]) -> None:
    """SIGCONT to whoever still lives."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def tallied(kind: str, fault: str, **more: Any) -> Iterator[dict[str, Any]]:
    """Write the figures of a run down, whichever way it ends: the test adds its own to the mapping."""
    figures: dict[str, Any] = {"kind": kind, "fault": fault, **more, "passed": False}
    begin = time.monotonic()
    try:
        yield figures
        figures["passed"] = True
    except BaseException as error:
        figures["violations"] = re.findall(r"(\w+) (\d+) times", str(error)[:400]) or str(error)[:200]
        raise
    finally:
        figures["seconds"] = round(time.monotonic() - begin, 2)
        if path := os.environ.get(TALLY):
            with open(path, "ab", buffering=0) as file:  # one write: several workers share the file
                file.write(json.dumps(figures).encode() + b"\n")


def of_account(account: Account) -> dict[str, int]:
    """The figures of a passed run."""
    starts = sum(event.kind == "start" for event in account.events)
    accepted = sum(told.answer == "accepted" for told in account.told)
    return {"jobs": accepted, "ends": len(account.ends), "starts": starts}


def marker_of(directory: Path) -> Path:
    """The file that says that a failpoint was hit, in any process."""
    return directory / "hit"
