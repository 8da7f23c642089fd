"""The client's ways into the store: connected at first use, patient afterwards, safe in threads and after a fork.

Light to import: what a mere submit does without is imported by whoever needs it.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from jobschedd.client.habit import Habit
from jobschedd.config import RedisConfig, client_settings
from jobschedd.durations import format_duration
from jobschedd.errors import InvalidJob, NotDurable, StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import Submission, Target
from jobschedd.links import Refs, linked, within
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.moves import Moves, OperationSlot
from jobschedd.store.served import served

if TYPE_CHECKING:
    from jobschedd.store.attempts import Archives
    from jobschedd.store.brief import Brief
    from jobschedd.store.direct import Direct
    from jobschedd.store.durability import Durability
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.listen import Inbox, LiveOutput

Answer = TypeVar("Answer")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


class Durable(msgspec.Struct):
    """What a submitter waits for, and what it got. ``replicas``: at least so many; ``within``: seconds."""

    replicas: int = 0
    within: float = 10.0
    confirmed: Durability | None = None


class Session:
    """Connections, operation slots and inboxes, lent to one caller at a time.

    ``brief``: set by a process that only submits a job, and ends: see ``store.brief``.
    """

    def __init__(self, url: str | None, namespace: str | None, patience: float) -> None:
        self.config: RedisConfig
        self.config, self.namespace = client_settings(url, namespace or os.environ.get("JOBSCHED_NAMESPACE"))
        self.patience = patience
        self.keys = Keys(self.namespace)
        self.brief = False
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._name = f"client/{self._pid}"
        self._reached = False
        self._slots: list[OperationSlot] = []
        self._inboxes: list[Inbox] = []
        self.habit = Habit()
        self._line: Brief | None = None
        self._moves: Moves | None = None

    @property
    def moves(self) -> Moves:
        """The write path."""
        if self._moves is None:
            from jobschedd.store.connect import connect

            self._moves = Moves(connect(self.config, self._name), self.keys)
        return self._moves

    @property
    def _redis(self) -> Direct:
        return self.moves.client

    @property
    def inspect(self) -> Inspect:
        """The read path. It does not look whether the server will do: see ``reach``."""
        from jobschedd.store.inspect import Inspect

        return Inspect(self._redis, self.keys)

    def reach(self) -> None:
        """Connect and look whether this server will do. Fails at once: nothing was promised to anybody yet."""
        if self._pid != os.getpid():
            # Two processes with one operation slot would take each other's answers for their own.
            self._start()
        if not self._reached:
            from jobschedd.store.connect import check_server

            check_server(self._redis)
            self._reached = True

    def patiently(self, operation: Callable[[], Answer]) -> Answer:
        """Do what is safe to repeat, again and again while Redis is away, for ``patience`` seconds."""
        self.reach()
        self.habit.note_another_call()
        pauses = self.pauses()
        while True:
            try:
                return operation()
            except StoreUnavailable:
                if not next(pauses):
                    raise

    def pauses(self) -> Iterator[bool]:
        """Sleeps a little longer each time and says True, until patience is over."""
        deadline, pause = time.monotonic() + self.patience, _FIRST_PAUSE
        while time.monotonic() + pause < deadline:
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
            yield True
        while True:
            yield False

    def submit(
        self,
        submissions: Sequence[Submission],
        durable: Durable | None = None,
        refs: Refs | None = None,
        workflow: str | None = None,
    ) -> list[str]:
        """One call of the submit script. However often it is sent, it has one effect.

        ``durable``: wait until it is known to survive; what was confirmed stays there. ``refs``: has checked the
        submissions and learns their ids. ``workflow``: its name; they are one. Raises NoParent, NotDurable.
        """
        if not self.brief:
            self.reach()
        submissions = [self._everywhere(one) if one.everywhere else one for one in submissions]
        jobs, first = self._linked(submissions, refs or Refs(), workflow is not None)
        about = "" if workflow is None else f"{first}:{len(jobs)}:{workflow}"
        with self._slot() as slot:
            slot.sequence += 1
            failpoint("client.submit.before")
            ids = [] if about or durable is not None else self._submit_briefly(jobs, slot)
            ids = ids or self._submit(jobs, slot, about)
            failpoint("client.submit.after")
            if refs is not None:
                refs.ids |= {job.ref: job_id for job, job_id in zip(jobs, ids, strict=True) if job.ref}
            if durable is not None:
                self._confirm(ids, slot, durable)
        return ids

    def _submit(self, jobs: Sequence[Submission], slot: OperationSlot, workflow: str) -> list[str]:
        inbox = self.habit.inbox_for(jobs, self._inboxes)
        waiter = 0 if inbox is None else inbox.number
        ids = self.patiently(lambda: self.moves.submit(jobs, slot, waiter, workflow))
        self.habit.note_submitted(ids, inbox)
        return ids

    def _submit_briefly(self, jobs: Sequence[Submission], slot: OperationSlot) -> list[str]:
        """Nothing where it takes the long way, which may be gone with the same slot."""
        if not self.brief or self._reached:
            return []
        from jobschedd.store.brief import Brief, Unusual

        try:
            self._line = Brief(self.config, self._name)
            return self._line.submit(self.keys, jobs, slot)
        except Unusual:
            self._hang_up()
            return []

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def served(self, target: Target) -> bool:
        """Whether a channel has ever been seen that a job for ``target`` could run on."""
        if self._line is not None:
            from jobschedd.store.brief import Unusual

            with suppress(Unusual):
                return served(self._line, self.keys, target, lambda: self.inspect.channels())
        self.reach()
        with translated():
            return served(self._redis, self.keys, target, lambda: self.inspect.channels())

    def _linked(
        self, submissions: Sequence[Submission], refs: Refs, workflow: bool
    ) -> tuple[Sequence[Submission], int]:
        """With ids in the place of refs. Those that refer to each other get theirs first."""
        first = 0
        if workflow or within(submissions):
            first = self.patiently(lambda: self.moves.reserve(len(submissions)))
            failpoint("client.reserve.after")
        elif not any(submission.after for submission in submissions):
            return submissions, 0
        return linked(submissions, refs.ids, first, workflow), first

    def _everywhere(self, job: Submission) -> Submission:
        """Frozen here: who comes later is not meant. Raises InvalidJob where nobody is."""
        places = self.patiently(lambda: self.inspect.places_for(job.target, job.everywhere))
        if not places:
            raise InvalidJob("all", "no node has ever been seen that matches; see 'jobsched nodes'")
        return job.at(places)

    def _confirm(self, ids: list[str], slot: OperationSlot, durable: Durable) -> None:
        from jobschedd.store.durability import confirm

        try:
            got, reason = confirm(self._redis, self.keys, slot, durable.replicas, durable.within)
        except (StoreUnavailable, StoreRefused) as error:
            raise NotDurable(ids, str(error)) from error
        if reason:
            raise NotDurable(ids, f"{reason} (waited {format_duration(durable.within)})")
        durable.confirmed = got

    @contextmanager
    def _slot(self) -> Iterator[OperationSlot]:
        try:
            slot = self._slots.pop()
        except IndexError:
            slot = OperationSlot(secrets.token_hex(8))
        try:
            yield slot
        finally:
            self._slots.append(slot)

    @contextmanager
    def inbox(self) -> Iterator[Inbox]:
        """An inbox for one wait. It may hold ids that an earlier wait gave up on."""
        from jobschedd.store.listen import Inbox

        self.reach()
        try:
            inbox = self._inboxes.pop()
        except IndexError:
            inbox = Inbox(self.config, self.keys, self.moves, self._name)
        try:
            yield inbox
        finally:
            self._inboxes.append(inbox)

    def live_output(self, job_id: str) -> LiveOutput:
        """The live output of one job, on a connection of its own."""
        from jobschedd.store.listen import LiveOutput

        return LiveOutput(self.config, self.keys, self._name, job_id)

    def archives(self) -> Archives:
        """A way to ask the masters about their histories, on a connection of its own."""
        from jobschedd.store.attempts import Archives
        from jobschedd.store.connect import blocking
        from jobschedd.store.listen import BLOCK

        self.reach()
        return Archives(self._redis, blocking(self.config, self._name, BLOCK), self.keys)

    def close(self) -> None:
        """Give all connections up."""
        self._hang_up()
        if self._moves is not None:
            self._moves.client.close()
        while self._inboxes:
            self._inboxes.pop().close()
