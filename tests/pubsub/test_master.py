"""Our master, driving any program that subscribes to CHANNEL_DISPATCH_<n> and says the id again."""

from __future__ import annotations

import json

import pytest

from redis_server import wait_until

DISPATCH = [f"CHANNEL_DISPATCH_{number}" for number in (1, 2, 3)]


def show(cluster, job) -> dict:
    """What ``jobsched show ID --json`` says."""
    done = cluster.run("show", str(job), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ids_arrive_and_are_done_when_they_come_back(classic, cluster, foreigner, redis_server):
    """The show, with redis-cli alone."""
    classic.master()
    listener = foreigner.subscribe(*DISPATCH)
    with cluster.client() as client:
        jobs = client.submit_many([{"command": ["true"]} for _ in range(30)])
        wait_until(lambda: len(listener.heard) == 30, 10, cluster.logs())
        assert sorted(listener.payloads(), key=int) == [job.id for job in jobs], "bare ids, each once"
        assert {channel for channel, _ in listener.heard} == set(DISPATCH)
        assert {job.refresh().state for job in jobs} == {"dispatched"}
        channel_of = {payload: channel for channel, payload in listener.heard}
        assert show(cluster, jobs[0].id)["channel"] == channel_of[jobs[0].id].removeprefix("CHANNEL_DISPATCH_")
        for job in jobs[:2]:
            assert foreigner.publish("CHANNEL_RESULT", job.id) == 1
        wait_until(lambda: all(job.refresh().ended for job in jobs[:2]), 5, cluster.logs())
        assert [(job.outcome, job.cause) for job in jobs[:2]] == [("succeeded", "echo")] * 2
        assert {job.refresh().state for job in jobs[2:]} == {"dispatched"}, "only those that came back"
        listed = json.loads(cluster.run("list", "--state", "dispatched", "--json").stdout)
        assert len(listed) == 28
        with redis_server.client() as server:
            for job in jobs[2:]:
                server.publish("CHANNEL_RESULT", job.id)
        client.wait(jobs, timeout=10)
    wait_until(lambda: classic.history(jobs[0].id) == [(1, 1, "succeeded", "echo")], 5, "in the history")
    with redis_server.client() as server:
        assert not server.keys("jobsched:{test}:sent:*"), "nothing waits"


def test_with_nobody_subscribed_the_failed_dispatch_is_recorded_and_sent_again(classic, cluster, foreigner):
    classic.master(["1"])
    with cluster.client() as client:
        job = client.submit(["true"])
        wait_until(lambda: show(cluster, job.id)["cause"] == "no_receiver", 5, cluster.logs())
        seen = show(cluster, job.id)
        assert seen["state"] == "scheduled" and seen["outcome"] is None
        assert seen["channel"] == "1" and seen["attempt"] >= 1 and seen["tries"] == 0
        assert "nobody was subscribed to CHANNEL_DISPATCH_1" in seen["error"]
        assert seen["due"] - seen["submitted"] >= 1, "with a pause"
        wait_until(lambda: (1, 0, "failed", "no_receiver") in classic.history(job.id), 5, "in the history")
        wait_until(lambda: show(cluster, job.id)["attempt"] >= 2, 5, cluster.logs())
        seen = show(cluster, job.id)
        assert f"({seen['attempt']} times so far)" in seen["error"]
        listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
        wait_until(lambda: listener.heard, 30, cluster.logs())  # pauses between repeats double
        assert show(cluster, job.id)["cause"] is None
        foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: job.refresh().outcome == "succeeded", 5, cluster.logs())
    assert cluster.logs().count("warning dispatcher: dispatch failed: nobody is subscribed channel=1") == 1


def test_with_nobody_subscribed_the_job_fails_where_that_is_asked_for(classic, cluster, redis_server):
    classic.master(["1"], on_no_receiver="fail")
    with cluster.client() as client:
        jobs = client.submit_many([{"command": ["true"]} for _ in range(5)])
        client.wait(jobs, timeout=10)
        assert {(job.outcome, job.cause) for job in jobs} == {("failed", "no_receiver")}
        again = client.submit(["true"], retries=1, retry_delay=0.1)
        again.wait(10)
        assert (again.outcome, again.attempt) == ("failed", 2), "its own retries count"
    wait_until(lambda: classic.history(jobs[0].id) == [(1, 1, "failed", "no_receiver")], 5, "in the history")
    wait_until(lambda: [row[:2] for row in classic.history(again.id)] == [(1, 0), (2, 1)], 5, "in the history")
    with redis_server.client() as server:
        assert not server.keys("jobsched:{test}:sent:*")


