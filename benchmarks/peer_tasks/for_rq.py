"""RQ. ``python -m peer_tasks.for_rq COUNT SECONDS`` submits."""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue, Retry

if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(os.environ["PEER_REDIS"]))
    options = {"retry": Retry(max=20), "job_timeout": 5} if os.environ["PEER_TUNED"] else {}
    for number in range(int(sys.argv[1])):
        queue.enqueue("peer_tasks.work", number, float(sys.argv[2]), **options)
