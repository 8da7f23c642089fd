"""The rights that docs/pubsub.md names are enough, and no more than needed."""

from __future__ import annotations

import pytest
import redis

from redis_server import wait_until

BASE = "jobsched:{test}:"
SLAVE = [
    *("+ping", "+hello", "+client|setname", "+client|setinfo", "+fcall", "+xread", "+pexpire", "+xadd", "+publish"),
    *("+subscribe", "+unsubscribe", "+zrange", "+mget", "+get", "+hget", "+hset", "+hmget", "+hexists", "+zscore"),
    *("+xdel", "+exists", "+rpush", "+rpop", "+del", "+xrange"),
    *(f"%R~{BASE}{key}" for key in ("job:*", "sent:*")),
    *(f"~{BASE}{key}" for key in ("taken:*", "answer:*", "dead", "channels", "owners", "lease:*", "bell", "results")),
    *(f"~{BASE}{key}" for key in ("dispatch:*", "control:*", "output:*")),
    *("resetchannels", "&CHANNEL_DISPATCH_1", "&CHANNEL_RESULT"),
]


def test_a_slave_of_its_own_user(classic, cluster, foreigner, redis_server):
    with redis_server.client() as server:
        rights = [right for right in SLAVE if right != "+client|setinfo"]  # no token yet in Redis 7.0
        server.execute_command("ACL", "SETUSER", "slave", "reset", "on", ">pw", *rights)
    classic.master(["1"])
    with cluster.client() as client:
        own = client.submit(["sh", "-c", "echo out; exit 3"])
        cluster.start(
            "slave",
            transport="pubsub",
            channels=[classic.handler()],
            redis={"url": redis_server.url, "username": "slave", "password": "pw"},
        )
        results = foreigner.subscribe("CHANNEL_RESULT")
        own.wait(20)
        assert (own.outcome, own.exit_code, own.output()) == ("failed", 3, b"out\n")
    foreigner.publish("CHANNEL_DISPATCH_1", "foreign")
    wait_until(lambda: "foreign" in results.payloads(), 5, cluster.logs())
    assert classic.ran() == ["foreign|foreign"]
    with redis_server.client(username="slave", password="pw") as slave:
        for command in (("SET", f"{BASE}job:1", "x"), ("PUBLISH", "CHANNEL_DISPATCH_2", "1"), ("FLUSHALL",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                slave.execute_command(*command)
