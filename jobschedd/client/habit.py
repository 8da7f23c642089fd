"""Who waits for each job that it submits is told of the next one's end without having to ask.

To ask costs a call to the store, while the job is on its way already. That the next job will be waited for is a guess:
a wrong one costs a message that nobody needs, and ends the habit until a job is waited for again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jobschedd.job import Submission

if TYPE_CHECKING:
    from jobschedd.store.listen import Inbox

#: Seconds for which a message to an inbox surely stays there (the store keeps it for ten minutes).
_KEPT = 60.0


class _Lone(NamedTuple):
    """The job that was submitted last, alone; and who is told of its end, if anybody."""

    job: str = ""
    inbox: Inbox | None = None
    taken: int = 0  # how often something had been taken from the inbox: it may have been this job's end
    at: float = 0.0


class Habit:
    """Of one client. Threads may mix: they only cost each other the guess."""

    def __init__(self) -> None:
        self._is_held = False
        self._last = _Lone()

    def inbox_for(self, jobs: Sequence[Submission], inboxes: Sequence[Inbox]) -> Inbox | None:
        """Which of these is to be told of the end of what is about to be submitted."""
        if self._last.inbox is not None:
            self._is_held = False  # nobody waited for the last one
        self._last = _Lone()
        if not self._is_held or len(jobs) != 1 or not inboxes or not inboxes[-1].number:
            return None
        # Under a key there may be an older job; tasks have records of their own.
        return None if jobs[0].key or jobs[0].array is not None else inboxes[-1]

    def note_submitted(self, ids: Sequence[str], inbox: Inbox | None) -> None:
        """These were, and ``inbox`` is told."""
        if len(ids) == 1:
            self._last = _Lone(ids[0], inbox, 0 if inbox is None else inbox.taken, time.monotonic())

    def note_another_call(self) -> None:
        """It may have been a retry of the last job: what the inbox brings is not the end to wait for then."""
        if self._last.inbox is not None:
            self._last = self._last._replace(inbox=None)

    def is_told(self, job: str, inbox: Inbox) -> bool:
        """Somebody waits for ``job``: whether ``inbox`` is told of its end already."""
        last = self._last
        if last.job != job:
            return False
        self._last, self._is_held = _Lone(), True
        return last.inbox is inbox and last.taken == inbox.taken and time.monotonic() - last.at < _KEPT
