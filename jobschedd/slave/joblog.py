"""What a channel tells of its jobs: each one while they are few, a sum per second when they are many."""

from __future__ import annotations

from jobschedd.clock import Clock
from jobschedd.durations import format_duration
from jobschedd.job import Order, Outcome, Result
from jobschedd.logs import get_logger

log = get_logger(__name__)

#: Ends told one by one in any one second.
SINGLY = 20


class JobLog:
    """For ``journalctl -f``: readable at one job an hour and at twenty thousand a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = 0
        self._told = 0
        self._succeeded = 0
        self._others = 0

    def ended(self, order: Order, result: Result) -> None:
        """One attempt is over."""
        self._turn_page()
        if self._told < SINGLY:
            self._told += 1
            self._tell(order, result)
        elif result.outcome is Outcome.SUCCEEDED:
            self._succeeded += 1
        else:
            self._others += 1

    def flush(self) -> None:
        """Tell what a quiet second left untold."""
        self._turn_page()

    def _turn_page(self) -> None:
        second = int(self._clock.boottime())
        if second == self._second:
            return
        if self._succeeded or self._others:
            log.info("more jobs ended", succeeded=self._succeeded, others=self._others)
        self._second, self._told, self._succeeded, self._others = second, 0, 0, 0

    @staticmethod
    def _tell(order: Order, result: Result) -> None:
        fields: dict[str, object] = {"job": order.job, "attempt": order.attempt}
        if order.spec.name:
            fields["name"] = order.spec.name
        if result.outcome is not Outcome.SUCCEEDED:
            fields["cause"] = str(result.cause)
        if result.exit_code:
            fields["exit_code"] = result.exit_code
        if result.signal:
            fields["signal"] = result.signal
        if result.error:
            fields["error"] = result.error.strip().splitlines()[-1][:200]
        fields["took"] = format_duration(result.duration)
        log.info(f"job {Outcome(result.outcome).word}", **fields)
