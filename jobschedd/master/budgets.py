"""Byte budgets of what is in Redis: submits are refused in time, so that results always find room.

The dispatcher looks once a second: INFO and a sample of the keys. What a burst of submits brings between two looks
comes on top of a budget; ``reserve`` is there for that, and for results.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from jobschedd.clock import Clock
from jobschedd.logs import get_logger
from jobschedd.store.memory import Memory, Sample, Usage

log = get_logger(__name__)

#: Seconds between two looks, and milliseconds that the word of one lasts should the leader die.
LOOK_EVERY, WORD_LASTS_MS = 1.0, 10_000
#: Weight of the newest sample: one alone is off by a tenth and more.
_NEWEST = 0.2
#: Records are forgotten down to this share of their budget, and this share of them in one pass: what a few samples
#: say of many records may be off by more than the budget of a few.
_DOWN_TO, _AT_ONCE = 0.95, 0.5
#: Ids looked through at once, and calls in one pass.
_IDS, _CALLS = 2000, 20

#: Budgets of their own that finished records may have, and what the log calls those jobs.
_BY_OUTCOME = ("succeeded", "failed")
_WORDS = {"succeeded": "succeeded", "failed": "did not succeed"}


class Budgets:
    """The leader's care for memory.

    ``shares``: pending, finished, output, reserve, and of the finished succeeded and failed: up to 1 of maxmemory, else
    bytes; 0: no budget.

    ``age_ms``: what a record has at least before it is forgotten, so that whoever waited for the job can read it.
    """

    def __init__(
        self, memory: Memory, shares: Mapping[str, float], clock: Clock, age_ms: int, history: str = ""
    ) -> None:
        self._memory = memory
        self._shares = shares
        self._clock = clock
        self._age_ms = age_ms
        self._history = history
        self._smooth: dict[str, float] = {}
        self._next: dict[str, int] = {}  # id to look at, by which records are to be forgotten
        self._full = ""

    def look(self, fence: str) -> None:
        """Measure, refuse or admit, forget. Raises NotTheLeader, StoreUnavailable, StoreRefused."""
        used, maxmemory = self._memory.limits()
        budgets = {name: _bytes(share, maxmemory) for name, share in self._shares.items()}
        sample = self._memory.sample() if any(budgets.values()) else Sample(0, 0)
        finished, output = self._smoothed("finished", sample), self._smoothed("output", sample)
        pending = sample.waiting_bytes + self._smoothed("blocked", sample)
        full = fullness(budgets, pending, used, maxmemory)
        if bool(full) != bool(self._full):  # the figures in it change at every look
            log.warning("queue full: submits are refused", why=full) if full else log.notice("queue is open again")
        self._full = full
        usage = Usage(
            at=self._clock.now(),
            pending=pending,
            finished=finished,
            output=output,
            used=used,
            maxmemory=maxmemory,
            budgets=budgets,
            full=full,
            history=self._history,
            history_bytes=_size(self._history),
        )
        self._memory.admit(fence, usage, 0 < budgets["output"] < output, WORD_LASTS_MS)
        for which in _BY_OUTCOME:
            self._keep_within(fence, which, f"finished-{which}", budgets.get(which, 0), sample)
        self._keep_within(fence, "", "finished", budgets["finished"], sample)

    def _smoothed(self, kind: str, sample: Sample) -> int:
        now = float(sample.bytes_of(kind))
        before = self._smooth.get(kind, now)
        self._smooth[kind] = before + _NEWEST * (now - before)
        return round(self._smooth[kind])

    def _keep_within(self, fence: str, which: str, kind: str, budget: int, sample: Sample) -> None:
        if not budget:
            return
        used = round(self._smooth[kind]) if kind == "finished" else self._smoothed(kind, sample)
        if used > budget:
            freed = self._forget(fence, which, round(_AT_ONCE * (used - _DOWN_TO * budget)))
            for each in {kind, "finished"}:
                self._smooth[each] = max(0.0, self._smooth[each] - freed)

    def _forget(self, fence: str, which: str, wanted: int) -> int:
        """Those submitted first go first; the next look goes on where this one stopped. Bytes freed."""
        freed = forgotten = 0
        for _ in range(_CALLS):
            first = self._next.get(which, 1)
            part, records, following = self._memory.shed(fence, first, _IDS, wanted - freed, self._age_ms, which)
            freed, forgotten = freed + part, forgotten + records
            self._next[which] = following or 1
            if freed >= wanted or not following:
                break
        if forgotten:
            what = f"records of jobs that {_WORDS[which]}" if which else "finished records"
            log.info(f"{what} are over their budget: the oldest are forgotten", records=forgotten, bytes=freed)
        return freed


def fullness(budgets: Mapping[str, int], pending: int, used: int, maxmemory: int) -> str:
    """What is full, for people; empty where nothing is. Pure."""
    if 0 < budgets["pending"] <= pending:
        return f"jobs that wait use {_amount(pending)} of their {_amount(budgets['pending'])} (budgets.pending)"
    if maxmemory and used >= maxmemory - budgets["reserve"]:
        room = f"{_amount(used)} of {_amount(maxmemory)}"
        return f"Redis uses {room}, and the rest is reserved for results (budgets.reserve)"
    return ""


def _bytes(share: float, maxmemory: int) -> int:
    return round(share * maxmemory) if share <= 1 else round(share)


def _amount(number: int) -> str:
    return f"{number / 1024:.0f} KiB" if number < 10 << 20 else f"{number / (1 << 20):.0f} MiB"


def _size(path: str) -> int:
    """Of a SQLite file, with what is written beside it."""
    total = 0
    for name in (path, f"{path}-wal"):
        try:
            total += os.stat(name).st_size if path else 0
        except OSError:
            continue
    return total
