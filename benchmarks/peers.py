"""The same work for jobschedd and for what else one could use, in one run on one machine, a server for each.

A: so many no-op functions, all queued before the workers start: from the first result that is stored to the last.
B: idle, one job at a time: from the submit to the result in the submitter's hands.
C: /bin/true, two and four at a time, queued before the workers start.
D: what A costs Redis, by its own counters: commands (those inside scripts, too) and bytes.
E: memory and processor time of the workers that have just done A and now have nothing to do.

Whatever needs a server has one of its own with AOF (everysec) on a loopback port. Everybody stores results; jobschedd
has its spool, its fences and its leases on, as always.
"""

from __future__ import annotations

import abc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psutil
import redis
import yaml

from benchmarks import slurm, yardsticks
from benchmarks.counters import Cost, counted
from benchmarks.environments import (
    REQUIREMENTS,
    ROOT,
    debian_files,
    first_line,
    node_environment,
    python_environment,
    python_versions,
)
from benchmarks.lab import OTHER_KEYS
from benchmarks.workers import Workers
from jobschedd import Client
from jobschedd.version import VERSION

sys.path.append(str(ROOT / "tests"))

from redis_server import RedisServer

Figures = dict[str, Any]
NOTHING, TRUE = "nothing", "true"
#: Seconds that one drain may take, and that workers have until their first result.
PATIENCE, FIRST = 120, 30
#: Seconds between two looks at how many have ended: each takes time of the two processors that are being measured.
LOOK = 0.02
IDLE, SETTLE = 5.0, 1.5
#: Seconds in which whoever tidies up after the last job has done so.
TIDY = 0.5
SAMPLES = 500
#: Bare spawns before and after each run of commands.
SPAWNS = 1000


@dataclass(frozen=True)
class Sizes:
    """How much work a peer gets: about four seconds of A and two of C on two cores of the year 2024."""

    noops: int = 4000
    commands: int = 1500


@dataclass(frozen=True)
class Peer:
    """Something that one could use instead."""

    title: str
    stand: Callable[[], Stand] | None  # None: a tool that runs commands and knows no queue
    sizes: Sizes = field(default_factory=Sizes)
    settings: str = ""
    waits: str = ""  # how a submitter learns of the result
    survives: str = ""  # what becomes of a job whose worker is killed, by the peer's own design
    run: Callable[[int, int], float] | None = None  # a tool: commands a second of COUNT, so many at a time
    versions: Callable[[], dict[str, str]] = dict


# -- stands: a scheduler set up over a server of its own -------------------------------------------------------------


