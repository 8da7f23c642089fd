"""The proxy breaks what it is told to break, there and then, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fault_proxy import FaultProxy, Where, proxy
from redis_server import RedisServer

__all__ = ["proxy"]


@pytest.fixture
def through(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client that comes this way, by TCP."""
    with redis.Redis.from_url(proxy.tcp_url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@pytest.mark.parametrize(
    ("where", "counted"), [(Where.BEFORE, 1), (Where.AFTER, 2), (Where.INSIDE, 2), (Where.SILENT, 2)], ids=str
)
def test_the_second_of_three_is_cut(proxy, through, redis_server, where, counted):
    cut = proxy.cut("INCR", where, nth=2)
    assert through.incr("a") == 1
    with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
        through.incr("a")
    with redis_server.client() as direct:
        assert direct.get("a") == str(counted).encode()
    assert through.incr("a") == counted + 1
    assert cut.hits == 1


def test_what_went_before_in_a_pipeline_is_still_answered(proxy, through, redis_server):
    proxy.cut(b"\r\nb\r\n", Where.BEFORE)
    with through.pipeline(transaction=False) as pipe, pytest.raises(redis.ConnectionError):
        pipe.set("a", 1).set("b", 1).set("c", 1).execute()
    with redis_server.client() as direct:
        assert direct.keys() == [b"a"]


@pytest.mark.parametrize("direction", ["requests", "replies"])
def test_a_black_hole_holds_back_and_lets_go(proxy, through, redis_server, direction):
    through.incr("a")
    proxy.black_hole(requests=direction == "requests", replies=direction == "replies")
    with pytest.raises(redis.TimeoutError):
        through.incr("a")
    with redis_server.client() as direct:
        assert direct.get("a") == (b"1" if direction == "requests" else b"2")
        proxy.heal()
        assert through.incr("a") >= 2
        deadline = time.monotonic() + 5
        while direct.get("a") != b"3":
            assert time.monotonic() < deadline, "what was held back never arrived"


def test_only_connections_of_this_name_are_meant(proxy, through, redis_server):
    with redis.Redis.from_url(proxy.url, client_name="other", socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as other:
        other.ping()
        proxy.black_hole(client="other")
        assert through.ping()
        with pytest.raises(redis.TimeoutError):
            other.ping()
        assert "other" in proxy.names()


def test_slow_and_byte_by_byte(proxy, through):
    through.ping()
    proxy.slow(delay=0.1)
    begin = time.monotonic()
    through.ping()
    assert time.monotonic() - begin > 0.19, "both ways"
    proxy.slow(rate=2000)
    begin = time.monotonic()
    assert through.echo("x" * 100) == b"x" * 100
    assert time.monotonic() - begin > 0.1


def test_reset_and_refuse(proxy, through):
    through.ping()
    proxy.refuse()
    assert proxy.reset() == 1
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            through.ping()
    proxy.heal()
    assert through.ping()


def test_large_values_and_many_clients_pass_unharmed(proxy, through, redis_server: RedisServer):
    value = bytes(range(256)) * 40_000
    with redis.Redis.from_url(proxy.tcp_url, socket_timeout=20) as patient:
        patient.set("large", value)
        assert patient.get("large") == value

    def count() -> None:
        with redis.Redis.from_url(proxy.url) as client:
            for _ in range(100):
                client.incr("n")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert through.get("n") == b"800"
