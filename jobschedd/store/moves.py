"""The write path: one method a move, each one server-side script (``lua/``) and atomic.

Writes of the master carry a fence, ``<instance>:<epoch>``, that the script compares with the lead in Redis:
a master that lost it gets NotTheLeader and has changed nothing. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from jobschedd.job import Array, Flag, Header, Outcome, Place, State, Submission, flags_of
from jobschedd.limits import Rate, stored
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import CHANNEL_LIBRARY, MOVES, channel_library, load_moves, moves_library, script

if TYPE_CHECKING:
    from jobschedd.store.direct import Direct
    from jobschedd.store.survey import ChannelInfo, Kept

OPERATION_MEMORY = 3_600_000


class Verdict(IntEnum):
    """What became of a report."""

    ACCEPTED = 1
    DUPLICATE = 2  # of an end that was accepted before
    STALE = 3  # of an attempt that was superseded
    UNKNOWN = 4  # of a job that has no record


_LIBRARY_OF_MOVES = re.compile(rb"%b[0-9a-f]+" % MOVES.encode())
_VERDICTS = {int(verdict): verdict for verdict in Verdict}


#: A verdict, and the record before it where the history needs that.
Judged = tuple[Verdict, bytes | None]


class CancelAnswer(IntEnum):
    """What became of a request to cancel."""

    CANCELLED = 1
    REQUESTED = 2  # a channel has it: it ends it, unless the job ends by itself first
    ENDED = 3
    UNKNOWN = 4


class HoldAnswer(IntEnum):
    """What became of a wish to hold, release or re-prioritise a job."""

    DONE = 1
    NOT_WAITING = 2  # a channel has it; of a release: it was not held
    ENDED = 3
    UNKNOWN = 4
    IN_ARRAY = 5  # a task that has not started: it waits in its array
    BY_TASKS = 6  # a job for all nodes: its tasks wait by themselves


class RetryAnswer(IntEnum):
    """What became of a user's retry."""

    PENDING = 1
    NOT_ENDED = 2  # or not with the end that was meant
    KEY_TAKEN = 3  # it was to be the only one under its key, and another one is now
    UNKNOWN = 4
    WAITING = 5  # for what it is to run after


class Assignment(msgspec.Struct, frozen=True):
    """Take up to ``count`` jobs of this class and priority for this channel incarnation."""

    job_class: int
    priority: int
    incarnation: str
    count: int
    terms: bytes = b""  # what these jobs count against (see limits.Terms); empty: nothing


class Offer(NamedTuple):
    """Lone jobs of this class may go to whichever of these has a slot free: channel incarnations and their slots."""

    job_class: int
    channels: tuple[tuple[str, int], ...]


class Dispatched(msgspec.Struct, frozen=True):
    """What came of an assignment. ``window`` is -1 when the incarnation's lease is gone.

    ``bound``: what keeps the rest back: the key of a limit, ``rate:`` and the key of a rate, ``place`` (its channel or
    node takes no more); "" for nothing. ``wait_ms``: for how long; -1 until somebody lets go of it.
    """

    sent: int
    left: int  # ids still in the list
    entries: int  # in the channel's stream now
    window: int
    bound: str = ""
    wait_ms: int = -1


class Requeued(msgspec.Struct, frozen=True):
    """What came of requeueing a dead incarnation's entries."""

    reason: str  # left: it said goodbye; lost: it did not; alive: it is back; unsure: it did not leave after all
    requeued: int
    lost: int
    kept: int  # entries whose jobs asked to wait longer (lost_after)
    left: int  # entries still in its stream, the kept ones included; without any, it is forgotten
    jobs: tuple[str, ...]


class LeaseState(msgspec.Struct, frozen=True):
    """A channel incarnation as the reaper sees it. ``missing_since`` is 0 while it has a lease."""

    window: int
    entries: int
    missing_since: int


