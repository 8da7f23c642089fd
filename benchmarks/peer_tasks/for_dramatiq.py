"""Dramatiq. ``python -m peer_tasks.for_dramatiq COUNT SECONDS`` submits."""

from __future__ import annotations

import os
import sys

import dramatiq
import peer_tasks
from dramatiq.brokers.redis import RedisBroker

_tuned = {"heartbeat_timeout": 5000, "maintenance_chance": 100_000} if os.environ["PEER_TUNED"] else {}
dramatiq.set_broker(RedisBroker(url=os.environ["PEER_REDIS"], **_tuned))


@dramatiq.actor
def work(number: int, seconds: float) -> None:
    """The job."""
    peer_tasks.work(number, seconds)


if __name__ == "__main__":
    for each in range(int(sys.argv[1])):
        work.send_with_options(args=(each, float(sys.argv[2])))
