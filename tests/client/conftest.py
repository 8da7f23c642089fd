"""What the tests of the Python client share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import fleet
from jobschedd import Client
from redis_server import RedisServer

__all__ = ["fleet"]


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Client]:
    """A client of a server on which no daemon runs."""
    with Client(redis_server.url, "test", patience=5) as client:
        yield client
