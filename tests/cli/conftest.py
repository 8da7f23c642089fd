"""What the tests of the command lines share."""

from __future__ import annotations

import json

import pytest

from cluster import Cluster
from fleet import fleet
from redis_server import wait_until

__all__ = ["fleet"]


@pytest.fixture
def calm_fleet(fleet: Cluster) -> Cluster:
    """The fleet without what other tests have left waiting or running there, which the doctor would tell of."""
    fleet.run("cancel", "--all", "--yes")
    unended = "pending,scheduled,waiting,dispatched,running"
    wait_until(lambda: json.loads(fleet.run("list", "--state", unended, "--json").stdout) == [], 30, "it is calm", 0.1)
    return fleet
