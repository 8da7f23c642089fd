"""Celery. ``python -m peer_tasks.for_celery COUNT SECONDS`` submits."""

from __future__ import annotations

import os
import sys

import peer_tasks
from celery import Celery

app = Celery("peer", broker=os.environ["PEER_REDIS"])
if os.environ["PEER_TUNED"]:
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={"visibility_timeout": 5},
    )


@app.task(name="work")
def work(number: int, seconds: float) -> None:
    """The job."""
    peer_tasks.work(number, seconds)


if __name__ == "__main__":
    for each in range(int(sys.argv[1])):
        work.delay(each, float(sys.argv[2]))
