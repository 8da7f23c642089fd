"""The short way of a submit: it does what the long way does, or leaves it to that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cut import Cut
from jobschedd import Client
from jobschedd.config import RedisConfig
from jobschedd.config.model import split_login
from jobschedd.errors import JobschedError, QueueFull, StoreRefused, StoreUnavailable
from jobschedd.job import State, Target
from jobschedd.store.brief import Brief, Unusual
from jobschedd.store.keys import Keys
from jobschedd.store.moves import OperationSlot
from jobschedd.store.scripts import script
from jobschedd.submission import submission
from redis_server import RedisServer

KEYS = Keys("test")


@pytest.fixture
def loaded(redis_server: RedisServer) -> RedisServer:
    """A server that has the functions."""
    with Client(redis_server.url, "test") as client:
        client.submit(["true"])
    return redis_server


@pytest.fixture
def client(loaded: RedisServer) -> Iterator[Client]:
    """One that goes the short way where it can."""
    with Client(loaded.url, "test") as client:
        client.session.brief = True
        yield client


def opened(url: str, **more: object) -> Brief:
    return Brief(split_login(RedisConfig(url=url, **more)), "test")  # type: ignore[arg-type]


def with_password(server: RedisServer) -> RedisServer:
    with server.client() as redis:
        redis.config_set("requirepass", "s3cret")
    return server


def went_the_long_way(client: Client) -> bool:
    return client.session._moves is not None


def test_a_job_arrives_as_on_the_long_way(client: Client):
    job_id = client.submit(["echo", "hi"], name="greeting", channel="gpu", priority=7, delay=60).id
    assert not went_the_long_way(client)
    view = client.job(job_id).view
    assert (job_id, view.spec.command, view.spec.name, view.spec.channel) == ("2", ("echo", "hi"), "greeting", "gpu")
    assert (view.header.priority, view.header.state) == (7, State.SCHEDULED)


def test_the_array_and_the_key_too(client: Client):
    first, second = (client.submit(["true"], array="1-5", key="once").id for _ in range(2))
    assert (first, second) == ("2", "2") and not went_the_long_way(client)


def test_the_same_slot_is_one_job(loaded: RedisServer):
    job, slot = submission({"command": ["true"]}), OperationSlot("0123456789abcdef")
    slot.sequence = 1
    with closing(opened(loaded.url)) as one, closing(opened(loaded.url)) as another:
        assert one.submit(KEYS, [job], slot) == another.submit(KEYS, [job], slot) == ["2"]


def test_a_lost_reply_is_no_second_job(loaded: RedisServer):
    """The long way asks again, and hears what the short one did."""
    cut = Cut(loaded.directory / "cut.sock", loaded.socket)
    with Client(cut.url, "test") as client:
        client.session.brief = True
        cut.lose_reply_to = script("submit").function.encode()
        job_id = client.submit(["echo", "once"]).id
        assert (cut.lost, job_id, went_the_long_way(client)) == (1, "2", True)
        assert client.inspect.counts().submitted == 2
        cut.close()


def test_a_server_that_has_no_functions_yet(redis_server: RedisServer):
    with Client(redis_server.url, "test") as client:
        client.session.brief = True
        assert client.submit(["true"]).id == "1" and went_the_long_way(client)


class TestWhoCanRunIt:
    @pytest.mark.parametrize(("node", "channel"), [("", ""), ("n1", ""), ("", "gpu"), ("n1", "gpu")])
    def test_of_those_ever_seen(self, client: Client, loaded: RedisServer, node: str, channel: str):
        client.submit(["true"])
        target = Target(node=node, channel=channel)
        assert not client.session.served(target)
        with loaded.client() as redis:
            redis.hset(KEYS.owners, mapping={f"n{number}/1": "x" for number in range(2000)})
            assert client.session.served(target) == (channel == "")
            redis.hset(KEYS.owners, "n1/gpu", "x")
            assert client.session.served(target)
        assert not went_the_long_way(client)

    def test_by_label(self, client: Client):
        """That takes to read them all."""
        client.submit(["true"])
        assert not client.session.served(Target(labels=("big",)))

    def test_the_connection_broke_in_between(self, client: Client, loaded: RedisServer):
        client.submit(["true"])
        with loaded.client() as redis:
            redis.client_kill_filter(_type="normal")
        assert not client.session.served(Target()) and went_the_long_way(client)


class TestLogin:
    def test_by_password_database_and_name(self, start_redis):
        server = with_password(start_redis(tcp=True))
        with closing(opened(server.tcp_url.replace("redis://", "redis://:s3cret@").removesuffix("/0") + "/3")) as brief:
            info = brief.ask("CLIENT", "INFO")
        assert b"db=3" in info and b"name=jobschedd:test" in info

    def test_by_user_and_file(self, start_redis, tmp_path: Path):
        server = start_redis()
        with server.client() as admin:
            admin.acl_setuser("submitter", enabled=True, passwords=["+pw"], categories=["+@all"], keys=["*"])
        (file := tmp_path / "password").write_text("pw\n")
        with closing(opened(server.url, username="submitter", password_file=str(file))) as brief:
            assert brief.ask("ACL", "WHOAMI") == b"submitter"

    @pytest.mark.parametrize("password", ["wrong", "", None])
    def test_a_wrong_one_is_left_to_the_long_way(self, start_redis, password):
        server = with_password(start_redis(tcp=True))
        with pytest.raises(Unusual):
            opened(server.tcp_url if password is None else server.tcp_url.replace("redis://", f"redis://:{password}@"))

    def test_an_unreadable_file_too(self, redis_server: RedisServer, tmp_path: Path):
        with pytest.raises(Unusual):
            opened(redis_server.url, password_file=str(tmp_path / "none"))


class TestTheLongWaySays:
    """What is wrong, as ever."""

    def error_of(self, url: str) -> JobschedError:
        with Client(url, "test", patience=0.1) as client:
            client.session.brief = True
            with pytest.raises(JobschedError) as error:
                client.submit(["true"])
        return error.value

    def test_a_server_that_throws_jobs_away(self, start_redis):
        server = start_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
        assert isinstance(error := self.error_of(server.url), StoreRefused) and "maxmemory-policy" in str(error)

    def test_a_cluster(self, start_redis):
        server = start_redis("--cluster-enabled", "yes", aof=False)
        assert isinstance(error := self.error_of(server.url), StoreRefused) and "cluster" in str(error)

    def test_nobody_there(self, tmp_path: Path):
        assert isinstance(self.error_of(f"unix://{tmp_path}/none.sock"), StoreUnavailable)

    def test_full(self, loaded: RedisServer):
        with loaded.client() as redis:
            redis.config_set("maxmemory", 1)
            error = self.error_of(loaded.url)
            redis.config_set("maxmemory", 0)
        assert isinstance(error, QueueFull)

    def test_lost_data(self, loaded: RedisServer):
        with loaded.client() as redis:
            redis.hset(KEYS.loss, "what", "emptied")
        assert "lost" in str(self.error_of(loaded.url))

    def test_not_redis(self, tmp_path: Path):
        with pytest.raises(Unusual):
            opened("sentinel://127.0.0.1:1/mymaster")
        with pytest.raises(Unusual):
            opened("rediss://127.0.0.1:1/0")
