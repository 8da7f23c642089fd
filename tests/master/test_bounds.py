"""The dispatcher with limits: a full one blocks its own class alone, costs no turns, and is noticed when it opens."""

from __future__ import annotations

from jobschedd.job import State
from jobschedd.limits import stored
from jobschedd.store.moves import Moves


class Counting:
    """Counts calls of the dispatch script."""

    def __init__(self, moves: Moves) -> None:
        self.calls = 0
        self._dispatch = moves.dispatch
        moves.dispatch = self

    def __call__(self, *arguments):
        self.calls += 1
        return self._dispatch(*arguments)


def test_the_next_one_goes_when_one_ends(driver, master):
    channel = driver.channel()
    ids = driver.submit(3, limit_keys=["db=1"])
    for number in range(3):
        master.dispatch()
        assert channel.jobs() == ids[number : number + 1]
        channel.report(ids[number])
        master.collect()


def test_a_full_limit_blocks_nobody_else(driver, master):
    channel = driver.channel(window=3)
    first, _ = driver.submit(2, limit_keys=["db"], priority=50)
    (other,) = driver.submit(limit_keys=["disk"])
    (plain,) = driver.submit()
    master.dispatch()
    assert sorted(channel.jobs(), key=int) == [first, other, plain]


def test_a_full_limit_costs_no_turns(driver, master):
    driver.channel()
    driver.submit(5, limit_keys=["db"])
    master.dispatch()
    counting = Counting(driver.moves)
    master.dispatch(5)
    assert counting.calls == 0
    assert not master.dispatcher._more_to_do


def test_what_was_set_counts_at_once(driver, master):
    channel = driver.channel()
    driver.submit(5, limit_keys=["db"])
    master.dispatch()
    driver.moves.set_limit("db", 4)
    master.dispatch()
    assert len(channel.jobs()) == 4


def test_zero_stops_it(driver, master):
    channel = driver.channel()
    driver.moves.set_limit("group:g", 0)
    (waits,) = driver.submit(group="g")
    (runs,) = driver.submit()
    master.dispatch()
    assert channel.jobs() == [runs]
    driver.moves.remove_limit("group:g")
    master.dispatch()
    assert channel.jobs() == [runs, waits]


def test_a_rate_is_looked_at_again_when_it_is_due(driver, master):
    channel = driver.channel()
    ids = driver.submit(2, rates=["api=1/300ms"])
    begun = driver.now_ms()
    master.dispatch()
    assert channel.jobs() == ids[:1]
    counting = Counting(driver.moves)
    master.dispatch(3, advance=0.05)
    assert counting.calls == 0
    assert 0 < master.dispatcher._patience() <= 0.3
    driver.wait_ms(begun + 400)
    master.dispatch(2, advance=0.4)
    assert channel.jobs() == ids


class TestPlaces:
    def test_a_node(self, driver, master):
        one, two = driver.channel("1"), driver.channel("2")
        elsewhere = driver.channel("1", node="n2", window=2)
        driver.moves.set_limit("node:n1", 3)
        driver.submit(20)
        master.dispatch()
        assert len(one.jobs() + two.jobs()) == 3
        assert len(elsewhere.jobs()) == 2
        ended = (one.jobs() + two.jobs())[0]
        (one if ended in one.jobs() else two).report(ended)
        master.dispatch()
        assert len(one.jobs() + two.jobs()) == 3

    def test_a_channel_on_each_node(self, driver, master):
        channels = [driver.channel("gpu", node=node) for node in ("n1", "n2")]
        other = driver.channel("cpu")
        driver.moves.set_limit("channel:gpu", 2)
        driver.submit(40)
        master.dispatch()
        assert [len(channel.jobs()) for channel in channels] == [2, 2]
        assert len(other.jobs()) == 10

    def test_it_costs_no_turns(self, driver, master):
        driver.channel("1")
        driver.moves.set_limit("node:n1", 1)
        driver.submit(20)
        master.dispatch()
        counting = Counting(driver.moves)
        master.dispatch(5)
        assert counting.calls == 0


def test_another_leader_knows_nothing_and_exceeds_nothing(driver, make_master):
    channel = driver.channel()
    ids = driver.submit(4, limit_keys=["db=2"])
    first = make_master("m1")
    first.dispatch()
    driver.moves.release_lead("m1")
    second = make_master("m2")
    second.dispatch()
    assert channel.jobs() == ids[:2]
    channel.report(ids[0])
    second.collect()
    second.dispatch()
    assert channel.jobs() == ids[1:3]


