"""What hooks are to be told of, on its way through Redis: events, and for each hook its deliveries.

An event is written in the same step as what it tells of. The leader shares events out; a delivery stays until it was
made, or given up, so it outlives every master. Made twice it may be: both times it carries the id of its event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.job import HEADER_SIZE, Header, decode_header
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import script

#: Events shared out by one call; jobs at the head of each pending list that are looked at for being late.
EVENTS_PER_CALL, OLDEST = 100, 1000


@dataclass(frozen=True)
class Event:
    """An entry of the event stream: a job's end, or something noticed (``about``)."""

    id: str
    job: str = ""
    outcome: int = 0
    attempt: int = 0
    about: bytes = b""
    hooks: tuple[str, ...] = ()  # that the job names for such an end


class Delivery(msgspec.Struct, frozen=True):
    """One event for one hook. ``payload`` is the JSON that is delivered; ``tries`` counts the failed ones."""

    event: str
    payload: msgspec.Raw
    tries: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Delivery).decode


class Hooks:
    """The leader's end."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client: Any = client
        self._keys = keys

    def _call(self, name: str, *args: Any, **fixed: str) -> Any:
        with translated():
            return script(name).call(self._client, self._keys, *args, **fixed)

    def want(self, fence: str, outcomes: Iterable[int], nameable: Iterable[str] = ()) -> None:
        """Ends with these outcomes are events from now on; those of jobs that name hooks are in any case.

        ``nameable``: for submitters who ask which they may name. Raises NotTheLeader, as all that takes a fence.
        """
        digits = "".join(str(int(outcome)) for outcome in sorted(outcomes))
        self._call("hooked", fence, digits, " ".join(sorted(nameable)))

    def events(self, patience: float) -> list[Event]:
        """The oldest that were not shared out, waiting for one up to ``patience`` seconds."""
        block = max(1, round(patience * 1000))
        with translated():
            found = self._client.xread({self._keys.events: "0"}, count=EVENTS_PER_CALL, block=block)
        pages = next(iter(found.values())) if isinstance(found, dict) and found else found
        entries = [] if not pages else pages[0] if isinstance(found, dict) else pages[0][1]
        return [_event(entry.decode(), fields) for entry, fields in entries]

    def noticed(self) -> dict[str, str]:
        """What hooks know of nodes and of jobs that are late."""
        with translated():
            return {name.decode(): state.decode() for name, state in self._client.hgetall(self._keys.noticed).items()}

    def notice(self, fence: str, things: Sequence[tuple[str, str, bytes]]) -> int:
        """(field, what it is now, event): an event where it was something else before; "" forgets it."""
        return int(self._call("notice", fence, *(part for thing in things for part in thing))) if things else 0

    def route(self, fence: str, events: Sequence[str], deliveries: Sequence[tuple[str, Delivery]]) -> int:
        """These events become these deliveries; how many old ones had to go for them."""
        parts = [part for hook, delivery in deliveries for part in (hook, _encode(delivery))]
        return int(self._call("route", fence, len(events), *events, *parts))

    def due(self, hook: str) -> tuple[bytes, float | None]:
        """(a delivery to make now, or b""; seconds until the next is due, None where there is none)."""
        delivery, wait = self._call("due", queue=self._keys.hook(hook))
        return delivery, None if wait < 0 else wait / 1000

    def delivered(self, hook: str, packed: bytes, again: Delivery | None = None, delay: float = 0.0) -> None:
        """It was tried; ``again``: it is to be tried once more, after ``delay`` seconds."""
        next_try = b"" if again is None else _encode(again)
        self._call("delivered", packed, next_try, round(delay * 1000), queue=self._keys.hook(hook))

    def oldest_pending(self) -> list[tuple[str, Header]]:
        """Jobs that have waited longest for a channel: the head of each pending list."""
        with translated():
            names = [name.decode() for name in self._client.smembers(self._keys.pending)]
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.lrange(f"{self._keys.base}pending:{name}", 0, OLDEST - 1)
            ids = [job.decode() for page in pipeline.execute() for job in page]
            for job in ids:
                pipeline.getrange(self._keys.job(job), 0, HEADER_SIZE - 1)
            return [(job, decode_header(head)) for job, head in zip(ids, pipeline.execute(), strict=True) if head]


def unpack(packed: bytes) -> Delivery:
    """Raises ProtocolError."""
    try:
        return _decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable delivery: {error}") from error


def _event(entry: str, fields: dict[bytes, bytes]) -> Event:
    def number(name: bytes) -> int:
        text = fields.get(name, b"0")
        return int(text) if text.isdigit() else 0

    job = fields.get(b"job", b"").decode(errors="replace")
    named = tuple(fields.get(b"hooks", b"").decode(errors="replace").split())
    return Event(entry, job, number(b"outcome"), number(b"attempt"), fields.get(b"event", b""), named)