class Unblocked(msgspec.Struct, frozen=True):
    """What came of telling those that waited for ended jobs."""

    seen: int  # dependents looked at
    unblocked: int
    skipped: int
    left: int  # ends whose dependents wait to be told


class GoneOrder(NamedTuple):
    """A dispatched job whose entry is in no stream: lost, or its report waits to be collected."""

    job: str
    attempt: int
    entry: str


class Audit(msgspec.Struct, frozen=True):
    """One slice of a walk over all records. ``cursor``: where to go on, "0" after the last."""

    cursor: str
    now_ms: int
    repaired: int
    gone: tuple[GoneOrder, ...]


class Recovered(IntEnum):
    """What became of a job whose order seemed gone."""

    FINE = 0
    WAIT = 1
    TOLD = 2
    TAKEN = 3


class Verb:
    """What the collector asks of the collect script."""

    START = "start"
    RETURN = "return"
    DONE = "done"
    SUCCEEDED = "succeeded"  # of several in a row
    RETRY = "retry"


class OperationSlot:
    """A submitter's memory of its last call: a repeated call with the same sequence number has one effect."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.sequence = 0


def submit(
    call: Callable[..., Any],
    keys: Keys,
    submissions: Sequence[Submission],
    slot: OperationSlot,
    waiter: int = 0,
    workflow: str = "",
) -> list[str]:
    """As ``Moves.submit``, by any way to ``call`` a move: ``call(name, *arguments, **keys)``."""
    groups = list(_grouped(submissions))
    arguments: list[Any] = [slot.sequence, OPERATION_MEMORY, workflow, len(groups)]
    for group in groups:
        first = group[0]
        times = (first.delay_ms, first.at_ms, first.expires_ms)
        links = (first.id, " ".join(first.after))
        arguments += [first.target.key(), first.priority, *times, first.key, *links, len(group)]
        arguments += [new_record(submission, waiter) for submission in group]
        if first.array is not None:
            arguments += _array_arguments(first, first.array)
    answer = call("submit", *arguments, operation=keys.operation(slot.client_id))
    ids: list[str] = []
    for first_id, group in zip(answer[1:], groups, strict=True):
        ids += [str(int(first_id) + number) for number in range(len(group))]
    return ids


class Moves:
    """Every change of the namespace's state. One instance per process (and client connection)."""

    def __init__(self, client: Direct, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    def _call(self, name: str, *args: Any, **fixed: str) -> Any:
        with translated():
            return script(name).call(self.client, self.keys, *args, **fixed)

    # -- submitters -------------------------------------------------------------------------------------------

    def reserve(self, count: int) -> int:
        """The first of so many ids, for jobs of one submit that refer to each other. What is not used is no harm."""
        return int(self._call("reserve", count))

    def submit(
        self, submissions: Sequence[Submission], slot: OperationSlot, waiter: int = 0, workflow: str = ""
    ) -> list[str]:
        """The new jobs' ids, in order. Safe to repeat with the same ``slot.sequence`` after a lost reply.

        ``workflow``: ``<first id>:<jobs>:<name>`` to be listed. Raises NoParent where a condition names a job without
        a record, QueueFull, StoreUnavailable (then it is unknown whether it happened: repeat it), StoreRefused.
        """
        return submit(self._call, self.keys, submissions, slot, waiter, workflow)

    def cancel(self, ids: Sequence[str], keep_ms: int) -> list[tuple[CancelAnswer, Outcome]]:
        """Ask for the end of jobs; the outcome is told where one had ended. ``keep_ms``: retention of the ended."""
        replies = self._call("cancel", keep_ms, *ids)
        return [(CancelAnswer(r[0]), Outcome(r[1]) if len(r) > 1 else Outcome.NONE) for r in replies]

    def await_end(self, client_number: int, ids: Sequence[str]) -> list[bytes | int | None]:
        """Register to be told of ends in ``inbox``. Per id: its record when ended, None if unknown; else the attempt
        (at least) whose end is news, b"" where that is not known.
        """
        return list(self._call("await", client_number, *ids))

    def retry(self, ids: Sequence[str], ended_ms: Sequence[int] = ()) -> list[RetryAnswer]:
        """Make ended jobs pending again. ``ended_ms``: when those ends were, which makes it safe to repeat."""
        times: Sequence[int | str] = ended_ms or [""] * len(ids)
        arguments = [part for pair in zip(ids, times, strict=True) for part in pair]
        return [RetryAnswer(answer) for answer in self._call("retry", *arguments)]

    def hold(self, ids: Sequence[str], reason: str, by: str) -> list[HoldAnswer]:
        """Keep jobs that wait from being dispatched, until they are released. Safe to repeat."""
        return [HoldAnswer(answer) for answer in self._call("hold", reason, by, *ids)]

    def release(self, ids: Sequence[str]) -> list[HoldAnswer]:
        """Let held jobs go on: one whose turn came meanwhile is the next."""
        return [HoldAnswer(answer) for answer in self._call("release", *ids)]

    def prioritise(self, ids: Sequence[str], priority: int) -> list[HoldAnswer]:
        """Give jobs that wait another priority, at the end of that line. Safe to repeat."""
        return [HoldAnswer(answer) for answer in self._call("prioritise", priority, *ids)]

    def retry_array(
        self,
        job_id: str,
        ended_ms: int = 0,
        everything: bool = False,
        expires_ms: int = 0,
        places: Sequence[tuple[int, Place, Flag, int]] = (),
    ) -> tuple[RetryAnswer, int]:
        """Have tasks of an array start again: those that did not succeed, or all; and how many do.

        ``ended_ms``: the end that is meant, which makes it safe to repeat. ``places``: index, place, flags, priority of
        tasks that have one; those expire after ``expires_ms``.
        """
        which = "all" if everything else "failed"
        arguments: list[Any] = []
        for index, place, flags, priority in places:
            arguments += [index, place.target.key(), _packed(place.spec, flags, priority, 0)]
        answer, count = self._call("again", job_id, ended_ms or "", which, expires_ms, *arguments)
        return RetryAnswer(answer), int(count)

    def follow(self, job_id: str) -> State | None:
        """Ask for live output of a job; repeat it every 10 s while it is wanted. None: unknown job."""
        state = self._call("follow", job_id)
        return State(state) if state else None

    def drain(
        self, name: str, reason: str, by: str, within: float | None = None, then: str = "wait", pause: bool = False
    ) -> None:
        """Send nothing new to a node, a channel or ``node/channel``, or nothing of a ``group:``, until it is resumed.

        ``within`` seconds, what runs there may go on; ``then`` it may still (wait), or runs elsewhere (requeue), or is
        cancelled (kill). ``pause``: it is not meant to become empty.
        """
        said: dict[str, Any] = {"reason": reason, "by": by}
        with translated(), self.client.pipeline(transaction=True) as pipe:
            seconds, micro = self.client.time()
            said["since"] = now = seconds + micro / 1e6
            if within is not None:
                said |= {"deadline": now + within, "then": then}
            if pause:
                said["pause"] = True
            pipe.hset(self.keys.drains, name, json.dumps(said))
            pipe.delete(self.keys.offers)
            pipe.rpush(self.keys.bell, "d")
            pipe.execute()

    def resume(self, name: str) -> bool:
        """Take a drain back; whether there was one."""
        with translated():
            resumed = bool(self.client.hdel(self.keys.drains, name))
            self.client.rpush(self.keys.bell, "d")
        return resumed

    def set_limit(self, key: str, limit: int | Rate) -> None:
        """An operator's limit: it counts from the next dispatch on, whatever the configuration or a job says."""
        field, text = stored(key, limit)
        with translated(), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(self.keys.limits, field, text)
            pipe.delete(self.keys.offers)
            pipe.rpush(self.keys.bell, "m")
            pipe.execute()

    def remove_limit(self, key: str) -> bool:
        """Take back what an operator set for ``key``, number and rate; whether there was anything."""
        with translated(), self.client.pipeline(transaction=True) as pipe:
            pipe.hdel(self.keys.limits, key, f"rate {key}")
            pipe.rpush(self.keys.bell, "m")
            removed, _ = pipe.execute()
        return bool(removed)

    def remember(self, fence: str, channels: Sequence[ChannelInfo]) -> None:
        """Keep what is to be known of channels while they are away."""
        said = [
            part
            for info in channels
            if info.node
            for part in (
                f"{info.node}/{info.channel}",
                json.dumps({"labels": list(info.labels), "seen": time.time()}),
            )
        ]
        if said:
            self._call("remember", fence, *said)

    def forget(self, names: Sequence[str]) -> None:
        """Nobody is to know of these channels (node/channel) any more; they are expected to be down."""
        with translated(), self.client.pipeline(transaction=True) as pipe:
            pipe.hdel(self.keys.known, *names)
            pipe.hdel(self.keys.owners, *names)
            pipe.execute()

    def next_client(self) -> int:
        """A number for a client that waits."""
        return int(self._call("client")) % 0xFFFFFFFE + 1

    # -- the master -------------------------------------------------------------------------------------------

    def acquire_lead(
        self, instance: str, lease_ms: int, lowest_epoch: int, predecessor: str = ""
    ) -> tuple[int | None, str]:
        """(epoch, "") when ``instance`` leads now, else (None, who does). Renews it when it leads already.

        ``predecessor``: an instance known to be dead, whose lease need not be waited for.
        """
        granted, answer = self._call("lead", instance, lease_ms, lowest_epoch, "acquire", predecessor)
        return (int(answer), "") if granted else (None, _text(answer))

    def release_lead(self, instance: str) -> bool:
        """Give the lead up, if ``instance`` has it."""
        return bool(self._call("lead", instance, 0, 0, "release", "")[0])

    def leader(self) -> str | None:
        """The fence of whoever leads."""
        with translated():
            holder = self.client.get(self.keys.leader)
        return None if holder is None else _text(holder)

    def load_functions(self) -> None:
        """Load the functions that slaves call, and all moves, unless the server has them. Needs the right to.

        Moves of other versions are dropped: whoever still calls them loads them again.
        """
        with translated():
            known = self.client.function_list(library=CHANNEL_LIBRARY, withcode=True)
            if channel_library().encode() not in _flatten(known):
                self.client.function_load(channel_library(), replace=True)
            words = _flatten(self.client.function_list(library=f"{MOVES}*"))
            libraries = {
                word.decode() for word in words if isinstance(word, bytes) and _LIBRARY_OF_MOVES.fullmatch(word)
            }
            if moves_library()[0] not in libraries:
                load_moves(self.client)
            for other in libraries - {moves_library()[0]}:
                self.client.function_delete(other)

    def dispatch(self, fence: str, assignments: Sequence[Assignment], keep_ms: int) -> list[Dispatched]:
        """Move pending jobs into dispatch streams, as far as the windows allow."""
        arguments: list[Any] = [fence, keep_ms]
        for a in assignments:
            arguments += [a.job_class, a.priority, a.incarnation, a.count, a.terms]
        replies = self._call("dispatch", *arguments)
        return [
            Dispatched(sent, left, entries, window, _text(bound), wait)
            for sent, left, entries, window, bound, wait in replies
        ]

    def offer(self, fence: str, offers: Sequence[Offer], keep_ms: int) -> bool:
        """Offer these in place of those before. False where nothing is: the bell has something to say first.

        ``keep_ms``: for how long the record of a success is kept.
        """
        arguments: list[Any] = []
        for job_class, channels in offers:
            arguments += [job_class, "".join(f"{slots}:{incarnation};" for incarnation, slots in channels)]
        return bool(self._call("offer", fence, keep_ms, *arguments))

    def collect(self, fence: str, arguments: Sequence[Any]) -> list[Judged]:
        """Judge reports, as ``lua/collect.lua`` wants to be asked: per report the verdict and the old record."""
        return self.begin_collect(fence, arguments)()

    def begin_collect(self, fence: str, arguments: Sequence[Any]) -> Callable[[], list[Judged]]:
        """Have them judged, and go on: what comes back waits for the verdicts, once."""
        with translated():
            answer = script("collect").begin(self.client, self.keys, fence, *arguments)

        def judged() -> list[Judged]:
            with translated():
                replies = answer()
            return [(_VERDICTS[reply[0]], reply[1] if len(reply) > 1 else None) for reply in replies]

        return judged

    def requeue(self, fence: str, incarnation: str, missing_since: int, keep_ms: int, most: int) -> Requeued:
        """Take about ``most`` entries from an incarnation without a lease; forget it once it has none left.

        ``missing_since``: as ``reap`` told; 0 for one that left in order, of which nothing was started.
        """
        reply = self._call("requeue", fence, incarnation, missing_since, keep_ms, most)
        reason, requeued, lost, kept, left, *jobs = reply
        return Requeued(_text(reason), requeued, lost, kept, left, tuple(_text(job) for job in jobs))

    def reap(self, fence: str, incarnations: Sequence[str]) -> tuple[int, dict[str, LeaseState]]:
        """(server time, the lease of each incarnation)."""
        now, *states = self._call("reap", fence, *incarnations)
        return int(now), {name: LeaseState(*state) for name, state in zip(incarnations, states, strict=True)}

    def promote(self, fence: str, keep_ms: int, most: int) -> tuple[int, int, float | None]:
        """(promoted, expired, seconds until the next is due): what is due becomes pending, or ends expired."""
        promoted, expired, soonest = self._call("promote", fence, keep_ms, most)
        return promoted, expired, None if soonest < 0 else soonest / 1000

    def configure_limits(self, fence: str, limits: Mapping[str, str]) -> None:
        """Say what the leader's configuration limits (see ``limits.stored``)."""
        self._call("configure", fence, *(part for pair in limits.items() for part in pair))

    def heal(self, fence: str, cursor: int, count: int) -> tuple[int, int]:
        """(next cursor, 0 at the end; how many ended jobs were found that still counted against a limit)."""
        cursor, healed = self._call("heal", fence, cursor, count)
        return int(cursor), int(healed)

    def forget_classes(self, fence: str, classes: Sequence[str]) -> int:
        """Forget those of these classes of which nothing is pending; how many."""
        return int(self._call("forget_classes", fence, *classes))

    def keep(self, fence: str, kept: Sequence[Kept]) -> None:
        """Say which channels are kept for jobs that need much."""
        self._call("keep", fence, msgspec.json.encode(kept) if kept else "")

    def hear_drains(self, fence: str, names: Sequence[str]) -> int:
        """Note that the leader knows of these drains, for those who wait until nothing is left there."""
        return int(self._call("heard", fence, *names))

    def interrupt(self, fence: str, incarnation: str, deadline_ms: int, then: str, most: int) -> int:
        """Ask for the end of what a drained channel has, if the deadline is over; how many were asked for."""
        return int(self._call("interrupt", fence, incarnation, deadline_ms, then, most))

    def unblock(self, fence: str, keep_ms: int, most: int) -> Unblocked:
        """Tell those that waited for ended jobs, ``most`` of them: they become pending or scheduled, or are skipped."""
        return Unblocked(*self._call("unblock", fence, keep_ms, most))

    def recheck(self, fence: str, most: int) -> tuple[int, int]:
        """(looked at, mended): waiting jobs whose reason is gone. ``most`` conditions, those seen longest ago first."""
        looked, mended = self._call("recheck", fence, most)
        return looked, mended

    def audit(self, fence: str, cursor: str, keys: int) -> Audit:
        """Look at about ``keys`` keys and put back what is missing of what their records say."""
        cursor, now, repaired, *gone = self._call("audit", fence, cursor, keys)
        orders = zip(gone[::3], gone[1::3], gone[2::3], strict=True)
        found = tuple(GoneOrder(_text(job), int(attempt), _text(entry)) for job, attempt, entry in orders)
        return Audit(_text(cursor), int(now), int(repaired), found)

    def recover(self, fence: str, gone: Sequence[tuple[GoneOrder, int, bool]], keep_ms: int) -> list[Recovered]:
        """(order, when it was first seen to be gone (ms), whether its channel was told): take it back, if it is."""
        arguments: list[Any] = [fence, keep_ms]
        for order, seen_ms, told in gone:
            arguments += [*order, seen_ms, "take" if told else "stop"]
        return [Recovered(answer) for answer in self._call("recover", *arguments)]

    def repeat_hints(self, fence: str, most: int) -> tuple[int, list[str]]:
        """Tell channels again of open requests to cancel; (how many there are, tasks of arrays to be cancelled)."""
        count, *tasks = self._call("hint", fence, most)
        return int(count), [_text(task) for task in tasks]

    def delete_collected(self, entry_ids: Iterable[str]) -> None:
        """Drop entries of the result stream that are in the history."""
        with translated():
            self.client.xdel(self.keys.results, *entry_ids)

    def judged(self, fence: str) -> dict[str, bytes]:
        """Jobs that were judged with their reports and are in no history yet, with their records."""
        found = iter(self._call("judged", fence))
        return {job.decode(errors="replace"): record for job, record in zip(found, found, strict=True)}

    def delete_judged(self, ids: Iterable[str]) -> None:
        """Drop jobs from those that were judged with their reports: they are in the history."""
        with translated():
            self.client.hdel(self.keys.judged, *ids)

    def bury(self, reason: str, sample: bytes, source: str, entry: str = "", *, alone: bool = True) -> None:
        """Keep a message that nobody can read, for people to look at; ``entry`` leaves the result stream with it.

        Not ``alone`` in its entry, it is left there, and buried once as long as ``source`` names it and no other.
        """
        self._call("bury", entry, reason, sample[:256], source, int(alone))


def _grouped(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """Neighbours that differ in their records only; reserved ids must follow each other."""
    for _, group in groupby(enumerate(submissions), key=lambda pair: _group_key(*pair)):
        yield [submission for _, submission in group]


def _group_key(number: int, submission: Submission) -> Any:
    if submission.key or submission.array is not None:
        return object()  # equal to nothing: a group with a key, or with an array, holds one job
    times = (submission.delay_ms, submission.at_ms, submission.expires_ms)
    offset = submission.id - number if submission.id else None
    return submission.target, submission.priority, times, submission.after, offset


def new_record(submission: Submission, waiter: int = 0) -> bytes:
    """The record of a job to be, but for what the server fills in: class, times, state."""
    return _packed(submission.spec, submission.flags, submission.priority, waiter)


def _packed(spec: bytes, flags: Flag, priority: int, waiter: int) -> bytes:
    return _new_header(int(flags), priority, waiter, len(spec)) + spec


@lru_cache(maxsize=4096)
def _new_header(flags: int, priority: int, waiter: int, spec_length: int) -> bytes:
    return Header(state=State.PENDING, flags=flags_of(flags), priority=priority, waiter=waiter).pack(spec_length)


def _array_arguments(submission: Submission, array: Array) -> list[Any]:
    arguments: list[Any] = [array.total, array.limit, array.most_failures, array.todo, len(array.places)]
    flags = submission.flags & Flag.NO_RETRY_ON_LOSS | Flag.TASK
    for place in array.places:
        arguments += [place.name, place.target.key(), _packed(place.spec, flags, submission.priority, 0)]
    return arguments


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for item in pair for leaf in _flatten(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]
