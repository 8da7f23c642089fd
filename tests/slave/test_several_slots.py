"""The executor and orders that take several slots: never more slots than there are, and the register says so too."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobschedd.job import Cause, Order, Outcome, Result, Spec
from jobschedd.slave.executor import Executor
from jobschedd.slave.process import CommandRun, StartFailed
from jobschedd.slave.spool import Home
from station import Station

SLOTS = 4
FIXTURES = Path(__file__).parent / "fixtures"


class Slots:
    """An executor of four slots with real processes. A command runs until the file of its name appears."""

    def __init__(self, station: Station, directory: Path) -> None:
        self.station = station
        self.directory = directory
        self.home = Home(directory / "state", "n1/c1")
        self.register, self._spool = self.home.open("a" * 16, SLOTS)
        self.executor = Executor(SLOTS, station.loop, station.settings, self.register, self._note_end)
        self.ended: dict[str, Result] = {}
        self.asked: dict[str, int] = {}

    def accept(self, job: str, slots: int = 1, crashes: int = 0, **spec) -> None:
        """An order comes in."""
        self.asked[job] = slots
        wait = f'until [ -e "{self.directory}/{job}" ]; do sleep 0.01; done'
        what = spec if "function" in spec else {"shell": wait} | spec
        resources = {"slots": slots} if slots > 1 else {}
        entry = f"{len(self.asked)}-0"
        self.executor.accept([Order(job, 1, entry, Spec(**what, resources=resources), crashes=crashes)])

    def running(self) -> list[str]:
        """What runs after another look at what is held."""
        self.executor.fill()
        running = sorted(running.order.job for running in self.executor.running())
        assert sum(self.asked[job] for job in running) <= SLOTS
        return running

    def end(self, job: str) -> None:
        """Let it end."""
        (self.directory / job).touch()
        self.station.until(lambda: job in self.ended)
        self.executor.settle()

    def close(self) -> None:
        """Let all end."""
        while running := self.running():
            for job in running:
                self.end(job)
        self.executor.close()
        self.register.close()
        self._spool.close()

    def _note_end(self, order: Order, result: Result) -> None:
        self.ended[order.job] = result


@pytest.fixture
def slots(station: Station, tmp_path: Path) -> Iterator[Slots]:
    station.set(python_path=(str(FIXTURES),))
    slots = Slots(station, tmp_path)
    yield slots
    slots.executor.give_back()
    slots.close()


def test_nothing_starts_in_what_it_has(slots):
    slots.accept("wide", 3)
    slots.accept("a")
    slots.accept("b")
    assert slots.running() == ["a", "wide"]
    assert slots.executor.slots_in_use() == SLOTS
    slots.end("wide")
    assert slots.running() == ["a", "b"]


def test_it_waits_until_as_many_are_free_and_keeps_its_place(slots):
    for job in ("a", "b"):
        slots.accept(job)
    assert slots.running() == ["a", "b"]
    slots.accept("wide", 3)
    slots.accept("behind")
    assert slots.running() == ["a", "b"]
    slots.end("a")
    assert slots.running() == ["b", "wide"]
    slots.end("b")
    assert slots.running() == ["behind", "wide"]


def test_the_window_is_to_shrink_by_what_it_has_beside_one(slots):
    slots.accept("wide", 3)
    assert slots.executor.extra_slots == 2, "also while it is held"
    slots.running()
    assert slots.executor.extra_slots == 2
    slots.accept("held", 2)
    assert slots.executor.extra_slots == 3
    assert [order.job for order in slots.executor.give_back()] == ["held"]
    slots.end("wide")
    assert slots.executor.extra_slots == 0


def test_one_that_is_cancelled_while_it_waits_frees_what_it_asked_for(slots):
    slots.accept("a")
    slots.running()
    slots.accept("wide", 4)
    slots.running()
    assert slots.executor.cancel("wide")
    assert slots.executor.extra_slots == 0 and slots.ended["wide"].outcome is Outcome.CANCELLED


def test_one_that_cannot_start_frees_them(slots):
    slots.accept("broken", 4, shell=None, command=("/nonexistent",))
    slots.accept("wide", 4)
    assert slots.running() == ["wide"]


def test_a_shortage_frees_them_and_it_is_given_back(slots, monkeypatch):
    def refuse(_run: CommandRun) -> None:
        raise StartFailed(Cause.RESOURCE, "no more processes")

    monkeypatch.setattr(CommandRun, "start", refuse)
    slots.accept("wide", 4)
    assert slots.running() == [] and slots.executor.short_of_resources
    assert [order.job for order in slots.executor.give_back()] == ["wide"]
    monkeypatch.undo()
    slots.accept("again", 4)
    assert slots.running() == ["again"] and slots.executor.extra_slots == 3


def test_more_than_there_are_never_starts_and_is_given_back(slots):
    slots.accept("too wide", SLOTS + 1)
    assert slots.running() == []
    assert [order.job for order in slots.executor.give_back(older_than=1e-9)] == ["too wide"]
    assert slots.executor.extra_slots == 0


def test_a_successor_does_not_take_them_for_free(slots):
    slots.accept("wide", 3)
    slots.accept("a")
    slots.running()
    successor = Home(slots.directory / "state", "n1/c1")
    assert successor.busy_elsewhere() == SLOTS
    slots.end("wide")
    assert successor.busy_elsewhere() == 1


def test_a_function_with_several(slots):
    executor = slots.executor
    executor.depth = 8
    slots.accept("wide", 3, function="tasks:wait_for", args=json.dumps([str(slots.directory / "wide")]).encode())
    for number in range(4):
        slots.accept(f"f{number}", function="tasks:nothing")
    executor.fill()
    assert executor.slots_in_use() == SLOTS, "its runner, two that nothing may start in, and one more"
    slots.station.until(lambda: len(slots.ended) >= 2, 20)
    assert len(slots.register.busy()) >= 3 and "wide" not in slots.ended
    (slots.directory / "wide").touch()
    slots.station.until(lambda: executor.fill() or len(slots.ended) == 5)
    assert {result.outcome for result in slots.ended.values()} == {Outcome.SUCCEEDED}
    executor.settle()
    assert executor.extra_slots == 0 and slots.register.busy() == frozenset()


@pytest.mark.parametrize("seed", range(3))
def test_never_more_than_there_are(slots, seed):
    """Whatever comes and ends in whatever order; ``running`` and the register agree at every step."""
    chance, count = random.Random(seed), 0
    for _ in range(40):
        what = chance.choice(["accept", "accept", "end", "end", "give back"])
        running = slots.running()
        if what == "accept" and len(slots.executor._held) < 6:
            count += 1
            slots.accept(f"j{count}", chance.choice([1, 1, 1, 2, 3, 4]))
        elif what == "end" and running:
            slots.end(chance.choice(running))
        elif what == "give back":
            slots.executor.give_back()
        running = slots.running()
        used = sum(slots.asked[job] for job in running)
        assert len(slots.register.busy()) == slots.executor.slots_in_use() == used
        here = [*running, *(order.job for order, _ in slots.executor._held)]
        assert slots.executor.extra_slots == sum(slots.asked[job] - 1 for job in here)
