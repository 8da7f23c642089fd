"""SAQ. ``python -m peer_tasks.for_saq COUNT SECONDS`` submits."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import peer_tasks
from saq import Queue

queue = Queue.from_url(os.environ["PEER_REDIS"])
TUNED = bool(os.environ["PEER_TUNED"])


async def work(_context: dict[str, Any], *, number: int, seconds: float) -> None:
    """The job, in a thread: it blocks."""
    await asyncio.to_thread(peer_tasks.work, number, seconds)


settings: dict[str, Any] = {"queue": queue, "functions": [work], "concurrency": 2}
if TUNED:
    settings["timers"] = {"sweep": 2}


async def submit(count: int, seconds: float) -> None:
    """Enqueue them all."""
    await queue.connect()
    options: dict[str, Any] = {"retries": 20, "timeout": 5} if TUNED else {}
    for number in range(count):
        await queue.enqueue("work", number=number, seconds=seconds, **options)
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(submit(int(sys.argv[1]), float(sys.argv[2])))
