"""Our slave, driven by any program that publishes ids."""

from __future__ import annotations

import json
import signal

import pytest

from redis_server import wait_until

DEAD = "jobsched:{test}:dead"


def letters(client) -> list[dict[str, str]]:
    """The dead letters."""
    return [
        {name.decode(): value.decode(errors="backslashreplace") for name, value in fields.items()}
        for _, fields in client.xrange(DEAD)
    ]


def test_an_id_is_answered_after_the_handler_ran(classic, cluster, foreigner):
    """The show, with redis-cli alone."""
    classic.slave(classic.handler(script="sleep 0.3; echo done >> $PWD/../../ended"))
    results = foreigner.subscribe("CHANNEL_RESULT")
    assert foreigner.publish("CHANNEL_DISPATCH_1", "17") == 1
    wait_until(lambda: classic.ran(), 5, cluster.logs())
    assert results.payloads() == [], "not before the handler has ended"
    wait_until(lambda: results.heard, 5, cluster.logs())
    assert results.heard == [("CHANNEL_RESULT", "17")]
    assert classic.ran() == ["17|17"], "in $JOBSCHED_PAYLOAD and as the last argument"


@pytest.mark.parametrize(
    "payload",
    [b"hello world", b"017", b"-1", b"$(id)", b"\xff\xfe\x80", b"two\nlines", b"x" * 100_000, "héllo".encode(), b" "],
    ids=["text", "zeros", "negative", "shell", "binary", "newline", "long", "unicode", "space"],
)
def test_any_payload_reaches_the_handler_unchanged(classic, cluster, redis_server, payload):
    classic.slave({"name": "1", "handler": ["/usr/bin/env", "python3", "-c", _DUMP, str(cluster.directory / "got")]})
    with redis_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as results:
        results.subscribe("CHANNEL_RESULT")
        client.publish("CHANNEL_DISPATCH_1", payload)
        answers = []
        wait_until(lambda: answers.extend(filter(None, [results.get_message(timeout=0.1)])) or answers, 10, "answered")
        assert answers[0]["data"] == payload
    got = json.loads((cluster.directory / "got").read_text())
    assert [bytes.fromhex(one) for one in got] == [payload, payload]


_DUMP = """
import json, os, sys
got = [os.fsencode(sys.argv[-1]), os.environb[b"JOBSCHED_PAYLOAD"]]
open(sys.argv[1], "w").write(json.dumps([one.hex() for one in got]))
"""


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "an empty message names no job"),
        (b"a\0b", "a message with a NUL byte: no command can be given that"),
        (b"x" * 200_000, "a message of 200000 bytes: a handler can be given 131054"),
        (b"x" * (3 << 20), f"a message of {3 << 20} bytes: a handler can be given 131054"),
    ],
    ids=["empty", "nul", "long", "oversized"],
)
def test_what_cannot_be_run_is_dead_lettered_once(classic, cluster, foreigner, redis_server, payload, reason):
    slave = classic.slave(classic.handler())
    before = slave.child("channel 1").pid
    results = foreigner.subscribe("CHANNEL_RESULT")
    with redis_server.client() as client:
        client.publish("CHANNEL_DISPATCH_1", payload)
        foreigner.publish("CHANNEL_DISPATCH_1", "after")
        wait_until(lambda: results.payloads() == ["after"], 10, cluster.logs())
        (letter,) = letters(client)
    assert letter["reason"] == reason
    assert letter["source"] == "CHANNEL_DISPATCH_1"
    assert len(letter["sample"]) <= 256
    assert slave.child("channel 1").pid == before


def test_without_a_handler_an_unknown_id_is_dead_lettered(classic, cluster, foreigner, redis_server):
    classic.slave("1")
    foreigner.publish("CHANNEL_DISPATCH_1", "17")
    with redis_server.client() as client:
        wait_until(lambda: letters(client), 5, cluster.logs())
        (letter,) = letters(client)
    assert "no handler" in letter["reason"] and letter["sample"] == "17"


@pytest.mark.parametrize(
    ("handler", "problem"),
    [(["/no/such/program"], "not_found"), (["/etc/hostname"], "not_executable")],
)
def test_a_handler_that_cannot_run_is_not_answered(classic, cluster, foreigner, redis_server, handler, problem):
    classic.slave({"name": "1", "handler": handler}, classic.handler("2"))
    results = foreigner.subscribe("CHANNEL_RESULT")
    foreigner.publish("CHANNEL_DISPATCH_1", "17")
    with redis_server.client() as client:
        wait_until(lambda: letters(client), 5, cluster.logs())
        (letter,) = letters(client)
    assert f"could not run ({problem})" in letter["reason"] and letter["sample"] == "17"
    foreigner.publish("CHANNEL_DISPATCH_2", "18")
    wait_until(lambda: results.heard, 5, cluster.logs())
    assert results.payloads() == ["18"]


