"""The result stream, read by the collector without a group: what is in it is uncollected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jobschedd.store.direct import Asked, Direct
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys

#: Reports that one read may bring, and the bytes that it is meant to stay below: a report may hold a megabyte.
REPORTS_PER_READ = 1000
BYTES_PER_READ = 16 << 20
_FEWEST = 10


class ResultEntry(NamedTuple):
    """One entry of the result stream: its name, then names and values of its fields in turn, as often as they come."""

    id: str
    flat: Sequence[bytes]

    @property
    def reports(self) -> Sequence[bytes]:
        """What a channel said in one breath; none in an entry that holds anything else."""
        names = self.flat[::2]
        return self.flat[1::2] if names.count(b"report") == len(names) else ()

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """By name."""
        return dict(zip(self.flat[::2], self.flat[1::2], strict=True))


class ResultStream:
    """One reader's end, on a connection of its own."""

    def __init__(self, client: Direct, keys: Keys) -> None:
        self._client = client
        self._key = keys.results
        self._last = "0"
        self._count = _FEWEST
        self._asked: Asked | None = None  # for what follows

    def rewind(self) -> None:
        """Start at the oldest uncollected entry again."""
        self._last = "0"
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.drop()

    @property
    def reads_ahead(self) -> bool:
        """Whether the next entries are on their way already: it was as much as one read may bring."""
        return self._asked is not None

    def receive_ahead(self) -> None:
        """Have the next entries here, if they are on their way, before the server is kept busy with something else."""
        if self._asked is not None:
            with translated():
                self._asked.receive()

    def read(self, patience: float) -> list[ResultEntry]:
        """New entries, at once when there are any, else within ``patience`` seconds, else none."""
        with translated():
            # Where nothing followed, there is something to finish before we wait.
            answer = self._wait(max(1, round(patience * 1000))) if self._asked is None else self._answer_ahead()
            if not answer:
                return []
            entries = [ResultEntry(entry_id.decode(), flat or ()) for entry_id, flat in answer[0][1]]
            self._last = entries[-1].id
            self._go_on(entries)
        return entries

    def _answer_ahead(self) -> Any:
        asked, self._asked = self._asked, None
        return asked and asked.answer()

    def _wait(self, milliseconds: int) -> Any:
        return self._client.ask("XREAD", "COUNT", self._count, "BLOCK", milliseconds, "STREAMS", self._key, self._last)

    def _go_on(self, entries: list[ResultEntry]) -> None:
        is_full = len(entries) == self._count
        self._adapt(entries)
        if is_full:  # the server has the next ones ready while we deal with these
            self._asked = self._client.begin("XREAD", "COUNT", self._count, "STREAMS", self._key, self._last)

    def _adapt(self, entries: list[ResultEntry]) -> None:
        """How many to ask for next: as many of this size as a read may bring, growing step by step."""
        size = sum(sum(map(len, entry.flat)) for entry in entries)
        reports = sum(len(entry.flat) for entry in entries) // 2
        fitting = min(BYTES_PER_READ * len(entries) // max(1, size), REPORTS_PER_READ * len(entries) // max(1, reports))
        self._count = max(_FEWEST, min(10 * self._count, fitting))


def slices(entries: Sequence[ResultEntry], most: int = REPORTS_PER_READ) -> Iterable[Sequence[ResultEntry]]:
    """Entries in groups of about ``most`` reports: an entry is never parted."""
    begin = reports = 0
    for at, entry in enumerate(entries):
        if reports >= most:
            yield entries[begin:at]
            begin, reports = at, 0
        reports += len(entry.flat) // 2
    yield entries[begin:]
