"""Limits, rates, groups and resources on the classic wire: kept, let go of by whatever ends a job, or refused."""

from __future__ import annotations

from redis_server import wait_until


def most_at_once(path) -> int:
    """Of a file in which every job writes + when it begins and - when it ends."""
    now = most = 0
    for sign in path.read_text().split():
        now += 1 if sign == "+" else -1
        most = max(most, now)
    return most


def test_never_one_too_many(classic, cluster):
    """A key, a group and a channel, each with more room on the wire than its limit."""
    classic.master(["1", "2"], limits={"group:etl": 2, "channel:2": 1})
    classic.slave({"name": "1", "slots": 4}, {"name": "2", "slots": 4})
    kinds = {"key": {"limit_keys": ["db=3"]}, "group": {"group": "etl"}, "place": {"channel": "2"}}
    noted = {kind: cluster.directory / kind for kind in kinds}
    with cluster.client() as client:
        jobs = client.submit_many(
            {"shell": f"echo + >> {noted[kind]}; sleep 0.2; echo - >> {noted[kind]}"} | asked
            for _ in range(8)
            for kind, asked in kinds.items()
        )
        client.wait(jobs, timeout=60)
        assert {job.outcome for job in jobs} == {"succeeded"}
        assert client.inspect.held_limits() == {}, "all is given back"
    assert {kind: most_at_once(path) for kind, path in noted.items()} == {"key": 3, "group": 2, "place": 1}


def test_of_a_foreign_subscriber_the_limit_is_what_it_has_not_answered(classic, cluster, foreigner):
    classic.master(["1"], result_timeout="3s")
    listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
    with cluster.client() as client:
        first, second, third = client.submit_many([{"command": ["true"], "limit_keys": "db"}] * 3)
        free = client.submit(["true"], priority=-1)
        wait_until(lambda: free.id in listener.payloads(), 10, cluster.logs())
        assert listener.payloads() == [first.id, free.id]
        assert client.explain(second).reason == "limit"
        foreigner.publish("CHANNEL_RESULT", first.id)
        wait_until(lambda: second.id in listener.payloads(), 5, "its place is free")
        assert third.id not in listener.payloads()
        second.wait(10)
        assert second.cause == "no_answer"
        wait_until(lambda: third.id in listener.payloads(), 5, "and so is that of one that was never answered")


def test_a_channel_that_dies_lets_go(classic, cluster):
    classic.master(["1"])
    slave = classic.slave({"name": "1", "slots": 2})
    with cluster.client() as client:
        holder = client.submit(["sleep", "60"], limit_keys="db", group="g")
        wait_until(lambda: holder.refresh().state == "running", 10, cluster.logs())
        after = client.submit(["true"], limit_keys="db", group="g")
        assert client.explain(after).reason == "limit"
        slave.kill("channel 1")
        assert after.wait(15).outcome == "succeeded"
        assert holder.refresh().outcome == "lost"


def test_what_reached_nobody_holds_nothing_and_is_no_start(classic, cluster, foreigner):
    classic.master(["1", "2"])
    with cluster.client() as client:
        lost_in_the_air = client.submit(["true"], channel="1", limit_keys="db", rates="api=1/h")
        wait_until(lambda: client.explain(lost_in_the_air).reason == "no_receiver", 10, cluster.logs())
        listener = foreigner.subscribe("CHANNEL_DISPATCH_2")
        other = client.submit(["true"], channel="2", limit_keys="db", rates="api=1/h")
        wait_until(lambda: other.id in listener.payloads(), 10, f"it may go\n{cluster.logs()}")
        third = client.submit(["true"], channel="2", rates="api=1/h")
        wait_until(lambda: client.explain(third).reason == "rate", 5, "that one counts")


def test_groups_share_by_weight(classic, cluster, foreigner):
    classic.master(["1"], groups={"heavy": 3, "light": 1})
    listener = foreigner.subscribe("CHANNEL_DISPATCH_1")
    with cluster.client() as client:
        items = [
            {"command": ["true"], "group": group, "hold": True} for group in ("heavy", "light") for _ in range(100)
        ]
        jobs = client.submit_many(items)
        client.release(jobs)
        wait_until(lambda: len(listener.payloads()) >= 100, 15, cluster.logs())
        heavy = {job.id for job in jobs[:100]}
        share = sum(job in heavy for job in listener.payloads()[:100])
    assert 65 <= share <= 85, "three of four"


def test_who_asks_for_resources_waits_and_is_told_why(classic, cluster):
    """The wire cannot carry what a job was given: nobody offers any."""
    classic.master(["1"])
    classic.slave({"name": "1", "resources": {"cpus": 8, "gpus": 2}})
    with cluster.client() as client:
        job = client.submit(["true"], cpus=1)
        client.submit(["true"]).wait(10)
        told = client.explain(job)
        assert told.reason == "too_large" and "the most is cpus 0" in told.sentence
        done = cluster.run("submit", "--gpus", "1", "--", "true")
        assert "gpus 1" in done.stderr
        env = client.submit(["sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset}"])
        env.wait(10)
        assert env.output() == b"unset\n", "nothing is hidden from those that cannot ask"
