"""The order in which the dispatcher hands out work: urgent first, aged after a while, groups by weight."""

from __future__ import annotations

from collections import Counter

import pytest

from jobschedd.master.placement import Placement


def next_ones(driver, master, channel, count: int) -> list[str]:
    """The jobs that start next on a channel of one slot."""
    order = []
    for _ in range(count):
        (job,) = channel.jobs()
        order.append(job)
        channel.report(job)
        master.collect(1)
        master.dispatch(1)
    return order


@pytest.mark.parametrize("group", ["", "others"])
def test_a_new_urgent_job_is_the_next_to_start(driver, master, group):
    channel = driver.channel(window=1)
    waiting = driver.submit(5, group="science") + driver.submit(5)
    master.dispatch()
    more = {"group": group} if group else {}
    (urgent,) = driver.submit(priority=1, **more)
    master.dispatch(1)
    first, second = next_ones(driver, master, channel, 2)
    assert first in waiting and second == urgent


def test_groups_share_by_weight(driver, master):
    master.dispatcher._placement = Placement(weights={"science": 3})
    channel = driver.channel(window=1)
    science, web = driver.submit(30, group="science"), driver.submit(30, group="web")
    master.dispatch()
    counts = Counter("science" if job in science else "web" for job in next_ones(driver, master, channel, 20))
    assert counts == {"science": 15, "web": 5}
    assert len(web) == 30


class TestAgeing:
    @pytest.fixture
    def ageing(self, master):
        master.dispatcher._ageing = 0.05
        return master

    def test_a_low_one_runs_while_others_keep_coming(self, driver, ageing):
        channel = driver.channel(window=1)
        (low,) = driver.submit(priority=0)
        driver.wait_ms(driver.header(low).since + 160)
        driver.submit(3, priority=2)
        driver.client.rpush(driver.keys.bell, "a")
        ageing.dispatch()
        assert channel.jobs() == [low], "three steps up, in three times its ageing"

    def test_it_gains_a_step_at_a_time(self, driver, ageing):
        channel = driver.channel(window=1)
        (low,) = driver.submit(priority=0)
        (high,) = driver.submit(priority=50)
        driver.wait_ms(driver.header(low).since + 60)
        driver.client.rpush(driver.keys.bell, "a")
        ageing.dispatch()
        assert channel.jobs() == [high]

    def test_it_is_off_unless_asked_for(self, driver, master):
        channel = driver.channel(window=1)
        (low,) = driver.submit(priority=0)
        driver.wait_ms(driver.header(low).since + 100)
        (high,) = driver.submit(priority=1)
        driver.client.rpush(driver.keys.bell, "a")
        master.dispatch()
        assert channel.jobs() == [high]

    def test_a_new_leader_knows_the_ages(self, driver, make_master):
        driver.lead("m0")
        (low,) = driver.submit(priority=0)
        driver.submit(priority=1)
        driver.wait_ms(driver.header(low).since + 160)
        driver.submit(priority=2)
        channel = driver.channel(window=1)
        driver.moves.release_lead("m0")
        heir = make_master("m1")
        heir.dispatcher._ageing = 0.05
        heir.dispatch()
        assert len(channel.jobs()) == 1
        assert driver.header(channel.jobs()[0]).priority in (0, 1), "the newest comes last, whatever its priority"
