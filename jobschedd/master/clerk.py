"""The clerk: a thread beside the dispatcher that answers questions about the history and keeps the file small.

A thread, for what it does is waiting: for questions, and for SQLite, which lets the interpreter go while it searches.
It has a low claim to the processor, works through what is large in small pieces, and shares nothing with the
dispatcher but the process. Whether its master leads does not matter: whatever a history holds can be asked for.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobschedd.clock import Clock
from jobschedd.errors import ProtocolError, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.master.archive import Archive
from jobschedd.store.attempts import AnsweringMachine, Question

log = get_logger(__name__)

#: Seconds between two signs of life, and for how long one holds.
ATTEND_EVERY, ATTENDS = 3.0, 10.0
#: Seconds between two looks whether something is too old or too much, and between two batches: the collector's turn.
TIDY_EVERY, TIDY_PAUSE = 60.0, 0.02
#: Seconds to wait after trouble with Redis or the file.
PAUSE = 2.0
#: How much nicer than its process: its share beside others that want the processor is a tenth of theirs.
NICE = 10


def leave_signals_alone() -> None:
    """For a thread beside the main one: signals are for that, whose calls they must interrupt."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Clerk:
    """One per master instance. ``keep``: seconds for which rows are kept, 0 for ever; ``largest``: bytes of rows."""

    def __init__(
        self, machine: AnsweringMachine, archive: Archive, keep: float, largest: int | None, clock: Clock
    ) -> None:
        self._machine = machine
        self._archive = archive
        self._keep = keep
        self._largest = largest
        self._clock = clock
        self._stop = threading.Event()
        self._attend_due = 0.0
        self._tidy_due = 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The thread runs while this is open; it is not waited for longer than a moment."""
        thread = threading.Thread(target=self._run, name="clerk", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(PAUSE)

    def _run(self) -> None:
        leave_signals_alone()
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, nice + NICE))
        while not self._stop.is_set():
            try:
                self.step()
            except (StoreUnavailable, StoreRefused) as error:
                log.debug("no questions: Redis is away", error=error)
                self._stop.wait(PAUSE)
            except Exception as error:  # noqa: BLE001 - jobs must not suffer from whatever goes wrong here
                log.error("trouble while looking after the history", error=repr(error))
                self._stop.wait(PAUSE)
        with suppress(StoreUnavailable, StoreRefused):
            self._machine.attend(0)
        self._archive.close()

    def step(self) -> None:
        """One turn: a sign of life, a question if there is one, a little tidying if that is due."""
        now = self._clock.boottime()
        if now >= self._attend_due:
            self._machine.attend(ATTENDS)
            self._attend_due = now + ATTEND_EVERY
        if self._clock.boottime() >= self._tidy_due:
            self._tidy()
        try:
            question = self._machine.take(max(0.0, min(self._tidy_due, self._attend_due) - self._clock.boottime()))
        except ProtocolError as error:
            log.warning("cannot read a question", error=error)
            return
        if question is not None:
            self._answer(question)

    def _answer(self, question: Question) -> None:
        try:
            rows, more = self._archive.page(question.query)
        except (sqlite3.Error, OSError) as error:
            log.error("cannot read the history", error=error)
            self._machine.answer(question, (), False, f"cannot read its history: {error}")
            return
        failpoint("clerk.answer.before")
        self._machine.answer(question, rows, more)

    def _tidy(self) -> None:
        """One batch; the next one soon where there is more to do."""
        try:
            more = self._archive.complete()
            deleted = self._archive.prune(self._clock.now() - self._keep if self._keep else 0.0, self._largest)
            failpoint("clerk.prune.after")
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot tidy the history up; trying again later", error=error)
            more, deleted = False, 0
        if deleted:
            log.debug("deleted old rows of the history", count=deleted)
        self._tidy_due = self._clock.boottime() + (TIDY_PAUSE if more or deleted else TIDY_EVERY)
