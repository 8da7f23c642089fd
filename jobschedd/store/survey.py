"""The dispatcher's own reading: everything at once, when it starts to lead or may have missed something."""

from __future__ import annotations

from typing import Any

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.job import Target, decode_record, decode_spec
from jobschedd.store.connect import translated
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
    aside: int = 0  # results of lost data that its node keeps and nobody asks for


class Drain(msgspec.Struct, frozen=True):
    """What a user said of a node or channel that takes no new jobs. Times in seconds since the epoch."""

    reason: str = ""
    by: str = ""
    since: float = 0.0
    deadline: float | None = None  # until when what runs there may go on
    then: str = "wait"  # what becomes of it afterwards: wait, requeue or kill
    pause: bool = False
    heard: bool = False  # by a leader: nothing new goes there any more


#: Jobs of a class that are asked for what their class is.
_LOOK_AT = 20
LEFT = b"left"
#: Stands for a channel whose description nobody can read: it gets no jobs, and its entries are taken back in time.
UNREADABLE = ChannelInfo(node="", channel="")
_decoder = msgspec.json.Decoder(ChannelInfo)
_drain_decoder = msgspec.json.Decoder(Drain)


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
        return {int(number): Target.from_key(text.decode()) for text, number in known.items()}

    def relearn_class(self, job_class: int, priority: int) -> Target | None:
        """What a job in the list of this class asks for; the table of classes has it again. None: nobody knows."""
        with translated():
            waiting: Any = self._client.lrange(self._keys.pending_list(job_class, priority), 0, _LOOK_AT - 1)
            for data in self.records([job.decode() for job in waiting]):
                target = _target_of(data, job_class)
                if target is not None:
                    self._client.hsetnx(self._keys.classes, target.key(), str(job_class))
                    return target
        return None

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
        """The names (node, channel or node/channel) that take no new jobs."""
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
            if proposal:
                self._client.set(self._keys.identity, proposal, nx=True)
            identity: Any = self._client.get(self._keys.identity)
        return "" if identity is None else str(identity.decode())


def _drain(text: bytes) -> Drain:
    """Whatever stands there: the name is drained."""
    try:
        return _drain_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Drain(heard=True)


def _target_of(data: bytes | None, job_class: int) -> Target | None:
    try:
        record = decode_record(data or b"")
        spec = decode_spec(record.spec)
    except ProtocolError:
        return None
    if record.header.job_class != job_class:
        return None
    return Target(channel=spec.channel, node=spec.node, labels=tuple(spec.labels))


def read_channel(text: bytes | None) -> ChannelInfo | None:
    """None for a channel that left; UNREADABLE for what is no channel's description."""
    if text is None or text == LEFT:
        return None
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE
