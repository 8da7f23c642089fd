"""Following one job: its output as it comes, and at the end what was not shown yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from jobschedd.client.session import Session
from jobschedd.client.waiting import ended
from jobschedd.errors import StoreUnavailable, WaitTimeout
from jobschedd.job import Captured, State, task_of
from jobschedd.store.listen import LiveOutput, OutputEntry
from jobschedd.store.views import JobView

#: Seconds between renewals of the wish to follow, which channels forget.
_RENEW = 10.0
#: Seconds to block at first: a job that ends without output says nothing on its stream.
_BRISK, _BRISK_FOR = 0.25, 10.0
_CALM = 1.0


@dataclass(frozen=True)
class Output:
    """A piece of output. ``missing``: so many bytes before it were not kept."""

    stream: int  # 1: stdout, 2: stderr
    data: bytes
    attempt: int
    missing: int = 0


class Follower:
    """What has been shown of one job. ``view`` is its record once it has ended."""

    def __init__(self, session: Session, job_id: str) -> None:
        self.view: JobView | None = None
        self._session = session
        self._job_id = job_id
        self._attempt = 0
        self._seen = {1: 0, 2: 0}

    def pieces(self, until: float | None = None) -> Iterator[Output | None]:
        """Output until the job has ended; None whenever nothing came for a moment. ``view`` is set at the end.

        Raises NoSuchJob through the reader, StoreUnavailable.
        """
        live = self._session.live_output(self._job_id)
        begin = time.monotonic()
        renewed = -_RENEW
        # A task that has not started has no record yet that could keep our wish.
        renew_first = _RENEW if task_of(self._job_id) is None else _CALM
        try:
            while True:
                if time.monotonic() - renewed >= (_RENEW if self._attempt else renew_first):
                    self._session.patiently(lambda: self._session.moves.follow(self._job_id))
                    renewed = time.monotonic()
                brisk = time.monotonic() - begin < _BRISK_FOR
                entries = self._read(live, _BRISK if brisk else _CALM)
                for entry in entries:
                    yield from self._shown(entry)
                attempt_is_over = bool(entries) and entries[-1].end
                if (attempt_is_over and self._has_verdict()) or (not entries and self._has_ended()):
                    yield from self._rest()
                    return
                if not entries:
                    yield None
        finally:
            live.close()

    def _read(self, live: LiveOutput, timeout: float) -> list[OutputEntry]:
        try:
            return live.read(timeout)
        except StoreUnavailable:
            self._session.patiently(lambda: self._session.inspect.records([self._job_id]))
            return []

    def _has_verdict(self) -> bool:
        """The last output comes a moment before the verdict, which is the end or another try."""
        try:
            for _, view in ended(self._session, [self._job_id], _BRISK):
                self.view = view
        except WaitTimeout:
            return False
        return True

    def _has_ended(self) -> bool:
        view = self._session.patiently(lambda: self._session.inspect.job(self._job_id))
        self.view = view if view is None or view.header.state == State.DONE else None
        return view is None or self.view is not None

    def _shown(self, entry: OutputEntry) -> Iterator[Output]:
        if entry.attempt < self._attempt:
            return
        self._turn_to(entry.attempt)
        if not entry.end and entry.stream in self._seen:
            yield from self._advance(entry.stream, entry.offset, entry.data)

    def _turn_to(self, attempt: int) -> None:
        if attempt > self._attempt:
            self._attempt = attempt
            self._seen = {1: 0, 2: 0}

    def _advance(self, stream: int, offset: int, data: bytes) -> Iterator[Output]:
        seen = self._seen[stream]
        fresh = data[max(0, seen - offset) :]
        missing = max(0, offset - seen)
        if fresh or missing:
            self._seen[stream] = offset + len(data)
            yield Output(stream, fresh, self._attempt, missing)

    def _rest(self) -> Iterator[Output]:
        if self.view is None or not self.view.result.node:
            return
        self._turn_to(self.view.header.attempt)
        for stream, captured in ((1, self.view.result.stdout), (2, self.view.result.stderr)):
            yield from self._kept(stream, captured)

    def _kept(self, stream: int, captured: Captured) -> Iterator[Output]:
        yield from self._advance(stream, 0, captured.head)
        tail_at = captured.size - len(captured.tail)
        yield from self._advance(stream, tail_at, captured.tail)
