"""The dispatcher's own reading: everything at once, when it starts to lead or may have missed something."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.job import HEADER_SIZE, Flag, Header, State, Target, decode_header, decode_record, decode_spec
from jobschedd.limits import Limits, Rate, group_key
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys


class ChannelInfo(msgspec.Struct, frozen=True):
    """What a channel incarnation says of itself when it registers."""

    node: str
    channel: str
    incarnation: str = ""
    slots: int = 1
    labels: tuple[str, ...] = ()
    pid: int = 0
    host: str = ""
    boot: str = ""
    version: str = ""
    started: float = 0.0
    transport: str = "stream"
    resources: dict[str, int] = {}
    most_slots: int = 1  # that one job may take at once: a channel of an earlier version knows of one only
    aside: int = 0  # results of lost data that its node keeps and nobody asks for


class Drain(msgspec.Struct, frozen=True):
    """What a user said of a node, channel or group of which nothing is dispatched. Times in seconds since the epoch."""

    reason: str = ""
    by: str = ""
    since: float = 0.0
    deadline: float | None = None  # until when what runs there may go on
    then: str = "wait"  # what becomes of it afterwards: wait, requeue or kill
    pause: bool = False
    heard: bool = False  # by a leader: nothing new goes there any more


class Kept(msgspec.Struct, frozen=True):
    """A channel that is kept for the jobs of one class and priority. ``since``: seconds since the epoch."""

    incarnation: str
    job_class: int
    priority: int
    job: str  # the one that has waited too long
    since: float


class Head(msgspec.Struct, frozen=True):
    """The first job of a pending list that waits for nothing but room. Times in seconds, by the server's clock."""

    job: str
    waits: float  # for so long
    now: float


LEFT = b"left"
_GROUP = group_key("")
#: Stands for a channel whose description nobody can read: it gets no jobs, and its entries are taken back in time.
UNREADABLE = ChannelInfo(node="", channel="")
#: Ids at the head of a pending list that may be of jobs gone elsewhere.
_TOMBSTONES = 100
_decoder = msgspec.json.Decoder(ChannelInfo)
_drain_decoder = msgspec.json.Decoder(Drain)
_kept_decoder = msgspec.json.Decoder(list[Kept])
#: Ids at the beginning of a pending list among which its head is looked for: held ones and others stand there, too.
_HEADS = 20


