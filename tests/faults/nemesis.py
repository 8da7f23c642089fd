"""A nemesis: kills, stops, cuts and restarts at random, from a seed, so that what it did can be done again."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from cluster import Cluster, Daemon
from faults.scene import SILENCE, let_pass, resume
from jobschedd.errors import StoreRefused
from ledger import Ledger
from redis_server import RedisServer, wait_until

#: What may happen to whom, and how often in comparison.
BLOWS: dict[tuple[str, str], int] = {
    ("channel", "kill"): 4,
    ("channel", "stop"): 2,
    ("channel", "cut"): 2,
    ("runner", "kill"): 3,
    ("runner", "stop"): 1,
    ("dispatcher", "kill"): 2,
    ("dispatcher", "stop"): 1,
    ("dispatcher", "cut"): 1,
    ("collector", "kill"): 2,
    ("collector", "stop"): 1,
    ("collector", "cut"): 1,
    ("slave", "kill"): 1,
    ("slave", "restart"): 1,
    ("slave", "stop"): 1,
    ("slave", "reload"): 1,
    ("master", "kill"): 1,
    ("master", "restart"): 1,
    ("client", "cut"): 1,
    ("redis", "kill"): 1,
    ("redis", "restart"): 1,
    ("redis", "stop"): 1,
    ("redis", "flush scripts"): 1,
}
#: Seconds between two blows, on average.
PAUSE = 0.8
#: Jobs that may be on their way at a time, so that the faults of the whole run hit a load.
AHEAD = 600
BATCH = 100


@dataclass(frozen=True)
class Blow:
    """One fault. ``which`` picks among several victims of a role; ``lasts`` in seconds, for what lasts."""

    pause: float  # seconds after the one before
    role: str
    what: str
    which: float
    lasts: float


def schedule(seed: int) -> Iterator[Blow]:
    """The blows of this seed, without an end."""
    chance = random.Random(seed)
    kinds = list(BLOWS)
    while True:
        role, what = chance.choices(kinds, [BLOWS[kind] for kind in kinds])[0]
        pause = min(4 * PAUSE, chance.expovariate(1 / PAUSE))
        yield Blow(pause, role, what, chance.random(), chance.choice((0.2, 0.7, SILENCE)))


class Fleet:
    """Two masters, of which one stands by, and two slaves, with a service manager."""

    def __init__(self, cluster: Cluster, ledger: Ledger, server: RedisServer) -> None:
        self.cluster = cluster
        self.server = server
        python_path = [ledger.python_path]
        slots: list[dict[str, Any]] = [{"name": "1"}, {"name": "2", "slots": 2}]
        self.masters = [cluster.daemon("master", node=f"m{number}") for number in (1, 2)]
        self.slaves = [
            cluster.daemon("slave", node=f"s{number}", channels=slots, slave={"python_path": python_path})
            for number in (1, 2)
        ]
        for daemon in (*self.masters, *self.slaves):
            daemon.start()

    def keep_up(self) -> None:
        """Start again whatever ended."""
        for daemon in (*self.masters, *self.slaves):
            if not daemon.running():
                daemon.launch()

    def victims(self, role: str) -> list[psutil.Process]:
        """Every living process of this role."""
        if role in ("slave", "master"):
            return [daemon.supervisor for daemon in self._of(role) if daemon.running()]
        owners = self.slaves if role in ("channel", "runner") else self.masters
        found = []
        for daemon in owners:
            if daemon.running():
                with contextlib.suppress(psutil.Error):
                    found += [child for child in daemon.supervisor.children(recursive=True) if _is(child, role)]
        return sorted(found, key=lambda process: process.pid)

    def _of(self, role: str) -> list[Daemon]:
        return self.slaves if role == "slave" else self.masters

    def daemon_of(self, process: psutil.Process) -> Daemon:
        """The daemon whose supervisor this is."""
        return next(each for each in self.cluster.daemons if each.popen and each.popen.pid == process.pid)


def _is(process: psutil.Process, role: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).startswith(f"jobschedd: {role}")
    return False


class Nemesis:
    """Strikes a fleet. ``struck`` counts the blows, ``hit`` those that found a victim."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.seed = seed
        self.struck: Counter[str] = Counter()
        self.hit: Counter[str] = Counter()
        self.story: list[str] = []
        self._fleet = fleet
        self._begin = time.monotonic()

    def rage(self, while_: Callable[[], bool]) -> None:
        """Blow after blow, while the condition holds."""
        for blow in schedule(self.seed):
            due = time.monotonic() + blow.pause
            while time.monotonic() < due and while_():
                self._fleet.keep_up()
                time.sleep(0.02)
            if not while_():
                return
            name = f"{blow.what} {blow.role}"
            self.struck[name] += 1
            hit = self._strike(blow)
            self.hit[name] += hit
            self.story.append(f"{time.monotonic() - self._begin:7.2f} {name}{'' if hit else ' (nobody there)'}")

    def _strike(self, blow: Blow) -> bool:
        if blow.role == "redis":
            return self._strike_redis(blow)
        if blow.what == "cut":
            return self._cut(blow)
        victims = self._fleet.victims(blow.role)
        if not victims:
            return False
        victim = victims[int(blow.which * len(victims))]
        with contextlib.suppress(psutil.NoSuchProcess):
            self._harm(victim, blow)
            return True
        return False

    def _harm(self, victim: psutil.Process, blow: Blow) -> None:
        if blow.what == "kill":
            victim.kill()
        elif blow.what == "stop":
            victim.suspend()
            let_pass(blow.lasts)
            resume([victim])
        elif blow.what == "reload":
            daemon = self._fleet.daemon_of(victim)
            text = daemon.config.read_text()
            other = ("slots: 2", "slots: 3") if "slots: 2" in text else ("slots: 3", "slots: 2")
            daemon.config.write_text(text.replace(*other))
            victim.send_signal(signal.SIGHUP)
        else:
            victim.terminate()

    def _cut(self, blow: Blow) -> bool:
        names = {"channel": "/1", "dispatcher": "/dispatcher", "collector": "/collector", "client": "client/"}
        cut = False
        with self._fleet.server.client() as admin:
            for connection in admin.client_list():
                if names[blow.role] in connection["name"]:
                    cut |= bool(admin.client_kill_filter(_id=connection["id"]))
        return cut

    def _strike_redis(self, blow: Blow) -> bool:
        server = self._fleet.server
        if blow.what == "flush scripts":
            with server.client() as admin:
                admin.script_flush()
                admin.function_flush()
        elif blow.what == "stop":
            server.pause()
            let_pass(blow.lasts)
            server.resume()
        else:
            server.kill() if blow.what == "kill" else server.stop()
            let_pass(min(1.0, blow.lasts))
            server.start()
        return True


