"""The result stream, read by the collector without a group: what is in it is uncollected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from jobschedd.store.connect import translated
from jobschedd.store.keys import Keys

#: Bytes of reports that one read may bring: 1000 reports of a megabyte each would be too many at once.
REPORTS_PER_READ = 1000


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

    def rewind(self) -> None:
        """Start at the oldest uncollected entry again."""
        self._last = "0"

    def read(self, patience: float) -> list[ResultEntry]:
        """New entries, at once when there are any, else within ``patience`` seconds, else none."""
        block = max(1, round(patience * 1000))
        with translated():
            answer: Any = self._client.xread({self._key: self._last}, count=REPORTS_PER_READ, block=block)
        if not answer:
            return []
        entries = answer[self._key.encode()][0] if isinstance(answer, dict) else answer[0][1]
        self._last = entries[-1][0].decode()
        return [ResultEntry(entry_id.decode(), fields or {}) for entry_id, fields in entries]
