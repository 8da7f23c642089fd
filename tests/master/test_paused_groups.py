"""The dispatcher and groups that are paused: nothing of them goes out, everything else does, and it is remembered."""

from __future__ import annotations

import pytest


@pytest.fixture
def paused(driver, master):
    driver.moves.drain("group:science", "audit", "root", pause=True)
    master.dispatch()
    return master


def test_nothing_of_it_goes_out_and_everything_else_does(driver, paused):
    channel = driver.channel()
    science, other, plain = (driver.submit(3, **more) for more in ({"group": "science"}, {"group": "web"}, {}))
    paused.dispatch()
    assert sorted(channel.jobs(), key=int) == other + plain
    assert driver.moves.resume("group:science")
    paused.dispatch()
    assert set(channel.jobs()) == {*science, *other, *plain}


def test_the_leader_says_that_it_knows(driver, paused):
    assert driver.survey.drains()["group:science"].heard


def test_what_runs_goes_on_and_what_comes_back_waits(driver, master):
    channel = driver.channel()
    runs, returned = driver.submit(2, group="science")
    master.dispatch()
    driver.moves.drain("group:science", "", "", pause=True)
    master.dispatch()
    driver.start(runs)
    driver.bring_back(returned)
    channel.report(runs)
    master.collect()
    master.dispatch()
    assert driver.outcome(runs).word == "succeeded"
    assert driver.pending(driver.header(returned).job_class) == [returned]


def test_another_leader_keeps_to_it(driver, paused, make_master):
    channel = driver.channel()
    (job,) = driver.submit(group="science", priority=100)
    paused.dispatcher._leadership.release()
    heir = make_master("m2")
    assert heir.dispatch().startswith("leading")
    assert channel.jobs() == []
    driver.moves.resume("group:science")
    heir.dispatch()
    assert channel.jobs() == [job]


def test_a_node_of_that_name_is_another_matter(driver, paused):
    channel = driver.channel("science", node="science")
    (job,) = driver.submit(channel="science")
    paused.dispatch()
    assert channel.jobs() == [job]


def test_tasks_of_an_array_are_of_its_group(driver, paused):
    channel = driver.channel()
    driver.submit(array="1-5", group="science")
    paused.dispatch()
    assert channel.jobs() == []
    driver.moves.resume("group:science")
    paused.dispatch()
    assert len(channel.jobs()) == 5
