"""Signals as mail: handlers only record, the loop reads what has come in."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType

#: Everything that the supervisor or its children react to.
HANDLED = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
    }
)


class SignalInbox:
    """Records ``signals`` while open and makes ``fileno()`` readable when one has come in.

    ``note`` runs inside the handler for each signal, for the rare case that cannot wait for the loop.
    """

    def __init__(self, signals: Iterable[signal.Signals], note: Callable[[int], None] | None = None) -> None:
        self._signals = frozenset(signals)
        self._note = note
        self._came: Counter[int] = Counter()
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[signal.Signals, object] = {}
        self._mask: set[signal.Signals | int] = set()

    def __enter__(self) -> SignalInbox:
        # A full pipe loses only a wake-up byte: what has come in is in the counter.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for each in self._signals:
            self._before[each] = signal.signal(each, self._record)
        # A parent may have left them blocked, and then no TERM would ever arrive.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]  # exactly what signal() returned
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        return self._reader

    def take(self) -> Counter[int]:
        """All signals since the last call, counted by number."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
        came, self._came = self._came, Counter()
        return came

    def descriptors(self) -> tuple[int, int]:
        """Both ends of the wake-up pipe: a forked child closes them, its parent's mail is not its own."""
        return self._reader, self._writer

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self._came[signum] += 1
        if self._note is not None:
            self._note(signum)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Hold back the handled signals; what comes in meanwhile is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore_defaults() -> None:
    """In a forked child, signals blocked: forget the parent's handlers and what they had noted."""
    signal.set_wakeup_fd(-1)
    for each in HANDLED:
        signal.signal(each, signal.SIG_DFL)


def signal_name(signum: int) -> str:
    """``SIGKILL`` -> ``KILL``; a number without a name stays a number."""
    try:
        return signal.Signals(signum).name.removeprefix("SIG")
    except ValueError:
        return str(signum)
