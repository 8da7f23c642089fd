"""A channel process' side of Redis in the classic wire protocol: ids are heard, run, and said again.

A message on CHANNEL_DISPATCH_<name> is a bare job id. Nobody keeps it for us, so it waits in the memory of this
process (``Inlet``), which outlives the connection and plays the part that the dispatch stream has in the stream
transport: what was received stays there until it is answered.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from jobschedd.clock import Clock
from jobschedd.errors import ProtocolError
from jobschedd.failpoints import failpoint
from jobschedd.job import (
    HEADER_SIZE,
    Cause,
    Flag,
    Header,
    Order,
    Outcome,
    Report,
    ReportKind,
    Result,
    Spec,
    State,
    decode_header,
    decode_record,
    decode_report,
    decode_result,
    encode,
)
from jobschedd.logs import get_logger
from jobschedd.store.channel import PATIENCE, ChannelStore, OnEntries, OrderEntry
from jobschedd.store.errors import translated
from jobschedd.store.keys import RESULT_CHANNEL, Keys, dispatch_channel
from jobschedd.store.pipe import Pipe, is_error
from jobschedd.store.scripts import ANSWER, REPORT, TAKE
from jobschedd.store.subscription import Subscription

log = get_logger(__name__)

#: What an id of ours looks like; anything else is for the handler.
JOB_ID: Final = re.compile(rb"[1-9][0-9]{0,18}(_[0-9]{1,9})?")
#: Messages, and bytes of them, that may wait for a slot.
MOST_WAITING, MOST_BYTES = 10_000, 64 << 20
#: The kernel takes no longer text in a command line or an environment, the variable's name included.
LONGEST_TEXT: Final = 128 * 1024 - len("JOBSCHED_PAYLOAD=") - 1
#: Milliseconds that a report on a job stays where the collector finds it.
ANSWER_TTL = 600_000
TAKEN_TTL = 86_400_000
DEAD_LETTERS = 1000
SAMPLE = 256
#: Seconds that a stop may wait for the end of the subscription.
GOODBYE = 0.5
#: Entry numbers from here on are our own, for what has no record; dispatches are numbered below.
OWN_NUMBERS: Final = 1 << 32

LONGEST_SHOWN = 100
STOPPING = "not started: the channel stops"

#: Causes with which a handler did not get to run.
_NOT_RUN = frozenset(
    {Cause.NOT_FOUND, Cause.NOT_EXECUTABLE, Cause.CWD, Cause.ARGV, Cause.DENIED, Cause.UNREADABLE, Cause.RESOURCE}
)


@dataclass
class Item:
    """One message that was heard and is to be run. ``size``: bytes that it takes here."""

    payload: bytes
    entry: OrderEntry
    size: int


@dataclass
class Inlet:
    """What a channel process has heard and not answered. ``handler``: the command for what has no record."""

    handler: tuple[str, ...]
    max_payload: int
    unclear: deque[bytes] = field(default_factory=deque)  # not known yet whether there is a record
    items: dict[str, Item] = field(default_factory=dict)  # by dispatch entry
    waiting: deque[str] = field(default_factory=deque)  # entries that were not handed out
    size: int = 0  # bytes in ``items``
    closed: bool = False  # a stop began
    newest: tuple[int, int] = (0, OWN_NUMBERS)  # the newest entry of our own

    @property
    def is_full(self) -> bool:
        """Whether more would be too much."""
        return len(self.items) + len(self.unclear) >= MOST_WAITING or self.size >= MOST_BYTES

    @property
    def handed_out(self) -> int:
        """Items that the channel has and did not answer."""
        return len(self.items) - len(self.waiting)

    def add(self, item: Item) -> None:
        """Keep it until it is answered."""
        self.items[item.entry.id] = item
        self.waiting.append(item.entry.id)
        self.size += item.size

    def take(self, most: int) -> list[OrderEntry]:
        """The oldest that wait: now they are handed out."""
        return [self.items[self.waiting.popleft()].entry for _ in range(min(most, len(self.waiting)))]

    def put_back(self, entry: str) -> None:
        """It could not be started: it waits again, in front."""
        if entry in self.items:
            self.waiting.appendleft(entry)

    def remove(self, entry: str) -> None:
        """It is answered."""
        item = self.items.pop(entry, None)
        if item is not None:
            self.size -= item.size

    def own_entry(self, milliseconds: int) -> str:
        """An entry id for what has no dispatch; they only grow."""
        time, number = self.newest
        self.newest = (milliseconds, OWN_NUMBERS) if milliseconds > time else (time, number + 1)
        return f"{self.newest[0]}-{self.newest[1]}"


class Complaints:
    """What is told of dead letters: at most one a second, for whoever publishes junk publishes much of it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told = -1.0
        self._untold = 0

    def tell(self, reason: str, payload: bytes, channel: str) -> None:
        """One message was dead-lettered."""
        now = self._clock.boottime()
        if now - self._told < 1.0:
            self._untold += 1
            return
        log.warning("dead-lettered a message", reason=reason, message=shown(payload), channel=channel)
        if self._untold:
            log.warning("dead-lettered more messages", count=self._untold)
        self._told, self._untold = now, 0


