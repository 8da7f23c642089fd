"""The event loop of a channel process: file descriptors and timers, one thread, callbacks.

A channel watches job exits, output pipes, runner sockets, two Redis connections and its supervisor at once.
Timers run on CLOCK_BOOTTIME, so that a suspended machine finds its deadlines passed when it wakes.
"""

from __future__ import annotations

import contextlib
import heapq
import select
from collections.abc import Callable

from jobschedd.clock import SYSTEM_CLOCK, Clock

Callback = Callable[[], None]


class Timer:
    """A callback due at a point of boot time; ``cancel`` makes it void."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        """It will not be called any more."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """Epoll and a heap of timers."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._many = 1024  # timers at which the cancelled ones are thrown out

    def watch(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``fd`` is readable, at end of file or broken."""
        self._change(fd, self._readers, callback)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``fd`` takes bytes; only watch it while there is something to write."""
        self._change(fd, self._writers, callback)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd`` altogether; call it before closing the descriptor. Unknown ones are ignored."""
        known = self._readers.pop(fd, None), self._writers.pop(fd, None)
        if any(known):
            # A descriptor that was closed has left the kernel's list by itself.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def unwatch_writable(self, fd: int) -> None:
        """Stop waiting for ``fd`` to take bytes."""
        if self._writers.pop(fd, None) is not None:
            self._leave(fd, self._readers, select.EPOLLIN)

    def unwatch_readable(self, fd: int) -> None:
        """Stop waiting for ``fd`` to be readable."""
        if self._readers.pop(fd, None) is not None:
            self._leave(fd, self._writers, select.EPOLLOUT)

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call ``callback`` once ``clock.boottime()`` has reached ``when``."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > self._many:
            self._drop_cancelled()
        return timer

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback`` in ``seconds``."""
        return self.call_at(self.clock.boottime() + seconds, callback)

    def run_once(self, longest: float = 1.0) -> None:
        """Wait for events or timers, at most ``longest`` seconds, and call what is due."""
        for fd, mask in self._epoll.poll(self._patience(longest)):
            if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)) is not None:
                reader()
            if mask & (select.EPOLLOUT | select.EPOLLERR) and (writer := self._writers.get(fd)) is not None:
                writer()
        self._call_due()

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()

    def _change(self, fd: int, table: dict[int, Callback], callback: Callback) -> None:
        known = fd in self._readers or fd in self._writers
        table[fd] = callback
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        if known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def _leave(self, fd: int, others: dict[int, Callback], their_mask: int) -> None:
        if fd in others:
            self._epoll.modify(fd, their_mask)
        else:
            self._epoll.unregister(fd)

    def _drop_cancelled(self) -> None:
        # A time limit of a day, cancelled after a millisecond, thousands of times a second, would lie here all day.
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        heapq.heapify(self._timers)
        self._many = max(1024, 2 * len(self._timers))

    def _patience(self, longest: float) -> float:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        return max(0.0, min(longest, self._timers[0].when - self.clock.boottime()))

    def _call_due(self) -> None:
        now = self.clock.boottime()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
