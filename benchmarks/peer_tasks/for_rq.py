"""RQ."""

from __future__ import annotations

import peer_tasks
from redis import Redis
from rq import Queue, Retry
from rq.serializers import JSONSerializer

_how = {"serializer": JSONSerializer} if peer_tasks.SETTINGS == "fast" else {}
queue = Queue(connection=Redis.from_url(peer_tasks.REDIS), **_how)
BATCH = 500


def submit(count: int, seconds: float) -> None:
    """Jobs of the ledger."""
    options = {"retry": Retry(max=20), "job_timeout": 5} if peer_tasks.SETTINGS == "tuned" else {}
    for number in range(count):
        queue.enqueue("peer_tasks.work", number, seconds, **options)


def fill(name: str, count: int) -> None:
    """Many at once."""
    for first in range(0, count, BATCH):
        queue.enqueue_many([Queue.prepare_data(f"peer_tasks.{name}") for _ in range(min(BATCH, count - first))])


def round_trip() -> None:
    """It blocks in Redis for the result."""
    assert queue.enqueue("peer_tasks.nothing").latest_result(timeout=10) is not None


if __name__ == "__main__":
    peer_tasks.main(submit=submit, fill=fill, round_trip=round_trip)
