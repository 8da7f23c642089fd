"""Groups share by weight within one rank; waiting can raise a rank; urgent work is next whatever the shares."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import Target
from jobschedd.master.placement import ChannelView, Demand, Placement


def demand(number: int, group: str, count: int = 1000, priority: int = 0, channel: str = "", aged: int = 0) -> Demand:
    return Demand(number, priority, Target(group=group, channel=channel), count, aged=aged)


def views(*windows: int) -> list[ChannelView]:
    return [ChannelView(f"i{n}", "n1", str(n), window=window) for n, window in enumerate(windows)]


def starts(placement: Placement, demands: list[Demand], windows: list[int]) -> Counter:
    """Jobs by group, over one pass after another with so much room each."""
    counts: Counter = Counter()
    for window in windows:
        for share in placement.place(demands, views(window), 1000):
            counts[share.demand.target.group] += share.count
    return counts


WEIGHTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 9), min_size=2)


@given(weights=WEIGHTS, windows=st.lists(st.integers(1, 12), min_size=1, max_size=120), seed=st.integers(0, 99))
def test_those_who_always_want_get_their_weight(weights, windows, seed):
    placement = Placement("least_loaded", random.Random(seed), weights=weights)
    counts = starts(placement, [demand(n, group) for n, group in enumerate(sorted(weights))], windows)
    assert sum(counts.values()) == sum(windows), "no room is left while somebody wants it"
    for group, weight in weights.items():
        fair = sum(windows) * weight / sum(weights.values())
        # A turn may be a whole window's part; more than two of them nobody is ahead or behind.
        assert abs(counts[group] - fair) <= 2 * max(windows) + max(weights.values())


@given(weights=WEIGHTS, room=st.integers(1, 30), wanted=st.lists(st.integers(0, 10), min_size=4, max_size=4))
def test_what_one_does_not_want_the_others_get(weights, room, wanted):
    demands = [demand(n, group, wanted[n]) for n, group in enumerate(sorted(weights)) if wanted[n]]
    shares = Placement(weights=weights).place(demands, views(room), 1000)
    given = Counter(share.demand.target.group for share in shares for _ in range(share.count))
    assert sum(given.values()) == min(room, sum(one.count for one in demands))
    assert all(given[one.target.group] <= one.count for one in demands)


def test_three_to_one():
    placement = Placement(weights={"science": 3, "default": 1})
    counts = starts(placement, [demand(1, "science"), demand(2, "web"), demand(3, "")], [1] * 500)
    assert counts == {"science": 300, "web": 100, "": 100}


def test_whoever_slept_gains_nothing_by_it():
    placement = Placement()
    starts(placement, [demand(1, "a"), demand(2, "b")], [1] * 10)
    starts(placement, [demand(1, "a"), demand(3, "c")], [1] * 100)
    counts = starts(placement, [demand(1, "a"), demand(2, "b")], [1] * 20)
    assert abs(counts["a"] - counts["b"]) <= 2


def test_a_group_that_nobody_can_serve_blocks_nobody_and_gains_nothing():
    placement = Placement()
    stuck = demand(1, "a", channel="absent")
    assert starts(placement, [stuck, demand(2, "b")], [2] * 50) == {"b": 100}
    counts = starts(placement, [demand(3, "a"), demand(2, "b")], [1] * 20)
    assert abs(counts["a"] - counts["b"]) <= 2


def test_what_did_not_go_is_not_charged():
    """A limit let through one of ten, each time: the group is charged for one."""
    placement = Placement()
    demands = [demand(1, "limited"), demand(2, "free")]
    counts: Counter = Counter()
    for _ in range(300):
        for share in placement.place(demands, views(10), 1000):
            limited = share.demand.target.group == "limited"
            went = min(1, share.count) if limited else share.count
            placement.refund(share, share.count - went)
            counts[share.demand.target.group] += went
    assert counts["limited"] == 300


def test_classes_of_one_group_take_turns():
    placement = Placement()
    demands = [demand(1, "a"), demand(2, "a"), demand(3, "b")]
    served: Counter = Counter()
    for _ in range(400):
        for share in placement.place(demands, views(1), 1000):
            served[share.demand.job_class] += share.count
    assert served == {1: 100, 2: 100, 3: 200}


class TestStrictness:
    def test_priority_comes_before_every_share(self):
        placement = Placement(weights={"rich": 1000})
        demands = [demand(1, "rich"), demand(2, "poor", 1, priority=1)]
        (share,) = placement.place(demands, views(1), 1000)
        assert share.demand.target.group == "poor"

    def test_waiting_raises_a_rank(self):
        demands = [demand(1, "", priority=2), demand(2, "", aged=3)]
        (share,) = Placement().place(demands, views(1), 1000)
        assert share.demand.job_class == 2

    @pytest.mark.parametrize("aged", [0, 1000])
    def test_nothing_rises_above_the_highest_priority(self, aged):
        demands = [demand(1, "", priority=100), demand(2, "", priority=-100, aged=aged)]
        assert demands[1].rank <= 100
        taken = {share.demand.job_class for share in Placement().place(demands, views(5), 5)}
        assert 1 in taken
