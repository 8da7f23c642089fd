"""The master's side of the classic wire protocol: ids are published, and said again by whoever is done with them.

What was published stands in a sorted set per channel until it is answered, so that nothing is forgotten over a
restart. An answer becomes a report on the result stream, as every other end of a job: from there on the
collector's ways are the same in both transports.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Any, Final, TypeVar

import redis

from jobschedd.clock import Clock
from jobschedd.errors import ProtocolError, QueueFull, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.job import Cause, Outcome, Report, ReportKind, Result, State, decode_record, decode_result, encode
from jobschedd.logs import get_logger
from jobschedd.store.channel import PATIENCE
from jobschedd.store.direct import Direct
from jobschedd.store.errors import translated
from jobschedd.store.keys import RESULT_CHANNEL, Keys, dispatch_channel
from jobschedd.store.moves import Moves
from jobschedd.store.pubsub import JOB_ID, Complaints, dispatch_mark, shown
from jobschedd.store.results import ResultEntry, ResultStream
from jobschedd.store.scripts import script
from jobschedd.store.subscription import Subscription

log = get_logger(__name__)
T = TypeVar("T")

#: Ids that one call of a script looks at.
IDS_PER_CALL = 500
#: Seconds between two looks for answers whose id we did not hear.
SWEEP_EVERY = 5.0
#: Seconds that the result stream may wait for a look while nobody says an id.
LONGEST_WAIT = 0.1
#: A foreign id is text, and not longer than this.
LONGEST_FOREIGN: Final = 200


@dataclass(frozen=True)
class Publication:
    """Publish up to ``count`` ids of this class and priority on a channel. ``incarnation``: our own slave's, or ""."""

    job_class: int
    priority: int
    channel: str
    window: int
    count: int
    incarnation: str
    terms: bytes = b""  # as in Assignment


@dataclass(frozen=True)
class Published:
    """What came of it."""

    sent: int
    left: int  # ids still in the list
    unanswered: int  # published to this channel and not answered
    nobody: tuple[str, ...]  # ids whose dispatch reached nobody
    bound: str = ""  # as in Dispatched
    wait_ms: int = -1


