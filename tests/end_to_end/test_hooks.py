"""Hooks, against real daemons: told once or more, never not at all, and never in the way of a job."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster import Cluster
from redis_server import wait_until

SECRET = "s3cret-of-the-hook"


class Endpoint:
    """A webhook's other end. ``answers``: status codes of the next calls, then 200; None hangs."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answers: list[int | None] = []
        self.over = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                call = {"path": self.path, "headers": dict(self.headers), "body": json.loads(body)}
                endpoint.calls.append(call)
                answer = endpoint.answers.pop(0) if endpoint.answers else 200
                if answer is None:
                    endpoint.over.wait(60)
                    return
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def bodies(self) -> list[dict[str, Any]]:
        return [call["body"] for call in self.calls]

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def start(cluster: Cluster, *hooks: dict[str, Any], failpoints: str = "", **how: Any) -> None:
    environment = {"JOBSCHED_FAILPOINTS": failpoints} if failpoints else {}
    cluster.start("master", node="m1", master={"hooks": list(hooks)}, environment=environment, **how)
    cluster.start("slave", node="n1", channels=["1", {"name": "2", "slots": 2}], **how)
    with cluster.client() as client:
        client.submit(["true"]).wait(15)
        if {"success", "failure", "named"} & {kind for hook in hooks for kind in hook["on"]}:
            keys = client.session.keys
            wait_until(lambda: client.session._redis.exists(keys.hooked, keys.nameable), 10, "what they want is known")


def test_a_command_is_told_of_failures_and_of_nothing_else(cluster: Cluster):
    told = cluster.directory / "told"
    command = ["sh", "-c", f'cat >> {told}; echo " $JOBSCHED_EVENT $JOBSCHED_HOOK" >> {told}']
    start(cluster, {"name": "tell", "on": ["failure"], "jobs": "etl-*", "command": command})
    with cluster.client() as client:
        client.submit(["true"], name="etl-good").wait(10)
        client.shell("exit 1", name="other").wait(10)
        bad = client.shell("exit 3", name="etl-bad").wait(10)
        gone = client.submit(["true"], name="etl-gone", delay=60)
        gone.cancel()
        late = client.submit(["true"], name="etl-expired", channel="none", expires=0.05)
        late.wait(10)
        wait_until(lambda: told.exists() and told.read_text().count("\n") == 2, 10, f"both are told\n{cluster.logs()}")
    lines = [line.rsplit(" ", 2) for line in told.read_text().splitlines()]
    first, second = (json.loads(line[0]) for line in lines)
    assert set(first) == {"id", "event", "time", "namespace", "outcome", "attempt", "job"}
    assert (first["event"], first["outcome"], first["job"]["id"]) == ("failure", "failed", bad.id)
    assert (first["job"]["exit_code"], first["job"]["name"], first["namespace"]) == (3, "etl-bad", "test")
    assert (second["outcome"], second["job"]["id"]) == ("expired", late.id)
    assert [line[1:] for line in lines] == [[first["id"], "tell"], [second["id"], "tell"]]


def test_a_webhook_that_fails_is_tried_again_and_one_that_hangs_holds_up_nobody(
    cluster: Cluster, endpoint: Endpoint, other: Endpoint
):
    endpoint.answers = [500, 302]
    other.answers = [None]
    start(
        cluster,
        {"name": "hangs", "on": ["success"], "jobs": "x", "webhook": other.url, "timeout": 60},
        {"name": "fails", "on": ["success"], "jobs": "x", "webhook": endpoint.url, "token": SECRET + "-token"},
    )
    with cluster.client() as client:
        jobs = client.submit_many([{"command": ["true"], "name": "x"}] * 3)
        client.wait(jobs, 10)
        wait_until(lambda: len(endpoint.calls) == 5 and len(other.calls) == 1, 20, f"told\n{cluster.logs()}")
        again = client.submit(["true"], name="y").wait(10)
        assert again.succeeded
    ids = [call["body"]["id"] for call in endpoint.calls]
    assert len(set(ids)) == 3 and sorted(ids.count(one) for one in set(ids)) in ([1, 1, 3], [1, 2, 2])
    assert {body["job"]["id"] for body in endpoint.bodies()} == {job.id for job in jobs}
    for call in endpoint.calls:
        assert call["path"] == f"/{SECRET}", "a redirect was followed"
        assert call["headers"]["Authorization"] == f"Bearer {SECRET}-token"
        assert call["headers"]["X-Jobsched-Event"] == call["body"]["id"]
        assert call["headers"]["Content-Type"] == "application/json"
    assert "127.0.0.1 answered 500" in cluster.logs() and SECRET not in cluster.logs()


