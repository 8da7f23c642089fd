"""The result stream, read by the collector without a group: what is in it is uncollected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from jobschedd.store.connect import translated
from jobschedd.store.keys import Keys

#: Reports that one read may bring, and the bytes that it is meant to stay below: a report may hold a megabyte.
REPORTS_PER_READ = 1000
BYTES_PER_READ = 16 << 20
_FEWEST = 10


@dataclass(frozen=True)
class ResultEntry:
    """One entry of the result stream."""

    id: str
    fields: Mapping[bytes, bytes]


class ResultStream:
    """One reader's end, on a connection of its own."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._key = keys.results
        self._last = "0"
        self._count = _FEWEST

    def rewind(self) -> None:
        """Start at the oldest uncollected entry again."""
        self._last = "0"

    def read(self, patience: float) -> list[ResultEntry]:
        """New entries, at once when there are any, else within ``patience`` seconds, else none."""
        block = max(1, round(patience * 1000))
        with translated():
            answer: Any = self._client.xread({self._key: self._last}, count=self._count, block=block)
        if not answer:
            return []
        entries = answer[self._key.encode()][0] if isinstance(answer, dict) else answer[0][1]
        self._last = entries[-1][0].decode()
        self._adapt(entries)
        return [ResultEntry(entry_id.decode(), fields or {}) for entry_id, fields in entries]

    def _adapt(self, entries: list[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """How many to ask for next: as many of this size as a read may bring, growing step by step."""
        size = sum(len(value) for _, fields in entries for value in fields.values())
        fitting = BYTES_PER_READ * len(entries) // max(1, size)
        self._count = max(_FEWEST, min(REPORTS_PER_READ, 10 * self._count, fitting))