class Publishing:
    """The moves of a master in this transport, beside ``Moves``. One instance per process (and connection)."""

    def __init__(self, client: redis.Redis, keys: Keys, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock

    def _call(self, name: str, *args: Any) -> Any:
        with translated():
            return script(name).call(self._client, self._keys, *args)

    def announce(self, fence: str, channels: Sequence[str]) -> None:
        """For people who ask whether a channel is served at all."""
        self._call("wires", fence, *channels)

    def listening(self, fence: str, ttl_ms: int) -> None:
        """The collector hears the answers: without that, nothing is published."""
        self._call("listening", fence, ttl_ms)

    def unanswered(self, channels: Sequence[str]) -> dict[str, int]:
        """How many ids of each channel wait for an answer."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for channel in channels:
                pipe.zcard(self._keys.sent(channel))
            return dict(zip(channels, pipe.execute(), strict=True))

    def publish(self, fence: str, publications: Sequence[Publication], keep_ms: int, resend: bool) -> list[Published]:
        """Move pending jobs to channels. What reached nobody is on record: to be sent again, or failed.

        Nothing at all, and an empty answer, while our collector does not listen: an answer would go unheard.
        """
        arguments: list[Any] = [fence, keep_ms, "resend" if resend else "fail"]
        for p in publications:
            wire = dispatch_channel(p.channel)
            arguments += [p.job_class, p.priority, p.channel, wire, p.window, p.count, p.incarnation, p.terms]
        answers = []
        failed: list[tuple[str, int, str, str]] = []
        for publication, reply in zip(publications, self._call("publish", *arguments), strict=False):
            sent, left, unanswered, bound, wait, *flat = reply
            nobody = [(_text(flat[i]), int(flat[i + 1]), _text(flat[i + 2])) for i in range(0, len(flat), 3)]
            failed += [(*one, publication.channel) for one in nobody]
            lost = tuple(job for job, _, _ in nobody)
            answers.append(Published(sent, left, unanswered, lost, _text(bound), wait))
        self._record_failures(fence, failed, resend)
        return answers

    def _record_failures(self, fence: str, failed: Sequence[tuple[str, int, str, str]], resend: bool) -> None:
        """The attempt is over: for the history where it is sent again, else for its job's end, too."""
        reports = []
        for job, attempt, entry, channel in failed:
            error = f"nobody was subscribed to {dispatch_channel(channel)}"
            result = self._result(Outcome.FAILED, Cause.NO_RECEIVER, channel, error)
            reports.append(_report(job, attempt, entry, result))
        if not resend:
            self.pass_on(fence, reports)
        elif reports:
            self._call("tell", fence, *(encode(report) for report in reports))

    def give_up(self, fence: str, after_ms: int) -> list[str]:
        """End as lost what was published ``after_ms`` ago or before, and never answered. Those jobs."""
        flat = self._call("unanswered", fence, after_ms, IDS_PER_CALL)
        reports = []
        for i in range(0, len(flat), 4):
            job, attempt, entry, channel = _text(flat[i]), int(flat[i + 1]), _text(flat[i + 2]), _text(flat[i + 3])
            error = f"published to {dispatch_channel(channel)}, and no answer came in time (result_timeout)"
            result = self._result(Outcome.LOST, Cause.NO_ANSWER, channel, error)
            reports.append(_report(job, attempt, entry, result))
        done = self.pass_on(fence, reports)
        return [report.job for report, one in zip(reports, done, strict=True) if one == 1]

    def answer(self, fence: str, ids: Sequence[str]) -> int:
        """These ids were said on the result channel. How many of them nobody waits for."""
        reports = []
        with translated():
            records: Any = self._client.mget([self._keys.job(job) for job in ids])
        for job, record in zip(ids, records, strict=True):
            report = self._echo(job, record)
            if report is not None:
                reports.append(report)
        done = self.pass_on(fence, reports)
        return len(ids) - sum(one == 1 for one in done)

    def _echo(self, job: str, data: bytes | None) -> Report | None:
        """What the bare id says: done. A report that our own slave left beside it says more, and is preferred."""
        try:
            record = decode_record(data or b"")
            if record.header.state not in (State.DISPATCHED, State.RUNNING) or not record.result:
                return None
            channel = decode_result(record.result).channel
        except ProtocolError:
            return None
        result = self._result(Outcome.SUCCEEDED, Cause.ECHO, channel, "")
        return _report(job, record.header.attempt, record.header.entry, result)

    def sweep(self, fence: str) -> int:
        """Find the reports of our own slaves whose ids we did not hear. How many there were."""
        found = 0
        with translated():
            channels: Any = self._client.smembers(self._keys.sent_channels)
        for channel in channels:
            with translated():
                ids: Any = self._client.zrange(self._keys.sent(channel.decode()), 0, -1)
                with self._client.pipeline(transaction=False) as pipe:
                    for job in ids:
                        pipe.exists(self._keys.answer(job.decode()))
                    there = pipe.execute()
            waiting = [job.decode() for job, exists in zip(ids, there, strict=True) if exists]
            for some in _chunks(waiting):
                items = [part for job in some for part in (job, b"", b"")]
                found += sum(one == 1 for one in self._call("answered", fence, *items))
        return found

    def pass_on(self, fence: str, reports: Sequence[Report]) -> list[int]:
        """Reports on dispatches to the result stream, where ours left none. Per report as ``lua/answered.lua`` says."""
        done: list[int] = []
        for some in _chunks(reports):
            items: list[Any] = []
            for report in some:
                items += [report.job, dispatch_mark(report.attempt, report.entry), encode(report)]
            done += self._call("answered", fence, *items)
        return done

    def _result(self, outcome: Outcome, cause: Cause, channel: str, error: str) -> Result:
        return Result(outcome=outcome, cause=cause, error=error, channel=channel, ended=self._clock.now())


class AnswerStream(ResultStream):
    """The result stream, fed from the result channel on the way. Use it between ``lead`` and ``rest``."""

    def __init__(
        self,
        client: Direct,
        keys: Keys,
        clock: Clock,
        interval: float,
        moves: Moves,
        publishing: Publishing,
    ) -> None:
        """``interval``: seconds between PINGs of the subscription."""
        super().__init__(client, keys)
        self._listener = client
        self._clock = clock
        self._interval = interval
        self._moves = moves
        self._publishing = publishing
        self._subscription: Subscription | None = None
        self._fence = ""
        self._said: list[str] = []
        self._complaints = Complaints(clock)
        self._sweep_due = self._say_so_due = 0.0
        self.ignored = 0  # ids that were said and that nobody waits for

    def lead(self, fence: str) -> None:
        """Listen from now on, and look for what was answered before. Raises StoreUnavailable, StoreRefused."""
        self.rest()
        self._subscription = Subscription(self._listener, self._clock, RESULT_CHANNEL, self._interval, self._heard)
        self._subscription.subscribe(PATIENCE)
        self._fence = fence
        self._say_so_due = self._sweep_due = 0.0
        self._say_so()

    def rest(self) -> None:
        """Listen no more: the leader does."""
        if self._subscription is not None:
            self._subscription.close()
        self._subscription = None

    def read(self, patience: float) -> list[ResultEntry]:
        """New entries of the result stream: also those that ids said meanwhile have become."""
        self._listen(0 if self.reads_ahead else min(patience, LONGEST_WAIT))
        self._pass_on()
        self._say_so()
        self._sweep_if_due()
        return super().read(0.001)

    def _listen(self, patience: float) -> None:
        subscription = self._subscription
        if subscription is None:
            raise StoreUnavailable("not subscribed to the result channel")
        subscription.ping_if_due()
        if subscription.overdue():
            raise StoreUnavailable(f"the subscription to {RESULT_CHANNEL} is dead: no PONG in time")
        waiting = poll()
        waiting.register(subscription.fileno(), POLLIN)
        if waiting.poll(patience * 1000):
            subscription.read()

    def _heard(self, payload: bytes) -> None:
        if JOB_ID.fullmatch(payload):
            self._said.append(payload.decode())
        elif problem := _junk(payload):
            self._bury(problem, payload)
        else:
            self.ignored += 1
            log.debug("ignored a foreign id", said=shown(payload))

    def _bury(self, reason: str, payload: bytes) -> None:
        self._complaints.tell(reason, payload, RESULT_CHANNEL)
        try:
            self._moves.bury(reason, payload, RESULT_CHANNEL)
        except QueueFull as error:
            log.debug("a message was not dead-lettered", error=error)

    def _pass_on(self) -> None:
        # Cleared only afterwards: what could not be passed on is tried again while this subscription lasts.
        if self._said:
            failpoint("collector.heard.after")
        for some in _chunks(self._said):
            ignored = self._publishing.answer(self._fence, some)
            self.ignored += ignored
            if ignored:
                log.debug("ignored ids that nobody waits for", count=ignored, among=" ".join(some[:20]))
            failpoint("collector.passed_on.after")
        self._said.clear()

    def _say_so(self) -> None:
        """That we listen."""
        now = self._clock.boottime()
        if now >= self._say_so_due:
            self._say_so_due = now + self._interval
            self._publishing.listening(self._fence, round(3000 * self._interval))

    def _sweep_if_due(self) -> None:
        now = self._clock.boottime()
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP_EVERY
            if found := self._publishing.sweep(self._fence):
                log.info("found answers whose ids were not heard", count=found)


def _report(job: str, attempt: int, entry: str, result: Result) -> Report:
    return Report(
        kind=ReportKind.RESULT,
        job=job,
        attempt=attempt,
        entry=entry,
        incarnation="",
        outcome=result.outcome,
        cause=result.cause,
        result=encode(result),
    )


def _junk(payload: bytes) -> str:
    """What is wrong with a message that is no id of ours, nor of anybody; empty for a foreign id."""
    if not payload:
        return "an empty message names no job"
    if len(payload) > LONGEST_FOREIGN:
        return f"a message of {len(payload)} bytes is no job id"
    try:
        return "" if payload.decode().isprintable() else "no job id: it holds control characters"
    except UnicodeDecodeError:
        return "no job id: it is not text"


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return [items[start : start + IDS_PER_CALL] for start in range(0, len(items), IDS_PER_CALL)]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
