"""A slave in a network of its own, whose cable is pulled: packets vanish, and no end of the connection is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

import cluster as harness
from ledger import judge
from node_harness import alive
from redis_server import RedisServer, wait_until

_NET = f"10.231.{os.getpid() % 256}"  # each test worker has its own
HERE, THERE = f"{_NET}.1", f"{_NET}.2"


class Cable:
    """A network namespace and the one cable that leads to it."""

    def __init__(self) -> None:
        number = os.getpid() % 100_000
        self.namespace, self._near, self._far = f"jobs{number}", f"jsn{number}", f"jsf{number}"
        self._ip("netns", "add", self.namespace)
        self._ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.namespace)
        self._ip("address", "add", f"{HERE}/30", "dev", self._near)
        self._ip("-n", self.namespace, "address", "add", f"{THERE}/30", "dev", self._far)
        self._ip("-n", self.namespace, "link", "set", "lo", "up")
        self._ip("-n", self.namespace, "link", "set", self._far, "up")
        self.plug()

    def plug(self) -> None:
        self._ip("link", "set", self._near, "up")

    def pull(self) -> None:
        self._ip("link", "set", self._near, "down")

    def close(self) -> None:
        self._ip("netns", "delete", self.namespace)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
        if done.returncode != 0:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        made = Cable()
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield made
    made.close()


@pytest.fixture
def far_slave(cable, cluster, start_redis, monkeypatch) -> Callable[..., RedisServer]:
    """Start a master and a second slave here, and the first slave at the other end of the cable."""
    server = start_redis("--bind", "127.0.0.1", HERE, "--protected-mode", "no", tcp=True)
    plain = harness.program

    def start(timing: dict[str, float]) -> RedisServer:
        cluster.redis_url = server.url
        cluster.start("master", node="m", timing=timing)
        wrapper = cluster.directory / "start-far"
        wrapper.write_text(f'#!/bin/sh\nexec ip netns exec {cable.namespace} {plain("jobschedd")} "$@"\n')
        wrapper.chmod(0o755)
        how = {"node": "far", "channels": 1, "timing": timing}
        with monkeypatch.context() as patch:
            patch.setattr(harness, "program", lambda name: str(wrapper))
            cluster.start("slave", redis={"url": f"redis://{HERE}:{server.port}/0"}, **how)
        return server

    return start


def _started(ledger) -> int:
    return sum(event.kind == "start" for event in ledger.events()[0])


@pytest.mark.faults
def test_shorter_than_the_lease(cable, cluster, ledger, far_slave):
    """Nobody notices: what runs goes on, and its result comes when the cable is back."""
    server = far_slave({"lease": 5.0, "heartbeat": 1.0})
    with cluster.client() as client, server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=3)])
        wait_until(lambda: _started(ledger) == 1, 10, f"it has begun\n{cluster.logs()}")
        cable.pull()
        until = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > until, 3, "a second and a half", every=0.05)
        cable.plug()
        account = judge(cluster, ledger, admin, within=20)
    assert {event.attempt for event in account.events} == {1}
    assert "its lease ended" not in cluster.logs()


@pytest.mark.faults
@pytest.mark.parametrize("overlap", ["allow", "forbid"])
def test_longer_than_the_lease(cable, cluster, ledger, far_slave, overlap):
    """Another node runs it. Where overlap is forbidden, the far one has ended it by then, though nobody told it to."""
    server = far_slave({})
    with cluster.client() as client, server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=6, overlap=overlap)])
        wait_until(lambda: _started(ledger) == 1, 10, f"it has begun\n{cluster.logs()}")
        cluster.start("slave", node="near", channels=1)
        first = psutil.Process(ledger.events()[0][0].pid)
        cable.pull()
        wait_until(lambda: _started(ledger) == 2, 10, f"the other runs it\n{cluster.logs()}")
        assert alive(first) == (overlap == "allow")
        cable.plug()
        account = judge(cluster, ledger, admin, within=30)
    assert [end.attempt for end in account.ends] == [2]


@pytest.mark.faults
def test_heals_as_the_lease_ends(cable, cluster, ledger, far_slave):
    """Around the very moment, again and again: whoever wins, there is no overlap, and one accepted end."""
    server = far_slave({})
    cluster.start("slave", node="near", channels=1)
    with cluster.client() as client, server.client() as admin:
        for turn in range(12):
            ledger.submit(client, [ledger.item(seconds=1.2, overlap="forbid") for _ in range(2)])
            before = _started(ledger)
            wait_until(lambda: _started(ledger) > before, 20, f"one has begun\n{cluster.logs()}")  # noqa: B023
            cable.pull()
            until = time.monotonic() + 1.5 + (turn - 6) * 0.05
            wait_until(lambda: time.monotonic() > until, 3, "about a lease", every=0.005)  # noqa: B023
            cable.plug()
        judge(cluster, ledger, admin, within=60)
