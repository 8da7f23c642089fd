"""A dispatcher and a collector that go one turn when told to, under a clock that a test moves."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobschedd.clock import FakeClock
from jobschedd.master.collector import Collector, Keep
from jobschedd.master.dispatcher import Dispatcher
from jobschedd.master.history import History
from jobschedd.master.leadership import EpochFile, Leadership
from jobschedd.master.placement import Placement
from jobschedd.store.bell import Bell
from jobschedd.store.connect import blocking
from jobschedd.store.results import ResultStream
from redis_server import RedisServer
from store_driver import KEEP, Driver

LEASE, REAP, BLOCK, LEAD = 15.0, 2.0, 0.005, 10.0


class Master:
    """One instance: ``dispatcher`` and ``collector``, built anew by ``restart``."""

    def __init__(self, driver: Driver, clock: FakeClock, directory: Path, instance: str) -> None:
        self.driver = driver
        self.clock = clock
        self.directory = directory
        self.instance = instance
        self.history_path = str(directory / f"{instance}.db")
        self.waited: list[float] = []
        self.restart()

    def restart(self) -> None:
        """As after a crash of both processes: nothing in memory remains."""
        self.restart_dispatcher()
        self.restart_collector()

    def restart_dispatcher(self) -> None:
        """As after a crash of the dispatcher."""
        driver = self.driver
        epochs = EpochFile(str(self.directory / f"epoch-{self.instance}"))
        self.placement = Placement("least_loaded")
        self.bell = Bell(blocking(driver.config, "bell", BLOCK), driver.keys)
        self.dispatcher = Dispatcher(
            moves=driver.moves,
            survey=driver.survey,
            bell=self.bell,
            leadership=Leadership(driver.moves, self.instance, LEAD, epochs, self.clock),
            placement=self.placement,
            clock=self.clock,
            lease=LEASE,
            reap_scan=REAP,
            block=BLOCK,
            keep_ms=KEEP,
            keep_successes_ms=KEEP,
        )

    def restart_collector(self) -> None:
        """As after a crash of the collector."""
        driver = self.driver
        self.results = ResultStream(blocking(driver.config, "results", BLOCK), driver.keys)
        self.history = History(self.history_path)
        self.collector = Collector(
            moves=driver.moves,
            survey=driver.survey,
            results=self.results,
            history=self.history,
            instance=self.instance,
            clock=self.clock,
            block=BLOCK,
            keep=Keep(KEEP, 2 * KEEP),
            max_payload=100_000,
        )

    def rows(self, columns: str = "job, attempt, final, outcome, cause") -> list[tuple[Any, ...]]:
        """The history, in order."""
        if not os.path.exists(self.history_path):
            return []
        with sqlite3.connect(self.history_path) as database:
            found = database.execute(f"SELECT {columns} FROM attempts ORDER BY job, attempt, final").fetchall()
        database.close()
        return found

    def dispatch(self, turns: int = 3, advance: float = 0.0) -> str:
        """So many turns of the dispatcher, the clock moving before each."""
        said = ""
        for _ in range(turns):
            self.clock.advance(advance)
            said = self.dispatcher.step(self.waited.append)
        return said

    def collect(self, turns: int = 3, advance: float = 0.15) -> str:
        """So many turns of the collector; enough time passes for each to write its history."""
        said = ""
        for _ in range(turns):
            self.clock.advance(advance)
            said = self.collector.step(self.waited.append)
        return said


@pytest.fixture
def driver(redis_server: RedisServer) -> Iterator[Driver]:
    """Nobody leads yet."""
    driver = Driver(redis_server)
    driver.client.config_set("hz", 500)  # how soon the server ends a blocking read
    yield driver
    with redis_server.client() as client:
        client.config_set("hz", 10)
    driver.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make_master(driver: Driver, clock: FakeClock, tmp_path: Path) -> Callable[[str], Master]:
    return lambda instance: Master(driver, clock, tmp_path, instance)


@pytest.fixture
def master(make_master: Callable[[str], Master]) -> Master:
    """Leads after its first turn."""
    master = make_master("m1")
    assert master.dispatch(1).startswith("leading")
    fence = master.driver.moves.leader()
    assert fence is not None
    master.driver.fence = fence
    return master