def test_what_is_never_answered_is_lost(classic, cluster, foreigner):
    classic.master(["1"], result_timeout="1s")
    foreigner.subscribe("CHANNEL_DISPATCH_1")
    with cluster.client() as client:
        job = client.submit(["true"])
        job.wait(10)
        assert (job.outcome, job.cause) == ("lost", "no_answer")
        assert "CHANNEL_DISPATCH_1" in job.error
        foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: classic.history(job.id), 5, "in the history")
        assert classic.history(job.id) == [(1, 1, "lost", "no_answer")]
        assert job.refresh().outcome == "lost", "an answer that comes too late changes nothing"


@pytest.mark.parametrize("role", ["supervisor", "dispatcher"])
def test_what_was_published_is_not_forgotten_over_a_crash(classic, cluster, foreigner, role):
    master = classic.master(["1"], result_timeout="2s")
    listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
    with cluster.client() as client:
        lost, done = client.submit_many([{"command": ["true"]}] * 2)
        wait_until(lambda: len(listener.heard) == 2, 5, cluster.logs())
        master.kill(role)
        if role == "supervisor":
            master.popen.wait()
            master.start()
        wait_until(lambda: foreigner.publish("CHANNEL_RESULT", done.id) == 1, 5, cluster.logs())
        client.wait([lost, done], timeout=15)
        assert (lost.outcome, lost.cause) == ("lost", "no_answer")
        assert (done.outcome, done.cause) == ("succeeded", "echo")
    assert len(listener.heard) == 2, "at most once"


def test_what_others_say_on_the_result_channel(classic, cluster, foreigner, redis_server):
    """Unknown ids are ignored, junk is dead-lettered once, and an id that was not sent is not done."""
    master = classic.master(["1"])
    pid = master.child("collector").pid
    with cluster.client() as client, redis_server.client() as server:
        wait_until(lambda: foreigner.publish("CHANNEL_RESULT", "listening?") == 1, 5, cluster.logs())
        waiting = client.submit(["true"], channel="elsewhere")
        delayed = client.submit(["true"], delay=3600)
        for text in ("99999", "hello", "a" * 150, waiting.id, delayed.id, "9" * 25):
            foreigner.publish("CHANNEL_RESULT", text)
        junk = [b"", b"\xff\xfe", b"two\nlines", b"nul\0", b"x" * (2 << 20)]
        for payload in junk:
            server.publish("CHANNEL_RESULT", payload)
        wait_until(lambda: server.xlen("jobsched:{test}:dead") == len(junk), 5, cluster.logs())
        listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
        job = client.submit(["true"])
        wait_until(lambda: listener.heard, 5, cluster.logs())
        for _ in range(3):
            foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: job.refresh().ended, 5, cluster.logs())
        assert (waiting.refresh().state, delayed.refresh().state) == ("pending", "scheduled")
        assert server.xlen("jobsched:{test}:dead") == len(junk)
    assert master.child("collector").pid == pid
    wait_until(lambda: classic.history(job.id) == [(1, 1, "succeeded", "echo")], 5, "once")


def test_a_job_goes_to_the_channel_that_it_names(classic, cluster, foreigner):
    classic.master()
    listener = foreigner.subscribe(*DISPATCH)
    with cluster.client() as client:
        jobs = client.submit_many([{"command": ["true"], "channel": "2"} for _ in range(6)])
        elsewhere = client.submit(["true"], channel="4")
        on_a_node = client.submit(["true"], node="n1")
        wait_until(lambda: len(listener.heard) >= 6, 5, cluster.logs())
        assert {channel for channel, _ in listener.heard} == {"CHANNEL_DISPATCH_2"}
        assert listener.payloads() == [job.id for job in jobs], "in order"
        assert {elsewhere.refresh().state, on_a_node.refresh().state} == {"pending"}


def test_a_foreign_subscriber_gets_a_hundred_at_a_time(classic, cluster, foreigner):
    classic.master(["1"])
    listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
    with cluster.client() as client:
        jobs = client.submit_many([{"command": ["true"]} for _ in range(120)])
        wait_until(lambda: len(listener.heard) == 100, 5, cluster.logs())
        for job in jobs[:3]:
            foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: len(listener.heard) == 103, 5, cluster.logs())


def test_round_robin(classic, cluster, foreigner):
    classic.master(placement="round_robin")
    listener = foreigner.subscribe(*DISPATCH)
    with cluster.client() as client:
        for number in range(9):
            client.submit(["true"])
            wait_until(lambda number=number: len(listener.heard) == number + 1, 5, cluster.logs())
    channels = [channel for channel, _ in listener.heard]
    assert channels[:3] == channels[3:6] == channels[6:] and set(channels) == set(DISPATCH)


def test_cancelled_before_it_is_sent(classic, cluster, foreigner):
    classic.master(["1"])
    with cluster.client() as client:
        job = client.submit(["true"])
        wait_until(lambda: job.refresh().state == "scheduled", 5, cluster.logs())
        assert job.cancel().answer == "cancelled"
        assert job.refresh().outcome == "cancelled"
        listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
        other = client.submit(["true"])
        wait_until(lambda: listener.heard, 10, cluster.logs())
        assert listener.payloads() == [other.id]
