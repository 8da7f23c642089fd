"""The Redis library repeats nothing by itself: after a lost reply, only we know what is safe to repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from fault_proxy import Where, hit
from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import RedisConfig
from jobschedd.errors import StoreUnavailable
from jobschedd.store.connect import blocking, connect
from jobschedd.store.errors import translated
from jobschedd.store.pipe import Pipe


def _command(client: Any) -> None:
    client.incr("counted-once")


def _batch(client: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.incr("counted-once")
        pipe.execute()


def _transaction(client: Any) -> None:
    """The library's own way: nothing of ours between it and the socket."""
    with client.pipeline(transaction=True) as pipe:
        pipe.incr("counted-once")
        pipe.execute()


@pytest.mark.parametrize("make", [connect, lambda config, name: blocking(config, name, 0.1)], ids=["plain", "blocking"])
@pytest.mark.parametrize("where", [Where.BEFORE, Where.AFTER, Where.INSIDE])
@pytest.mark.parametrize(
    ("ask", "cut_at"), [(_command, b"counted-once"), (_batch, b"counted-once"), (_transaction, b"EXEC")]
)
def test_a_command_is_sent_once(proxy, redis_server, make, ask: Callable[[Any], None], cut_at: bytes, where: Where):
    client = make(RedisConfig(url=proxy.url), "test")
    client.ping()
    cut = proxy.cut(cut_at, where)
    with pytest.raises(StoreUnavailable), translated():
        ask(client)
    client.close()
    hit(cut)
    with redis_server.client() as admin:
        assert int(admin.get("counted-once") or 0) == (0 if where is Where.BEFORE else 1)


def test_the_server_is_told_which_library_this_is(redis_server):
    client = connect(RedisConfig(url=redis_server.url), "test")
    about = client.client_info()
    client.close()
    assert about["name"] == "jobschedd:test"
    if "lib-ver" in about:  # Redis 7.2, Valkey
        assert (about["lib-name"], about["lib-ver"]) == ("redis-py", redis.__version__)


@pytest.mark.parametrize("ask", [_command, _batch, _transaction])
def test_an_outage_may_take_any_number_of_attempts(redis_server, ask: Callable[[Any], None]):
    """The library counts the connections that its pool gives out: after a hundred, a master never came back."""
    client = connect(RedisConfig(url=redis_server.url), "test")
    ask(client)
    redis_server.stop()
    for _ in range(150):
        with pytest.raises(StoreUnavailable, match=r"Connection refused|No such file|closed"), translated():
            ask(client)
    redis_server.start()
    ask(client)
    client.close()


def test_a_channel_may_connect_any_number_of_times(redis_server):
    client = connect(RedisConfig(url=redis_server.url), "test")
    for _ in range(150):
        Pipe(client, SYSTEM_CLOCK).close()
    client.close()
