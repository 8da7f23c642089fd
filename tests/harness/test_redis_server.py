"""The servers that the other tests rely on."""

from __future__ import annotations

import pytest
import redis


def test_data_survive_a_kill(redis_server):
    with redis_server.client() as client:
        client.set("key", "value")
        before = client.info("server")["run_id"]
    redis_server.restart(hard=True)
    with redis_server.client() as client:
        assert client.get("key") == b"value"
        assert client.info("server")["run_id"] != before


def test_each_test_gets_it_as_new(redis_server):
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("key", "left for the next test")
        client.config_set("maxmemory", "100mb")


def test_each_test_gets_it_as_new_again(redis_server):
    with redis_server.client() as client:
        assert client.dbsize() == 0
        assert client.config_get("maxmemory") == {"maxmemory": "0"}
        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_a_killed_one_is_back_for_the_next_test(redis_server):
    assert redis.Redis.from_url(redis_server.tcp_url).ping()
    assert redis.Redis.from_url(redis_server.url).ping()


def test_a_paused_one_answers_nothing(redis_server):
    with redis_server.client(socket_timeout=0.1) as client:
        client.ping()
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()
        assert client.ping()


def test_one_of_ones_own(start_redis):
    server = start_redis("--maxmemory", "50mb", aof=False)
    with server.client() as client:
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("maxmemory") == {"maxmemory": str(50 << 20)}
    assert server.directory.exists()
    server.close()
    assert not server.directory.exists() and not server.alive()
