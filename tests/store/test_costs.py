"""What each move costs Redis per job, by the server's own counters: a slower hot path fails here, on any machine.

The bounds are what was counted when they were written, and a tenth more of bytes. A change that lowers a cost lowers
its bound; one that has to raise it says why in its message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest

from benchmarks.counters import Cost, counted
from jobschedd.job import Outcome, Report, ReportKind, Result, encode
from jobschedd.store.moves import Verb
from redis_server import RedisServer
from store_driver import KEEP, Driver

JOBS = 1000
NOOP = {"function": "package.module:function"}


@dataclass(frozen=True)
class Bound:
    """At most so much of each; bytes per job, the rest for all of ``JOBS`` jobs together."""

    commands: int
    scripts: int
    bytes_in: float
    bytes_out: float


class Life:
    """A thousand equal jobs that go through all moves, with nobody else there."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.channel = driver.channel(window=10 * JOBS)
        self.watcher = driver.server.client()
        self.ids: list[str] = []
        self.entries: list[tuple[str, dict[bytes, bytes]]] = []
        self.collected: list[bytes] = []

    def run(self) -> dict[str, Cost]:
        """Move -> what it cost. Everything was called once before, so that scripts are loaded and classes known."""
        for move in self.moves():
            move()
        costs = {}
        for move in self.moves():
            with counted(self.watcher) as costs[move.__name__.strip("_")]:
                move()
        self.watcher.close()
        return costs

    def moves(self) -> tuple[Callable[[], object], ...]:
        return self._submit, self._dispatch, self._receive, self._report, self._read, self._collect, self._forget

    def _submit(self) -> None:
        self.ids = self.driver.submit_items([NOOP] * JOBS)

    def _dispatch(self) -> None:
        header = self.driver.header(self.ids[0])
        assert self.driver.dispatch(self.channel, JOBS, header.job_class, header.priority).sent == JOBS

    def _receive(self) -> None:
        self.entries = self.channel.entries()

    def _report(self) -> None:
        handed = self.channel.store.report_of(self.channel.incarnation, [self._told(*each) for each in self.entries])
        assert handed == [True] * JOBS

    def _told(self, entry: str, order: dict[bytes, bytes]) -> tuple[str, bytes]:
        report = Report(
            kind=ReportKind.RESULT,
            job=order[b"job"].decode(),
            attempt=1,
            entry=entry,
            incarnation=self.channel.incarnation,
            outcome=Outcome.SUCCEEDED,
            cause="returned",
            result=self._result(),
        )
        return entry, encode(report)

    def _result(self) -> bytes:
        ended = 1_700_000_000.5
        return encode(
            Result(outcome=Outcome.SUCCEEDED, cause="returned", node="n1", channel="1", started=ended, ended=ended)
        )

    def _read(self) -> None:
        self.collected = [entry for entry, _ in self.watcher.xrange(self.driver.keys.results)]

    def _collect(self) -> None:
        arguments: list[Any] = []
        for entry, order in self.entries:
            head = [Verb.DONE, order[b"job"].decode(), 1, entry]
            arguments += [*head, int(Outcome.SUCCEEDED), self._result(), KEEP, "", ""]
        verdicts = self.driver.moves.collect(self.driver.fence, arguments)
        assert all(verdict == 1 for verdict, _ in verdicts)

    def _forget(self) -> None:
        self.driver.moves.delete_collected(self.collected)


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    """Of each move. Counted once for the module."""
    server = RedisServer().start()
    driver = Driver(server)
    try:
        driver.lead()
        return Life(driver).run()
    finally:
        driver.close()
        server.close()


#: A handful of commands come with the call, the rest with each job.
BOUNDS = {
    "submit": Bound(JOBS + 15, 1, 114, 3),
    "dispatch": Bound(3 * JOBS + 10, 1, 0.4, 3),
    "receive": Bound(1, 0, 0.2, 158),
    "report": Bound(2 * JOBS + 1, 1, 249, 7),
    "read": Bound(1, 0, 0.2, 272),
    "collect": Bound(2 * JOBS + 5, 1, 182, 125),
    "forget": Bound(1, 0, 26, 3),
}


@pytest.mark.parametrize("move", BOUNDS)
def test_a_move_costs_no_more_than_it_did(costs, move):
    cost, bound = costs[move], BOUNDS[move]
    found = Bound(cost.calls, cost.script_calls, cost.bytes_in / JOBS, cost.bytes_out / JOBS)
    for field in fields(Bound):
        assert getattr(found, field.name) <= getattr(bound, field.name), (move, field.name, dict(cost.commands))


def test_every_move_was_counted(costs):
    assert list(costs) == list(BOUNDS)
    assert all(cost.calls for cost in costs.values())


def test_a_job_that_is_submitted_alone_takes_one_call(driver, redis_server):
    """Whether a channel is there that waits for it or not."""
    driver.submit_items([NOOP])  # loads the script
    with redis_server.client() as watcher, counted(watcher) as cost:
        for _ in range(100):
            driver.submit_items([NOOP])
    assert cost.script_calls == 100
    assert cost.calls <= 13 * 100, cost.commands
    assert cost.bytes_in <= 375 * 100 and cost.bytes_out <= 60 * 100


class TestMemory:
    """What the server itself says of one record; its clients' buffers and the growth of its tables left out."""

    def test_of_a_job_that_waits(self, driver):
        (job,) = driver.submit_items([NOOP])
        assert self.beside_the_spec(driver, job) <= 150

    def test_of_a_job_that_ended(self, driver):
        job, _ = driver.dispatched(driver.channel(), function=NOOP["function"])
        driver.end(job)
        assert self.beside_the_spec(driver, job) <= 250

    @staticmethod
    def beside_the_spec(driver, job: str) -> int:
        return driver.client.memory_usage(driver.keys.job(job), samples=0) - len(driver.record(job).spec)