def test_a_leader_heals_what_it_finds(driver, master):
    channel = driver.channel()
    first, second = driver.submit(2, limit_keys=["db"])
    master.dispatch()
    driver.client.delete(driver.keys.job(first))
    driver.client.rpush(driver.keys.bell, "a")
    master.dispatch()
    assert driver.state(second) is State.DISPATCHED
    assert channel.jobs() == [first, second]


def test_the_configuration_is_told(driver, make_master):
    master = make_master("m1")
    master.dispatcher._configured_limits = dict([stored("db", 2)])
    channel = driver.channel()
    ids = driver.submit(4, limit_keys=["db=1"])
    master.dispatch()
    assert channel.jobs() == ids[:2]


def test_many_classes_are_forgotten_and_their_jobs_go_on(driver, master, monkeypatch):
    monkeypatch.setattr("jobschedd.master.dispatcher.MOST_CLASSES", 5)
    channel = driver.channel()
    (later,) = driver.submit(delay="1d", limit_keys=["later"])
    for number in range(20):
        (job,) = driver.submit(limit_keys=[f"k{number}"])
        master.dispatch()
        channel.report(job)
        master.collect()
    driver.client.rpush(driver.keys.bell, "a")
    master.dispatch()
    assert len(driver.survey.classes()) <= 1
    driver.client.zadd(driver.keys.scheduled, {later: 1})
    driver.client.rpush(driver.keys.bell, "s")
    master.dispatch()
    assert channel.jobs() == [later]
    assert driver.client.sismember(driver.keys.limit("later"), later)


class TestResources:
    def channels(self, driver, *resources, window=10):
        return [
            driver.channel(str(number), node=f"n{number}", window=window, resources=have)
            for number, have in enumerate(resources)
        ]

    def test_only_who_has_enough_gets_it(self, driver, master):
        small, large = self.channels(driver, {"cpus": 1000}, {"cpus": 8000})
        ids = driver.submit(4, cpus=2)
        master.dispatch()
        assert (small.jobs(), large.jobs()) == ([], ids)

    def test_too_much_for_all_waits_and_blocks_nobody(self, driver, master):
        (channel,) = self.channels(driver, {"cpus": 1000})
        driver.submit(cpus=2, priority=50)
        (runs,) = driver.submit(cpus=1)
        (plain,) = driver.submit()
        counting = Counting(driver.moves)
        master.dispatch()
        assert sorted(channel.jobs(), key=int) == [runs, plain]
        calls = counting.calls
        master.dispatch(5)
        assert counting.calls == calls

    def test_what_ends_makes_room(self, driver, master):
        (channel,) = self.channels(driver, {"gpus": 1})
        first, second = driver.submit(2, gpus=1)
        master.dispatch()
        assert channel.jobs() == [first]
        channel.report(first)
        master.collect()
        master.dispatch()
        assert channel.jobs() == [second]

    def test_a_full_channel_closes_for_its_class_and_not_for_others(self, driver, master):
        (channel,) = self.channels(driver, {"cpus": 4000})
        (large,) = driver.submit(cpus=3)
        master.dispatch()
        driver.submit(cpus=2)
        (small,) = driver.submit(cpus=1)
        master.dispatch()
        assert channel.jobs() == [large, small]

    def test_it_spreads_over_all_that_have_room(self, driver, master):
        channels = self.channels(driver, {"cpus": 2000}, {"cpus": 2000}, {"cpus": 1000})
        driver.submit(9, cpus=1)
        master.dispatch(5)
        assert [len(channel.jobs()) for channel in channels] == [2, 2, 1]

    def test_a_channel_that_comes_back_with_more(self, driver, master):
        (old,) = self.channels(driver, {"cpus": 1000})
        first, second = driver.submit(2, cpus=1)
        master.dispatch()
        assert old.jobs() == [first]
        new = driver.channel("0", node="n0", resources={"cpus": 2000})
        master.dispatch()
        assert new.jobs() == [second]


def test_tasks_of_an_array_count_one_each(driver, master):
    channel = driver.channel()
    driver.moves.set_limit("db", 3)
    (array,) = driver.submit(array="1-9", limit_keys=["db"])
    master.dispatch()
    first = channel.jobs()
    assert len(first) == 3 and all(job.startswith(f"{array}_") for job in first)
    channel.report(first[0])
    master.collect()
    master.dispatch()
    assert len(channel.jobs()) == 3 and first[0] not in channel.jobs()
