"""taskiq, with the stream broker."""

from __future__ import annotations

import asyncio

import peer_tasks
from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(peer_tasks.REDIS).with_result_backend(
    RedisAsyncResultBackend(peer_tasks.RESULTS, result_ex_time=3600, serializer=JSONSerializer())
)


@broker.task(task_name="nothing")
async def nothing() -> None:
    """The shortest job there is."""


@broker.task(task_name="true")
async def true() -> None:
    """In a thread: it blocks."""
    await asyncio.to_thread(peer_tasks.true)


async def _fill(name: str, count: int) -> None:
    """It has no way to hand in many at once: fifty are under way at a time."""
    task = {"nothing": nothing, "true": true}[name]

    async def some(mine: int) -> None:
        for _ in range(mine):
            await task.kiq()

    await asyncio.gather(*(some(count // 50 + (number < count % 50)) for number in range(50)))


async def _round_trip() -> None:
    sent = await nothing.kiq()
    await sent.wait_result(check_interval=0.001, timeout=10)


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.startup())
    peer_tasks.main(
        fill=lambda name, count: loop.run_until_complete(_fill(name, count)),
        round_trip=lambda: loop.run_until_complete(_round_trip()),
    )
    loop.run_until_complete(broker.shutdown())
