"""The histories of all masters as one: asked page by page, rows merged, what several have given out once.

Every row carries its place in one order, the newest first. Of the pages that came, the first row of all of them is the
next; where a master's page runs out, it is asked for what follows. So an asker holds a page of each master at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from msgspec.structs import replace

from jobschedd.client.session import Session
from jobschedd.errors import Unanswered
from jobschedd.store.attempts import PAGE, Answer, Archives, Attempt, Place, Query, master_name

#: Seconds within which a master answers, unless it is gone.
PATIENCE = 10.0
_REMEMBERED = 10_000


class Histories:
    """One question to all masters; iterate over the attempts once. ``missing``: why some did not answer, by master."""

    def __init__(self, session: Session, query: Query, limit: int = 0) -> None:
        """``limit``: attempts in all; 0 for no limit."""
        self.missing: dict[str, str] = {}
        self.asked: set[str] = set()
        self._session = session
        self._query = query
        self._limit = limit
        self._pages: dict[str, deque[Attempt]] = {}
        self._unfinished: set[str] = set()

    def __iter__(self) -> Iterator[Attempt]:
        """Raises Unanswered where no master answers, or one that had begun to falls silent; StoreUnavailable."""
        archives = self._session.archives()
        try:
            yield from islice(self._merged(archives), self._limit or None)
        finally:
            archives.close()

    @property
    def problem(self) -> Unanswered | None:
        """What to tell of masters that did not answer; None where all did."""
        if self.asked and not self.missing:
            return None
        reasons = [f"{master_name(master)}: {why}" for master, why in sorted(self.missing.items())]
        return Unanswered(len(self.asked) - len(self.missing), len(self.asked), reasons)

    def _merged(self, archives: Archives) -> Iterator[Attempt]:
        self._turn(archives, None)
        if len(self.missing) == len(self.asked) and self.problem is not None:
            raise self.problem
        given: dict[tuple[str, str, int, int], None] = {}
        while any(self._pages.values()):
            page = max(filter(None, self._pages.values()), key=lambda page: page[0].place)
            row = page.popleft()
            if _key(row) not in given:
                _remember(given, row)
                yield row
            if any(not self._pages[name] for name in self._unfinished):
                self._turn(archives, row.place)

    def _turn(self, archives: Archives, after: Place | None) -> None:
        """Ask all of them for what follows, once for the slowest and the quickest together."""
        size = min(self._limit or PAGE, PAGE)
        asked_for = replace(self._query, after=after, limit=size)
        question, masters = self._session.patiently(lambda: archives.ask(asked_for))
        if after is None:
            self.asked = masters
        answers = {answer.master: answer for answer in self._hear(archives, question, len(masters))}
        self._pages, self._unfinished = {}, set()
        for master in self.asked - set(self.missing):
            self._take(master, answers.get(master), begun=after is not None)

    def _hear(self, archives: Archives, question: str, count: int) -> list[Answer]:
        return self._session.patiently(lambda: archives.hear(question, count, PATIENCE))

    def _take(self, master: str, answer: Answer | None, begun: bool) -> None:
        if answer is None or answer.error:
            self.missing[master] = answer.error if answer else "no answer"
            if begun and self.problem is not None:
                raise self.problem  # what has been given out so far has a hole from here on
            return
        self._pages[master] = deque(answer.rows)
        if answer.more:
            self._unfinished.add(master)


def _remember(given: dict[tuple[str, str, int, int], None], row: Attempt) -> None:
    """Two masters that judged one report each have the row, with nearly the same time: not far from each other."""
    given[_key(row)] = None
    if len(given) > _REMEMBERED:
        del given[next(iter(given))]


def _key(row: Attempt) -> tuple[str, str, int, int]:
    return row.identity, row.job, row.attempt, row.final