class Stand(abc.ABC):
    """One scheduler with an empty server of its own. Nothing runs before ``start``."""

    def __init__(self) -> None:
        self.server = RedisServer(tcp=True).start()
        self.directory = Path(tempfile.mkdtemp(prefix="bench-peer-"))
        self.redis = self.server.client()
        self.results = self.server.client(db=1)
        self.workers: Workers | None = None

    @abc.abstractmethod
    def fill(self, task: str, count: int) -> float:
        """Queue so many; the seconds it took."""

    @abc.abstractmethod
    def commands(self, task: str, at_a_time: int) -> list[list[str]]:
        """How workers are started that do ``task``, so many at a time."""

    @abc.abstractmethod
    def ended(self, of: int) -> int:
        """How many of ``of`` queued jobs have their result stored; one cheap command."""

    @abc.abstractmethod
    def round_trips(self, samples: int) -> list[float]:
        """Seconds from a submit to its result, one after the other."""

    def environment(self, at_a_time: int) -> dict[str, str]:
        """Of the workers: nothing of the developer's settings."""
        return {name: value for name, value in os.environ.items() if not name.startswith("JOBSCHED_")}

    def start(self, task: str, at_a_time: int) -> None:
        """Start the workers; does not wait."""
        self.workers = Workers(self.commands(task, at_a_time), self.environment(at_a_time), self.directory)
        self.workers.keep_up()

    def close(self) -> None:
        """End everything."""
        if self.workers is not None:
            self.workers.stop()
        self.redis.close()
        self.results.close()
        self.server.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class OurStand(Stand):
    """jobschedd: master and slave in one daemon."""

    ITEMS: ClassVar[dict[str, dict[str, Any]]] = {
        NOTHING: {"function": "peer_tasks:nothing"},
        TRUE: {"command": ["/bin/true"]},
    }

    def __init__(self) -> None:
        super().__init__()
        self.client = Client(self.server.tcp_url)

    def fill(self, task: str, count: int) -> float:
        """In bulk."""
        began = time.perf_counter()
        self.client.submit_many([self.ITEMS[task]] * count)
        return time.perf_counter() - began

    def commands(self, task: str, at_a_time: int) -> list[list[str]]:
        """One daemon."""
        channels = [{"name": str(number + 1), "slots": at_a_time // 2} for number in range(2)]
        config = {
            "role": ["master", "slave"],
            "node": "bench",
            "redis": {"url": self.server.tcp_url},
            "state_dir": str(self.directory),
            "log": {"level": "warning"},
            "slave": {"python_path": [str(ROOT / "benchmarks")], "channels": channels},
        }
        path = self.directory / "jobsched.yaml"
        path.write_text(yaml.safe_dump(config))
        return [[sys.executable, "-m", "jobschedd.cli.daemon", "run", "--config", str(path)]]

    def ended(self, of: int) -> int:
        """Only the record of an ended job has a time to live."""
        return max(0, _expiring(self.redis) - OTHER_KEYS)

    def round_trips(self, samples: int) -> list[float]:
        """As a user of the library waits."""
        return [self._round_trip() for _ in range(samples + 20)][20:]

    def _round_trip(self) -> float:
        began = time.perf_counter()
        (job,) = self.client.submit_many([self.ITEMS[NOTHING]])
        job.wait(10)
        took = time.perf_counter() - began
        assert job.outcome == "succeeded", (job.outcome, job.error)
        return took

    def close(self) -> None:
        """End everything."""
        self.client.close()
        super().close()


class DrivenStand(Stand):
    """A peer that is driven through its module in ``peer_tasks``: ``driver`` is how that is started."""

    def __init__(self, name: str, driver: Sequence[str], workers: Commands, ended: Ended) -> None:
        super().__init__()
        self.name = name
        self._driver = driver
        self._workers = workers
        self._ended = ended

    def fill(self, task: str, count: int) -> float:
        """As its module does."""
        return float(self._drive("fill", task, str(count)))

    def commands(self, task: str, at_a_time: int) -> list[list[str]]:
        """Programs of its environment."""
        found = self._workers(task, at_a_time)
        return [
            [self._program(program), *(each.format(redis=self.server.tcp_url) for each in rest)]
            for program, *rest in found
        ]

    def ended(self, of: int) -> int:
        """As it can be counted."""
        return self._ended(self, of)

    def round_trips(self, samples: int) -> list[float]:
        """As its module waits."""
        return list(self._drive("latency", str(samples)))

    def environment(self, at_a_time: int) -> dict[str, str]:
        """What ``peer_tasks`` reads; ``at_a_time`` is shared by two processes."""
        return super().environment(at_a_time) | {
            "PEER_REDIS": self.server.tcp_url,
            "PEER_SETTINGS": "fast",
            "PEER_SLOTS": str(max(1, at_a_time // 2)),
            "PYTHONPATH": str(ROOT / "benchmarks"),
        }

    @abc.abstractmethod
    def _program(self, name: str) -> str:
        """Where a program of its environment is."""

    def _drive(self, *what: str) -> Any:
        done = subprocess.run(
            [*self._driver, *what],
            env=self.environment(2),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} could not {what[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


class PythonStand(DrivenStand):
    """A peer in a virtual environment. ``crowd``: coroutines that a process may have at a time for no-ops."""

    def __init__(self, name: str, workers: Commands, ended: Ended, crowd: int = 0) -> None:
        self._home = python_environment(name, REQUIREMENTS[name])
        self._crowd = crowd
        super().__init__(name, [self._program("python"), "-m", f"peer_tasks.for_{name}"], workers, ended)

    def start(self, task: str, at_a_time: int) -> None:
        """Two processes, each with a crowd or with its share."""
        super().start(task, 2 * self._crowd if self._crowd and task == NOTHING else at_a_time)

    def _program(self, name: str) -> str:
        return str(self._home / name)


class NodeStand(DrivenStand):
    """BullMQ."""

    def __init__(self, workers: Commands, ended: Ended) -> None:
        self._home = node_environment(NODE_PACKAGES)
        super().__init__("bullmq", ["node", BULLMQ], workers, ended)

    def environment(self, at_a_time: int) -> dict[str, str]:
        """Where its packages are."""
        return super().environment(at_a_time) | {"PEER_NODE": str(self._home)}

    def _program(self, name: str) -> str:
        return name


Commands = Callable[[str, int], Sequence[Sequence[str]]]
Ended = Callable[[Stand, int], int]


def _expiring(client: redis.Redis) -> int:
    keyspace: Any = client.info("keyspace")
    return int(keyspace.get("db0", {}).get("expires", 0))


def _in_results(stand: Stand, _of: int) -> int:
    return int(stand.results.dbsize())


def _python(name: str, workers: Commands, ended: Ended, crowd: int = 0) -> Callable[[], Stand]:
    return lambda: PythonStand(name, workers, ended, crowd)


def _installed(name: str) -> Callable[[], dict[str, str]]:
    packages = [each.partition("[")[0] for each in REQUIREMENTS[name] if each != "typing_extensions"]
    packages += ["redis"] * ("redis" not in packages and name != "hyperqueue")
    return lambda: python_versions(python_environment(name, REQUIREMENTS[name]), packages)


# -- tools that run commands and know no queue -----------------------------------------------------------------------


def _xargs(count: int, at_a_time: int) -> float:
    return _piped(["xargs", f"-P{at_a_time}", "-n1", "/bin/true"], count)


def _parallel(count: int, at_a_time: int) -> float:
    return _piped([_parallel_program(), f"-j{at_a_time}", "/bin/true", "{}"], count)


def _parallel_program() -> str:
    found = shutil.which("parallel")
    if found and "GNU" in first_line(found, "--version"):
        return found
    return str(debian_files("parallel") / "usr" / "bin" / "parallel")


def _piped(command: list[str], count: int) -> float:
    words = "".join(f"{number}\n" for number in range(count))
    with tempfile.TemporaryDirectory() as home:  # GNU parallel keeps a directory of its own
        began = time.perf_counter()
        subprocess.run(command, input=words, text=True, check=True, timeout=PATIENCE, env=os.environ | {"HOME": home})
        return count / (time.perf_counter() - began)


def _hyperqueue(count: int, at_a_time: int) -> float:
    home = python_environment("hyperqueue", REQUIREMENTS["hyperqueue"])
    done = subprocess.run(
        [str(home / "python"), "-m", "peer_tasks.for_hyperqueue", str(count), str(at_a_time)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise RuntimeError(f"HyperQueue said nothing: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return count / float(lines[-1])


# -- who takes part --------------------------------------------------------------------------------------------------

NODE_PACKAGES = ("bullmq", "ioredis")
BULLMQ = str(ROOT / "benchmarks" / "peer_tasks" / "for_bullmq.mjs")
AFTER = "kept: acknowledged after the work"
LOST = "lost: taken off the queue before the work"


def _node_versions() -> dict[str, str]:
    modules = node_environment(NODE_PACKAGES) / "node_modules"
    packages = {name: json.loads((modules / name / "package.json").read_text())["version"] for name in NODE_PACKAGES}
    return packages | {"node": first_line("node", "--version")}


def _celery(task: str, at_a_time: int) -> list[list[str]]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return [["celery", "-A", "peer_tasks.for_celery", "worker", "-c", str(at_a_time), *quiet]]


def _rq(worker: str) -> Commands:
    serializer = ["-S", "rq.serializers.JSONSerializer", "--quiet", "--url", "{redis}"]
    return lambda task, at_a_time: [["rq", "worker", "-w", f"rq.worker.{worker}", *serializer]] * at_a_time


def _dramatiq(task: str, at_a_time: int) -> list[list[str]]:
    threads = 8 if task == NOTHING else at_a_time // 2
    return [["dramatiq", "peer_tasks.for_dramatiq", "-p", "2", "-t", str(threads)]]


def _huey(task: str, at_a_time: int) -> list[list[str]]:
    return [["huey_consumer", "peer_tasks.for_huey.huey", "-k", "process", "-w", str(at_a_time), "-q"]]


def _taskiq(task: str, at_a_time: int) -> list[list[str]]:
    most = "100" if task == NOTHING else str(at_a_time // 2)
    quiet = ["--log-level", "ERROR"]
    return [["taskiq", "worker", "peer_tasks.for_taskiq:broker", "-w", "2", "--max-async-tasks", most, *quiet]]


def _saq(task: str, at_a_time: int) -> list[list[str]]:
    return [["saq", "peer_tasks.for_saq.settings"]] * 2


def _arq(task: str, at_a_time: int) -> list[list[str]]:
    return [["arq", "peer_tasks.for_arq.WorkerSettings"]] * 2


def _bullmq(task: str, at_a_time: int) -> list[list[str]]:
    most = "50" if task == NOTHING else str(at_a_time // 2)
    return [["node", BULLMQ, "work", most]] * 2


PEERS: dict[str, Peer] = {
    "jobschedd": Peer(
        "**jobschedd**",
        OurStand,
        Sizes(40_000, 3000),
        "master and slave in one daemon, 2 channels (of 1 slot; of 2 for four at a time); output captured",
        "job.wait()",
        "kept: run again on another channel",
        versions=lambda: {"jobschedd": VERSION},
    ),
    "huey": Peer(
        "Huey",
        _python("huey", _huey, lambda stand, of: int(stand.redis.hlen("huey.results.bench"))),
        Sizes(18_000, 3500),
        "2 (4) processes; pickle, it has no JSON",
        "polling every 0.5 ms (its own blocking get: every 50 ms)",
        LOST,
        versions=_installed("huey"),
    ),
    "dramatiq": Peer(
        "Dramatiq",
        _python("dramatiq", _dramatiq, _in_results),
        Sizes(14_000, 1200),
        "2 processes of 8 threads; of 1 (2) for commands; result backend",
        "get_result(block=True)",
        AFTER,
        versions=_installed("dramatiq"),
    ),
    "saq": Peer(
        "SAQ",
        _python("saq", _saq, lambda stand, of: _expiring(stand.redis), crowd=20),
        Sizes(14_000, 2000),
        "2 processes, concurrency 20; 1 (2) for commands",
        "queue.apply(poll_interval=0.001)",
        AFTER,
        versions=_installed("saq"),
    ),
    "taskiq": Peer(
        "taskiq, Redis streams",
        _python("taskiq", _taskiq, _in_results),
        Sizes(12_000, 2000),
        "2 processes of 100 at a time; of 1 (2) for commands; JSON, result backend",
        "wait_result(check_interval=0.001)",
        AFTER,
        versions=_installed("taskiq"),
    ),
    "arq": Peer(
        "arq",
        _python("arq", _arq, lambda stand, of: of - int(stand.redis.zcard("arq:queue")), crowd=100),
        Sizes(5000, 500),
        "2 processes, poll_delay 10 ms, max_jobs 100; 1 (2) for commands; JSON",
        "job.result(poll_delay=0.001)",
        AFTER,
        versions=_installed("arq"),
    ),
    "celery": Peer(
        "Celery",
        _python("celery", _celery, _in_results),
        Sizes(3800, 1400),
        "prefork, 2 (4) processes, prefetch 64 each, no gossip, mingle, heartbeats, remote control; JSON, results",
        "AsyncResult.get()",
        "lost by default: acknowledged before the work",
        versions=_installed("celery"),
    ),
    "rq": Peer(
        "RQ, SimpleWorker",
        _python("rq", _rq("SimpleWorker"), lambda stand, of: int(stand.redis.zcard("rq:finished:default"))),
        Sizes(2300, 900),
        "2 (4) workers that do not fork; JSON",
        "job.latest_result(timeout)",
        "noticed later, not run again by default",
        versions=_installed("rq"),
    ),
    "rq-fork": Peer(
        "RQ, Worker",
        _python("rq", _rq("Worker"), lambda stand, of: int(stand.redis.zcard("rq:finished:default"))),
        Sizes(350, 250),
        "2 (4) workers that fork for each job, its default; JSON",
        "job.latest_result(timeout)",
        "noticed later, not run again by default",
        versions=_installed("rq"),
    ),
    "bullmq": Peer(
        "BullMQ",
        lambda: NodeStand(_bullmq, lambda stand, of: int(stand.redis.zcard("bull:bench:completed"))),
        Sizes(36_000, 1500),
        "2 processes, concurrency 50; 1 (2) for commands (execFile)",
        "job.waitUntilFinished()",
        "kept: locks that expire",
        versions=_node_versions,
    ),
    "hyperqueue": Peer(
        "HyperQueue",
        None,
        Sizes(0, 800),
        "the package's LocalCluster: server and worker in one process, no journal; nothing captured",
        run=_hyperqueue,
        versions=_installed("hyperqueue"),
    ),
    "slurm": Peer(
        "Slurm",
        None,
        Sizes(0, 120),
        "2 (4) loops of srun side by side (an sbatch array starts its jobs about once a second)",
        run=slurm.rate,
        versions=lambda: {"slurm": slurm.version()},
    ),
    "parallel": Peer(
        "GNU parallel",
        None,
        Sizes(0, 700),
        "no queue, nothing kept; output grouped",
        run=_parallel,
        versions=lambda: {"parallel": first_line(_parallel_program(), "--version").split()[-1]},
    ),
    "xargs": Peer(
        "xargs",
        None,
        Sizes(0, 4000),
        "no queue, nothing kept, nothing captured",
        run=_xargs,
        versions=lambda: {"xargs": first_line("xargs", "--version").split()[-1]},
    ),
}


# -- measuring one ---------------------------------------------------------------------------------------------------


def measure(name: str, runs: int, scale: float) -> Figures:
    """A to E of one peer; only C of a tool. Raises NotHere where it cannot be had."""
    peer = PEERS[name]
    about = {"title": peer.title, "settings": peer.settings, "waits": peer.waits, "survives": peer.survives}
    figures: Figures = about | {"versions": peer.versions()}
    figures["commands"] = {str(at_a_time): _commands(peer, at_a_time, runs, scale) for at_a_time in (2, 4)}
    if peer.stand is not None:
        drains = [_noops(peer, scale, last=number == runs - 1) for number in range(runs)]
        figures["idle"], figures["latency_ms"] = drains[-1].pop("idle"), drains[-1].pop("latency_ms")
        figures["noop"] = {key: [drain[key] for drain in drains] for key in drains[0] if key != "cost"}
        figures["cost"] = drains[0]["cost"]
    return figures


def _noops(peer: Peer, scale: float, last: bool) -> Figures:
    """A and D; of the last run E and B as well, with the workers that have just done it."""
    count = max(20, round(peer.sizes.noops * scale))
    with _stand(peer) as stand:
        figures: Figures = {"ping_per_s": yardsticks.ping(str(stand.server.socket), 50_000), "jobs": count}
        look = _cost_of_a_look(stand)
        with counted(stand.redis) as filling:
            figures["submit_per_s"] = count / stand.fill(NOTHING, count)
        with counted(stand.redis) as running:
            figures |= _drain(stand, NOTHING, 2, count)
            time.sleep(TIDY)
        looks = figures.pop("looks")
        figures["cost"] = {"submit": _per_job(filling, count, look, 0), "run": _per_job(running, count, look, looks)}
        figures["cost"]["bytes_queued"] = filling.memory / count
        figures["cost"]["bytes_finished"] = (filling.memory + running.memory) / count
        if last:
            figures["idle"] = _idle(stand)
            figures["latency_ms"] = [1000 * took for took in stand.round_trips(max(20, round(SAMPLES * scale)))]
        return figures


def _commands(peer: Peer, at_a_time: int, runs: int, scale: float) -> Figures:
    count = max(20, round(peer.sizes.commands * scale))
    rates = yardsticks.in_turns(runs, partial(_command_rate, peer, at_a_time, count), partial(yardsticks.spawn, SPAWNS))
    return {"per_s": rates.values, "share_of_spawn": rates.ratios, "spawn_per_s": rates.paces, "jobs": count}


def _command_rate(peer: Peer, at_a_time: int, count: int) -> float:
    if peer.run is not None:
        return peer.run(count, at_a_time)
    with _stand(peer) as stand:
        stand.fill(TRUE, count)
        return float(_drain(stand, TRUE, at_a_time, count)["per_s"])


@contextmanager
def _stand(peer: Peer) -> Iterator[Stand]:
    assert peer.stand is not None
    stand = peer.stand()
    try:
        yield stand
    finally:
        stand.close()


def _drain(stand: Stand, task: str, at_a_time: int, count: int) -> Figures:
    """From the first stored result to the last."""
    began, looks = time.monotonic(), 0
    stand.start(task, at_a_time)

    def at_least(wanted: int, seconds: float) -> tuple[int, float]:
        nonlocal looks
        deadline = time.monotonic() + seconds
        while True:
            looks += 1
            ended, now = stand.ended(count), time.monotonic()
            if ended >= wanted:
                return ended, now
            if now > deadline:
                raise RuntimeError(f"only {ended} of {wanted} had ended after {seconds:g} s")
            time.sleep(LOOK)

    first, at_first = at_least(1, FIRST)
    # Ours counts a few keys too many or too few: never the last job.
    last, at_last = at_least(count - (OTHER_KEYS if isinstance(stand, OurStand) else 0), PATIENCE)
    return {
        "per_s": (last - first) / (at_last - at_first) if last > first else float("nan"),
        "with_start_per_s": last / (at_last - began),
        "start_s": at_first - began,
        "looks": looks,
    }


def _cost_of_a_look(stand: Stand, times: int = 50) -> Cost:
    """What a look at how many have ended costs, to be left out of the account."""
    with counted(stand.redis) as cost:
        for _ in range(times):
            stand.ended(0)
    per_look = Cost(bytes_in=cost.bytes_in // times, bytes_out=cost.bytes_out // times)
    per_look.commands.update({name: calls // times for name, calls in cost.commands.items()})
    return per_look


def _per_job(cost: Cost, count: int, look: Cost, looks: int) -> Figures:
    commands = dict(cost.commands)
    for name, calls in look.commands.items():
        commands[name] = commands.get(name, 0) - calls * looks
    told = sorted(commands.items(), key=lambda each: -each[1])
    return {
        "commands": sum(commands.values()) / count,
        "script_calls": cost.script_calls / count,
        "bytes_in": (cost.bytes_in - look.bytes_in * looks) / count,
        "bytes_out": (cost.bytes_out - look.bytes_out * looks) / count,
        "redis_us": 1e6 * cost.cpu / count,
        "most": {name: round(calls / count, 2) for name, calls in told if calls / count >= 0.05},
    }


def _idle(stand: Stand) -> Figures:
    """Of the workers and of their server."""
    assert stand.workers is not None and stand.server.process is not None
    time.sleep(SETTLE)
    processes, server = stand.workers.processes(), psutil.Process(stand.server.process.pid)
    before, server_before, began = _used(processes), _used([server]), time.monotonic()
    with counted(stand.redis) as cost:
        time.sleep(IDLE)
    took = time.monotonic() - began
    return {
        "processes": len(processes),
        "rss_mib": sum(process.memory_info().rss for process in processes) / 2**20,
        "pss_mib": sum(process.memory_full_info().pss for process in processes) / 2**20,
        "cpu_percent": 100 * (_used(processes) - before) / took,
        "redis_cpu_percent": 100 * (_used([server]) - server_before) / took,
        "redis_commands_per_s": cost.commands.total() / took,
    }


def _used(processes: Sequence[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds
