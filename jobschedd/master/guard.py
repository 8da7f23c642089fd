"""The guard: whether this is the Redis that we know. When it is not, nothing goes on until an operator decides."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from jobschedd.clock import Clock
from jobschedd.errors import DataLost
from jobschedd.failpoints import failpoint
from jobschedd.job import Flag, Outcome, State
from jobschedd.logs import get_logger
from jobschedd.master.history import End, History
from jobschedd.store.inspect import Inspect
from jobschedd.store.marks import ACCEPT, ANNOUNCEMENTS_PER_CALL, REBUILD, Known, KnownEnd, Marks

log = get_logger(__name__)

#: Seconds between two looks; Redis must not be taken for the old one for longer than twice that.
LOOK_EVERY = 0.5
#: Seconds for which a rebuild waits for the channels: they try to connect every 2 s at least.
SETTLE = 5.0
#: Ids that may have been given between the last look and the loss.
ID_MARGIN = 10_000
#: Jobs whose end is looked up and settled at once.
_BATCH = 200
_RECORD = 512


class KnownFile:
    """What a master has seen, outside of Redis: one padded line, written in place, so that it costs no fsync."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> Known:
        """Nothing known when the file is absent or damaged."""
        try:
            with open(self.path, "rb") as file:
                return msgspec.json.decode(file.read(_RECORD), type=Known)
        except FileNotFoundError:
            return Known()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("cannot read what we knew of Redis; it is trusted", file=self.path, error=error)
            return Known()

    def write(self, known: Known, durably: bool) -> None:
        """Keep ``known``. ``durably``: past a crash of the machine, too. Raises OSError."""
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(descriptor, msgspec.json.encode(known).ljust(_RECORD - 1) + b"\n", 0)
            if durably:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Guard:
    """One per dispatcher. ``keep``: for how many milliseconds a record with this outcome stays."""

    def __init__(
        self,
        *,
        marks: Marks,
        inspect: Inspect,
        history: History,
        file: KnownFile,
        instance: str,
        node: str,
        keep: Callable[[Outcome], int],
        clock: Clock,
    ) -> None:
        self._marks = marks
        self._inspect = inspect
        self._history = history
        self._file = file
        self._instance = instance
        self._node = node
        self._keep = keep
        self._clock = clock
        self._known = file.read()
        self._due = 0.0
        self._told = ""
        self._resumed = False
        self._rebuilding = False
        self._rebuilding_until = 0.0
        self._settled: int | None = None
        self._restored = 0
        self._written = True

    # -- whether it is the same -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises DataLost. Asks Redis twice a second, and always after ``doubt``."""
        now = self._clock.boottime()
        if now < self._due:
            return
        try:
            known = self._marks.check(self._instance, self._node, self._known, secrets.token_hex(8))
        except DataLost as error:
            self.doubt()
            self._tell(str(error))
            raise
        self._due = now + LOOK_EVERY
        self._told = ""
        self._remember(known)
        if not self._resumed:
            self._resume()

    def doubt(self) -> None:
        """The connection broke, or an answer was strange: look again before anything else."""
        self._due = 0.0

    def _tell(self, story: str) -> None:
        if story != self._told:
            self._told = story
            log.error(
                "data are lost: nothing is dispatched until an operator decides", what=story, see="jobsched doctor"
            )

    def _remember(self, known: Known) -> None:
        if known == self._known:
            return
        if known.identity != self._known.identity:
            log.notice("working on this data of Redis", identity=known.identity, before=self._known.identity or "none")
        durably = (known.identity, known.epoch) != (self._known.identity, self._known.epoch)
        self._known = known
        try:
            self._file.write(known, durably)
            self._written = True
        except OSError as error:
            # A full disk must not stop the jobs: it costs the guard against an old Redis, at our next start.
            if self._written:
                log.error("cannot keep what we know of Redis on disk", file=self._file.path, error=error)
            self._written = False

    def _resume(self) -> None:
        """A dispatcher before us may have died in the middle of a rebuild that is ours: all is well but for that."""
        loss = self._marks.loss()
        if loss is not None and loss.rebuilding:
            log.notice("going on with a rebuild")
            self._rebuilding, self._settled, self._restored = True, None, 0
        self._resumed = True

    # -- the way back -----------------------------------------------------------------------------------------

    def attend(self) -> None:
        """While data are lost: carry out what an operator ordered, if it is for us to do."""
        loss = self._marks.loss()
        if loss is None or loss.order not in (REBUILD, ACCEPT) or loss.by != self._node:
            return
        highest = max(loss.next_id, self._known.next_id, self._highest_id()) + ID_MARGIN
        if not self._marks.begin(self._instance, loss.order, secrets.token_hex(8), highest):
            return
        failpoint("guard.begin.after")
        log.notice("beginning anew after data were lost", what=loss.what, order=loss.order)
        if loss.order == REBUILD:
            self._rebuilding, self._settled, self._restored = True, None, 0

    @property
    def rebuilding(self) -> bool:
        """Whether jobs are being brought back: nothing may be dispatched meanwhile."""
        return self._rebuilding

    def rebuild(self, fence: str) -> str:
        """One step of it, as the leader; what to tell the supervisor."""
        if self._settled is None:
            self._settled = self._settle(fence)
            failpoint("guard.settle.after")
            # Not earlier: a channel would read again what it has ended since that copy was made.
            self._marks.admit_channels()
            failpoint("guard.admit.after")
            self._rebuilding_until = self._clock.boottime() + SETTLE
        _, restored = self._marks.take_in(fence)
        self._restored += restored
        if restored:
            failpoint("guard.restore.after")
        if self._clock.boottime() >= self._rebuilding_until:
            self._marks.finish({"restored": self._restored, "settled": self._settled, "at": self._clock.now()})
            failpoint("guard.finish.after")
            log.notice("rebuilt", restored=self._restored, settled=self._settled)
            self._rebuilding = False
        return f"rebuilding: {self._restored} jobs restored, {self._settled} known to have ended"

    def abandon(self) -> None:
        """Lost again in the middle of it."""
        self._rebuilding = False

    def take_in(self, fence: str) -> None:
        """Late announcements: of nodes that were away during the rebuild."""
        while True:
            seen, restored = self._marks.take_in(fence)
            if restored:
                log.notice("restored jobs of a node that was away", count=restored)
            if seen < ANNOUNCEMENTS_PER_CALL:
                return

    def _highest_id(self) -> int:
        try:
            return self._history.highest_id()
        except (sqlite3.Error, OSError) as error:
            log.error("cannot read the history; ids go on above what we saw ourselves", error=error)
            return 0

    def _settle(self, fence: str) -> int:
        """End in Redis what has ended: an older copy does not know."""
        settled = 0
        batch: list[str] = []
        arrays: list[str] = []
        for view in self._inspect.jobs(states=_OPEN):
            if Flag.ARRAY in view.header.flags:
                arrays.append(view.id)
                continue
            batch.append(view.id)
            if len(batch) == _BATCH:
                settled += self._settle_some(fence, batch)
                batch = []
        settled += self._settle_some(fence, batch)
        # An array after its tasks: with the last of them it ends by itself, and its counts are right.
        settled += sum(self._settle_tasks(fence, array) for array in arrays)
        return settled + sum(self._settle_some(fence, arrays[at : at + _BATCH]) for at in range(0, len(arrays), _BATCH))

    def _settle_some(self, fence: str, jobs: Sequence[str]) -> int:
        return self._settle_ends(fence, self._read(self._history.ends_of, self._known.identity, jobs))

    def _settle_tasks(self, fence: str, array: str) -> int:
        """Those that had not started in that copy have no record that would be found."""
        settled, last = 0, ""
        while True:
            rows = self._read(self._history.ends_of_tasks, self._known.identity, array, last, _BATCH)
            settled += self._settle_ends(fence, rows)
            if len(rows) < _BATCH:
                return settled
            last = rows[-1][0]

    def _read(self, ends: Callable[..., list[End]], *which: Any) -> list[End]:
        try:
            return ends(*which)
        except (sqlite3.Error, OSError) as error:
            log.error("cannot read the history; what ended may run again", error=error)
            return []

    def _settle_ends(self, fence: str, rows: Sequence[End]) -> int:
        ends = [KnownEnd(job, attempt, ended, outcome, result) for job, attempt, ended, outcome, result in rows]
        return self._marks.settle(fence, ends, [self._keep(end.outcome) for end in ends])


_OPEN = frozenset({State.PENDING, State.SCHEDULED, State.WAITING, State.DISPATCHED, State.RUNNING})
