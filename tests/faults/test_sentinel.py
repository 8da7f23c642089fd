"""Three sentinels on the loopback, a master, two replicas: a fail-over by death and one by order.

With ``min-replicas-to-write 1``, so that a master that is cut off takes no writes that nobody else has.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobschedd.config import RedisConfig
from jobschedd.store.connect import connect
from ledger import judge
from redis_server import RedisServer, die_with_parent, free_port, server_binary, wait_until

DOWN_AFTER = 0.5
SERVICE = "jobs"


class Sentinels:
    """Three of them, over one master and two replicas."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="jobsched-sentinel-"))
        safe = ("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0")
        self.first = RedisServer(*safe, tcp=True).start()
        replica = (*safe, "--replicaof", "127.0.0.1", str(self.first.port))
        self.replicas = [RedisServer(*replica, tcp=True).start() for _ in range(2)]
        self.ports = [free_port() for _ in range(3)]
        self.processes = [self._start(port) for port in self.ports]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.url = f"sentinel://{hosts}/{SERVICE}"
        wait_until(self._ready, 20, "the sentinels know each other and the replica")

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        settings = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.first.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {round(DOWN_AFTER * 1000)}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        file = self.directory / f"{port}.conf"
        file.write_text("\n".join(settings) + "\n")
        return subprocess.Popen(
            [server_binary(), str(file), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def _ready(self) -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.ResponseError, KeyError):
            for port in self.ports:
                with redis.Redis(port=port) as one:
                    state = one.sentinel_master(SERVICE)
                    if int(state["num-other-sentinels"]) != 2 or int(state["num-slaves"]) != 2:
                        return False
            return all(_replication(one)["master_link_status"] == "up" for one in self.replicas)
        return False

    def fail_over(self) -> None:
        """By order of an administrator."""
        with redis.Redis(port=self.ports[0]) as one:
            one.execute_command("SENTINEL", "FAILOVER", SERVICE)

    def promoted(self) -> RedisServer | None:
        """The former replica that is the master."""
        return next((one for one in self.replicas if _replication(one)["role"] == "master"), None)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
        for server in (self.first, *self.replicas):
            server.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _replication(server: RedisServer) -> dict[str, str]:
    """Sentinel kills the clients of a server that changes its part: then ask again."""
    for _ in range(3):
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            return client.info("replication")
    pytest.fail("the server answers nobody")


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    sentinels = Sentinels()
    yield sentinels
    sentinels.close()


@pytest.mark.faults
@pytest.mark.parametrize(
    "how",
    [
        "killed",
        pytest.param(
            "ordered",
            marks=pytest.mark.xfail(
                strict=False,
                reason="the old master takes writes for seconds more; their loss may count as a rolled-back Redis",
            ),
        ),
    ],
)
def test_work_goes_on_at_the_new_master(cluster, ledger, sentinels, how):
    """What was replicated is not lost, what runs is not run again. The rest of the promise is Redis' own: none."""
    cluster.redis_url = sentinels.url
    cluster.start("master")
    cluster.start("slave", channels=3)
    with cluster.client() as client:
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(20)])
        # Sentinel tells a master that was replaced by order up to ten seconds late. What is written there meanwhile is
        # lost, and nobody promises otherwise: nothing ends in this time.
        ledger.submit(client, [ledger.item(seconds=4 if how == "killed" else 14) for _ in range(3)])

        def started() -> int:
            return sum(event.kind == "start" for event in ledger.events()[0])

        wait_until(lambda: started() == 23, 20, f"all have begun\n{cluster.logs()}")
        with sentinels.first.client() as old:
            assert old.wait(2, 5000) == 2, "replicated"
        begin = time.monotonic()
        if how == "killed":
            sentinels.first.kill()
        else:
            sentinels.fail_over()
        wait_until(sentinels.promoted, 20, "a replica is promoted")
        if how == "ordered":
            told = 20, "the old master is told"
            wait_until(lambda: _replication(sentinels.first)["role"] == "slave", *told)
        promoted = time.monotonic() - begin
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(20)])
        wait_until(lambda: started() > 23, 15, f"work goes on\n{cluster.logs()}")
        print(f"promoted after {promoted:.2f} s, first new work after {time.monotonic() - begin:.2f} s")
        assert time.monotonic() - begin - promoted < 5 + 3
    with sentinels.promoted().client() as new:
        account = judge(cluster, ledger, new, within=30)
    assert {event.attempt for event in account.events} == {1}, "nothing ran twice"
    loud = [line for line in cluster.logs().splitlines() if " warning " in line or " error " in line]
    assert len(loud) < 60, "\n".join(loud)


def test_no_sentinel_knows_the_service(cluster, sentinels):
    cluster.redis_url = sentinels.url.replace(f"/{SERVICE}", "/unknown")
    typed = cluster.run("list")
    assert typed.returncode == 69
    assert typed.stderr.count("\n") == 1 and "unknown" in typed.stderr, typed.stderr


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("a,b:1", [("a", 26379), ("b", 1)]),
        ("[::1],[fd00::2]:26380,10.0.0.1:7", [("::1", 26379), ("fd00::2", 26380), ("10.0.0.1", 7)]),
    ],
)
def test_lists_of_sentinels(hosts, addresses):
    client = connect(RedisConfig(url=f"sentinel://{hosts}/{SERVICE}"), "test")
    sentinels = client.connection_pool.sentinel_manager.sentinels
    known = [one.connection_pool.connection_kwargs for one in sentinels]
    assert [(one["host"], one["port"]) for one in known] == addresses
