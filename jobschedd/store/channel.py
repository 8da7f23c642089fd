"""A dispatch channel's side of Redis: its lease, its dispatch stream, its reports. Nothing here blocks.

A slave changes no record. All it does goes through three functions that the master loaded (``lua/channel.lua``),
two streams of its own, its lease, and the live output of its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from jobschedd.clock import Clock
from jobschedd.errors import DataLost, ProtocolError, StoreRefused, StoreUnavailable
from jobschedd.job import Order, Outcome, ReportKind, decode_report
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.marks import STORIES, Announcement
from jobschedd.store.pipe import Pipe, is_error
from jobschedd.store.scripts import CHANNEL_LIBRARY, LEAVE, REGISTER, REPORT, channel_library

#: Seconds that an answer may take beyond the time the command blocks on the server.
PATIENCE = 3.0
ORDERS_PER_READ = 200
OUTPUT_ENTRIES = 512
OUTPUT_TTL = 3_600_000
ENDED_OUTPUT_TTL = 60_000
#: Bytes of a report beyond which it is left to the collector, see ``lua/channel.lua``.
LARGEST_JUDGED = 4096


class OrderEntry(msgspec.Struct, frozen=True):
    """One entry of the dispatch stream, not yet trusted to be an order."""

    id: str
    fields: dict[bytes, bytes]
    order: Order | None = None  # made by this node itself: the fields say nothing then


@dataclass(frozen=True)
class Hint:
    """Something said about a job on the control stream: ``cancel``, ``interrupt`` or ``follow``."""

    what: str
    job: str
    attempt: int


@dataclass(frozen=True)
class StoreState:
    """What there is now of the namespace's data. ``lost``: what a master says of it, while nothing may go on."""

    identity: str
    mark: int
    rebuilt: int  # the mark at the last rebuild
    lost: str
    abandoned: bool  # an operator has given up the identity that was asked about


OnEntries = Callable[[list[OrderEntry], list[Hint]], None]


