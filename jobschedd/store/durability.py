"""What is known of a submit beyond Redis' word: replicas that have it, and whether its own disk has."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis

from jobschedd.errors import StoreUnavailable
from jobschedd.store.errors import translate, translated
from jobschedd.store.keys import Keys
from jobschedd.store.moves import OPERATION_MEMORY, OperationSlot

#: Milliseconds that the server may block on us at once, twice in a row: less than our socket waits.
_SLICE = 1000


@dataclass(frozen=True)
class Durability:
    """What was confirmed. ``fsync``: the server's own disk has it; None where it cannot tell (before Redis 7.2)."""

    replicas: int
    fsync: bool | None

    def __str__(self) -> str:
        disk = {True: "on the server's disk", False: "not known to be on the server's disk", None: "disk: cannot tell"}
        return f"{self.replicas} replica{'' if self.replicas == 1 else 's'}, {disk[self.fsync]}"


def confirm(client: Any, keys: Keys, slot: OperationSlot, wanted: int, timeout: float) -> tuple[Durability, str]:
    """Wait for ``wanted`` replicas and, where the server can tell, its disk: what was got, and why that is too little.

    ``wanted`` 0: the disk alone, or one replica where the server cannot tell. The reason is "" when all is well.
    Raises StoreUnavailable, StoreRefused.
    """
    deadline = time.monotonic() + timeout
    got, reason = Durability(0, None), "no answer in time"
    while True:
        left = max(1, round((deadline - time.monotonic()) * 1000))
        try:
            got, reason = _ask(client, keys, slot, wanted, min(_SLICE, left))
        except StoreUnavailable as error:
            reason = str(error)
            time.sleep(min(0.1, left / 1000))
        if not reason or time.monotonic() >= deadline:
            return got, reason


def _ask(client: Any, keys: Keys, slot: OperationSlot, wanted: int, ms: int) -> tuple[Durability, str]:
    """A write of our own goes before the questions: on a new connection they would be about nothing."""
    key = keys.operation(slot.client_id)
    with translated(), client.pipeline(transaction=False) as pipe:
        pipe.get(key)
        pipe.pexpire(key, OPERATION_MEMORY)
        pipe.execute_command("WAIT", wanted, ms)  # for 0 it answers at once
        pipe.execute_command("WAITAOF", 1, 0, ms)
        last, touched, replicas, synced = pipe.execute(raise_on_error=False)
    for answer in (last, touched, replicas):
        if isinstance(answer, redis.RedisError):
            raise translate(answer)
    if not touched or not bytes(last or b"").startswith(b"%d " % slot.sequence):
        return Durability(0, False), "the server does not know of the submit any more: it failed over, or lost data"
    got = Durability(int(replicas), _synced(synced))
    return got, _missing(got, wanted, synced)


def _synced(answer: Any) -> bool | None:
    """None where the server has no WAITAOF, or no append-only file."""
    if isinstance(answer, redis.RedisError):
        return None
    return bool(int(answer[0]))


def _missing(got: Durability, wanted: int, synced: Any) -> str:
    if got.replicas < wanted:
        return f"{got.replicas} of {wanted} replicas have confirmed it"
    if got.fsync is False:
        return "the server has not written it to its disk yet"
    if got.fsync is None and not got.replicas:
        why = "its append-only file is off" if "appendonly" in str(synced) else "it has no WAITAOF (Redis 7.2, Valkey)"
        return f"no replica has it, and the server cannot tell of its disk: {why}"
    return ""
