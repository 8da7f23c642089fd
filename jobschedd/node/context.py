"""What a child process sees of its supervisor: stop requests, and the way to say that it is ready and alive."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import time
from enum import IntEnum

from jobschedd import logs
from jobschedd.logs import get_logger, printable
from jobschedd.node.signals import SignalInbox

log = get_logger(__name__)

#: A message must stay below PIPE_BUF, so that the pipe never holds half of one.
_STATUS_LIMIT = 400
#: Seconds between two beats that say something new, at least; those that do not come less often.
NEWS_INTERVAL = 0.5


class StopLevel(IntEnum):
    """How urgently to stop; only ever rises."""

    RUN = 0
    DRAIN = 1
    NOW = 2


class ChildContext:
    """Handed to a child's target, in the child.

    SIGTERM means DRAIN; a second one, SIGINT, SIGQUIT or the death of the supervisor mean NOW. After that death
    the target has a few seconds: then SIGALRM ends the process, however it hangs.
    """

    def __init__(
        self, name: str, status_fd: int, parent: int, beat_interval: float = 0.5, last_resort: float = 4.0
    ) -> None:
        self.name = name
        self._status_fd = status_fd
        self._parent = parent
        self._beat_interval = beat_interval
        self._last_resort = last_resort
        self._next_beat = self._next_news = 0.0
        self._status = self._told = ""
        self._level = StopLevel.RUN
        self._orphaned = False
        self._inbox = SignalInbox(
            {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1}, note=self._at_signal
        )
        self._parent_fd = os.pidfd_open(parent)
        self._poll = select.epoll()
        self._poll.register(self._inbox.fileno(), select.EPOLLIN)
        self._poll.register(self._parent_fd, select.EPOLLIN)

    def open(self) -> None:
        """Begin to receive signals (they were blocked since before the fork)."""
        # Descriptor 2, not sys.stderr: that may be absent or replaced.
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)
        self._inbox.__enter__()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def ready(self, status: str = "") -> None:
        """Tell the supervisor that the start is over; a death before this counts towards a crash loop."""
        self._send("R", status)

    def beat(self, status: str = "") -> None:
        """Tell the supervisor that this process is alive, and what it does. Cheap; call it in every round."""
        if time.monotonic() >= self._beat_due(status):
            self._send("B", status)
        else:
            self._status = status  # for the beats of ``wait``: they would tell an old one for ever

    def failed(self, reason: str) -> None:
        """Leave the reason of a death that follows, for the supervisor's log and status."""
        self._send("E", reason)

    def fileno(self) -> int:
        """Readable after a signal or the supervisor's death: then call ``check``."""
        return self._poll.fileno()

    def check(self) -> StopLevel:
        """Take in what has come and return the present level."""
        self._obey_signals()
        self._notice_death_of_parent()
        return self._level

    def wait(self, timeout: float) -> StopLevel:
        """Sleep for ``timeout`` seconds, or less when the level rises; beats meanwhile. Returns the level."""
        before, end = self._level, time.monotonic() + timeout
        while self.check() == before:
            self.beat(self._status)
            now = time.monotonic()
            if now >= end:
                break
            self._poll.poll(max(0.0, min(end, self._beat_due(self._status)) - now))
        return self._level

    @property
    def orphaned(self) -> bool:
        """True when the supervisor is dead: nobody will start this child again."""
        return self._orphaned

    def _beat_due(self, status: str) -> float:
        """What is news is told sooner."""
        return self._next_beat if status == self._told else self._next_news

    def _obey_signals(self) -> None:
        came = self._inbox.take()
        if came[signal.SIGUSR1]:
            logs.reopen()
        terms = came[signal.SIGTERM] + (self._level >= StopLevel.DRAIN)
        if came[signal.SIGINT] or came[signal.SIGQUIT] or terms > 1:
            self._level = StopLevel.NOW
        elif came[signal.SIGTERM]:
            self._level = max(self._level, StopLevel.DRAIN)

    def _notice_death_of_parent(self) -> None:
        if self._orphaned or os.getppid() == self._parent:
            return
        self._orphaned = True
        self._level = StopLevel.NOW
        self._poll.unregister(self._parent_fd)  # it stays readable for ever
        self._arm_last_resort()
        log.error("the supervisor is dead: stopping now")

    def _at_signal(self, signum: int) -> None:
        # The parent's death arrives as SIGINT. A target that hangs never gets to check(): arm it here.
        if signum == signal.SIGINT and os.getppid() != self._parent:
            self._arm_last_resort()

    def _arm_last_resort(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, self._last_resort)

    def _send(self, kind: str, text: str) -> None:
        now = time.monotonic()
        self._next_beat, self._next_news = now + self._beat_interval, now + min(self._beat_interval, NEWS_INTERVAL)
        if kind != "E":
            self._status = self._told = text
        line = f"{kind}{printable(text[:_STATUS_LIMIT])}\n".encode("ascii", "backslashreplace")
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # stuck or dead supervisor: check() sees to it
            os.write(self._status_fd, line)
