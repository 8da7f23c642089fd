"""Huey."""

from __future__ import annotations

import time

import peer_tasks
from huey import RedisHuey

huey = RedisHuey("bench", url=peer_tasks.REDIS, store_none=True)
nothing = huey.task()(peer_tasks.nothing)
true = huey.task()(peer_tasks.true)
POLL = 0.0005


def fill(name: str, count: int) -> None:
    """It has no way to hand in many at once."""
    task = {"nothing": nothing, "true": true}[name]
    for _ in range(count):
        task()


def round_trip() -> None:
    """Its own blocking get polls every 50 ms, and more slowly with time; so this polls."""
    found = nothing()
    while not huey.storage.has_data_for_key(found.id):
        time.sleep(POLL)
    found.get()


if __name__ == "__main__":
    peer_tasks.main(fill=fill, round_trip=round_trip)
