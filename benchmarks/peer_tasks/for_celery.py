"""Celery."""

from __future__ import annotations

import peer_tasks
from celery import Celery

app = Celery("peer", broker=peer_tasks.REDIS)
if peer_tasks.SETTINGS == "tuned":
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={"visibility_timeout": 5},
    )
if peer_tasks.SETTINGS == "fast":
    app.conf.update(
        result_backend=peer_tasks.RESULTS, worker_prefetch_multiplier=64, worker_enable_remote_control=False
    )


@app.task(name="work")
def work(number: int, seconds: float) -> None:
    """The job."""
    peer_tasks.work(number, seconds)


nothing = app.task(name="nothing")(peer_tasks.nothing)
true = app.task(name="true")(peer_tasks.true)


def submit(count: int, seconds: float) -> None:
    """Jobs of the ledger."""
    for number in range(count):
        work.delay(number, seconds)


def fill(name: str, count: int) -> None:
    """It has no way to hand in many at once."""
    task = {"nothing": nothing, "true": true}[name]
    for _ in range(count):
        task.delay()


def round_trip() -> None:
    """It subscribes to the result's channel."""
    nothing.delay().get(timeout=10)


if __name__ == "__main__":
    peer_tasks.main(submit=submit, fill=fill, round_trip=round_trip)
