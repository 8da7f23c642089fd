"""A pub/sub subscription that never blocks its process and notices its own death.

A subscriber may hear nothing for days, so silence proves nothing, and a connection that a router forgot looks
just like it; the library's health check does not see the difference. So we send PING at an interval of our own,
and a PONG that stays away means: connect anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis
import redis

from jobschedd.clock import Clock
from jobschedd.store.errors import translate
from jobschedd.store.pipe import Pipe

OnMessage = Callable[[bytes], None]


class Subscription(Pipe):
    """One connection that subscribes to one channel. ``interval``: seconds between PINGs.

    Methods raise StoreUnavailable or StoreRefused; the subscription is then of no more use.
    """

    def __init__(self, client: redis.Redis, clock: Clock, channel: str, interval: float, on_message: OnMessage) -> None:
        super().__init__(client, clock)
        self._channel = channel.encode()
        self._interval = interval
        self._on_message = on_message
        self._active = False
        self._pinged: float | None = None  # boot time of the oldest PING without an answer
        self._ping_due = clock.boottime() + interval

    def subscribe(self, patience: float) -> None:
        """Subscribe, and wait for the confirmation up to ``patience`` seconds."""
        self._send("SUBSCRIBE", self._channel)
        self.wait_until(lambda: self._active, patience)

    def unsubscribe(self, patience: float) -> None:
        """Hear nothing any more: what arrived before the confirmation still goes to ``on_message``."""
        if self._active:
            self._send("UNSUBSCRIBE", self._channel)
            self.wait_until(lambda: not self._active, patience)

    def ping_if_due(self) -> float:
        """Send the PING of this interval; the boot time of the next one."""
        now = self._clock.boottime()
        if now >= self._ping_due:
            self._ping_due = now + self._interval
            self._pinged = self._pinged if self._pinged is not None else now
            self._send("PING")
        return self._ping_due

    def overdue(self) -> bool:
        """Whether a PONG is missing for an interval: the last one is then two intervals old, or older."""
        return self._pinged is not None and self._clock.boottime() > self._pinged + self._interval

    def read(self) -> None:
        """Take what has arrived; messages go to ``on_message``."""
        self._receive()
        try:
            while (answer := self._reader.gets()) is not False:
                self._hear(answer)
        except hiredis.ProtocolError as error:
            raise self._broken(error) from error

    def _hear(self, answer: Any) -> None:
        if isinstance(answer, hiredis.ReplyError):
            self.close()
            raise translate(redis.ResponseError(str(answer)))
        match answer:
            case [b"message", _, payload]:
                self._on_message(payload)
            case [b"subscribe", *_]:
                self._active = True
            case [b"unsubscribe", *_]:
                self._active = False
            case [b"pong", *_] | b"PONG":
                self._pinged = None

    def _send(self, *command: Any) -> None:
        self._unsent += hiredis.pack_command(command)
        self.write()
