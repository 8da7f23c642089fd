"""Dramatiq."""

from __future__ import annotations

import dramatiq
import peer_tasks
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

_tuned = {"heartbeat_timeout": 5000, "maintenance_chance": 100_000} if peer_tasks.SETTINGS == "tuned" else {}
broker = RedisBroker(url=peer_tasks.REDIS, **_tuned)
_stored = {}
if peer_tasks.SETTINGS == "fast":
    broker.add_middleware(Results(backend=RedisBackend(url=peer_tasks.RESULTS)))
    _stored = {"store_results": True}
dramatiq.set_broker(broker)


@dramatiq.actor
def work(number: int, seconds: float) -> None:
    """The job."""
    peer_tasks.work(number, seconds)


nothing = dramatiq.actor(peer_tasks.nothing, **_stored)
true = dramatiq.actor(peer_tasks.true, **_stored)


def submit(count: int, seconds: float) -> None:
    """Jobs of the ledger."""
    for number in range(count):
        work.send_with_options(args=(number, seconds))


def fill(name: str, count: int) -> None:
    """It has no way to hand in many at once."""
    actor = {"nothing": nothing, "true": true}[name]
    for _ in range(count):
        actor.send()


def round_trip() -> None:
    """It blocks in Redis for the result."""
    nothing.send().get_result(block=True, timeout=10_000)


if __name__ == "__main__":
    peer_tasks.main(submit=submit, fill=fill, round_trip=round_trip)
