"""Asking aside whether Redis answers: name look-up, TLS and log-in all block, and a silent server blocks longest."""

from __future__ import annotations

import signal
import socket
import threading

import redis

from jobschedd.errors import JobschedError, StoreUnavailable
from jobschedd.store.errors import translated


class Knock:
    """One question, in a thread of its own. ``fileno`` becomes readable when there is an answer."""

    def __init__(self, client: redis.Redis) -> None:
        self.error: JobschedError | None = None
        self.answered = False
        self._client = client
        self._ear, self._mouth = socket.socketpair()
        # A signal that this thread took would not wake the one that waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._ask, name="knock", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def fileno(self) -> int:
        """For the event loop."""
        return self._ear.fileno()

    def close(self) -> None:
        """Whatever the answer will be, nobody waits for it."""
        self._ear.close()

    def _ask(self) -> None:
        error: JobschedError | None = StoreUnavailable("could not ask whether Redis answers")
        try:
            with translated(), self._client:
                self._client.ping()
            error = None
        except JobschedError as problem:
            error = problem
        finally:
            self.error, self.answered = error, True
            self._mouth.close()  # end of file is the answer
