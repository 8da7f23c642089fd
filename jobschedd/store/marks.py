"""Is this the Redis that we know? What tells an emptied or rolled-back one from the old one, and the way back.

A namespace's data has a random *identity* and a *mark* that its leader moves on every second. Masters and
channels keep what they saw of both outside of Redis. Without the identity, Redis was emptied; with another,
replaced; with a lower mark, rolled back to an older copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from jobschedd.errors import DataLost, ProtocolError
from jobschedd.job import Flag, Order, Outcome, Target, decode_spec, encode, task_of
from jobschedd.limits import Limits, Terms, terms_of
from jobschedd.logs import get_logger
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import script
from jobschedd.store.survey import read_channel

log = get_logger(__name__)

#: Announcements that one call takes in.
ANNOUNCEMENTS_PER_CALL = 200
REBUILD, ACCEPT = "rebuild", "accept"

#: What happened, for people.
STORIES = {
    "emptied": "Redis has lost all data of this namespace (emptied, or restarted without its data)",
    "replaced": "this is another Redis than before, or its data were replaced",
    "rolled back": "Redis has gone back to an older copy of its data",
}


class Known(msgspec.Struct, frozen=True):
    """What a master has seen of a namespace's data. ``led``: the mark when it last led; counters only grow."""

    identity: str = ""
    mark: int = 0
    epoch: int = 0
    next_id: int = 0
    led: int = 0


@dataclass(frozen=True)
class Loss:
    """What masters say of data that Redis has lost. ``since`` in seconds since the epoch."""

    what: str
    by: str  # the node of the master that led last: it has the newest history, and rebuilds
    since: float
    next_id: int
    order: str  # what an operator ordered: "", rebuild or accept
    rebuilding: bool

    @property
    def story(self) -> str:
        """One line for people."""
        return STORIES.get(self.what, f"Redis has lost data ({self.what})")


@dataclass(frozen=True)
class KnownEnd:
    """How a job ended, from the history. ``ended`` in seconds since the epoch."""

    job: str
    attempt: int
    ended: float
    outcome: Outcome
    result: bytes


@dataclass(frozen=True)
class Announcement:
    """An order that a channel had when data were lost; spec bytes as they will be stored."""

    job: str
    attempt: int
    entry: str
    incarnation: str
    spec: bytes = b"\x80"  # nobody knows any more
    gpus: str = ""  # the numbers of its GPUs


