"""A subscription that died without a word is noticed: a PONG is missing. (The library's health check is silent.)"""

from __future__ import annotations

from redis_server import wait_until

#: Seconds: twice the interval that the test clusters use, and what a loaded machine may add.
TWO_INTERVALS = 2 * 0.5 + 1.5


def test_the_slaves(classic, cluster, foreigner, blackhole):
    cluster.redis_url = blackhole.url
    slave = classic.slave(classic.handler())
    pid = slave.child("channel 1").pid
    foreigner.publish("CHANNEL_DISPATCH_1", "before")
    wait_until(lambda: classic.ran() == ["before|before"], 5, cluster.logs())
    assert blackhole.swallow_subscriptions() == 1
    assert foreigner.publish("CHANNEL_DISPATCH_1", "swallowed") == 1, "the server believes in the connection"
    took = wait_until(lambda: foreigner.publish("CHANNEL_DISPATCH_1", "x") == 2, TWO_INTERVALS, cluster.logs(), 0.05)
    print(f"subscribed anew after {took:.2f} s")
    foreigner.publish("CHANNEL_DISPATCH_1", "after")
    wait_until(lambda: "after|after" in classic.ran(), 5, cluster.logs())
    assert "swallowed|swallowed" not in classic.ran(), "at most once: what went into the hole is gone"
    assert slave.child("channel 1").pid == pid


def test_the_masters(classic, cluster, foreigner, blackhole):
    cluster.redis_url = blackhole.url
    master = classic.master()
    pid = master.child("collector").pid
    foreigner.subscribe("CHANNEL_DISPATCH_1")
    wait_until(lambda: foreigner.publish("CHANNEL_RESULT", "foreign") == 1, 5, cluster.logs())
    with cluster.client() as client:
        job = client.submit(["true"], channel="1")
        wait_until(lambda: job.refresh().state == "dispatched", 5, cluster.logs())
        assert blackhole.swallow_subscriptions() == 1
        foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: foreigner.publish("CHANNEL_RESULT", "x") == 2, TWO_INTERVALS, cluster.logs(), 0.05)
        foreigner.publish("CHANNEL_RESULT", job.id)
        wait_until(lambda: job.refresh().outcome == "succeeded", 5, cluster.logs())
    assert master.child("collector").pid == pid