class PubSubChannel(ChannelStore):
    """As ``ChannelStore``, with a third connection that is subscribed; orders come from there."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        clock: Clock,
        incarnation: str,
        block: float,
        *,
        name: str,
        interval: float,
        inlet: Inlet,
    ) -> None:
        """``name``: the channel's own name; ``interval``: seconds between PINGs of the subscription."""
        super().__init__(client, keys, clock, incarnation, block)
        self._clock = clock
        self._name = name
        self._inlet = inlet
        self._complaints = Complaints(clock)
        self._window = 0
        self._on_entries: OnEntries | None = None
        try:
            self._subscription = Subscription(client, clock, dispatch_channel(name), interval, self._heard)
        except Exception:
            for pipe in super().pipes:
                pipe.close()
            raise

    @property
    def pipes(self) -> tuple[Pipe, ...]:
        return self.orders, self.commands, self._subscription

    # -- said once --------------------------------------------------------------------------------------------

    def register(self, channel: str, info: bytes, window: int, lease_ms: int, home: str) -> None:
        """As in the stream transport, with a window of 0: nothing shall come on a stream."""
        super().register(channel, info, 0, lease_ms, home)
        keys, arguments = self._take_arguments("0")
        self._function(TAKE, keys, *arguments)  # so that the functions are there
        self._window = window
        for payload in self._inlet.unclear:
            self._ask_whose(payload)  # once more: to be asked twice changes nothing
        if not self._inlet.closed:
            self._subscription.subscribe(PATIENCE)

    def report_of(
        self, incarnation: str, reports: Sequence[tuple[str, bytes]], window: int | None = None
    ) -> list[bool]:
        taken = super().report_of(incarnation, reports)
        for (entry, packed), done in zip(reports, taken, strict=True):
            if not done:
                self._answer_late(entry, packed)
        return [True] * len(reports)

    def _answer_late(self, entry: str, packed: bytes) -> None:
        report = _read(packed)
        if report is None:
            return
        if report.kind is ReportKind.CRASHED:
            report = _lost(report, self._clock.now())
        with translated():
            if not _is_own(entry):
                keys, arguments = self._answer_arguments(report)
                self._function(ANSWER, keys, *arguments)
            elif JOB_ID.fullmatch(report.job.encode()):
                self._client.publish(RESULT_CHANNEL, report.job)

    def entries_of(self, incarnation: str, ids: Sequence[str]) -> list[OrderEntry]:
        """Those that were published to this channel and not answered. None is ever started again: at most once."""
        found = super().entries_of(incarnation, ids)
        wanted = set(ids)
        with translated():
            sent: Any = self._client.zrange(self._keys.sent(self._name), 0, -1)
            records: Any = self._client.mget([self._keys.job(job.decode()) for job in sent]) if sent else []
        for job, record in zip(sent, records, strict=True):
            header = _header(record)
            if header is not None and header.entry in wanted:
                flags = int(header.flags | Flag.NO_RETRY_ON_LOSS)
                fields = {b"job": job, b"attempt": b"%d" % header.attempt, b"flags": b"%d" % flags}
                found.append(OrderEntry(header.entry, fields))
        return found

    # -- orders -----------------------------------------------------------------------------------------------

    def read_orders(self, on_entries: OnEntries) -> None:
        """What is heard goes to ``on_entries`` as far as the window allows; hints come on the stream, as ever."""
        first, self._on_entries = self._on_entries is None, on_entries
        if first:
            self._tell_again(on_entries)
        if not self.orders.in_flight:
            super().read_orders(on_entries)
        self._hand_out()

    def _tell_again(self, on_entries: OnEntries) -> None:
        """The own history first, as from a stream: the channel knows which of it runs or has ended."""
        inlet = self._inlet
        if inlet.closed:
            inlet.waiting.clear()  # the channel gives back what it does not start
        waiting = set(inlet.waiting)
        on_entries([item.entry for entry, item in inlet.items.items() if entry not in waiting], [])

    def _hand_out(self) -> None:
        room = self._window - self._inlet.handed_out
        if self._on_entries is not None and room > 0 and self._inlet.waiting:
            self._on_entries(self._inlet.take(room), [])

    def _heard(self, payload: bytes) -> None:
        if problem := self._problem(payload):
            self._bury(problem, payload)
        elif JOB_ID.fullmatch(payload):
            self._inlet.unclear.append(payload)
            failpoint("channel.heard.after")
            self._ask_whose(payload)
        else:
            self._take_foreign(payload)

    def _problem(self, payload: bytes) -> str:
        longest = min(self._inlet.max_payload, LONGEST_TEXT)
        if not payload:
            return "an empty message names no job"
        if len(payload) > longest:
            return f"a message of {len(payload)} bytes: a handler can be given {longest}"
        if b"\0" in payload:
            return "a message with a NUL byte: no command can be given that"
        if self._inlet.is_full:
            return f"{len(self._inlet.items)} messages wait for a slot: no room for more"
        return ""

    def _ask_whose(self, payload: bytes) -> None:
        job = payload.decode()
        keys, arguments = self._take_arguments(job)
        self.commands.ask(self._learn_whose, PATIENCE, "FCALL", TAKE, len(keys), *keys, *arguments)

    def _take_arguments(self, job: str) -> tuple[tuple[str, ...], list[Any]]:
        keys = self._keys
        arguments = [job, self._incarnation, TAKEN_TTL, keys.job(job), keys.sent(self._name)]
        return (keys.taken(job), keys.answer(job)), arguments

    def _learn_whose(self, answer: Any) -> None:
        record = _checked(answer)
        payload = self._inlet.unclear.popleft()  # answers come in the order of the questions
        if record is None:
            self._take_foreign(payload)
        elif record == b"taken":
            log.debug("heard an id that is taken or answered already", job=payload.decode())
        else:
            self._take_job(payload, record)

    def _take_job(self, payload: bytes, data: bytes) -> None:
        try:
            record = decode_record(data)
        except ProtocolError as error:
            self._bury(str(error), payload)
            return
        header = record.header
        if header.entry in self._inlet.items:
            log.debug("heard an id twice", job=payload.decode())
            return
        fields = {
            b"job": payload,
            b"attempt": b"%d" % header.attempt,
            b"flags": b"%d" % header.flags,
            b"spec": record.spec,
        }
        self._inlet.add(Item(payload, OrderEntry(header.entry, fields), HEADER_SIZE + len(record.spec)))
        self._hand_out()

    def _take_foreign(self, payload: bytes) -> None:
        """Nobody's record: the handler's. The payload is bytes, and reaches the command as the very same bytes."""
        if not self._inlet.handler:
            self._bury("no job of this id is dispatched to this channel, and the channel has no handler", payload)
            return
        if self._inlet.closed:
            self._bury(STOPPING, payload)
            return
        text = os.fsdecode(payload)
        spec = Spec(command=(*self._inlet.handler, text), env={"JOBSCHED_PAYLOAD": text}, name="handler")
        entry = self._inlet.own_entry(int(self._clock.now() * 1000))
        order = Order(shown(payload), 1, entry, spec)
        self._inlet.add(Item(payload, OrderEntry(entry, {}, order), 4 * len(payload)))
        self._hand_out()

    def stop_orders(self) -> list[Order]:
        """Unsubscribe, so that publishers learn that nobody is here, and give back what waits."""
        inlet = self._inlet
        inlet.closed = True
        self._subscription.unsubscribe(GOODBYE)
        self.commands.wait_until(lambda: not inlet.unclear, GOODBYE)
        return [_order(entry) for entry in inlet.take(len(inlet.waiting))]

    # -- everything else --------------------------------------------------------------------------------------

    def renew(self, lease_ms: int, on_answer: Callable[[bool], None]) -> None:
        super().renew(lease_ms, on_answer)
        self._subscription.ping_if_due()

    def report(
        self, reports: Sequence[tuple[str, bytes]], window: int | None, on_answer: Callable[[list[bool]], None]
    ) -> None:
        """Of a job with a record the report is left for the collector before its id is said; of others, only that."""
        if window is not None:
            self._window = window
        done = [entry for entry, packed in reports if self._say(packed) and entry]

        def told(answer: Any = None) -> None:
            _checked(answer)
            for entry in done:
                self._inlet.remove(entry)
            on_answer([True] * len(reports))
            self._hand_out()

        if self.commands.in_flight:
            self.commands.ask(told, PATIENCE, "PING")  # answered after all that
        else:
            told()

    def _say(self, packed: bytes) -> bool:
        """Whether this was the last word about its entry."""
        report = _read(packed)
        if report is None:
            return True
        own = _is_own(report.entry)
        match report.kind:
            case ReportKind.STARTED:
                if not own:
                    keys, arguments = self._report_arguments(self._incarnation, "", [("", packed)])
                    self._ask("FCALL", REPORT, len(keys), *keys, *arguments)
            case ReportKind.RETURN if not self._inlet.closed:
                self._inlet.put_back(report.entry)
                return False
            case ReportKind.UNREADABLE:
                self._bury(report.reason, report.sample)
            case _ if own:
                self._answer_foreign(report)
            case _:
                keys, arguments = self._answer_arguments(report)
                self._ask("FCALL", ANSWER, len(keys), *keys, *arguments)
                failpoint("channel.answer.sent")
        return True

    def _answer_foreign(self, report: Report) -> None:
        item = self._inlet.items.get(report.entry)
        payload = item.payload if item is not None else report.job.encode()
        if problem := _not_run(report):
            self._bury(problem, payload)
        else:
            self._ask("PUBLISH", RESULT_CHANNEL, payload)

    def _answer_arguments(self, report: Report) -> tuple[tuple[str, ...], list[Any]]:
        dispatch = dispatch_mark(report.attempt, report.entry)
        return (self._keys.answer(report.job),), [encode(report), dispatch, ANSWER_TTL, RESULT_CHANNEL, report.job]

    def _ask(self, *command: Any) -> None:
        self.commands.ask(_checked, PATIENCE, *command)

    def _bury(self, reason: str, payload: bytes) -> None:
        """A dead letter. Where Redis is full, or we may not, the log has to do."""
        self._complaints.tell(reason, payload, dispatch_channel(self._name))
        letter = ("reason", reason, "sample", payload[:SAMPLE], "source", dispatch_channel(self._name))
        self.commands.ask(_ignored, PATIENCE, "XADD", self._keys.dead, "MAXLEN", "~", DEAD_LETTERS, "*", *letter)


