"""What clients block on: the inbox that tells of ended jobs, and the live output of a followed one.

Each has a connection of its own, because a blocked connection serves nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobschedd.config import RedisConfig
from jobschedd.store.connect import blocking
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.moves import Moves

#: Longest that the server is asked to block, in seconds.
BLOCK = 1.0
_MOST = 500


class Told(NamedTuple):
    """That a job ended. ``record``: as it was then, which may be long ago; None where it was not brought along."""

    job: str
    record: bytes | None


class Inbox:
    """Where one waiting client is told that jobs ended. One thread may take from it while others have it watch."""

    def __init__(self, config: RedisConfig, keys: Keys, moves: Moves, name: str) -> None:
        self._client: Any = blocking(config, name, BLOCK)
        self._keys = keys
        self._moves = moves
        self._number = 0
        #: How often messages were taken.
        self.taken = 0
        self._numbering = threading.Lock()

    @property
    def number(self) -> int:
        """Under which it is told of ends; 0 before the first."""
        return self._number

    def watch(self, ids: Sequence[str]) -> list[bytes | int | None]:
        """Be told of their ends from now on. Per id: see ``Moves.await_end``."""
        return self._moves.await_end(self._own_number(), ids)

    def forget(self) -> None:
        """Watch under a new number from now on: an emptied Redis counts anew, and may give ours to somebody else."""
        self._number = 0
        self.taken += 1  # whatever was meant for the old one

    def take(self, timeout: float) -> list[Told]:
        """Who of those watched ended, waiting for the first up to ``timeout`` seconds (1 s at most)."""
        block = min(max(timeout, 0.001), BLOCK)
        key = self._keys.inbox(self._own_number())
        with translated():
            found = self._client.blmpop(block, 1, key, direction="LEFT", count=_MOST)
        self.taken += bool(found)
        return [_told(message) for message in found[1]] if found else []

    def _own_number(self) -> int:
        with self._numbering:
            self._number = self._number or self._moves.next_client()
            return self._number

    def close(self) -> None:
        """Give the connection up."""
        self._client.close()


def _told(message: bytes) -> Told:
    job, brought, record = message.partition(b":")
    return Told(job.decode(), record if brought else None)


@dataclass(frozen=True)
class OutputEntry:
    """One piece of live output. ``end``: nothing more comes from this attempt."""

    attempt: int
    stream: int  # 1: stdout, 2: stderr, 0: the end
    offset: int  # of the first byte in its stream
    data: bytes
    end: bool


class LiveOutput:
    """Reads the live output of one job from its beginning."""

    def __init__(self, config: RedisConfig, keys: Keys, name: str, job_id: str) -> None:
        self._client: Any = blocking(config, name, BLOCK)
        self._key = keys.output(job_id)
        self._last = b"0-0"

    def read(self, timeout: float) -> list[OutputEntry]:
        """What came since the last call, waiting for the first up to ``timeout`` seconds (1 s at most)."""
        block = round(min(max(timeout, 0.001), BLOCK) * 1000)
        with translated():
            # RESP2 answers with a list of pairs, RESP3 with a mapping.
            found = self._client.xread({self._key: self._last}, count=_MOST, block=block)
        pages = next(iter(found.values())) if isinstance(found, dict) and found else found
        entries = [] if not pages else pages[0] if isinstance(found, dict) else pages[0][1]
        if entries:
            self._last = entries[-1][0]
        return [_entry(fields) for _, fields in entries]

    def close(self) -> None:
        """Give the connection up."""
        self._client.close()


def _entry(fields: dict[bytes, bytes]) -> OutputEntry:
    return OutputEntry(
        attempt=int(fields.get(b"attempt", b"0")),
        stream=int(fields.get(b"fd", b"0")),
        offset=int(fields.get(b"offset", b"0")),
        data=fields.get(b"data", b""),
        end=b"end" in fields,
    )