class Feeder(threading.Thread):
    """Submits ``jobs`` jobs, a few hundred ahead of what has begun, and writes down what it was told."""

    def __init__(self, cluster: Cluster, ledger: Ledger, seed: int, jobs: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self._client = cluster.client()
        self._ledger = ledger
        self._chance = random.Random(~seed)
        self._jobs = jobs
        self._read = 0
        self._begun = 0
        self.enough = threading.Event()  # whoever is in charge of the time says so
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._client:
                while self._submitted < self._jobs and not self.enough.is_set():
                    wait_until(lambda: self._submitted - self._attempts() < AHEAD, 120, "the fleet gets on", 0.02)
                    self._submit()
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.error = error

    @property
    def _submitted(self) -> int:
        return len(self._ledger.told)

    def _submit(self) -> None:
        items = [self._item() for _ in range(min(BATCH, self._jobs - self._submitted))]
        try:
            self._ledger.submit(self._client, items)
        except StoreRefused as error:  # a server that has just come up may refuse what it has forgotten
            raise AssertionError(f"refused: {error}") from error

    def _item(self) -> dict[str, Any]:
        # No kill of ours makes it poison, and a runner that dies costs it a try.
        options = {"max_crashes": 250, "retries": 250, "retry_delay": 0.05, "retry_max_delay": 0.1}
        match self._chance.randrange(20):
            case 0:
                return self._ledger.item(seconds=0.05, **options)
            case 1:
                return self._ledger.function(seconds=0.2, **options)
            case 2:
                return self._ledger.function(delay=0.3, **options)
            case 3:
                return self._ledger.function(priority=50, **options)
            case _:
                return self._ledger.function(**options)

    def _attempts(self) -> int:
        """A glance: attempts, not jobs; unfinished lines are counted with the next."""
        with open(self._ledger.path, "rb") as file:
            file.seek(self._read)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._begun += text[:end].count(b" start ")
        self._read += end
        return self._begun
