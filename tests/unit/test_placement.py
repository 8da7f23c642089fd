"""Placement: strict priority, nobody blocked, room never exceeded, turns among equals."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import Target
from jobschedd.master.placement import ChannelView, Demand, Placement

POLICIES = ["least_loaded", "round_robin", "random"]
ANYWHERE = Target()


def channel(name: str, window: int = 1, entries: int = 0, **more) -> ChannelView:
    more.setdefault("most_slots", more.get("slots", 1))
    return ChannelView(f"inc-{name}", "n1", name, window=window, entries=entries, **more)


def demand(number: int, count: int, priority: int = 0, target: Target = ANYWHERE) -> Demand:
    return Demand(number, priority, target, count)


def placement(policy: str = "least_loaded", seed: int = 1) -> Placement:
    return Placement(policy, random.Random(seed))


def given_out(shares) -> Counter:
    counts: Counter = Counter()
    for share in shares:
        counts[share.demand.job_class, share.incarnation] += share.count
    return counts


CHANNELS = st.lists(
    st.builds(
        ChannelView,
        incarnation=st.uuids().map(str),
        node=st.sampled_from(["n1", "n2"]),
        name=st.sampled_from(["1", "2", "gpu"]),
        slots=st.integers(1, 4),
        most_slots=st.integers(1, 4),
        labels=st.frozensets(st.sampled_from(["gpu", "big"])),
        window=st.integers(-1, 8),
        entries=st.integers(0, 8),
        open=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda view: view.incarnation,
)
TARGETS = st.builds(
    Target,
    resources=st.sampled_from([(), (), (("slots", 2),), (("slots", 3),)]),
    node=st.sampled_from(["", "n1", "n3"]),
    channel=st.sampled_from(["", "gpu"]),
    labels=st.sampled_from([(), ("gpu",), ("absent",)]),
)
DEMANDS = st.lists(
    st.builds(
        Demand,
        job_class=st.integers(1, 5),
        priority=st.sampled_from([-100, 0, 0, 7, 100]),
        target=TARGETS,
        count=st.integers(1, 20),
    ),
    max_size=6,
    unique_by=lambda one: (one.job_class, one.priority),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_laws(policy):
    @given(CHANNELS, DEMANDS, st.integers(0, 30), st.integers())
    def check(channels, demands, most, seed):
        room = {view.incarnation: max(0, view.room) for view in channels}
        shares = placement(policy, seed).place(demands, channels, most)
        used: Counter = Counter()
        served: Counter = Counter()
        by_name = {view.incarnation: view for view in channels}
        for share in shares:
            view = by_name[share.incarnation]
            assert share.count > 0
            assert share.demand.target.admits(view.node, view.name, view.labels)
            assert share.demand.slots <= view.most_slots
            used[share.incarnation] += share.count * share.demand.slots
            served[share.demand] += share.count
        assert all(used[name] <= room[name] for name in used), "room is never exceeded"
        assert all(served[one] <= one.count for one in served), "nobody gets more than he asked for"
        assert sum(served.values()) <= most

        def could_run(one, view):
            return one.target.admits(view.node, view.name, view.labels) and one.slots <= view.most_slots

        # A demand goes short only where nothing that admits it has room for one more, or the call may move no more.
        for one in demands:
            if served[one] < one.count and sum(served.values()) < most:
                for view in channels:
                    if could_run(one, view):
                        assert room[view.incarnation] - used[view.incarnation] < one.slots
        # Strict priority: whatever a channel took, no higher demand that could have had it went short.
        for share in shares:
            view = by_name[share.incarnation]
            for one in demands:
                higher = one.priority > share.demand.priority and one.slots <= share.demand.slots
                if higher and could_run(one, view):
                    assert served[one] == one.count

    check()


class TestPriority:
    def test_the_higher_goes_first(self):
        shares = placement().place([demand(1, 5), demand(2, 1, 100), demand(3, 5, -100)], [channel("1", 2)], 1000)
        assert given_out(shares) == {(2, "inc-1"): 1, (1, "inc-1"): 1}

    def test_a_class_that_nobody_serves_blocks_nobody(self):
        nowhere = Target(channel="absent")
        shares = placement().place([demand(1, 5, 100, nowhere), demand(2, 5)], [channel("1", 3)], 1000)
        assert given_out(shares) == {(2, "inc-1"): 3}

    def test_no_more_than_asked_for_in_all(self):
        shares = placement().place([demand(1, 50)], [channel("1", 20), channel("2", 20)], 15)
        assert sum(share.count for share in shares) == 15


class TestClosed:
    def test_nothing_goes_to_a_closed_channel(self):
        assert placement().place([demand(1, 5)], [channel("1", 3, open=False)], 1000) == []

    def test_nothing_goes_to_one_without_a_lease(self):
        assert placement().place([demand(1, 5)], [channel("1", -1)], 1000) == []

    def test_what_was_given_out_counts_at_once(self):
        views = [channel("1", 3)]
        turn = placement()
        assert sum(share.count for share in turn.place([demand(1, 2)], views, 1000)) == 2
        assert sum(share.count for share in turn.place([demand(1, 2)], views, 1000)) == 1
        assert turn.place([demand(1, 2)], views, 1000) == []


class TestTurns:
    def turns(self, classes: int, passes: int, idle: int = 0) -> Counter:
        """Who gets the only free place, pass after pass, each pass with ``idle`` further looks that find no room."""
        got: Counter = Counter()
        turn = placement()
        demands = [demand(number, 100) for number in range(1, classes + 1)]
        for _ in range(passes):
            view = channel("1", 1)
            for share in turn.place(demands, [view], 1000):
                got[share.demand.job_class] += share.count
            for _ in range(idle):
                assert turn.place(demands, [view], 1000) == []
        return got

    @pytest.mark.parametrize("idle", [0, 1, 2, 3])
    @pytest.mark.parametrize("classes", [2, 3, 4, 5])
    def test_equals_take_turns_however_often_one_looks(self, classes, idle):
        got = self.turns(classes, 10 * classes, idle)
        assert got == dict.fromkeys(range(1, classes + 1), 10)

    def test_a_class_with_a_channel_of_its_own_keeps_nobody_from_his_turn(self):
        got: Counter = Counter()
        turn = placement()
        own = Target(channel="2")
        for _ in range(30):
            views = [channel("1", 1), channel("2", 1)]
            demands = [demand(1, 9), demand(2, 9), demand(3, 9, target=own)]
            for share in turn.place(demands, views, 1000):
                got[share.demand.job_class] += share.count
        assert sum(got.values()) == 60
        assert min(got.values()) >= 10

    def test_priorities_take_turns_apart(self):
        got: Counter = Counter()
        turn = placement()
        for _ in range(10):
            demands = [demand(1, 1, 5), demand(2, 1, 5), demand(3, 1), demand(4, 1)]
            for share in turn.place(demands, [channel("1", 3)], 1000):
                got[share.demand.job_class] += share.count
        assert got == {1: 10, 2: 10, 3: 5, 4: 5}


def several(number: int, count: int, slots: int, priority: int = 0) -> Demand:
    return demand(number, count, priority, Target(resources=(("slots", slots),)))


class TestSeveralSlots:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_as_many_as_fit(self, policy):
        views = [channel("1", 4, slots=4), channel("2", 4, 1, slots=4), channel("3", 4, 3, slots=4)]
        shares = placement(policy).place([several(1, 9, 2)], views, 1000)
        assert given_out(shares) == {(1, "inc-1"): 2, (1, "inc-2"): 1}
        assert [view.entries for view in views] == [4, 3, 3], "what was given out counts at once, all of its slots"

    def test_prefetch_makes_no_channel_larger(self):
        assert placement().place([several(1, 1, 3)], [channel("1", 64, slots=2)], 1000) == []

    def test_a_channel_that_knows_of_one_only(self):
        assert placement().place([several(1, 1, 3)], [channel("1", 8, slots=8, most_slots=1)], 1000) == []

    def test_what_does_not_fit_blocks_nobody(self):
        views = [channel("1", 4, 1, slots=4)]
        assert given_out(placement().place([several(1, 1, 4, 100), demand(2, 9)], views, 1000)) == {(2, "inc-1"): 3}

    def test_one_slot_is_an_ordinary_job(self):
        assert Target(resources=()).slots == 1 and Target(resources=(("cpus", 1000),)).slots == 1


class TestKept:
    """A channel that is kept for one list, because its jobs need much and have waited for long."""

    def kept(self, key, **more) -> Placement:
        return Placement("least_loaded", random.Random(1), kept={"inc-1": key}, **more)

    def test_others_of_its_rank_and_below_go_elsewhere(self):
        views = [channel("1", 4, 2, slots=4), channel("2", 1)]
        demands = [several(1, 1, 4), demand(2, 9), demand(3, 9, -1)]
        assert given_out(self.kept((1, 0)).place(demands, views, 1000)) == {(2, "inc-2"): 1}

    def test_more_urgent_ones_may_have_it(self):
        demands = [several(1, 1, 4), demand(2, 9, 1)]
        assert given_out(self.kept((1, 0)).place(demands, [channel("1", 4, 2, slots=4)], 1000)) == {(2, "inc-1"): 2}

    def test_what_waiting_has_added_counts(self):
        aged = Demand(1, 0, Target(resources=(("slots", 4),)), 1, aged=5)
        views = [channel("1", 4, 2, slots=4)]
        assert self.kept((1, 0)).place([aged, demand(2, 9, 5)], views, 1000) == []

    def test_it_is_for_them(self):
        views = [channel("1", 4, slots=4)]
        assert given_out(self.kept((1, 0)).place([several(1, 3, 4), demand(2, 9)], views, 1000)) == {(1, "inc-1"): 1}

    def test_not_while_they_cannot_go_anywhere(self):
        """A limit or a pause keeps them back: then they are none of the demands."""
        assert given_out(self.kept((1, 0)).place([demand(2, 9)], [channel("1", 2)], 1000)) == {(2, "inc-1"): 2}

    @given(
        ends=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=12, max_size=12),
        slots=st.integers(2, 4),
        policy=st.sampled_from(POLICIES),
    )
    def test_nobody_waits_longer_than_what_runs_there(self, ends, slots, policy):
        """The model: small jobs without end, each for three steps at most. Kept, the large one goes by the fourth."""
        view, turn = channel("1", 4, slots=4), Placement(policy, random.Random(1), kept={"inc-1": (1, 0)})
        view.entries, running = 4, [3, 3, 3, 3]
        for step, early in enumerate(ends):
            running = [left - 1 for number, left in enumerate(running) if left > 1 and number not in early]
            view.entries = len(running)
            shares = turn.place([several(1, 1, slots), demand(2, 99)], [view], 1000)
            assert all(share.demand.key == (1, 0) for share in shares)
            if shares:
                assert view.entries == len(running) + slots <= 4
                return
            assert step < 3
        pytest.fail("it starved")


class TestPolicies:
    def test_least_loaded_fills_the_emptier_first(self):
        views = [channel("1", 10, 4), channel("2", 10, 0), channel("3", 10, 2)]
        assert given_out(placement().place([demand(1, 6)], views, 1000)) == {(1, "inc-2"): 4, (1, "inc-3"): 2}

    def test_least_loaded_counts_by_slots(self):
        views = [channel("1", 10, 2, slots=4), channel("2", 10, 1)]
        assert given_out(placement().place([demand(1, 2)], views, 1000)) == {(1, "inc-1"): 2}

    def test_least_loaded_draws_among_equals(self):
        first = Counter()
        turn = placement()
        for _ in range(300):
            views = [channel(str(number)) for number in range(3)]
            first += given_out(turn.place([demand(1, 1)], views, 1000))
        assert len(first) == 3 and min(first.values()) > 50

    @pytest.mark.parametrize("policy", POLICIES)
    def test_where_all_will_be_full_few_get_much(self, policy):
        channels = [channel(str(number), window=100, entries=number % 2) for number in range(50)]
        shares = placement(policy).place([demand(1, 1_000_000)], channels, 1000)
        assert sorted(share.count for share in shares) == [*[100] * 10]
        assert {int(share.incarnation.removeprefix("inc-")) % 2 for share in shares} == {0}, "the emptier first"

    def test_a_backlog_that_takes_many_passes_is_shared_out_in_parts(self):
        channels = [channel(str(number), window=500) for number in range(100)]
        drawn, left, placed = Counter(), 5000, placement()
        while left:
            shares = placed.place([demand(1, left)], channels, 1000)
            assert sum(share.count for share in shares) == min(1000, left)
            assert len(shares) <= 51 or left <= 1000
            drawn.update({share.incarnation: share.count for share in shares})
            left -= sum(share.count for share in shares)
        assert max(drawn.values()) - min(drawn.values()) <= 31, "a pack"

    def test_the_last_of_a_backlog_level_the_channels(self):
        channels = [channel(str(number), window=500, entries=100 * (number == 0)) for number in range(4)]
        left, placed = 1900, placement()
        while left:
            left -= sum(share.count for share in placed.place([demand(1, left)], channels, 1000))
        assert sorted(view.entries for view in channels) == [500] * 4

    def test_instant_jobs_go_in_packs(self):
        """To those that have said so by a large window; 1000 calls for 1000 jobs would cost more than they gain."""
        channels = [channel(str(number), window=513) for number in range(1000)]
        shares = placement().place([demand(1, 500)], channels, 1000)
        assert 32 <= len(shares) <= 75 and sum(share.count for share in shares) == 500
        assert max(share.count for share in shares) <= 15

    def test_few_jobs_and_jobs_that_take_time_are_spread(self):
        instant = [channel(str(number), window=513) for number in range(1000)]
        assert len(placement().place([demand(1, 60)], instant, 1000)) == 60
        slow = [channel(str(number), window=8) for number in range(1000)]
        assert len(placement().place([demand(1, 1000)], slow, 1000)) == 1000

    def test_what_came_back_is_spread(self):
        instant = [channel(str(number), window=513) for number in range(1000)]
        shares = placement().place([Demand(1, 0, ANYWHERE, 500, spread=True)], instant, 1000)
        assert len(shares) == 500

    def test_a_pack_is_no_more_than_there_is_room_for(self):
        channels = [channel(str(number), window=513, entries=511) for number in range(400)]
        shares = placement().place([demand(1, 799)], channels, 1000)
        assert sum(share.count for share in shares) == 799 and max(share.count for share in shares) == 2

    def test_round_robin_goes_on_where_it_stopped(self):
        order = []
        turn = placement("round_robin")
        for _ in range(6):
            views = [channel(name, 5) for name in ("3", "1", "2")]
            order += [share.incarnation for share in turn.place([demand(1, 1)], views, 1000)]
        assert order == ["inc-1", "inc-2", "inc-3"] * 2

    def test_round_robin_skips_who_is_full(self):
        views = [channel("1", 1), channel("2", 9)]
        assert given_out(placement("round_robin").place([demand(1, 5)], views, 1000)) == {
            (1, "inc-1"): 1,
            (1, "inc-2"): 4,
        }

    def test_random_reaches_everybody(self):
        got = Counter()
        turn = placement("random")
        for _ in range(300):
            views = [channel(str(number), 5) for number in range(3)]
            got += given_out(turn.place([demand(1, 1)], views, 1000))
        assert len(got) == 3 and min(got.values()) > 50
