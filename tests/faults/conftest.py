"""What tests of faults share."""

from __future__ import annotations

import pytest

from cluster import Cluster
from fault_proxy import proxy
from ledger import Ledger

__all__ = ["proxy"]


@pytest.fixture
def ledger(cluster: Cluster) -> Ledger:
    """An empty ledger in the directory of the cluster."""
    return Ledger(cluster.directory)
