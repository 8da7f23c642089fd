"""What the tests of the classic wire share."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from blackhole import blackhole  # noqa: F401 - a fixture
from cluster import Cluster
from ledger import Ledger
from wire import foreigner  # noqa: F401 - a fixture


class Classic:
    """Daemons on the classic wire."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def slave(self, *channels: object, **how: object):
        """A slave that is ready; channels as in the YAML."""
        return self.cluster.start("slave", transport="pubsub", channels=list(channels), **how)

    def master(self, channels=("1", "2", "3"), **master: object):
        """A master that is ready."""
        return self.cluster.start("master", transport="pubsub", master={"channels": list(channels)} | master)

    def handler(self, name: str = "1", script: str = "true", slots: int = 1) -> dict[str, object]:
        """A channel whose handler notes in ``ran`` what it got, then runs a line of shell."""
        note = f'printf "%s|%s\\n" "$JOBSCHED_PAYLOAD" "$0" >> {self.cluster.directory}/ran; {script}'
        return {"name": name, "slots": slots, "handler": ["/bin/sh", "-c", note]}

    def ran(self) -> list[str]:
        """What handlers got, in order: $JOBSCHED_PAYLOAD|last argument."""
        path = self.cluster.directory / "ran"
        return path.read_bytes().decode(errors="backslashreplace").splitlines() if path.exists() else []

    def history(self, job: str) -> list[tuple[int, int, str, str]]:
        """(attempt, final, outcome, cause) of a job's attempts that ended."""
        rows = []
        for path in self.cluster.history():
            # Until its first row, there is no table.
            with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(path) as database:
                query = "SELECT attempt, final, outcome, cause FROM attempts WHERE job = ? ORDER BY attempt"
                rows += database.execute(query, (job,)).fetchall()
        return rows


@pytest.fixture
def classic(cluster: Cluster) -> Classic:
    """Daemons on the classic wire, none yet."""
    return Classic(cluster)


@pytest.fixture
def ledger(cluster: Cluster) -> Ledger:
    """An empty ledger in the directory of the cluster."""
    return Ledger(cluster.directory)
