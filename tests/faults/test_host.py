"""Trouble of the machine itself: disks that are full or read-only, few descriptors, two daemons with one name."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import Daemon, program
from faults.scene import let_pass
from jobschedd.errors import StoreUnavailable
from ledger import judge, read_ends
from redis_server import RedisServer, wait_until


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, size: str, *options: str) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        how = ",".join((f"size={size}", "mode=755", *options))
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no file system of its own here: {done.stderr.strip()}")

    def fill(self) -> None:
        """To the last byte."""
        with open(self.path / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """All that ``fill`` took."""
        (self.path / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)


@pytest.fixture
def disk(cluster) -> Iterator[Callable[..., Disk]]:
    """Make one. It is taken away before the directory of the cluster is removed."""
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    made: list[Disk] = []

    def make(path: Path, size: str = "1m", *options: str) -> Disk:
        made.append(Disk(path, size, *options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _started(ledger) -> int:
    return sum(event.kind == "start" for event in ledger.events()[0])


def test_of_a_node(cluster, ledger, redis_server, disk):
    """Spool and registers cannot grow: what runs ends and is reported, and all goes on when there is room."""
    full = disk(cluster.directory / "n1")
    cluster.start("master", node="m")
    slave = cluster.start("slave", node="n1", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=1) for _ in range(2)])
        wait_until(lambda: _started(ledger) == 2, 15, f"two run\n{cluster.logs()}")
        full.fill()
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(20)])
        large = [client.submit(["head", "-c", "200000", "/dev/zero"]) for _ in range(4)]
        let_pass(2)
        slave.successor("channel 1", of=slave.kill("channel 1"), within=10)
        let_pass(3)
        assert "GIVEN UP" not in slave.log() and "waiting for room on the disk" in slave.log()
        full.free()
        client.wait(large, timeout=30)
        assert {job.outcome for job in large} == {"succeeded"}
        judge(cluster, ledger, admin, within=30, apart={job.id for job in large})
    assert "Traceback" not in slave.log()


@pytest.mark.faults
def test_of_a_node_while_redis_is_away(cluster, ledger, redis_server, disk):
    """The worst moment: results can neither be sent nor kept. It takes no more jobs, and says so."""
    full = disk(cluster.directory / "n1")
    cluster.start("master", node="m")
    slave = cluster.start("slave", node="n1", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=1) for _ in range(2)])
        wait_until(lambda: _started(ledger) == 2, 15, f"two run\n{cluster.logs()}")
        full.fill()
        redis_server.pause()
        let_pass(2)
        redis_server.resume()
        wait_until(lambda: len(read_ends(cluster.history())) == 2, 15, f"they are reported\n{cluster.logs()}")
        full.free()
        ledger.submit(client, [ledger.item() for _ in range(5)])
        judge(cluster, ledger, admin, within=30)
    assert "Traceback" not in slave.log()


def test_of_the_history(cluster, ledger, redis_server, disk):
    """Jobs end without it; their rows follow when there is room, and the log tells."""
    full = disk(cluster.directory / "archive", "512k")
    master = cluster.start("master", master={"history": str(full.path / "history.db")})
    cluster.start("slave", channels=2)
    with cluster.client() as client, redis_server.client() as admin:
        client.submit(["true"]).wait(15)
        full.fill()
        jobs = ledger.submit(client, [ledger.item() for _ in range(40)])
        client.wait(jobs, timeout=20)
        wait_until(lambda: "history" in master.log(), 10, f"it is told\n{master.log()}")
        full.free()
        judge(cluster, ledger, admin, within=30)
    assert "Traceback" not in master.log()


def test_of_the_pid_file(cluster, disk):
    """The daemon says why it does not start, in one line, and leaves nothing."""
    full = disk(cluster.directory / "run", "64k")
    full.fill()
    config = cluster.configure("slave", channels=1)
    done = subprocess.run(
        [program("jobschedd"), "run", "--config", str(config), "--daemonize", "--pidfile", str(full.path / "pid")],
        env=cluster.environment(),
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr, done.stderr
    cluster.assert_nothing_left()


@pytest.mark.faults
def test_of_redis(cluster, ledger, disk):
    """The append-only file cannot be written: nothing is accepted that would not last; then it goes on."""
    server = RedisServer()
    full = disk(server.directory, "4m")
    server.start()
    try:
        cluster.redis_url = server.url
        cluster.start("master")
        cluster.start("slave", channels=2)
        with cluster.client() as client, server.client() as admin:
            ledger.submit(client, [ledger.item(seconds=3) for _ in range(2)])
            wait_until(lambda: _started(ledger) == 2, 15, f"two run\n{cluster.logs()}")
            full.fill()
            wait_until(lambda: _refuses(client, ledger), 15, "it is told that nothing is kept", every=0.2)
            full.free()
            ledger.submit(client, [ledger.item() for _ in range(5)])
            account = judge(cluster, ledger, admin, within=40)
        ran = [event.job for event in account.events if event.kind == "start"]
        assert len(ran) == len(set(ran)), "nothing ran twice"
    finally:
        server.close()


def _refuses(client, ledger) -> bool:
    from jobschedd import Client

    with Client(client.session.config.url, "test", patience=0.1) as hasty:
        item = ledger.item()
        try:
            ledger.accepted(item, hasty.submit_many([item])[0].id)
        except StoreUnavailable as error:
            ledger.unknown(item)
            return "MISCONF" in str(error) or "cannot serve us now" in str(error)
    return False


def test_a_node_whose_disk_is_read_only(cluster, disk):
    disk(cluster.directory / "n1", "64k", "ro")
    slave = cluster.daemon("slave", node="n1", channels=1).launch()
    slave.popen.wait(15)
    assert slave.popen.returncode != 0
    assert "state_dir" in slave.log() and "Traceback" not in slave.log(), slave.log()


@pytest.mark.faults
def test_few_descriptors(cluster, ledger, redis_server):
    """A channel that cannot start anything fails nobody's job for good: it is tried again."""
    cluster.start("master")
    slave = cluster.start("slave", channels=1)
    with cluster.client() as client, redis_server.client() as admin:
        client.submit(["true"]).wait(15)
        channel = slave.child("channel 1")
        before = channel.rlimit(resource.RLIMIT_NOFILE)
        channel.rlimit(resource.RLIMIT_NOFILE, (channel.num_fds(), before[1]))
        ledger.submit(client, [ledger.item(retries=100, retry_delay=0.1, retry_max_delay=0.2) for _ in range(3)])
        let_pass(1.5)
        assert _started(ledger) == 0, "void: there were enough"
        channel.rlimit(resource.RLIMIT_NOFILE, before)
        judge(cluster, ledger, admin, within=30)
    assert "Traceback" not in slave.log()


def test_two_daemons_with_one_node_name(cluster, ledger, redis_server):
    """The second is told who has the name, waits, and follows when the first is gone."""
    cluster.start("master")
    first = cluster.start("slave", node="twin", channels=1)
    text = first.config.read_text().replace(f"{cluster.directory}/twin", f"{cluster.directory}/other")
    config = cluster.directory / "other.yaml"
    config.write_text(text)
    second = Daemon("other", config, config.with_suffix(".log"), cluster.environment())
    cluster.daemons.append(second)
    second.launch()
    with cluster.client() as client, redis_server.client() as admin:
        wait_until(lambda: "twin/1" in second.log(), 15, f"it is told\n{second.log()}")
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(10)])
        client.wait(ledger.jobs(), timeout=20)
        assert "job succeeded" not in second.log(), "two daemons under one name"
        assert first.stop() == 0
        ledger.submit(client, [ledger.item() for _ in range(3)])
        judge(cluster, ledger, admin, within=30)
    assert "Traceback" not in second.log()
