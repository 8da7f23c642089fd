"""A slave with a user of its own and no right too many: it works, recovers, and is refused nothing that it asks for."""

from __future__ import annotations

import pytest
import redis

from ledger import judge
from redis_server import wait_until

BASE = "jobsched:{test}:"
COMMANDS = (
    *("ping", "hello", "client|setname", "fcall", "xread", "pexpire", "xadd", "xdel", "xrange", "exists", "rpush"),
    *("rpop", "del", "get", "mget", "hget", "hset", "hmget", "hexists", "sismember"),
)
READS = ("job:*", "pending", "identity", "mark", "rebuilt", "loss", "abandoned", "leader", "together")
WRITES = (
    "announced",
    "dead",
    "channels",
    "owners",
    "lease:*",
    "bell",
    "murmurs",
    "results",
    "dispatch:*",
    "control:*",
    "output:*",
)


@pytest.mark.faults
def test_a_slave_of_its_own_user_through_a_crash(cluster, ledger, redis_server):
    rights = [f"+{command}" for command in COMMANDS]
    rights += [f"%R~{BASE}{key}" for key in READS] + [f"~{BASE}{key}" for key in WRITES]
    with redis_server.client() as admin, cluster.client() as client:
        admin.execute_command("ACL", "SETUSER", "slave", "reset", "on", ">pw", "resetchannels", *rights)
        admin.acl_log_reset()
        cluster.start("master")
        login = {"url": redis_server.url, "username": "slave", "password": "pw"}
        how = {"redis": login, "slave": {"python_path": [ledger.python_path]}}
        slave = cluster.start("slave", channels=2, **how)
        options = {"max_crashes": 20}
        ledger.submit(client, [ledger.item(seconds=0.5, **options) for _ in range(8)])
        ledger.submit(client, [ledger.function(**options) for _ in range(20)])
        wait_until(lambda: len(ledger.events()[0]) > 2, 20, f"some have begun\n{cluster.logs()}")
        slave.successor("channel 1", of=slave.kill("channel 1"), within=10)
        slave.kill()
        slave.popen.wait(5)
        slave.start()
        shown = cluster.run("run", "--", "sh", "-c", "echo out; sleep 0.3; echo more", timeout=60)
        assert shown.stdout == "out\nmore\n", shown
        judge(cluster, ledger, admin, within=40, apart={str(len(ledger.told) + 1)})
        refused = [entry for entry in admin.acl_log() if b"setinfo" not in str(entry["object"]).encode()]
        assert not refused, refused
        with redis_server.client(username="slave", password="pw") as own:
            for command in (("SET", f"{BASE}job:1", "x"), ("GET", f"{BASE}inbox:1"), ("FLUSHALL",), ("KEYS", "*")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    own.execute_command(*command)
