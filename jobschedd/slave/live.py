"""Live output of followed jobs: from the executor to a bounded stream in Redis, only while somebody follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobschedd.clock import Clock
from jobschedd.job import Order
from jobschedd.slave.executor import Executor
from jobschedd.slave.output import OutputListener

#: Seconds that one request to follow lasts; followers repeat it every 10 s.
FOLLOWED_FOR = 30.0
CHUNK = 16 * 1024
#: Bytes that may wait for the connection; beyond, a viewer misses some. The job is never slowed down.
MOST_WAITING = 1 << 20

#: publish(job, attempt, fd, offset, data)
Publish = Callable[[str, int, int, int, bytes], None]


@dataclass
class _Followed:
    attempt: int
    until: float
    listening: bool = False


class LiveOutput:
    """Who is followed, for how long. ``publish`` and ``end`` write to the store; ``waiting`` tells its backlog."""

    def __init__(
        self,
        executor: Executor,
        clock: Clock,
        publish: Publish,
        end: Callable[[str, int], None],
        waiting: Callable[[], int],
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._publish = publish
        self._end = end
        self._waiting = waiting
        self._followed: dict[str, _Followed] = {}

    def follow(self, job: str, attempt: int) -> None:
        """Somebody wants to see this job, now or as soon as it starts."""
        followed = self._followed.setdefault(job, _Followed(attempt, 0.0))
        followed.until = self._clock.boottime() + FOLLOWED_FOR
        self._begin(job, followed)

    def look_after(self) -> None:
        """Begin with those that have started since; stop where nobody looks any more."""
        now = self._clock.boottime()
        for job, followed in list(self._followed.items()):
            if now > followed.until:
                self._executor.listen(job, None)
                del self._followed[job]
            else:
                self._begin(job, followed)

    def resume(self) -> None:
        """Connected anew: say again what is held. What was written meanwhile reached nobody; viewers go by offsets."""
        for job, followed in self._followed.items():
            followed.listening = False
            self._begin(job, followed)

    def ended(self, order: Order) -> None:
        """The last word about a job's output, if it was followed."""
        followed = self._followed.pop(order.job, None)
        if followed is not None:
            self._end(order.job, order.attempt)

    @property
    def any(self) -> bool:
        """Whether anybody follows anything here."""
        return bool(self._followed)

    def _begin(self, job: str, followed: _Followed) -> None:
        if not followed.listening:
            followed.listening = self._executor.listen(job, self._listener(job, followed.attempt))

    def _listener(self, job: str, attempt: int) -> OutputListener:
        def heard(fd: int, offset: int, data: bytes) -> None:
            for start in range(0, len(data), CHUNK):
                if self._waiting() > MOST_WAITING:
                    return
                self._publish(job, attempt, fd, offset + start, data[start : start + CHUNK])

        return heard