class Marks:
    """The master's and the operator's side."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client: Any = client
        self._keys = keys

    def check(self, instance: str, node: str, known: Known, proposal: str) -> Known:
        """What is there now, on top of ``known``. Raises DataLost, and says so in Redis, where it is not the same.

        A namespace that never had an identity gets ``proposal``. Whoever leads moves the mark on.
        """
        answer = self._call(
            "mark", instance, node, known.identity, known.mark, known.epoch, known.next_id, known.led, proposal
        )
        if len(answer) == 1:
            what = _text(answer[0] or b"?")
            raise DataLost(STORIES.get(what, f"Redis has lost data ({what})"))
        _, identity, mark, epoch, next_id, leads, mended = answer
        if mended:
            log.error("the counter of job ids was gone, or had gone back: it goes on with a gap", next_id=int(next_id))
        same = _text(identity) == known.identity
        return Known(
            identity=_text(identity),
            mark=int(mark),
            epoch=max(int(epoch), known.epoch),
            next_id=max(int(next_id), known.next_id),
            led=int(mark) if leads else known.led if same else 0,
        )

    def loss(self) -> Loss | None:
        """What was lost; None while all is well."""
        with translated():
            said: Any = self._client.hgetall(self._keys.loss)
        fields = {_text(name): _text(value) for name, value in said.items()}
        if "what" not in fields:
            return None
        return Loss(
            what=fields["what"],
            by=fields.get("by", ""),
            since=int(fields.get("since", "0")) / 1000,
            next_id=int(fields.get("next_id", "0")),
            order=fields.get("order", ""),
            rebuilding="rebuilder" in fields,
        )

    def order(self, what: str) -> None:
        """An operator's decision: REBUILD or ACCEPT. The master that knows most carries it out."""
        with translated():
            self._client.hset(self._keys.loss, "order", what)

    def restored(self) -> dict[str, str]:
        """What the last rebuild brought back, by word."""
        with translated():
            said: Any = self._client.hgetall(self._keys.restored)
        return {_text(name): _text(value) for name, value in said.items()}

    def begin(self, instance: str, order: str, identity: str, next_id: int) -> bool:
        """Carry the order out, as far as one script does; False when it was not given."""
        return bool(self._call("rebuild", instance, order, identity, next_id))

    def settle(self, fence: str, ends: Sequence[KnownEnd], keep: Sequence[int]) -> int:
        """End the jobs of which the history knows that they have; how many. ``keep``: ms that each record stays."""
        if not ends:
            return 0
        arguments: list[Any] = [fence]
        for end, ms in zip(ends, keep, strict=True):
            arguments += [end.job, end.attempt, round(end.ended * 1000), int(end.outcome), end.result, ms]
        return int(self._call("settle", *arguments))

    def take_in(self, fence: str) -> tuple[int, int]:
        """(announcements taken in, orders restored by them): a call's worth, oldest first."""
        with translated():
            entries: Any = self._client.xrange(self._keys.announced, count=ANNOUNCEMENTS_PER_CALL)
        arguments: list[Any] = [fence]
        unreadable = []
        for entry, fields in entries:
            try:
                arguments += _restorable(entry, fields or {})
            except (KeyError, ValueError, ProtocolError):
                unreadable.append(entry)
        restored = self._call("restore", *arguments) if len(arguments) > 1 else []
        if unreadable:
            with translated():
                self._client.xdel(self._keys.announced, *unreadable)
        return len(entries), sum(restored)

    def admit_channels(self) -> None:
        """From now on channels may connect, and announce what they have."""
        with translated():
            self._client.hset(self._keys.loss, "admits", 1)

    def finish(self, summary: dict[str, Any]) -> None:
        """The rebuild is over: work goes on."""
        with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.restored)
            pipe.hset(self._keys.restored, mapping=summary)
            pipe.delete(self._keys.loss)
            pipe.execute()

    def _call(self, name: str, *arguments: Any) -> Any:
        with translated():
            return script(name).call(self._client, self._keys, *arguments)


def _restorable(entry: bytes, fields: dict[bytes, bytes]) -> list[Any]:
    spec_bytes = fields[b"spec"]
    spec = decode_spec(spec_bytes)
    job, attempt, dispatch = _text(fields[b"job"]), int(fields[b"attempt"]), _text(fields[b"entry"])
    incarnation = _text(fields[b"incarnation"])
    if len(bytes.fromhex(incarnation)) != 8 or [part.isdigit() for part in dispatch.split("-")] != [True, True]:
        raise ValueError("no dispatch of ours")
    is_task = task_of(job) is not None
    key = "" if is_task else spec.key
    flags = (Flag.NONE if spec.retry_on_loss else Flag.NO_RETRY_ON_LOSS) | (Flag.KEYED if key else Flag.NONE)
    flags |= Flag.TASK if is_task else spec.hook_flag
    target = Target.of(spec)
    # It runs already: it counts, whatever the limits are.
    info = read_channel(fields[b"info"])
    place = f"{info.node}/{info.channel}" if info is not None else "?"
    gpus = tuple(int(number) for number in _text(fields.get(b"gpus", b"")).split(",") if number)
    now = terms_of(target, Limits(), place=place)
    terms = Terms(l=now.l, u=now.u, g=gpus).encoded()
    about = (job, attempt, dispatch, int(flags), target.key(), spec.priority, key, spec_bytes, terms)
    return [entry, incarnation, fields[b"info"], *about]


def announcement(order: Order, incarnation: str) -> Announcement:
    """Of an order that is still known whole."""
    gpus = ",".join(map(str, order.gpus))
    return Announcement(order.job, order.attempt, order.entry, incarnation, encode(order.spec), gpus)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
