"""arq."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import peer_tasks
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings


async def nothing(_context: dict[str, Any]) -> None:
    """The shortest job there is."""


async def true(_context: dict[str, Any]) -> None:
    """In a thread: it blocks."""
    await asyncio.to_thread(peer_tasks.true)


def _packed(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


class WorkerSettings:
    """For the command ``arq``."""

    functions = (nothing, true)
    redis_settings = RedisSettings.from_dsn(peer_tasks.REDIS)
    max_jobs = peer_tasks.SLOTS
    poll_delay = 0.01
    job_serializer = staticmethod(_packed)
    job_deserializer = staticmethod(json.loads)


async def _pool() -> ArqRedis:
    return await create_pool(WorkerSettings.redis_settings, job_serializer=_packed, job_deserializer=json.loads)


async def _fill(name: str, count: int) -> None:
    """It has no way to hand in many at once: fifty are under way at a time."""
    pool = await _pool()

    async def some(mine: int) -> None:
        for _ in range(mine):
            await pool.enqueue_job(name)

    await asyncio.gather(*(some(count // 50 + (number < count % 50)) for number in range(50)))


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    lone = loop.run_until_complete(_pool())

    async def _round_trip() -> None:
        job = await lone.enqueue_job("nothing")
        assert job is not None
        await job.result(timeout=10, poll_delay=0.001)

    peer_tasks.main(
        fill=lambda name, count: loop.run_until_complete(_fill(name, count)),
        round_trip=lambda: loop.run_until_complete(_round_trip()),
    )