@pytest.mark.parametrize("point", ["hooks.route.before", "hooks.route.after", "hooks.deliver.after"])
def test_a_master_that_dies_on_the_way_tells_all_the_same(cluster: Cluster, endpoint: Endpoint, point: str):
    marker = cluster.directory / "marker"
    hook = {"name": "tell", "on": ["success"], "jobs": "x", "webhook": endpoint.url}
    start(cluster, hook, failpoints=f"{point}:kill:1:{marker}" if point == "hooks.deliver.after" else "")
    if point != "hooks.deliver.after":  # of the first job that was told of already
        cluster.daemons[0].stop()
        cluster.daemons[0]._environment["JOBSCHED_FAILPOINTS"] = f"{point}:kill:1:{marker}"
        cluster.daemons[0].start()
    with cluster.client() as client:
        job = client.submit(["true"], name="x").wait(15)
        wait_until(marker.exists, 10, f"void: {point} was never passed\n{cluster.logs()}")
        wait_until(lambda: len(endpoint.calls) >= (2 if point == "hooks.deliver.after" else 1), 15, "told")
        wait_until(lambda: not client.session._redis.exists(client.session.keys.hook("tell")), 10, "it is over")
    assert {body["job"]["id"] for body in endpoint.bodies()} == {job.id}
    assert len({body["id"] for body in endpoint.bodies()}) == 1, "the same event has the same id"


def test_another_master_takes_over_what_was_not_told(cluster: Cluster, endpoint: Endpoint):
    endpoint.answers = [None]
    hook = {"name": "tell", "on": ["failure"], "webhook": endpoint.url}
    start(cluster, hook)
    with cluster.client() as client:
        job = client.shell("exit 1").wait(10)
        wait_until(lambda: len(endpoint.calls) == 1, 10, f"the hook hangs\n{cluster.logs()}")
        cluster.daemons[0].kill()
        cluster.start("master", node="m2", master={"hooks": [hook]})
        wait_until(lambda: len(endpoint.calls) == 2, 15, f"told by the other\n{cluster.logs()}")
    assert endpoint.calls[0]["body"] == endpoint.calls[1]["body"] and endpoint.bodies()[0]["job"]["id"] == job.id


def test_what_is_late_is_told_once(cluster: Cluster, endpoint: Endpoint):
    start(
        cluster,
        {"name": "slow", "on": ["late"], "jobs": "slow-*", "end_within": "300ms", "webhook": endpoint.url},
        {"name": "stuck", "on": ["late"], "jobs": "stuck", "start_within": "300ms", "webhook": endpoint.url},
    )
    with cluster.client() as client:
        slow = client.submit(["sleep", "60"], name="slow-1", channel="2")
        stuck = client.submit(["true"], name="stuck", channel="nowhere")
        fine = client.submit(["true"], name="fine", channel="nowhere")
        # Logged once a call was answered and that is noted: a kill in between would have it made again.
        wait_until(lambda: cluster.logs().count("hook told") == 2, 15, f"both are told\n{cluster.logs()}")
        cluster.daemons[0].kill("dispatcher")
        time.sleep(1.5)  # many looks at what is late; there is nothing to wait for
        client.cancel([slow, stuck, fine])
        client.wait([slow, stuck, fine], 10)
        redis, keys = client.session._redis, client.session.keys
        wait_until(lambda: not redis.exists(keys.noticed), 10, "what has ended is forgotten")
    assert {(one["event"], one["late"], one["job"]["id"]) for one in endpoint.bodies()} == {
        ("late", "end", slow.id),
        ("late", "start", stuck.id),
    }
    assert len(endpoint.calls) == 2


