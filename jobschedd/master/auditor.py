"""The auditor: nothing is stuck, even where somebody deleted, evicted or lost a key of ours.

A record says where its job is; lists, sets and streams carry it there. The auditor walks all records, slowly, and
puts back what is missing. Where the dispatch entry of a job is gone, its report may still wait to be collected: it
waits until everything older is collected, has the channel end the job, and gives it to somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobschedd.clock import Clock
from jobschedd.errors import StoreRefused
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.store.moves import GoneOrder, Moves, Recovered

log = get_logger(__name__)

#: Keys that one call looks at: less than a millisecond of the server's time.
KEYS_PER_CALL = 500
#: Of the server's time, the audit takes this share at most.
SHARE = 0.01
#: Jobs that wait for a closer look; of more, the next walk tells again.
MOST_SUSPECTS = 10_000
SUSPECTS_PER_CALL = 200


@dataclass
class _Suspect:
    seen_ms: int  # server time
    told: float = 0.0  # boot time at which its channel was told to end it


class Auditor:
    """``every``: seconds between the beginnings of two walks; ``grace``: what a channel gets to end a job."""

    def __init__(self, moves: Moves, clock: Clock, *, every: float, grace: float, keep_ms: int) -> None:
        self._moves = moves
        self._clock = clock
        self._every = every
        self._grace = grace
        self._keep_ms = keep_ms
        self._cursor = "0"
        self._begun = 0.0
        self._repaired = 0
        self._suspects: dict[GoneOrder, _Suspect] = {}
        self._refused = False

    def look(self, fence: str) -> float:
        """Look at one slice; seconds until the next is due. Raises NotTheLeader, StoreUnavailable."""
        begin = self._clock.boottime()
        if self._cursor == "0":
            self._begun = begin
        try:
            audit = self._moves.audit(fence, self._cursor, KEYS_PER_CALL)
        except StoreRefused as error:
            if not self._refused:
                log.warning("may not look whether keys were lost: give the master the right to SCAN", error=error)
            self._refused = True
            return self._every
        failpoint("dispatcher.audit.after")
        self._cursor = audit.cursor
        self._repaired += audit.repaired
        for order in audit.gone:
            if len(self._suspects) < MOST_SUSPECTS:
                self._suspects.setdefault(order, _Suspect(audit.now_ms))
        now = self._clock.boottime()
        if self._cursor == "0":
            self._tell()
            return max(0.0, self._begun + self._every - now)
        return (now - begin) / SHARE

    def recover(self, fence: str) -> None:
        """Give the jobs to others whose order or report is surely gone."""
        due = [order for order, suspect in self._suspects.items() if self._is_due(suspect)]
        recovered = []
        for first in range(0, len(due), SUSPECTS_PER_CALL):
            some = due[first : first + SUSPECTS_PER_CALL]
            asked = [(order, self._suspects[order].seen_ms, self._suspects[order].told > 0) for order in some]
            answers = self._moves.recover(fence, asked, self._keep_ms)
            failpoint("dispatcher.recover.after")
            for order, answer in zip(some, answers, strict=True):
                if answer is Recovered.TOLD:
                    self._suspects[order].told = self._clock.boottime()
                elif answer is not Recovered.WAIT:
                    del self._suspects[order]
                if answer is Recovered.TAKEN:
                    recovered.append(order.job)
        if recovered:
            shown = " ".join(recovered[:20]) + (" ..." if len(recovered) > 20 else "")
            log.error("order or report was gone from Redis: taken back", jobs=shown, count=len(recovered))

    def forget(self) -> None:
        """The lead is lost: a successor begins anew."""
        self._cursor, self._repaired, self._refused = "0", 0, False
        self._suspects.clear()

    def _is_due(self, suspect: _Suspect) -> bool:
        return not suspect.told or self._clock.boottime() - suspect.told >= self._grace

    def _tell(self) -> None:
        if self._repaired:
            log.error("keys of ours were gone from Redis: put back what they held", repairs=self._repaired)
        self._repaired = 0
