"""Who starves, and which channel is nearest to having room: the pure part of keeping channels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import Target
from jobschedd.master.keeping import Keeping, shortage
from jobschedd.master.placement import ChannelView
from jobschedd.store.survey import Head, Kept

AFTER = 60.0
ONE, OTHER = (1, 0), (2, 0)


def head(waits: float, job: str = "7") -> Head:
    return Head(job, waits, now=1000.0)


def view(name: str = "1", **more) -> ChannelView:
    return ChannelView(f"inc-{name}", "n1", name, **more)


class TestWhoStarves:
    def test_whoever_has_waited_long_enough_the_longest_first(self):
        heads = {ONE: head(70), OTHER: head(80), (3, 0): head(59)}
        assert Keeping(AFTER).starving(heads, 0.0) == [OTHER, ONE]

    def test_not_a_list_that_something_was_dispatched_of(self):
        keeping = Keeping(AFTER)
        keeping.served(ONE, 500.0)
        assert keeping.starving({ONE: head(1000)}, 559.0) == []
        assert keeping.starving({ONE: head(1000)}, 560.0) == [ONE]

    def test_not_one_that_has_a_channel(self):
        keeping = Keeping(AFTER)
        keeping.keep(ONE, head(70), view())
        assert keeping.starving({ONE: head(70)}, 0.0) == []
        assert keeping.channels == {"inc-1": ONE}
        assert keeping.all() == [Kept("inc-1", 1, 0, "7", 1000.0)]


class TestUntilWhen:
    def kept(self) -> Keeping:
        keeping = Keeping(AFTER)
        keeping.adopt([Kept("inc-1", 1, 0, "7", 1.0), Kept("inc-2", 2, 0, "8", 1.0)])
        return keeping

    def test_something_of_the_list_goes_out(self):
        keeping = self.kept()
        assert keeping.served(ONE, 5.0) and not keeping.served((3, 0), 5.0)
        assert keeping.channels == {"inc-2": OTHER}

    def test_nothing_of_it_waits_or_the_channel_takes_nothing(self):
        keeping = self.kept()
        keeping.tidy([ONE], ["inc-1", "inc-2"])
        assert keeping.channels == {"inc-1": ONE}
        keeping.tidy([ONE], ["inc-2"])
        assert keeping.channels == {}

    def test_nothing_is_adopted_where_it_is_off(self):
        keeping = Keeping(0)
        keeping.adopt([Kept("inc-1", 1, 0, "7", 1.0)])
        assert keeping.all() == []


class TestShortage:
    def test_everything_that_is_missing_counts(self):
        target = Target(resources=(("cpus", 4000), ("slots", 2)))
        has = {"resources": {"cpus": 8000}, "window": 4, "slots": 4}
        free, full = view(**has), view(**has, entries=4)
        cases = [(free, {}), (free, {"cpus": 6000}), (full, {}), (full, {"cpus": 6000})]
        assert [shortage(target, one, used)[0] for one, used in cases] == [0.0, 0.5, 1.0, 1.5]

    @given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8))
    def test_it_fits_where_nothing_is_short(self, slots, window, entries):
        one = view(window=window, entries=entries, slots=8, most_slots=8)
        short, _ = shortage(Target(resources=(("slots", slots),)), one, {})
        assert (short == 0) == (window - entries >= slots)
