"""A driver of the store's moves for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_server import RedisServer
from store_driver import Driver


@pytest.fixture
def driver(redis_server: RedisServer) -> Iterator[Driver]:
    """Leads already; no channel is there."""
    driver = Driver(redis_server)
    driver.lead()
    yield driver
    driver.close()