def test_a_node_goes_and_comes_back(cluster: Cluster, endpoint: Endpoint):
    hook = {"name": "nodes", "on": ["node_down", "node_up"], "nodes": "n*", "webhook": endpoint.url}
    start(cluster, hook)
    with cluster.client() as client:
        redis, keys = client.session._redis, client.session.keys
        wait_until(lambda: redis.hget(keys.noticed, "node:n1") == b"up", 10, "the node is known")
        cluster.daemons[1].kill()
        wait_until(lambda: len(endpoint.calls) == 1, 15, f"down\n{cluster.logs()}")
        cluster.daemons[1].popen.wait(10)
        cluster.daemons[1].start()
        wait_until(lambda: len(endpoint.calls) == 2, 15, f"up\n{cluster.logs()}")
    assert [(one["event"], one["node"]) for one in endpoint.bodies()] == [("node_down", "n1"), ("node_up", "n1")]


def test_a_job_is_submitted_once_and_sets_nothing_off_itself(cluster: Cluster):
    start(cluster, {"name": "clean", "on": ["failure"], "job": ["sh", "-c", "cat; exit 5"], "job_channel": "n1/2"})
    with cluster.client() as client:
        bad = client.shell("exit 1", name="bad").wait(10)
        wait_until(lambda: list(client.jobs("failed", name="hook-clean")), 10, f"it ran\n{cluster.logs()}")
        (ran,) = client.jobs("failed", name="hook-clean")
        event = json.loads(ran.output())
        assert (event["event"], event["job"]["id"], event["job"]["name"]) == ("failure", bad.id, "bad")
        assert (ran.channel, ran.exit_code, ran.view.spec.submitter) == ("2", 5, "hook:clean")
        client.submit(["true"]).wait(10)
        redis, keys = client.session._redis, client.session.keys
        wait_until(lambda: not redis.xlen(keys.events), 10, "nothing is left to tell")
        assert len(list(client.jobs(name="hook-clean"))) == 1


def test_it_is_given_up_in_the_end(cluster: Cluster):
    command = ["sh", "-c", "echo no way >&2; exit 9"]
    hang = ["sh", "-c", "sleep 60 & sleep 60"]
    start(
        cluster,
        {"name": "never", "on": ["failure"], "command": command, "retries": 1},
        {"name": "hangs", "on": ["failure"], "command": hang, "retries": 0, "timeout": "200ms"},
        {"name": "missing", "on": ["failure"], "command": ["/no/such/program"], "retries": 0},
    )
    with cluster.client() as client:
        client.shell("exit 1").wait(10)
        wait_until(lambda: cluster.daemons[0].log().count("given up") == 3, 15, f"given up\n{cluster.logs()}")
    log = cluster.daemons[0].log()
    assert "it ended with 9: no way" in log and "it did not end within 0.2 s" in log and "No such file" in log


def test_without_hooks_nothing_is_kept_for_them(cluster: Cluster, endpoint: Endpoint):
    start(cluster, {"name": "tell", "on": ["success"], "webhook": endpoint.url})
    cluster.daemons[0].stop()
    cluster.start("master", node="m2")
    with cluster.client() as client:
        redis, keys = client.session._redis, client.session.keys
        wait_until(lambda: not redis.exists(keys.hooked), 10, "nobody wants to know any more")
        client.submit(["true"]).wait(10)
        assert redis.xlen(keys.events) == 0
        client.submit(["true"], on_success="nobody").wait(10)
        wait_until(lambda: "names a hook that is none" in cluster.logs(), 15, "it is told of")
        wait_until(lambda: redis.xlen(keys.events) == 0, 10, "and taken away")


