"""The bell: what the dispatcher blocks on. Submitters, channels and the master's own moves ring it.

Messages: ``p:<class>:<priority>:<count>`` a pending list grew, to so many jobs at least; ``r:<incarnation>:<taken>``
a channel answered entries; ``b:<class>`` and gave some of that class back, not started;
``w:<incarnation>:<window>:<taken>`` and has another window; ``o:<class>:<incarnation>`` a job took a channel that was
offered to it; ``c:<incarnation>`` announced itself; ``l:<incarnation>`` left; ``s`` something was scheduled;
``t`` a schedule changed; ``unblock`` jobs may wait for one that has ended; ``d`` a drain began or ended; ``x`` tasks
of an array are to be cancelled; ``f:<limit>`` somebody let go of a limit that others wait for; ``m`` limits were set;
``a`` messages were lost: look at everything.

While nothing waits for room, ``o``, ``r`` and ``w`` are but *murmurs*: read with whatever rings next, and waking nobody
up. What was taken stands in front of everything else that is read, since what is answered was taken before.
"""

from __future__ import annotations

from typing import Any

import redis

from jobschedd.store.direct import Direct
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys

#: As many messages as the bell holds at most (see ``lua/record.lua``): having read that many, look at everything.
BELL_LIMIT = 10_000


class Bell:
    """One reader's end, on a connection of its own."""

    def __init__(self, client: Direct, keys: Keys) -> None:
        self._client = client
        self._key = keys.bell
        self._murmurs = keys.murmurs

    def listen(self, patience: float) -> list[list[str]]:
        """Messages, split at the colons: at once when there are any, else within ``patience`` seconds, else none."""
        ring = ("BLMPOP", max(patience, 0.001), 1, self._key, "LEFT", "COUNT", BELL_LIMIT)
        # The server goes on to the second when the first has answered. In this order: an entry is taken before it is
        # answered, and the taking of an offer is a murmur.
        murmur = ("LMPOP", 1, self._murmurs, "LEFT", "COUNT", BELL_LIMIT)
        with translated():
            answers: list[Any] = self._client.ask_all([ring, murmur])
            for answer in answers:
                if isinstance(answer, redis.RedisError):
                    raise answer
        messages = [message for answer in answers if answer for message in answer[1]]
        messages.sort(key=_is_not_of_a_taking)
        return [message.decode(errors="replace").split(":") for message in messages]

    def ring_for_everything(self) -> None:
        """Have the leader look at everything: somebody else may have taken messages that were meant for it."""
        with translated():
            self._client.rpush(self._key, "a")

    def silence(self) -> None:
        """Drop what has rung so far: the reader is about to look at everything."""
        with translated():
            self._client.delete(self._key, self._murmurs)


def _is_not_of_a_taking(message: bytes) -> bool:
    return not message.startswith(b"o:")
