"""--avoid-failed: a retry keeps away from the node where it failed, while another will do."""

from __future__ import annotations

from jobschedd.job import Outcome


def failed(driver, master, channels, **item):
    """A job that failed once: (it, the channel where it did)."""
    (job,) = driver.submit(retries=5, retry_delay="1ms", **item)
    master.dispatch()
    (where,) = [channel for channel in channels if job in channel.jobs()]
    again(driver, master, where, job)
    return job, where


def again(driver, master, channel, job):
    before = driver.header(job).attempt
    channel.report(job, outcome=Outcome.FAILED, cause="exit")
    master.collect()
    driver.wait_ms(driver.now_ms() + 5)
    driver.client.rpush(driver.keys.bell, "s")
    master.dispatch()
    return before


def test_it_goes_to_another_node(driver, master):
    channels = [driver.channel("1", node=node) for node in ("n1", "n2")]
    for _ in range(6):
        job, first = failed(driver, master, channels, avoid_failed=True)
        (other,) = [channel for channel in channels if channel is not first]
        assert job in other.jobs()
        again(driver, master, other, job)
        assert job in first.jobs(), "only the last failure counts"
        first.report(job)
        master.collect()


def test_another_channel_of_the_node_is_no_other_node(driver, master):
    channels = [driver.channel("1"), driver.channel("2"), driver.channel("1", node="n2", window=1)]
    driver.dispatched(channels[2])
    job, _ = failed(driver, master, channels, node="n1", avoid_failed=True)
    assert any(job in channel.jobs() for channel in channels[:2]), "it may go nowhere else"


def test_it_waits_for_the_other_node_while_that_is_busy(driver, master):
    here, there = driver.channel("1"), driver.channel("1", node="n2", window=1)
    busy, _ = driver.dispatched(there)
    job, where = failed(driver, master, [here, there], avoid_failed=True)
    assert where is here and job not in here.jobs() + there.jobs()
    there.report(busy)
    master.collect()
    master.dispatch()
    assert there.jobs() == [job]


def test_the_only_node_is_taken_again(driver, master):
    channel = driver.channel("1")
    job, _ = failed(driver, master, [channel], avoid_failed=True)
    assert channel.jobs() == [job]


def test_a_node_that_dies_meanwhile_is_no_other_node(driver, master):
    here, there = driver.channel("1"), driver.channel("1", node="n2", window=1)
    driver.dispatched(there)
    job, _ = failed(driver, master, [here, there], avoid_failed=True)
    there.leave()
    master.dispatch()
    assert job in here.jobs()


def test_who_did_not_ask_goes_anywhere(driver, master):
    here, there = driver.channel("1"), driver.channel("1", node="n2", window=1)
    driver.dispatched(there)
    job, _ = failed(driver, master, [here, there])
    assert here.jobs() == [job]