def test_a_job_names_the_hooks_that_are_told_of_its_end(cluster: Cluster, endpoint: Endpoint, other: Endpoint):
    """Those that the operator lets jobs name, each once; of an array, its end and not that of every task."""
    start(
        cluster,
        {"name": "pager", "on": ["named", "failure"], "jobs": "etl-*", "webhook": endpoint.url},
        {"name": "chat", "on": ["named"], "webhook": other.url},
        {"name": "private", "on": ["success"], "jobs": "mine", "webhook": other.url},
    )
    with cluster.client() as client:
        client.submit(["true"]).wait(10)
        silent = client.shell("exit 1", on_success="chat").wait(10)
        gone = client.submit(["true"], on_failure="chat", on_success="chat", delay=60)
        gone.cancel()
        good = client.submit(["true"], on_success=["chat"], on_failure="pager").wait(10)
        bad = client.shell("exit 3", name="etl-1", on_failure=["chat", "pager"], retries=1, retry_delay=0.05).wait(10)
        late = client.submit(["true"], on_failure="chat", channel="none", expires=0.05).wait(10)
        tasks = client.submit(["true"], array="1-3", on_success="chat").wait(15)
        wait_until(lambda: len(other.calls) >= 4 and endpoint.calls, 15, f"all are told\n{cluster.logs()}")
        vain = client.submit(["true"], on_success=["private", "nobody"]).wait(10)
        wait_until(lambda: cluster.daemons[0].log().count("names a hook that is none") == 2, 10, "both are told of")
        redis, keys = client.session._redis, client.session.keys
        wait_until(lambda: not redis.xlen(keys.events), 10, "all is shared out")
        wait_until(lambda: not redis.exists(keys.hook("chat"), keys.hook("pager")), 10, "and told")
    assert [(one["event"], one["job"]["id"]) for one in endpoint.bodies()] == [("failure", bad.id)]
    told = {(one["event"], one["outcome"], one["job"]["id"]) for one in other.bodies()}
    assert told == {
        ("success", "succeeded", good.id),
        ("failure", "failed", bad.id),
        ("failure", "expired", late.id),
        ("success", "succeeded", tasks.id),
    }
    assert len(other.calls) == 4, f"{silent.id}, {gone.id} and {vain.id} were for nobody"


def test_what_hooks_want_to_know_is_said_again_where_somebody_deletes_it(cluster: Cluster, endpoint: Endpoint):
    start(cluster, {"name": "chat", "on": ["named", "failure"], "webhook": endpoint.url})
    with cluster.client() as client:
        redis, keys = client.session._redis, client.session.keys
        assert redis.delete(keys.hooked, keys.nameable) == 2
        wait_until(lambda: redis.exists(keys.hooked) and redis.exists(keys.nameable), 10, "said again")


def test_a_user_names_a_hook(cluster: Cluster, endpoint: Endpoint):
    start(cluster, {"name": "chat", "on": ["named"], "webhook": endpoint.url})
    good = cluster.run("submit", "--on-success", "chat", "--on-failure", "chat", "--", "true")
    assert (good.returncode, good.stderr) == (0, "")
    wait_until(lambda: len(endpoint.calls) == 1, 10, f"told\n{cluster.logs()}")
    shown = json.loads(cluster.run("show", good.stdout.strip(), "--json").stdout)
    assert (shown["on_success"], shown["on_failure"]) == (["chat"], ["chat"])
    typo = cluster.run("submit", "--on-failure", "chad", "--", "true")
    assert typo.returncode == 0
    assert "the leading master has no hook chad that jobs may name" in typo.stderr
    refused = cluster.run("submit", "--on-failure", "sh -c reboot", "--", "true")
    assert refused.returncode == 2 and "--on-failure: 'sh -c reboot' is no name" in refused.stderr
