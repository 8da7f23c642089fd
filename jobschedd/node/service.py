"""One wanted child over all its lives: the process it has now, or when it gets the next."""

from __future__ import annotations

from dataclasses import replace

from jobschedd.node.child import Child, ChildSpec
from jobschedd.node.restart import RestartLimits, RestartPolicy

NEVER = 1 << 30


class Service:
    """State of one wanted child. Times are CLOCK_BOOTTIME seconds.

    STARTING (a child, not ready) -> RUNNING (ready) -> dies -> WAITING (next_start) -> STARTING ...
    or, after too many deaths before it was ready, GIVEN UP until the next reload.
    """

    def __init__(self, spec: ChildSpec, limits: RestartLimits, now: float) -> None:
        self.spec = spec
        self.child: Child | None = None
        self.next_start = now
        self.given_up: str | None = None
        #: The latest moment at which the start of later stages stops waiting for this one.
        self.settle_by: float | None = None
        self._was_ready = False
        # Everything else needs the program (a server); it may come back when a disk has room again.
        self._policy = RestartPolicy(replace(limits, max_failures=NEVER) if spec.program is not None else limits)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> str:
        if self.given_up is not None:
            return "given up"
        if self.child is None:
            return "waiting"
        return "starting" if self.child.ready_at is None else "running"

    @property
    def failures(self) -> int:
        return self._policy.failures

    def settled(self, now: float) -> bool:
        """True once the start of this child keeps nobody waiting any more."""
        overdue = self.settle_by is not None and now >= self.settle_by
        return self._was_ready or self.given_up is not None or overdue

    def started(self, child: Child, start_timeout: float) -> None:
        self.child = child
        self.settle_by = self.settle_by or child.started + start_timeout

    def adopt(self, child: Child) -> None:
        """Take over a running process that a former build started."""
        self.child = child
        self._was_ready = child.ready_at is not None
        self.settle_by = child.started

    def became_ready(self) -> None:
        self._was_ready = True

    def refused(self, now: float) -> float:
        """The machine could not fork; seconds until the next try."""
        delay = self._policy.after_failed_fork()
        self.next_start = now + delay
        return delay

    def died(self, child: Child, cause: str, now: float) -> float | None:
        """Seconds until the next start, or None: given up, ``given_up`` says why."""
        self.child = None
        ready_for = None if child.ready_at is None else now - child.ready_at
        delay = self._policy.after_death(now - child.started, ready_for)
        if delay is None:
            self.given_up = f"given up after {self.failures} failed starts: {cause}"
        else:
            self.next_start = now + delay
        return delay
