"""A batch of equal jobs that goes through all moves of the store, one call a move, with nobody else there.

No daemon runs, so what is counted or timed is the moves alone. ``tests/store/test_costs.py`` holds the counts down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.counters import Cost, counted
from benchmarks.environments import ROOT
from jobschedd.job import Outcome, Report, ReportKind, Result, encode
from jobschedd.store.moves import Verb

NOOP = {"function": "package.module:function"}
#: Milliseconds for which ended records are kept.
KEEP = 60_000
_ENDED = 1_700_000_000.5


class Life:
    """``driver``: of the tests, see ``store_driver``. ``item``: what is submitted, over and over."""

    def __init__(self, driver: Any, jobs: int, **item: Any) -> None:
        self.driver = driver
        self.jobs = jobs
        self.item = NOOP | item
        self.channel = driver.channel(window=10 * jobs)
        self.watcher = driver.server.client()
        self.ids: list[str] = []
        self.entries: list[tuple[str, dict[bytes, bytes]]] = []
        self.collected: list[bytes] = []

    def run(self) -> dict[str, Cost]:
        """Move -> what it cost. Everything was called once before, so that scripts are loaded and classes known."""
        for move in self._moves():
            move()
        costs = {}
        for move in self._moves():
            with counted(self.watcher) as costs[move.__name__.strip("_")]:
                move()
        self.watcher.close()
        return costs

    def _moves(self) -> tuple[Callable[[], object], ...]:
        return self._submit, self._dispatch, self._receive, self._report, self._read, self._collect, self._forget

    def _submit(self) -> None:
        self.ids = self.driver.submit_items([self.item] * self.jobs)

    def _dispatch(self) -> None:
        header = self.driver.header(self.ids[0])
        assert self.driver.dispatch(self.channel, self.jobs, header.job_class, header.priority).sent == self.jobs

    def _receive(self) -> None:
        self.entries = self.channel.entries()

    def _report(self) -> None:
        handed = self.channel.store.report_of(self.channel.incarnation, [self._told(*each) for each in self.entries])
        assert handed == [True] * self.jobs

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
        result = Result(
            outcome=Outcome.SUCCEEDED, cause="returned", node="n1", channel="1", started=_ENDED, ended=_ENDED
        )
        return encode(result)

    def _read(self) -> None:
        self.collected = [entry for entry, _ in self.watcher.xrange(self.driver.keys.results)]

    def _collect(self) -> None:
        arguments: list[Any] = [Verb.SUCCEEDED, len(self.entries), KEEP]
        for entry, order in self.entries:
            arguments += [order[b"job"].decode(), 1, entry, self._result()]
        verdicts = self.driver.moves.collect(self.driver.fence, arguments)
        assert all(verdict == 1 for verdict, _ in verdicts)

    def _forget(self) -> None:
        self.driver.moves.delete_collected(self.collected)


def costs_of_moves(jobs: int) -> dict[str, Cost]:
    """Those of one life on a server of its own."""
    sys.path.append(str(ROOT / "tests"))
    from redis_server import RedisServer
    from store_driver import Driver

    server = RedisServer().start()
    driver = Driver(server)
    try:
        driver.lead()
        return Life(driver, jobs).run()
    finally:
        driver.close()
        server.close()
