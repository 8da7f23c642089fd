"""SAQ."""

from __future__ import annotations

import asyncio
from typing import Any

import peer_tasks
from saq import Queue

queue = Queue.from_url(peer_tasks.REDIS)


async def work(_context: dict[str, Any], *, number: int, seconds: float) -> None:
    """The job, in a thread: it blocks."""
    await asyncio.to_thread(peer_tasks.work, number, seconds)


async def nothing(_context: dict[str, Any]) -> None:
    """The shortest job there is."""


async def true(_context: dict[str, Any]) -> None:
    """In a thread: it blocks."""
    await asyncio.to_thread(peer_tasks.true)


settings: dict[str, Any] = {"queue": queue, "functions": [work], "concurrency": 2}
if peer_tasks.SETTINGS == "tuned":
    settings["timers"] = {"sweep": 2}
if peer_tasks.SETTINGS == "fast":
    settings |= {"functions": [nothing, true], "concurrency": peer_tasks.SLOTS}


async def _submit(count: int, seconds: float) -> None:
    options: dict[str, Any] = {"retries": 20, "timeout": 5} if peer_tasks.SETTINGS == "tuned" else {}
    for number in range(count):
        await queue.enqueue("work", number=number, seconds=seconds, **options)


async def _fill(name: str, count: int) -> None:
    """It has no way to hand in many at once: fifty are under way at a time."""

    async def some(mine: int) -> None:
        for _ in range(mine):
            await queue.enqueue(name)

    await asyncio.gather(*(some(count // 50 + (number < count % 50)) for number in range(50)))


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(queue.connect())
    peer_tasks.main(
        submit=lambda count, seconds: loop.run_until_complete(_submit(count, seconds)),
        fill=lambda name, count: loop.run_until_complete(_fill(name, count)),
        round_trip=lambda: loop.run_until_complete(queue.apply("nothing", timeout=10, poll_interval=0.001)),
    )
    loop.run_until_complete(queue.disconnect())
