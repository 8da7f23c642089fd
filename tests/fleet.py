"""One real fleet for many tests: a server, a master and a slave, started once for all tests of a directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import Cluster
from jobschedd.store.keys import Keys
from redis_server import RedisServer, wait_until

CHANNELS = ["1", {"name": "gpu", "slots": 2, "labels": ["gpu"]}]


@pytest.fixture(scope="session")
def fleet() -> Iterator[Cluster]:
    """Up and idle: channels ``n1/1`` and ``n1/gpu`` (2 slots, label gpu). Tests leave it as they found it."""
    server = RedisServer().start()
    cluster = Cluster(server.url)
    try:
        cluster.start(["master", "slave"], node="n1", channels=CHANNELS)
        with server.client() as admin:
            # Ready it is before it leads, and before its channels are known.
            wait_until(lambda: admin.exists(Keys(cluster.namespace).leader), 10, f"somebody leads\n{cluster.logs()}")
        yield cluster
        print(cluster.logs())
    finally:
        cluster.close()
        server.close()
