"""Submitting: what arrives in the store, once, whatever happens to the reply."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cut import Cut
from jobschedd import Client
from jobschedd.errors import (
    ConfigError,
    InvalidJob,
    NoSuchJob,
    QueueFull,
    StoreRefused,
    StoreUnavailable,
    UsageError,
)
from jobschedd.store.scripts import script
from redis_server import RedisServer


def test_a_job_arrives_as_it_was_described(client: Client):
    job = client.submit(
        ["echo", "hi"], name="greeting", node="web-07", channel="gpu", labels=["big"], priority=7, retries=3
    )
    view = client.job(job.id).view

    assert (job.id, job.state, job.outcome, job.cause, job.exit_code) == ("1", "pending", None, None, None)
    assert view.spec.command == ("echo", "hi")
    assert (view.spec.name, view.spec.node, view.spec.channel, view.spec.labels) == (
        "greeting",
        "web-07",
        "gpu",
        ("big",),
    )
    assert (view.header.priority, view.spec.retries) == (7, 3)
    assert abs(view.header.submitted / 1000 - time.time()) < 5


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"delay": "1h"},
        lambda: {"delay": 3600},
        lambda: {"at": datetime.now() + timedelta(hours=1)},
        lambda: {"at": time.time() + 3600},
        lambda: {"at": (datetime.now().astimezone() + timedelta(hours=1)).isoformat()},
    ],
)
def test_a_job_for_later_is_scheduled(client: Client, options: Callable[[], Any]):
    job = client.submit(["true"], **options())

    assert job.state == "scheduled"
    assert abs(job.view.header.since / 1000 - time.time() - 3600) < 5


def test_a_function_may_be_named_or_given(client: Client):
    assert client.call("os.path:join", ["a", "b"]).view.spec.function == "os.path:join"
    assert client.call(os.path.join, ["a"]).view.spec.function == "posixpath:join"
    with pytest.raises(InvalidJob, match="cannot be imported on another machine"):
        client.call(lambda: None)


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"command": "echo hi"}, "command"),
        ({"command": []}, "command"),
        ({"command": ["a\0b"]}, "command[0]"),
        ({"command": ["a", "\udcff"]}, "command[1]"),
        ({"command": ["x" * 3_000_000]}, "command[0]"),
        ({"command": ["true"], "node": "../x"}, "node"),
        ({"command": ["true"], "channel": "a/b/c"}, "channel"),
        ({"command": ["true"], "priority": 101}, "priority"),
        ({"command": ["true"], "timeout": "soon"}, "timeout"),
        ({"command": ["true"], "priorty": 1}, "priorty"),
        ({"function": "os", "args": []}, "function"),
        ({"function": "os:getcwd", "args": [object()]}, "args"),
        ({}, "command"),
    ],
)
def test_a_bad_job_is_refused_with_its_field(client: Client, item: dict[str, object], field: str):
    with pytest.raises(InvalidJob) as refusal:
        client.submit_many([{"command": ["true"]}, item])

    assert refusal.value.field == f"item 1: {field}"
    assert client.inspect.counts().submitted == 0, "nothing of the list may be submitted"


def test_a_stream_is_submitted_up_to_the_bad_item(client: Client):
    items = [{"command": ["true"]}, {"command": ["true"]}, {"command": []}, {"command": ["true"]}]
    stream = client.submit_stream(items)

    assert [next(stream).id, next(stream).id] == ["1", "2"]
    with pytest.raises(InvalidJob, match=r"^item 2: command"):
        next(stream)
    assert client.inspect.counts().submitted == 2


def test_a_stream_is_submitted_as_it_goes(client: Client):
    def endless():
        while True:
            yield {"command": ["true"]}

    stream = client.submit_stream(endless())

    assert [next(stream).id for _ in range(1200)] == [str(number) for number in range(1, 1201)]


def test_many_jobs_keep_their_order_over_calls_and_groups(client: Client):
    items = [{"command": ["echo", str(number)], "priority": number % 3} for number in range(1234)]
    jobs = client.submit_many(items)

    assert [job.id for job in jobs] == [str(number) for number in range(1, 1235)]
    for number in (0, 1, 499, 500, 501, 1233):
        assert jobs[number].view.spec.command == ("echo", str(number))


def test_big_jobs_travel_in_several_calls(client: Client):
    jobs = client.submit_many([{"command": ["cat"], "stdin": "x" * 900_000}] * 12)

    assert [job.id for job in jobs] == [str(number) for number in range(1, 13)]
    assert len(jobs[11].view.spec.stdin) == 900_000


def test_a_lost_reply_is_no_second_job(redis_server: RedisServer, tmp_path: Path):
    cut = Cut(redis_server.directory / "cut.sock", redis_server.socket)
    with Client(cut.url, "test") as client:
        client.submit(["true"])
        cut.lose_reply_to = script("submit").function.encode()
        job = client.submit(["echo", "once"])
        after = client.submit(["true"])
        cut.close()

        assert cut.lost == 1
        assert (job.id, after.id) == ("2", "3")


def test_the_lost_reply_of_a_batch_is_no_second_batch(redis_server: RedisServer):
    cut = Cut(redis_server.directory / "cut.sock", redis_server.socket)
    with Client(cut.url, "test") as client:
        client.submit(["true"])
        cut.lose_reply_to = script("submit").function.encode()
        jobs = client.submit_many([{"command": ["true"]}] * 700)
        cut.close()

        assert cut.lost == 1
        assert [job.id for job in jobs] == [str(number) for number in range(2, 702)]
        assert client.inspect.counts().submitted == 701


def test_threads_share_a_client(client: Client):
    def submit(number: int) -> list[str]:
        return [client.submit(["echo", str(number)]).id for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        ids = [job_id for some in pool.map(submit, range(8)) for job_id in some]

    assert sorted(map(int, ids)) == list(range(1, 201))


def test_a_forked_child_gets_no_answer_of_its_parent(client: Client):
    client.submit(["echo", "before"])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, ",".join(client.submit(["echo", "child"]).id for _ in range(5)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    mine = [client.submit(["echo", "parent"]).id for _ in range(5)]
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        ids = mine + pipe.read().split(",")

    assert sorted(map(int, ids)) == list(range(2, 12))
    assert {client.job(job_id).view.spec.command[1] for job_id in mine} == {"parent"}  # type: ignore[index]


def test_a_key_names_one_job(client: Client):
    first = client.submit(["true"], key="nightly")

    assert client.submit(["true"], key="nightly") == first
    assert client.submit(["true"], key="weekly") != first

    # Ended and run again, it is still the one with this key.
    client.cancel(first)
    client.retry(first)
    assert client.submit(["true"], key="nightly") == first
    assert client.session._redis.pttl(client.session.keys.base + "once:nightly") == -1


@pytest.mark.parametrize("bad", ["abc", "../x", "", "0", "1\n", "01", "1" * 17, "*", True, -1])
def test_what_is_no_id_is_refused(client: Client, bad: str | int):
    with pytest.raises(UsageError, match="no job id"):
        client.job(bad)
    with pytest.raises(UsageError, match="no job id"):
        client.cancel([bad])


def test_an_unknown_id_is_told(client: Client):
    with pytest.raises(NoSuchJob, match="no job 7: it never was"):
        client.job(7)
    assert [tuple(answer) for answer in client.cancel([7])] == [("7", "unknown", None)]
    with pytest.raises(NoSuchJob):
        client.retry(7)


def test_cancel_and_retry_of_a_waiting_job(client: Client):
    job = client.submit(["true"])

    with pytest.raises(UsageError, match="has not ended"):
        client.retry(job)
    assert tuple(client.cancel(job)[0]) == ("1", "cancelled", None)
    assert (job.state, job.outcome, job.cause, job.succeeded) == ("done", "cancelled", "cancelled", False)
    assert tuple(client.cancel(job)[0]) == ("1", "ended", "cancelled")
    assert client.retry(job).state == "pending"


def test_a_full_redis_refuses_submits_only(redis_server: RedisServer, client: Client):
    job = client.submit(["true"])
    with redis_server.client() as admin:
        admin.config_set("maxmemory", 1)

        with pytest.raises(QueueFull, match="memory limit"):
            client.submit(["true"])
        assert client.cancel(job)[0].answer == "cancelled"

        admin.config_set("maxmemory", 0)
    assert client.submit(["true"]).id == "2"


def test_a_server_that_would_lose_jobs_is_refused(redis_server: RedisServer):
    with redis_server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    with Client(redis_server.url, "test") as client, pytest.raises(StoreRefused, match="noeviction"):
        client.submit(["true"])


def test_no_server_fails_at_once(tmp_path: Path):
    begin = time.monotonic()
    with Client(f"unix://{tmp_path}/none.sock") as client, pytest.raises(StoreUnavailable, match="cannot be reached"):
        client.submit(["true"])
    assert time.monotonic() - begin < 2


def test_a_restart_of_redis_is_waited_for(redis_server: RedisServer, client: Client):
    client.submit(["true"])
    redis_server.kill()
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(client.submit, ["true"])
        redis_server.start()
        assert submitted.result(10).id == "2"


def test_patience_ends(redis_server: RedisServer):
    with Client(redis_server.url, "test", patience=0.2) as client:
        client.submit(["true"])
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            client.submit(["true"])


def test_namespaces_are_apart(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    with Client(redis_server.url, "one") as one, Client(redis_server.url, "two") as two:
        assert (one.submit(["true"]).id, two.submit(["true"]).id) == ("1", "1")
    monkeypatch.setenv("JOBSCHED_REDIS_URL", redis_server.url)
    monkeypatch.setenv("JOBSCHED_NAMESPACE", "one")
    with Client() as client:
        assert client.submit(["true"]).id == "2"


def test_without_any_address_it_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if not Path("/etc/jobschedd/jobsched.yaml").exists():
        with pytest.raises(ConfigError, match=r"--redis URL, set \$JOBSCHED_REDIS_URL"):
            Client()


def test_a_submitter_need_not_have_the_right_to_look_at_the_server(redis_server: RedisServer):
    with redis_server.client() as admin:
        admin.execute_command(
            *"ACL SETUSER submitter on >secret ~jobsched:* resetchannels -@all +@string +@hash +@list +@set "
            "+@sortedset +@stream +@connection +@keyspace -@dangerous +evalsha +eval +script|load +time".split()
        )
    with Client(f"unix://submitter:secret@{redis_server.socket}", "test") as client:
        job = client.submit(["true"])
        assert client.job(job).state == "pending"
        assert client.cancel(job)[0].answer == "cancelled"
        assert job.wait(5).outcome == "cancelled"
