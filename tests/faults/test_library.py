"""The Redis library repeats nothing by itself: after a lost reply, only we know what is safe to repeat."""

from __future__ import annotations

import pytest
import redis

from fault_proxy import Where, hit
from jobschedd.config import RedisConfig
from jobschedd.errors import StoreUnavailable
from jobschedd.store.connect import blocking, connect, translated


@pytest.mark.parametrize("make", [connect, lambda config, name: blocking(config, name, 0.1)], ids=["plain", "blocking"])
@pytest.mark.parametrize("where", [Where.BEFORE, Where.AFTER, Where.INSIDE])
def test_a_command_is_sent_once(proxy, redis_server, make, where):
    client = make(RedisConfig(url=proxy.url), "test")
    client.ping()
    cut = proxy.cut(b"counted-once", where)
    with pytest.raises(StoreUnavailable), translated():
        client.incr("counted-once")
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
