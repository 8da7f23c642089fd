"""What each move costs Redis per job, by the server's own counters: a slower hot path fails here, on any machine.

The bounds are what was counted when they were written, and a tenth more of bytes. A change that lowers a cost lowers
its bound; one that has to raise it says why in its message.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from benchmarks.counters import Cost, counted
from benchmarks.life import NOOP, costs_of_moves

JOBS = 1000


@dataclass(frozen=True)
class Bound:
    """At most so much of each; bytes per job, the rest for all of ``JOBS`` jobs together."""

    commands: int
    scripts: int
    bytes_in: float
    bytes_out: float


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    """Of each move. Counted once for the module."""
    return costs_of_moves(JOBS)


#: A handful of commands come with the call, the rest with each job.
BOUNDS = {
    "submit": Bound(JOBS + 15, 1, 114, 3),
    "dispatch": Bound(3 * JOBS + 10, 1, 0.4, 3),
    "receive": Bound(1, 0, 0.2, 158),
    "report": Bound(JOBS + 40, 1, 249, 7),
    "read": Bound(1, 0, 0.2, 240),
    "collect": Bound(2 * JOBS + 5, 1, 182, 125),
    "forget": Bound(1, 0, 0.9, 1.5),
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
    assert cost.calls <= 14 * 100, cost.commands
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