class Survey:
    """Reads of the whole picture."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def pending(self) -> dict[tuple[int, int], int]:
        """(class, priority) -> ids in its list."""
        with translated():
            names: Any = self._client.smembers(self._keys.pending)
            pairs = [tuple(int(part) for part in name.split(b":")) for name in names]
            with self._client.pipeline(transaction=False) as pipe:
                for job_class, priority in pairs:
                    pipe.llen(self._keys.pending_list(job_class, priority))
                lengths = pipe.execute()
        return {(pair[0], pair[1]): length for pair, length in zip(pairs, lengths, strict=True)}

    def classes(self) -> dict[int, Target]:
        """Class number -> target."""
        with translated():
            known: Any = self._client.hgetall(self._keys.classes)
        found = {}
        for text, number in known.items():
            with suppress(ValueError):  # of a newer version: its master knows what to do with it
                found[int(number)] = Target.from_key(text.decode())
        return found

    def class_of_pending(self, job_class: int, priority: int) -> Target | None:
        """What a pending list's jobs ask for, by their own records: for a forgotten class. None: none is left."""
        with translated():
            ids: Any = self._client.lrange(self._keys.pending_list(job_class, priority), 0, _TOMBSTONES)
        for record in self.records([job_id.decode() for job_id in ids]):
            with suppress(ProtocolError, TypeError):
                if record is not None and decode_header(record).job_class == job_class:
                    return Target.of(decode_spec(decode_record(record).spec))
        return None

    def waiting_since(self, lists: list[tuple[int, int]]) -> tuple[int, dict[tuple[int, int], int]]:
        """(now, since when the first job of each of these lists waits), in milliseconds of the server."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for job_class, priority in lists:
                pipe.lindex(self._keys.pending_list(job_class, priority), 0)
            (seconds, micro), *first = pipe.execute()
            for job_id in first:
                pipe.getrange(self._keys.job((job_id or b"").decode()), 0, HEADER_SIZE - 1)
            headers: Any = pipe.execute()
        since = {}
        for key, data in zip(lists, headers, strict=True):
            with suppress(ProtocolError):
                header = decode_header(data)
                if header.state is State.PENDING:
                    since[key] = header.since
        return int(seconds) * 1000 + int(micro) // 1000, since

    def heads(self, lists: list[tuple[int, int]]) -> dict[tuple[int, int], Head]:
        """Who is first in each of these lists (class, priority), held jobs aside; left out where nobody is found."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for job_class, priority in lists:
                pipe.lrange(self._keys.pending_list(job_class, priority), 0, _HEADS - 1)
            (seconds, micro), *found = pipe.execute()
        standing = [(key, job.decode()) for key, ids in zip(lists, found, strict=True) for job in ids]
        now = int(seconds) + int(micro) / 1e6
        heads: dict[tuple[int, int], Head] = {}
        for (key, job), header in zip(standing, self._headers([job for _, job in standing]), strict=True):
            if key not in heads and header is not None and _waits_for_room(header, key):
                heads[key] = Head(job, now - header.since / 1000, now)
        return heads

    def _headers(self, ids: list[str]) -> list[Header | None]:
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.getrange(self._keys.job(job_id), 0, HEADER_SIZE - 1)
            found: Any = pipe.execute()
        return [_header(data) for data in found]

    def is_bounded(self, target: Target, limits: Limits) -> bool:
        """Whether a limit that these jobs count against is reached, or a rate used up."""
        numbers, rates = limits.of_job(target)
        bounds = [(self._keys.limit(key), said.limit) for key, said in numbers if said and isinstance(said.limit, int)]
        paces = [
            (self._keys.rate(key, said.limit.ms), said.limit) for key, said in rates if isinstance(said.limit, Rate)
        ]
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for name, _ in bounds:
                pipe.scard(name)
            (seconds, micro), *held = pipe.execute()
            for name, rate in paces:
                pipe.zcount(name, f"({int(seconds) * 1000 + int(micro) // 1000 - rate.ms}", "+inf")
            started: Any = pipe.execute()
        most = [number for _, number in bounds] + [rate.count for _, rate in paces]
        return any(count >= number for count, number in zip([*held, *started], most, strict=True))

    def used(self, places: list[str]) -> dict[str, dict[str, int]]:
        """What jobs use of the resources of these channels (node/name), by name."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.hvals(self._keys.used(place))
            found: Any = pipe.execute()
        return {place: _total(texts) for place, texts in zip(places, found, strict=True)}

    def kept(self) -> list[Kept]:
        """The channels that the leader keeps for jobs that need much."""
        with translated():
            text: Any = self._client.get(self._keys.kept)
        return read_kept(text)

    def limits(self) -> Limits:
        """What is set, by an operator and by the leading master's configuration."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys.configured_limits)
            pipe.hgetall(self._keys.limits)
            configured, operator = pipe.execute()
        return Limits.read(_texts(configured), _texts(operator))

    def channels(self) -> dict[str, ChannelInfo | None]:
        """Incarnation -> what it said of itself; None for one that left."""
        with translated():
            known: Any = self._client.hgetall(self._keys.channels)
        return {incarnation.decode(): read_channel(text) for incarnation, text in known.items()}

    def channel(self, incarnation: str) -> ChannelInfo | None:
        """One of ``channels``."""
        with translated():
            text: Any = self._client.hget(self._keys.channels, incarnation)
        return read_channel(text)

    def drains(self) -> dict[str, Drain]:
        """What is drained or paused: node, channel, node/channel or (see ``groups_among``) group."""
        with translated():
            found: Any = self._client.hgetall(self._keys.drains)
        return {name.decode(): _drain(text) for name, text in found.items()}

    def records(self, ids: list[str]) -> list[bytes | None]:
        """The records of these jobs."""
        if not ids:
            return []
        with translated():
            records: Any = self._client.mget([self._keys.job(job_id) for job_id in ids])
        return list(records)

    def identity(self, proposal: str = "") -> str:
        """The namespace's incarnation; where it had none, ``proposal`` from now on."""
        with translated():
            identity: Any = self._client.get(self._keys.identity)
            if identity is None and proposal:
                self._client.set(self._keys.identity, proposal, nx=True)
                identity = self._client.get(self._keys.identity)
        return "" if identity is None else str(identity.decode())


def _header(data: bytes) -> Header | None:
    with suppress(ProtocolError):
        return decode_header(data)
    return None


def _waits_for_room(header: Header, key: tuple[int, int]) -> bool:
    """An array stands in its list as one, also when some of its tasks are out."""
    there = header.state is State.PENDING or (Flag.ARRAY in header.flags and header.state is State.RUNNING)
    return there and (header.job_class, header.priority) == key and Flag.HELD not in header.flags


def _total(texts: list[bytes]) -> dict[str, int]:
    total: dict[str, int] = {}
    for text in texts:
        for name, amount in msgspec.msgpack.decode(text)["amounts"].items():
            total[name] = total.get(name, 0) + int(amount)
    return total


def read_kept(text: bytes | None) -> list[Kept]:
    """Empty for what nobody can read: the next leader finds out by itself."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _kept_decoder.decode(text or b"[]")
    return []


def groups_among(drains: Iterable[str]) -> frozenset[str]:
    """The groups that are paused: they stand beside nodes and channels, under a name that none of those can have."""
    return frozenset(name.removeprefix(_GROUP) for name in drains if name.startswith(_GROUP))


def _texts(found: Any) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in found.items()}


def _drain(text: bytes) -> Drain:
    """Whatever stands there: the name is drained."""
    try:
        return _drain_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Drain(heard=True)


def read_channel(text: bytes | None) -> ChannelInfo | None:
    """None for a channel that left; UNREADABLE for what is no channel's description."""
    if text is None or text == LEFT:
        return None
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE
