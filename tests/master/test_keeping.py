"""A job that needs much does not wait for ever behind small ones: after a while a channel is kept for it."""

from __future__ import annotations

import pytest

from jobschedd.store.moves import Moves

AFTER = 0.2


@pytest.fixture
def make_keeping(make_master, monkeypatch):
    def make(instance: str):
        master = make_master(instance)
        master.dispatcher._keeping.after = AFTER
        return master

    return make


@pytest.fixture
def master(make_keeping):
    master = make_keeping("m1")
    master.dispatch(1)
    master.driver.fence = master.driver.moves.leader()
    return master


def let_wait(driver, master, job: str) -> None:
    """Until it has waited for too long, by the server's clock and by ours; then the dispatcher looks."""
    driver.wait_ms(driver.header(job).since + round(AFTER * 1000))
    master.clock.advance(AFTER)
    master.dispatch(1)
    master.dispatcher._keep_channels()
    master.dispatch(1)


def end_one(driver, master, channel, job: str) -> None:
    channel.report(job)
    driver.client.hset(driver.keys.lease(channel.incarnation), "window", channel.info.slots)
    driver.client.rpush(driver.keys.bell, f"w:{channel.incarnation}:{channel.info.slots}:1")
    master.collect(1)
    master.dispatch(2)


@pytest.fixture
def stream(driver, master):
    """A channel that is full of small jobs, more of which wait, and one for all of its slots."""
    channel = driver.channel(slots=2, window=2)
    driver.submit(20)
    master.dispatch(1)
    (large,) = driver.submit(slots=2)
    master.dispatch(1)
    assert len(channel.jobs()) == 2
    return channel, large


def test_it_starves_where_nothing_is_kept(driver, master, stream):
    channel, large = stream
    for _ in range(8):
        end_one(driver, master, channel, channel.jobs()[0])
    assert large not in channel.jobs() and len(channel.jobs()) == 2


def test_a_channel_is_kept_until_it_fits(driver, master, stream):
    channel, large = stream
    first, second = channel.jobs()
    let_wait(driver, master, large)
    end_one(driver, master, channel, first)
    assert channel.jobs() == [second], "the slot stays free"
    (kept,) = driver.survey.kept()
    assert (kept.incarnation, kept.job) == (channel.incarnation, large)
    end_one(driver, master, channel, second)
    assert channel.jobs() == [large]
    assert driver.survey.kept() == []
    end_one(driver, master, channel, large)
    assert len(channel.jobs()) == 2, "and small ones go on"


def test_more_urgent_ones_may_have_it(driver, master, stream):
    channel, large = stream
    let_wait(driver, master, large)
    (urgent,) = driver.submit(priority=1)
    end_one(driver, master, channel, channel.jobs()[0])
    assert urgent in channel.jobs() and len(channel.jobs()) == 2


def test_for_memory_too_and_the_channel_that_is_nearest(driver, master):
    one, two = (driver.channel(name, slots=3, window=3, resources={"memory": 8 << 30}) for name in "12")
    ends, stays = driver.submit(2, memory="6G")
    master.dispatch(2)
    near, far = (one, two) if ends in one.jobs() else (two, one)
    assert far.jobs() == [stays]
    small = driver.submit(30)
    master.dispatch(2)
    end_one(driver, master, near, ends)
    (large,) = driver.submit(memory="8G")
    let_wait(driver, master, large)
    assert [kept.incarnation for kept in driver.survey.kept()] == [near.incarnation]
    end_one(driver, master, far, next(job for job in far.jobs() if job in small))
    assert large not in far.jobs() and len(far.jobs()) == 3, "others go on there"
    end_one(driver, master, near, near.jobs()[0])
    assert large in near.jobs()


def test_held_ones_do_not_hide_it_and_keep_nothing(driver, master):
    channel = driver.channel(slots=2, window=2)
    driver.submit(20)
    master.dispatch(1)
    held, large = driver.submit(2, slots=2)
    driver.moves.hold([held], "", "")
    let_wait(driver, master, large)
    assert [kept.job for kept in driver.survey.kept()] == [large]
    driver.moves.hold([large], "", "")
    master.dispatcher._keeping.adopt([])
    let_wait(driver, master, large)
    assert driver.survey.kept() == [] and len(channel.jobs()) == 2


def test_not_for_one_that_a_limit_keeps_back_or_whose_group_is_paused(driver, master, stream):
    channel, large = stream
    driver.moves.cancel([large], 60_000)
    driver.moves.set_limit("db", 0)
    driver.moves.drain("group:science", "", "", pause=True)
    driver.client.zadd(driver.keys.rate("api", 3_600_000), {"1:1": driver.now_ms()})
    back = [{"limit_keys": ["db"]}, {"rates": ["api=1/h"]}, {"group": "science"}]
    for (job,) in [driver.submit(slots=2, **more) for more in back]:
        let_wait(driver, master, job)
    end_one(driver, master, channel, channel.jobs()[0])
    assert len(channel.jobs()) == 2


def test_another_leader_keeps_the_same(driver, master, stream, make_keeping):
    _, large = stream
    driver.channel("2", slots=2, window=1)
    master.dispatch(2)
    let_wait(driver, master, large)
    before = driver.survey.kept()
    assert len(before) == 1
    master.dispatcher._leadership.release()
    heir = make_keeping("m2")
    heir.dispatch(1)
    assert driver.survey.kept() == before


def test_a_channel_that_is_drained_is_kept_for_nobody(driver, master, stream):
    _, large = stream
    let_wait(driver, master, large)
    driver.moves.drain("1", "", "")
    master.dispatch(1)
    let_wait(driver, master, large)
    assert driver.survey.kept() == []


def test_jobs_of_one_slot_ask_for_nothing(driver, master, monkeypatch):
    """What needs nothing is never looked at."""
    driver.channel(window=1)
    (job, *_) = driver.submit(5)
    monkeypatch.setattr(Moves, "keep", lambda *_: pytest.fail("nothing is to be kept"))
    monkeypatch.setattr(master.dispatcher._survey, "heads", lambda *_: pytest.fail("nobody is to be looked at"))
    let_wait(driver, master, job)


def test_it_is_off_where_that_is_asked_for(driver, make_master):
    master = make_master("m1")
    master.dispatch(1)
    driver.channel(slots=2, window=2)
    driver.submit(20)
    (large,) = driver.submit(slots=2)
    master.dispatch(2)
    let_wait(driver, master, large)
    assert driver.survey.kept() == []