class ChannelStore:
    """One incarnation's connection pair: one that blocks in reads on the server, one for everything else.

    Any method may raise StoreUnavailable (or StoreRefused): then ``close`` and make a new one.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        clock: Clock,
        incarnation: str,
        block: float,
        *,
        may_record: bool = False,
    ) -> None:
        """``may_record``: its user has the rights to write records, so that the server can judge reports at once."""
        self._client = client
        self._keys = keys
        self._may_record = may_record
        self._incarnation = incarnation
        self._block = block
        self._last_order = "0"
        self._last_hint = "0"
        self._watched: tuple[str, int] | None = None  # identity and mark that must be there
        self.orders = Pipe(client, clock)
        try:
            self.commands = Pipe(client, clock)
        except Exception:
            self.orders.close()
            raise

    @property
    def pipes(self) -> tuple[Pipe, ...]:
        """Every connection, for the event loop."""
        return self.orders, self.commands

    def close(self) -> None:
        """Drop every connection."""
        for pipe in self.pipes:
            pipe.close()

    # -- whether it is the store that we know -----------------------------------------------------------------

    def look(self, known: str) -> StoreState | None:
        """What is there now, asked at once; ``known``: the identity that we know. None where we may not read it."""
        keys = self._keys
        try:
            with translated(), self._client.pipeline(transaction=False) as pipe:
                pipe.mget(keys.identity, keys.mark, keys.rebuilt)
                pipe.hmget(keys.loss, ["what", "admits"])
                pipe.sismember(keys.abandoned, known)
                (identity, mark, rebuilt), (what, admits), abandoned = pipe.execute()
        except StoreRefused as error:
            if "permission" not in str(error):
                raise
            return None
        lost = "" if what is None or admits is not None else what.decode(errors="replace")
        return StoreState(_text(identity), int(mark or 0), int(rebuilt or 0), lost, bool(abandoned))

    def watch(self, identity: str, mark: int) -> None:
        """From now on, every read of orders sees to it that this is still there; "": what is there from then on."""
        self._watched = (identity, mark)

    @property
    def seen(self) -> tuple[str, int]:
        """The identity and the highest mark that we have seen so far; ("", 0) for none."""
        return self._watched or ("", 0)

    def confirm(self, on_same: Callable[[], None]) -> None:
        """Call back once it is certain that this is still the store that we know. Else DataLost, out of the read."""
        if self._watched is None:
            on_same()
            return

        def seen(answer: Any) -> None:
            self._compare(answer)
            on_same()

        self.commands.ask(seen, PATIENCE, *self._mark_command())

    def _mark_command(self) -> tuple[str, ...]:
        return "MGET", self._keys.identity, self._keys.mark, self._keys.rebuilt

    def _compare(self, answer: Any) -> None:
        identity, mark, rebuilt = _checked(answer)
        known, known_mark = self.seen
        now = int(mark or 0)
        if known and _text(identity) != known:
            raise DataLost(STORIES["replaced" if identity else "emptied"])
        if now < known_mark:
            raise DataLost(STORIES["rolled back"])
        if known and int(rebuilt or 0) > known_mark:
            raise StoreUnavailable("data were lost and rebuilt: announcing what we have")
        self._watched = _text(identity), now

    def announce(self, announcements: Sequence[Announcement], info_of: Callable[[str], bytes]) -> str:
        """Tell the master what we have, at once; the name of the last one. ``info_of``: of an incarnation."""
        last: Any = b""
        with translated():
            for one in announcements:
                fields: Any = {
                    "incarnation": one.incarnation,
                    "info": info_of(one.incarnation),
                    "job": one.job,
                    "attempt": one.attempt,
                    "entry": one.entry,
                    "spec": one.spec,
                    "gpus": one.gpus,
                }
                last = self._client.xadd(self._keys.announced, fields)
        return _text(last)

    def is_waiting(self, announced: str) -> bool:
        """Whether the master has not taken in yet what was announced under this name."""
        with translated():
            return bool(self._client.xrange(self._keys.announced, announced, announced))

    # -- said once, at (re)connect: these block, within the client's time-out ---------------------------------

    def register(self, channel: str, info: bytes, window: int, lease_ms: int, home: str) -> None:
        """Announce the incarnation and set its lease. Raises StoreRefused when the name belongs to a living other."""
        keys = self._keys
        named = (keys.channels, keys.owners, keys.lease(self._incarnation), keys.bell, keys.base + "lease:")
        answer = self._function(REGISTER, named, self._incarnation, channel, info, window, lease_ms, home)
        if answer != b"ok":
            raise StoreRefused(
                f"channel {channel} is served by another daemon ({answer.decode(errors='replace')}); "
                "give this one another node name, or stop the other"
            )

    def leave(self, incarnation: str | None = None) -> None:
        """Give up the lease of this incarnation, or of a dead predecessor for which everything was said."""
        name = incarnation or self._incarnation
        self._function(LEAVE, (self._keys.lease(name), self._keys.bell, self._keys.channels), name)

    def report_of(
        self, incarnation: str, reports: Sequence[tuple[str, bytes]], window: int | None = None
    ) -> list[bool]:
        """``report`` at once, for a dead predecessor too. Per report whether its entry was still there."""
        if not reports:
            return []
        named, arguments = self._report_arguments(incarnation, "" if window is None else window, reports)
        return [answer == 1 for answer in self._function(REPORT, named, *arguments)]

    def entries_of(self, incarnation: str, ids: Sequence[str]) -> list[OrderEntry]:
        """Those of these dispatch entries of a dead predecessor that are still there, at once."""
        if not ids:
            return []
        stream = self._keys.dispatch(incarnation)
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for entry_id in ids:
                pipe.xrange(stream, entry_id, entry_id)
            found: Any = pipe.execute()
        return [OrderEntry(entries[0][0].decode(), entries[0][1]) for entries in found if entries]

    def all_entries_of(self, incarnation: str) -> list[OrderEntry]:
        """Every dispatch entry that a dead predecessor has not answered, at once."""
        with translated():
            entries: Any = self._client.xrange(self._keys.dispatch(incarnation))
        return [OrderEntry(entry.decode(), fields or {}) for entry, fields in entries]

    def _function(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        with translated():
            try:
                return self._client.fcall(name, len(keys), *keys, *arguments)
            except redis.ResponseError as error:
                if "function not found" not in str(error).lower():
                    raise
        self._load_functions()
        with translated():
            return self._client.fcall(name, len(keys), *keys, *arguments)

    def _load_functions(self) -> None:
        """The master loads them; we do only where our rights let us, so that a slave may be first."""
        try:
            with translated():
                self._client.function_load(channel_library(), replace=True)
        except StoreRefused as error:
            raise StoreUnavailable(f"no master has loaded {CHANNEL_LIBRARY} yet, and we may not: {error}") from error

    # -- the stream of orders ---------------------------------------------------------------------------------

    def read_orders(self, on_entries: OnEntries) -> None:
        """Ask for what is new, from the oldest unanswered entry on after a reconnect; call again after each answer."""
        keys = self._keys
        block = max(1, round(self._block * 1000))
        streams = (keys.dispatch(self._incarnation), keys.control(self._incarnation))
        command = (
            "XREAD",
            "COUNT",
            ORDERS_PER_READ,
            "BLOCK",
            block,
            "STREAMS",
            *streams,
            self._last_order,
            self._last_hint,
        )
        if self._watched is not None:
            self.orders.prepare(self._compare, PATIENCE, *self._mark_command())
        self.orders.ask(lambda answer: on_entries(*self._parsed(answer)), self._block + PATIENCE, *command)

    def _parsed(self, answer: Any) -> tuple[list[OrderEntry], list[Hint]]:
        if is_error(answer):
            raise answer
        orders: list[OrderEntry] = []
        hints: list[Hint] = []
        for stream, entries in answer or ():
            if stream == self._keys.dispatch(self._incarnation).encode():
                orders = [OrderEntry(entry_id.decode(), _fields(flat)) for entry_id, flat in entries]
                self._last_order = orders[-1].id
            else:
                self._last_hint = entries[-1][0].decode()
                hints = [hint for _, flat in entries for hint in _hints(_fields(flat))]
        return orders, hints

    def stop_orders(self) -> list[Order]:
        """A stop begins: nothing more shall come. What was received and not handed out, to be given back.

        Here nothing: what is left in the stream goes back to pending when the lease is given up.
        """
        return []

    # -- everything else --------------------------------------------------------------------------------------

    def renew(self, lease_ms: int, on_answer: Callable[[bool], None]) -> None:
        """Renew the lease; the answer says whether there still was one. Works in a full Redis."""
        lease = self._keys.lease(self._incarnation)
        self.commands.ask(lambda answer: on_answer(_checked(answer) == 1), PATIENCE, "PEXPIRE", lease, lease_ms)

    def report(
        self, reports: Sequence[tuple[str, bytes]], window: int | None, on_answer: Callable[[list[bool]], None]
    ) -> None:
        """Hand in packed reports as (entry, bytes); entry "" for news that end nothing. ``window``: when it changed."""
        named, arguments = self._report_arguments(self._incarnation, "" if window is None else window, reports)
        command = ("FCALL", REPORT, len(named), *named, *arguments)
        self.commands.ask(lambda answer: on_answer([one == 1 for one in _checked(answer)]), PATIENCE, *command)

    def _report_arguments(
        self, incarnation: str, window: int | str, reports: Sequence[tuple[str, bytes]]
    ) -> tuple[tuple[str, ...], list[Any]]:
        keys = self._keys
        named = (keys.dispatch(incarnation), keys.results, keys.bell, keys.lease(incarnation))
        # No KEYS: a slave may do without the rights to them.
        more = (keys.pending, keys.murmurs, keys.leader, keys.together, *self._to_judge_at_once(reports))
        return named, [incarnation, window, *more, *(part for report in reports for part in report)]

    def _to_judge_at_once(self, reports: Sequence[tuple[str, bytes]]) -> tuple[str, str, bytes]:
        """Of a lone success, what the function needs to record it: whoever waits need not wait for the collector."""
        nothing = ("", "", b"")
        if not self._may_record or len(reports) != 1 or len(reports[0][1]) > LARGEST_JUDGED:
            return nothing
        try:
            report = decode_report(reports[0][1])
        except ProtocolError:  # out of the spool of another version: the collector's
            return nothing
        if report.kind is not ReportKind.RESULT or report.outcome is not Outcome.SUCCEEDED or report.attempt > 1:
            return nothing
        return self._keys.base, report.job, report.result

    def publish_output(self, job: str, attempt: int, fd: int, offset: int, data: bytes) -> None:
        """Append to the live output of a followed job. A viewer that is too slow misses some; the job never waits."""
        key = self._keys.output(job)
        fields = ("attempt", attempt, "fd", fd, "offset", offset, "data", data)
        self.commands.ask(_ignored, PATIENCE, "XADD", key, "MAXLEN", "~", OUTPUT_ENTRIES, "*", *fields)
        if offset == 0:
            self.commands.ask(_ignored, PATIENCE, "PEXPIRE", key, OUTPUT_TTL)

    def end_output(self, job: str, attempt: int) -> None:
        """Mark the end of an attempt's live output, and let it go soon."""
        key = self._keys.output(job)
        self.commands.ask(_ignored, PATIENCE, "XADD", key, "*", "attempt", attempt, "end", 1)
        self.commands.ask(_ignored, PATIENCE, "PEXPIRE", key, ENDED_OUTPUT_TTL)


def _checked(answer: Any) -> Any:
    if is_error(answer):
        raise answer
    return answer


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _ignored(answer: Any) -> None:
    """Live output is a convenience: a full Redis may refuse it, and the job goes on."""


def _fields(flat: Any) -> dict[bytes, bytes]:
    if not flat:
        return {}
    parts = iter(flat)
    return dict(zip(parts, parts))  # noqa: B905 - one iterator; naming the default costs as much again


def _hints(fields: dict[bytes, bytes]) -> list[Hint]:
    attempt = fields.get(b"attempt", b"")
    return [
        Hint(what.decode(), fields[what].decode(errors="replace"), int(attempt) if attempt.isdigit() else 0)
        for what in (b"cancel", b"follow", b"interrupt")
        if what in fields
    ]
