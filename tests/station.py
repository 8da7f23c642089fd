"""What a channel process is to its jobs, without the channel: a loop, settings, and a subreaper for one test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobschedd.job import Order, Result, Spec
from jobschedd.slave.loop import Loop
from jobschedd.slave.process import CommandRun
from jobschedd.slave.processtree import Household, children_of
from jobschedd.slave.settings import ExecutionSettings

#: Children of this worker that were there before the test, such as a Redis that other tests share.
STRANGERS: set[int] = set()


def ours(pids: Iterable[int]) -> list[int]:
    """Those of ``pids`` that the test has to answer for."""
    return [pid for pid in pids if pid not in STRANGERS]


def offspring() -> list[int]:
    """The children that the test has to answer for."""
    return ours(children_of(os.getpid()))


class Station:
    """Runs commands as a channel does, any number at a time."""

    def __init__(self, workdir: Path, household: Household) -> None:
        self.loop = Loop()
        self.settings = ExecutionSettings(node="n1", channel="c1", workdir=str(workdir), term_grace=0.3)
        self.household = household
        self.results: dict[str, Result] = {}
        self.notes: list[tuple[int, int]] = []
        self._count = 0

    def set(self, **changes: Any) -> None:
        """Change settings for the runs that follow."""
        self.settings = replace(self.settings, **changes)

    def start(self, job: str = "", **spec: Any) -> CommandRun:
        """Start one; raises StartFailed."""
        self._count += 1
        order = Order(job or str(self._count), 1, f"{self._count}-0", Spec(**spec))
        run = CommandRun(order, 0, self.loop, self.settings, self._note_end, self._note_start)
        run.start()
        return run

    def run(self, *command: str, within: float = 20.0, **spec: Any) -> Result:
        """Start one and wait for its end."""
        return self.end_of(self.start(command=command or None, **spec), within)

    def shell(self, text: str, within: float = 20.0, **spec: Any) -> Result:
        """The same with a line of shell."""
        return self.end_of(self.start(shell=text, **spec), within)

    def end_of(self, run: CommandRun, within: float = 20.0) -> Result:
        """Serve the loop until this one has ended."""
        self.until(lambda: run.order.job in self.results, within)
        return self.results[run.order.job]

    def until(self, condition: Callable[[], object], within: float = 20.0) -> None:
        """Serve the loop until the condition holds."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that in time"
            self.loop.run_once(0.02)

    def _note_end(self, run: CommandRun, result: Result) -> None:
        assert run.order.job not in self.results, "ended twice"
        self.results[run.order.job] = result

    def _note_start(self, pid: int, start: int) -> None:
        self.notes.append((pid, start))


def living(mark: str) -> list[int]:
    """The processes with ``mark`` among their arguments: how a test finds what hides from everything else."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in arguments:  # a zombie has none
            found.append(int(name))
    return found
