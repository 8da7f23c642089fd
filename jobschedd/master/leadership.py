"""Who leads: one master instance at a time, told by a lease in Redis; the epoch never goes backwards.

The supervisor draws a random instance id at its start. The dispatcher acquires and renews the lead for it;
acquiring is idempotent for an instance, so that a restarted dispatcher goes on at once. The collector only
looks whether its instance leads. Every write carries the fence ``<instance>:<epoch>``.
"""

from __future__ import annotations

import os

from jobschedd.clock import Clock
from jobschedd.errors import StoreRefused, StoreUnavailable
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.store.moves import Moves

log = get_logger(__name__)


class EpochFile:
    """The highest epoch this machine has led under, kept outside of Redis too: an old Redis must not lower it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> int:
        """0 when none was kept, or it cannot be read."""
        try:
            with open(self.path, encoding="ascii") as file:
                return max(0, int(file.read(32).strip() or 0))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("cannot read the highest epoch we led under; Redis is trusted", file=self.path, error=error)
            return 0

    def write(self, epoch: int) -> None:
        """Keep ``epoch``; atomic, private."""
        new = f"{self.path}.new"
        descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{epoch}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)


class Leadership:
    """The dispatcher's side: acquire, renew in time, step down in time.

    ``predecessor``: the instance that led from this state directory before; its supervisor is known to be dead.
    """

    def __init__(
        self, moves: Moves, instance: str, lease: float, epochs: EpochFile, clock: Clock, predecessor: str = ""
    ) -> None:
        self._moves = moves
        self._instance = instance
        self._lease = lease
        self._epochs = epochs
        self._predecessor = predecessor
        self._clock = clock
        self._until = 0.0  # boot time until which the lease surely lasts
        self._epoch = 0
        self._other = ""

    @property
    def fence(self) -> str:
        """What every write of the master carries."""
        return f"{self._instance}:{self._epoch}"

    def hold(self) -> bool:
        """Whether we lead; acquires or renews when a third of the lease has passed."""
        now = self._clock.boottime()
        if self._epoch and now < self._until - self._lease * 2 / 3:
            return True
        return self._acquire(now)

    def step_down(self) -> None:
        """We were told that another leads."""
        self._epoch = 0
        self._until = 0.0

    def release(self) -> None:
        """Hand over at an orderly stop, so that a standby need not wait for the lease to end."""
        if self._epoch:
            try:
                self._moves.release_lead(self._instance)
            except (StoreUnavailable, StoreRefused) as error:
                log.warning("could not hand the lead over: a standby takes over when the lease ends", error=error)
            self.step_down()

    def _acquire(self, asked: float) -> bool:
        lease, lowest = round(self._lease * 1000), self._epochs.read() + 1
        epoch, holder = self._moves.acquire_lead(self._instance, lease, lowest, self._predecessor)
        if epoch is None:
            self._stand_by(holder)
            return False
        # Counted from before the request: the server cannot have started the lease any earlier.
        self._until = asked + self._lease
        if epoch != self._epoch:
            failpoint("dispatcher.lead.acquired")
            self._keep(epoch)
            failpoint("dispatcher.lead.kept")
            log.notice("leading", instance=self._instance, epoch=epoch)
            self._epoch = epoch
        self._other = ""
        return True

    def _keep(self, epoch: int) -> None:
        """A full disk must not stop the jobs: it costs one of two guards against an old Redis."""
        try:
            self._epochs.write(epoch)
        except OSError as error:
            log.error("cannot keep the epoch on disk", file=self._epochs.path, error=error)

    def _stand_by(self, holder: str) -> None:
        if holder != self._other:
            log.notice("standing by: another master leads", leader=holder)
            self._other = holder
        self.step_down()