def dispatch_mark(attempt: int, entry: str) -> bytes:
    """Attempt and entry as they stand in a record: by this an answer is known to be of the newest dispatch."""
    time, _, number = entry.partition("-")
    return attempt.to_bytes(4, "little") + int(time).to_bytes(6, "little") + int(number).to_bytes(4, "little")


def shown(payload: bytes) -> str:
    """A payload for people: printable, short."""
    text = payload[:SAMPLE].decode(errors="backslashreplace")
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return plain if len(plain) <= LONGEST_SHOWN else plain[: LONGEST_SHOWN - 3] + "..."


def _is_own(entry: str) -> bool:
    return int(entry.partition("-")[2] or 0) >= OWN_NUMBERS


def _read(packed: bytes) -> Report | None:
    try:
        return decode_report(packed)
    except ProtocolError as error:
        log.error("a report of our own cannot be read", error=error)
        return None


def _order(entry: OrderEntry) -> Order:
    """What is needed to give an order back."""
    if entry.order is not None:
        return entry.order
    return Order(entry.fields[b"job"].decode(), int(entry.fields[b"attempt"]), entry.id, Spec())


def _not_run(report: Report) -> str:
    """Why a handler did not run to its end; empty when it did, whatever its exit code."""
    if report.kind is ReportKind.RETURN:
        return STOPPING
    if report.cause == Cause.DRAIN:
        return "interrupted: the channel stops"
    if report.cause not in _NOT_RUN:
        return ""
    try:
        error = decode_result(report.result).error
    except ProtocolError:
        error = ""
    return f"the handler could not run ({report.cause}): {error}"


def _lost(report: Report, now: float) -> Report:
    """The end of a job whose channel process died under it: what may have run once is not run again."""
    node, _, channel = report.reason.partition("/")
    error = "its channel process died under it"
    result = Result(outcome=Outcome.LOST, cause=Cause.CHANNEL_LOST, error=error, ended=now, node=node, channel=channel)
    return Report(
        kind=ReportKind.RESULT,
        job=report.job,
        attempt=report.attempt,
        entry=report.entry,
        incarnation=report.incarnation,
        outcome=result.outcome,
        cause=result.cause,
        result=encode(result),
    )


def _header(record: bytes | None) -> Header | None:
    try:
        header = decode_header(record or b"")
    except ProtocolError:
        return None
    return header if header.state in (State.DISPATCHED, State.RUNNING) else None


def _checked(answer: Any) -> Any:
    if is_error(answer):
        raise answer
    return answer


def _ignored(answer: Any) -> None:
    if is_error(answer):
        log.debug("a message was not dead-lettered", error=answer)
