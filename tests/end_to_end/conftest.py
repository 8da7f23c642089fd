"""What tests with real daemons share."""

from __future__ import annotations

import pytest

from cluster import Cluster
from ledger import Ledger


@pytest.fixture
def ledger(cluster: Cluster) -> Ledger:
    """An empty ledger in the directory of the cluster."""
    return Ledger(cluster.directory)
