"""``python -m benchmarks.survival``: the same two faults for jobschedd and for its peers, judged by the same ledger.

Every worker of the scheduler is killed (SIGKILL, all processes at once) every two seconds, and started again at
once, as a service manager does; or Redis (with AOF) is killed twice and is back after two seconds. Then everybody
gets time to recover: until nothing has happened for ``--quiet`` seconds. Each peer lives in an environment of its own
(see ``benchmarks.environments``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import REQUIREMENTS, ROOT, python_environment, python_versions
from benchmarks.workers import Workers

sys.path.append(str(ROOT / "tests"))

from redis_server import RedisServer

JOBS, SECONDS = 120, 0.25
KILLS, PAUSE = 5, 2.0
#: A job that is hit by two of our kills is no poison.
OURS = "max_crashes 20"


@dataclass(frozen=True)
class Peer:
    """How its workers (two jobs at a time) are started."""

    module: str
    workers: tuple[tuple[str, ...], ...]
    tuned_arguments: tuple[str, ...] = ()
    tuning: str = ""


PEERS = {
    "rq": Peer(
        "for_rq",
        (("rq", "worker", "--url", "{redis}"),) * 2,
        ("--maintenance-interval", "2", "--job-monitoring-interval", "2"),
        "retries 20, job_timeout 5 s, monitoring and maintenance every 2 s",
    ),
    "dramatiq": Peer(
        "for_dramatiq",
        (("dramatiq", "peer_tasks.for_dramatiq", "-p", "1", "-t", "2"),),
        tuning="heartbeat_timeout 5 s, maintenance_chance 10 %",
    ),
    "celery": Peer(
        "for_celery",
        (("celery", "-A", "peer_tasks.for_celery", "worker", "-c", "2", "-l", "WARNING"),),
        tuning="acks_late, reject_on_worker_lost, prefetch 1, visibility_timeout 5 s",
    ),
    "saq": Peer(
        "for_saq",
        (("saq", "peer_tasks.for_saq.settings"),),
        tuning="retries 20, timeout 5 s, sweep every 2 s",
    ),
}


def measure(name: str, tuned: bool, fault: str, quiet: float) -> dict[str, Any]:
    """One scheduler under one fault."""
    server = RedisServer(tcp=True).start()
    directory = Path(tempfile.mkdtemp(prefix="peer-"))
    workers = None
    try:
        ledger = directory / "ledger"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSCHED_")}
        environment |= {
            "PEER_LEDGER": str(ledger),
            "PEER_REDIS": server.tcp_url,
            "PEER_SETTINGS": "tuned" if tuned else "default",
            "PYTHONPATH": str(ROOT / "benchmarks"),
        }
        prepare = _jobschedd if name == "jobschedd" else _peer
        workers, submit, version = prepare(name, tuned, environment, server, directory)
        workers.keep_up()
        submit()
        begin = time.monotonic()
        _wait(lambda: _count(ledger, "start") >= 4, workers, 60)
        for _ in range(KILLS if fault == "workers killed" else 2):
            _wait(lambda: False, workers, PAUSE)
            if fault == "workers killed":
                workers.kill()
            else:
                server.kill()
                time.sleep(2)
                server.start()
        _until_quiet(ledger, workers, quiet)
        tuning = OURS if name == "jobschedd" else PEERS[name].tuning if tuned else ""
        about = {"kind": "peer", "name": name, "version": version, "tuning": tuning, "fault": fault, "quiet": quiet}
        return about | _figures(ledger, begin)
    finally:
        if workers is not None:
            workers.kill()
        server.close()


Prepared = tuple[Workers, Callable[[], None], str]


def _peer(name: str, tuned: bool, environment: dict[str, str], server: RedisServer, directory: Path) -> Prepared:
    peer = PEERS[name]
    home = python_environment(name, REQUIREMENTS[name])
    commands = [
        (str(home / program), *(each.format(redis=server.tcp_url) for each in rest), *(peer.tuned_arguments * tuned))
        for program, *rest in peer.workers
    ]
    submit = [str(home / "python"), "-m", f"peer_tasks.{peer.module}", "submit", str(JOBS), str(SECONDS)]
    version = python_versions(home, [name])[name]
    workers = Workers(commands, environment, directory)
    return workers, lambda: _submit_all(submit, environment, directory), version


def _submit_all(command: Sequence[str], environment: dict[str, str], directory: Path) -> None:
    subprocess.run(command, env=environment, cwd=directory, check=True)


def _jobschedd(name: str, _tuned: bool, environment: dict[str, str], server: RedisServer, directory: Path) -> Prepared:
    """Its master is started once and left alone, as is whatever hands out the jobs of the others: Redis."""
    import yaml

    from jobschedd import Client
    from jobschedd.version import VERSION

    common = {"redis": {"url": server.tcp_url}, "namespace": "peers"}
    slave = {
        "channels": [{"name": "1"}, {"name": "2"}],
        "python_path": [str(ROOT / "benchmarks")],
        "env": {"PEER_LEDGER": environment["PEER_LEDGER"]},
    }
    for role, more in (("master", {}), ("slave", {"slave": slave})):
        config = {"role": role, "node": role, "state_dir": str(directory / role), **common, **more}
        (directory / f"{role}.yaml").write_text(yaml.safe_dump(config))
    program = str(Path(sys.executable).with_name("jobschedd"))
    master = Workers([(program, "run", "--config", str(directory / "master.yaml"))], environment, directory)
    master.keep_up()

    class Slave(Workers):
        def __del__(self) -> None:
            master.kill()

    workers = Slave([(program, "run", "--config", str(directory / "slave.yaml"))], environment, directory)

    def submit() -> None:
        with Client(server.tcp_url, namespace="peers") as client:
            item = {"function": "peer_tasks:work", "max_crashes": 20}
            client.submit_many([item | {"args": [number, SECONDS]} for number in range(JOBS)])

    return workers, submit, VERSION


def _wait(condition: Callable[[], bool], workers: Workers, within: float) -> None:
    until = time.monotonic() + within
    while not condition() and time.monotonic() < until:
        workers.keep_up()
        time.sleep(0.05)


def _until_quiet(ledger: Path, workers: Workers, quiet: float) -> None:
    size, since = -1, time.monotonic()
    while time.monotonic() - since < quiet:
        workers.keep_up()
        if ledger.stat().st_size != size:
            size, since = ledger.stat().st_size, time.monotonic()
        if len(_numbers(ledger, "stop")) == JOBS:
            quiet = min(quiet, 5.0)  # all have ended; does anything run once more?
        time.sleep(0.1)


def _lines(ledger: Path) -> Iterator[tuple[str, int]]:
    if ledger.exists():
        for line in ledger.read_text().splitlines():
            kind, number = line.split()
            yield kind, int(number)


def _numbers(ledger: Path, kind: str) -> Counter[int]:
    return Counter(number for each, number in _lines(ledger) if each == kind)


def _count(ledger: Path, kind: str) -> int:
    return _numbers(ledger, kind).total()


def _figures(ledger: Path, begin: float) -> dict[str, Any]:
    starts, stops = _numbers(ledger, "start"), _numbers(ledger, "stop")
    return {
        "jobs": JOBS,
        "never ended": JOBS - len(stops),
        "never began": JOBS - len(starts),
        "ended more than once": sum(count > 1 for count in stops.values()),
        "starts again": starts.total() - len(starts),
        "last end after": round(ledger.stat().st_mtime - (time.time() - (time.monotonic() - begin)), 1),
    }


def main() -> None:
    """One JSON line a measurement: append them to the tally that ``python -m benchmarks.reliability --tally`` reads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survival", description=__doc__)
    parser.add_argument("names", nargs="*", default=["jobschedd", *PEERS])
    parser.add_argument("--quiet", type=float, default=150.0, help="seconds without an event that end a run")
    options = parser.parse_args()
    for name in options.names:
        for tuned in (False,) if name == "jobschedd" else (False, True):
            for fault in ("workers killed", "Redis killed"):
                print(json.dumps(measure(name, tuned, fault, options.quiet)), flush=True)


if __name__ == "__main__":
    main()
