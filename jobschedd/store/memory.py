"""What the data in Redis use, by kind, and what follows from it: submits refused, finished records forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import script

#: Keys, and jobs that wait, that one look draws: about a millisecond of the server's time.
DRAWS, WAITING_DRAWS = 200, 32
#: The two kinds of finished records, which are one kind together.
FINISHED = ("finished-succeeded", "finished-failed")


class Usage(msgspec.Struct, frozen=True):
    """What the leader measured last, in bytes; budgets of 0 are none."""

    at: float = 0.0
    pending: int = 0
    finished: int = 0
    output: int = 0
    used: int = 0
    maxmemory: int = 0
    budgets: dict[str, int] = {}
    full: str = ""
    history: str = ""
    history_bytes: int = 0


@dataclass(frozen=True)
class Sample:
    """One look at a database of ``keys`` keys, ``draws`` of which were drawn."""

    keys: int
    draws: int
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> keys drawn, their bytes
    waiting: int = 0
    waiting_bytes: int = 0  # of all that wait, by those drawn

    def keys_of(self, kind: str) -> int:
        """About how many keys there are of a kind."""
        return round(self.keys * self.kinds.get(kind, (0, 0))[0] / self.draws) if self.draws else 0

    def bytes_of(self, kind: str) -> int:
        """About how many bytes they use."""
        return round(self.keys * self.kinds.get(kind, (0, 0))[1] / self.draws) if self.draws else 0


class Memory:
    """Reads and, for the leader, writes. Every method raises StoreUnavailable or StoreRefused."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def sample(self, draws: int = DRAWS) -> Sample:
        """A look at some keys."""
        with translated():
            flat = script("measure").call(self._client, self._keys, draws, WAITING_DRAWS)
        size, rest = int(flat[0]), flat[1:]
        end = rest.index(b"")
        kinds = {rest[at].decode(): (int(rest[at + 1]), int(rest[at + 2])) for at in range(0, end, 3)}
        waiting, drawn, drawn_bytes = (int(value) for value in rest[end + 1 :])
        mean = drawn_bytes / drawn if drawn else 0.0
        draws_made = sum(keys for keys, _ in kinds.values())
        if finished := [kinds[name] for name in FINISHED if name in kinds]:
            kinds["finished"] = (sum(keys for keys, _ in finished), sum(used for _, used in finished))
        return Sample(size, draws_made, kinds, waiting, round(mean * waiting))

    def limits(self) -> tuple[int, int]:
        """(bytes in use by all data, maxmemory; 0 for none)."""
        with translated():
            info = self._client.info("memory")
        return int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))

    def usage(self) -> Usage | None:
        """What the leader measured; None where it does not, or nobody leads."""
        with translated():
            data = self._client.get(self._keys.usage)
        try:
            return None if data is None else msgspec.json.decode(data, type=Usage)
        except msgspec.MsgspecError:
            return None

    def admit(self, fence: str, usage: Usage, quiet: bool, hold_ms: int) -> None:
        """Say what is full, for ``hold_ms``: submits are refused while it is. ``quiet``: nobody new may follow."""
        said = (usage.full, "1" if quiet else "0", hold_ms, msgspec.json.encode(usage))
        with translated():
            script("admit").call(self._client, self._keys, fence, *said)

    def shed(
        self, fence: str, first: int, count: int, wanted: int, age_ms: int, which: str = ""
    ) -> tuple[int, int, int]:
        """(bytes freed, records forgotten, next id; 0: no more): finished records of ``count`` ids from ``first``.

        ``which``: ``succeeded``, ``failed`` (any other end), or both.
        """
        with translated():
            freed, forgotten, following = script("shed").call(
                self._client, self._keys, fence, first, count, wanted, age_ms, which
            )
        return int(freed), int(forgotten), int(following)
