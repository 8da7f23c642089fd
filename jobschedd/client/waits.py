"""All waits of an asyncio program: futures, one connection that is told of ends, the one thread that blocks on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol, TypeVar

from jobschedd.client.session import Session
from jobschedd.client.waiting import Ended, Watch
from jobschedd.errors import JobschedError
from jobschedd.store.listen import BLOCK
from jobschedd.store.views import JobView

Item = TypeVar("Item")
End = asyncio.Future[JobView | None]


class Elsewhere(Protocol):
    """Does a blocking call in another thread."""

    def __call__(self, call: Callable[[], Item]) -> Awaitable[Item]: ...


class Waits:
    """Of one event loop. ``run`` does a blocking call elsewhere."""

    def __init__(self, session: Session, run: Elsewhere) -> None:
        self._session = session
        self._run = run
        self._ends: dict[str, set[End]] = {}
        self._new: set[str] = set()
        self._enrolling: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    def end(self, job_id: str) -> End:
        """The job's end to come. Cancel the future when nobody waits any more: others keep theirs."""
        end: End = asyncio.get_running_loop().create_future()
        if job_id not in self._ends:
            self._ends[job_id] = set()
            self._new.add(job_id)
        self._ends[job_id].add(end)
        end.add_done_callback(partial(self._left, job_id))
        if self._new and self._enrolling is None:
            self._enrolling = asyncio.create_task(self._enrol())
        return end

    def close(self) -> None:
        """Every wait is cancelled; the listener ends within a second."""
        for ends in list(self._ends.values()):
            for end in list(ends):
                end.cancel()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _enrol(self) -> None:
        """Whatever was asked for since the last call to the store goes into the next one."""
        try:
            while self._new:
                batch, self._new = list(self._new), set()
                try:
                    found, error = await self._run(partial(self._register, batch, asyncio.get_running_loop()))
                except JobschedError as trouble:
                    found, error = [], trouble
                self._settle(found)
                if error is not None:
                    self._fail(batch, error)
        finally:
            self._enrolling = None

    def _register(self, batch: Sequence[str], loop: asyncio.AbstractEventLoop) -> Gathered[Ended]:
        """In a thread; one at a time."""
        listener = self._listener = self._listener or Listener(self._session, loop, self._told)
        # Of what was dropped meanwhile nobody wants to know.
        listener.watch.add(job_id for job_id in batch if job_id in self._ends)
        found = gathered(listener.watch.register(batch))
        listener.wake()
        return found

    def _told(self, found: Sequence[Ended], error: Exception | None) -> None:
        self._settle(found)
        if error is not None:
            self._fail(list(self._ends), error)

    def _settle(self, found: Sequence[Ended]) -> None:
        for job_id, view in found:
            for end in list(self._ends.get(job_id, ())):
                if not end.done():
                    end.set_result(view)

    def _fail(self, ids: Iterable[str], error: Exception) -> None:
        for job_id in ids:
            for end in list(self._ends.get(job_id, ())):
                if not end.done():
                    end.set_exception(error)

    def _left(self, job_id: str, end: End) -> None:
        ends = self._ends.get(job_id)
        if ends is None:
            return
        ends.discard(end)
        if not ends:
            del self._ends[job_id]
            self._new.discard(job_id)
            if self._listener is not None:
                self._listener.watch.drop(job_id)


class Listener:
    """The thread. It blocks on the inbox while anybody waits, and on nothing of the store's while nobody does."""

    def __init__(
        self,
        session: Session,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Sequence[Ended], Exception | None], None],
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._held = ExitStack()
        self._inbox = self._held.enter_context(session.inbox())
        self.watch = Watch(session, self._inbox)
        self._news = threading.Event()
        self._closed = False
        threading.Thread(target=self._listen, name="jobsched waits", daemon=True).start()

    def wake(self) -> None:
        """Somebody waits."""
        self._news.set()

    def close(self) -> None:
        """Once its present turn is over."""
        self._closed = True
        self._news.set()

    def _listen(self) -> None:
        with self._held:
            while not self._closed:
                if not len(self.watch):
                    self._news.wait()
                    self._news.clear()
                    continue
                found, error = gathered(self.watch.turn(BLOCK))
                if (found or error is not None) and not self._hand_over(found, error):
                    break
            self._inbox.close()

    def _hand_over(self, found: Sequence[Ended], error: Exception | None) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._tell, found, error)
        except RuntimeError:  # the loop is closed: nobody can be waiting
            return False
        return True


Gathered = tuple[list[Item], Exception | None]


def gathered(items: Iterable[Item]) -> Gathered[Item]:
    """All of them and no error, or those that came before one."""
    found: list[Item] = []
    try:
        for item in items:
            found.append(item)
    except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
        return found, error
    return found, None
