"""A job that ran when a channel process died runs alone: if it was the culprit, nobody else is charged with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobschedd.job import Order, Result, Spec
from jobschedd.slave import executor as module
from jobschedd.slave.executor import Executor
from jobschedd.slave.spool import Home
from station import Station


class Slots:
    """An executor of three slots with real processes. Jobs run until their file ``go`` appears."""

    def __init__(self, station: Station, directory: Path) -> None:
        self._station = station
        self._directory = directory
        self._register, self._spool = Home(directory / "state", "n1/c1").open("a" * 16, 3)
        self.executor = Executor(3, station.loop, station.settings, self._register, self._note_end)
        self.ended: list[str] = []
        self._count = 0

    def accept(self, job: str, crashes: int = 0) -> None:
        """An order comes in."""
        self._count += 1
        wait = f'until [ -e "{self._directory}/{job}" ]; do sleep 0.01; done'
        self.executor.accept([Order(job, 1, f"{self._count}-0", Spec(shell=wait), crashes=crashes)])

    def running(self) -> list[str]:
        """What runs after another look at what is held."""
        self.executor.fill()
        return sorted(running.order.job for running in self.executor.running())

    def end(self, job: str) -> None:
        """Let it end."""
        (self._directory / job).touch()
        self._station.until(lambda: job in self.ended)

    def close(self) -> None:
        """Let all end."""
        for job in self.running():
            self.end(job)
        self.executor.close()
        self._register.close()
        self._spool.close()

    def _note_end(self, order: Order, _result: Result) -> None:
        self.ended.append(order.job)


@pytest.fixture
def slots(station: Station, tmp_path: Path) -> Iterator[Slots]:
    slots = Slots(station, tmp_path)
    yield slots
    slots.executor.give_back()
    slots.close()


def test_nothing_starts_beside_it(slots):
    slots.accept("suspect", crashes=1)
    slots.accept("other")
    assert slots.running() == ["suspect"] and slots.executor.reserved
    slots.end("suspect")
    assert slots.running() == ["other"] and not slots.executor.reserved


def test_it_waits_for_what_runs_and_keeps_its_place(slots):
    slots.accept("first")
    assert slots.running() == ["first"]
    slots.accept("suspect", crashes=1)
    slots.accept("other")
    assert slots.running() == ["first"] and slots.executor.reserved
    assert [order.job for order in slots.executor.give_back(older_than=1e-9)] == ["other"]
    slots.end("first")
    assert slots.running() == ["suspect"]


def test_two_of_them_never_run_side_by_side(slots, monkeypatch):
    monkeypatch.setattr(module, "SUSPECT_PATIENCE", 0.0)
    slots.accept("one", crashes=1)
    slots.accept("two", crashes=1)
    assert slots.running() == ["one"]
    assert [order.job for order in slots.executor.give_back(older_than=1e-9)] == ["two"], "for another channel"
    slots.end("one")
    assert slots.running() == []


def test_it_does_not_wait_for_ever(slots, monkeypatch):
    slots.accept("of a day")
    assert slots.running() == ["of a day"]
    slots.accept("suspect", crashes=1)
    assert slots.running() == ["of a day"]
    monkeypatch.setattr(module, "SUSPECT_PATIENCE", 0.0)
    slots.accept("other")
    assert slots.running() == ["of a day", "suspect"]
    slots.end("suspect")
    assert slots.running() == ["of a day", "other"]


def test_a_stop_gives_it_back_too(slots):
    slots.accept("first")
    slots.running()
    slots.accept("suspect", crashes=1)
    assert [order.job for order in slots.executor.give_back()] == ["suspect"]
    assert not slots.executor.reserved


def test_one_that_cannot_start_reserves_nothing(slots):
    slots.executor.accept([Order("broken", 1, "9-0", Spec(command=("/nonexistent",)), crashes=1)])
    assert slots.running() == [] and slots.ended == ["broken"] and not slots.executor.reserved


def test_one_that_is_cancelled_while_it_waits_reserves_nothing(slots):
    slots.accept("first")
    slots.running()
    slots.accept("suspect", crashes=1)
    assert slots.executor.cancel("suspect")
    assert not slots.executor.reserved