def test_a_handler_that_fails_has_run(classic, cluster, foreigner):
    classic.slave(classic.handler(script="exit 7"))
    results = foreigner.subscribe("CHANNEL_RESULT")
    foreigner.publish("CHANNEL_DISPATCH_1", "17")
    wait_until(lambda: results.payloads() == ["17"], 5, cluster.logs())


def test_messages_wait_while_the_slots_are_busy(classic, cluster, foreigner):
    classic.slave(classic.handler(script="sleep 0.05", slots=2))
    results = foreigner.subscribe("CHANNEL_RESULT")
    for number in range(12):
        foreigner.publish("CHANNEL_DISPATCH_1", f"id-{number}")
    wait_until(lambda: len(results.heard) >= 12, 10, cluster.logs())
    assert sorted(results.payloads()) == sorted(f"id-{number}" for number in range(12))
    assert [line.partition("|")[0] for line in classic.ran()][:2] == ["id-0", "id-1"], "in the order of their coming"


def test_more_than_fit_into_memory_are_dead_lettered(classic, cluster, redis_server):
    slave = classic.slave(classic.handler(script="exec sleep 60"))
    with redis_server.client() as client:
        client.publish("CHANNEL_DISPATCH_1", "first")
        wait_until(classic.ran, 5, cluster.logs())
        with client.pipeline(transaction=False) as pipe:
            for number in range(10_049):
                pipe.publish("CHANNEL_DISPATCH_1", f"more-{number}")
            pipe.execute()
        wait_until(lambda: client.exists(DEAD) and client.xinfo_stream(DEAD)["length"] >= 50, 10, "dead letters")
        assert {letter["reason"] for letter in letters(client)} == {"10000 messages wait for a slot: no room for more"}
        assert client.xlen(DEAD) == 50
    assert len([line for line in cluster.logs().splitlines() if "no room for more" in line]) <= 50
    slave.signal("supervisor", signal.SIGINT)
    assert slave.popen.wait(10) == 0


def test_drain(classic, cluster, foreigner, redis_server):
    """What runs ends and is answered; what waits is dead-lettered; publishers learn that nobody is here."""
    slave = classic.slave(classic.handler(script="sleep 1"))
    results = foreigner.subscribe("CHANNEL_RESULT")
    for job in ("a", "b", "c"):
        foreigner.publish("CHANNEL_DISPATCH_1", job)
    wait_until(classic.ran, 5, cluster.logs())
    slave.signal("supervisor", signal.SIGTERM)
    with redis_server.client() as client:
        wait_until(lambda: len(letters(client)) == 2, 5, cluster.logs())
        assert foreigner.publish("CHANNEL_DISPATCH_1", "d") == 0
        assert slave.popen.wait(10) == 0
        wait_until(lambda: results.heard, 5, cluster.logs())
        assert results.payloads() == ["a"]
        assert [(letter["sample"], letter["reason"]) for letter in letters(client)] == [
            ("b", "not started: the channel stops"),
            ("c", "not started: the channel stops"),
        ]
        assert client.hvals("jobsched:{test}:channels") == [b"left"]


def test_interrupted_is_not_answered(classic, cluster, foreigner, redis_server):
    slave = classic.slave(classic.handler(script="exec sleep 60"))
    results = foreigner.subscribe("CHANNEL_RESULT")
    foreigner.publish("CHANNEL_DISPATCH_1", "a")
    wait_until(classic.ran, 5, cluster.logs())
    slave.signal("supervisor", signal.SIGINT)
    assert slave.popen.wait(10) == 0
    with redis_server.client() as client:
        assert [letter["reason"] for letter in letters(client)] == ["interrupted: the channel stops"]
    assert results.payloads() == []


def test_a_killed_channel_process_listens_again(classic, cluster, foreigner):
    slave = classic.slave(classic.handler())
    slave.successor("channel 1", of=slave.kill("channel 1"))
    wait_until(lambda: foreigner.publish("CHANNEL_DISPATCH_1", "17") == 1, 5, cluster.logs())
    wait_until(classic.ran, 5, cluster.logs())


def test_redis_restarts(classic, cluster, foreigner, redis_server):
    """It listens again; what was heard before and waited is run, not forgotten."""
    slave = classic.slave(classic.handler(script="sleep 0.5"))
    pid = slave.child("channel 1").pid
    for job in ("a", "b"):
        foreigner.publish("CHANNEL_DISPATCH_1", job)
    wait_until(classic.ran, 5, cluster.logs())
    redis_server.kill()
    wait_until(lambda: "waiting for Redis" in cluster.logs(), 5, cluster.logs())
    redis_server.start()
    wait_until(lambda: classic.ran() == ["a|a", "b|b"], 8, cluster.logs())
    results = foreigner.subscribe("CHANNEL_RESULT")
    wait_until(lambda: foreigner.publish("CHANNEL_DISPATCH_1", "c") == 1, 5, cluster.logs())
    wait_until(lambda: "c" in results.payloads(), 5, cluster.logs())
    assert classic.ran() == ["a|a", "b|b", "c|c"], "each once"
    assert slave.child("channel 1").pid == pid
