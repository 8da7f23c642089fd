"""Deaths of channel processes that no job is to blame for."""

from __future__ import annotations

from jobschedd.master.deaths import ENOUGH, REMEMBERED, Deaths


def killed(deaths, *jobs, at=0.0, first=0):
    """One process after the other, each while it ran one of ``jobs``."""
    for number, job in enumerate(jobs, first):
        deaths.died(f"process {number}", job, at)


class TestDeaths:
    def test_nobody_is_excused_at_first(self):
        assert not Deaths().without_culprit(0.0)

    def test_whoever_ran_to_an_end_since_was_not_the_culprit(self):
        deaths = Deaths()
        killed(deaths, *"abc"[:ENOUGH])
        for job in "abc"[: ENOUGH - 1]:
            deaths.cleared(job)
        assert not deaths.without_culprit(0.0)
        deaths.cleared("abc"[ENOUGH - 1])
        assert deaths.without_culprit(0.0)

    def test_any_number_of_culprits_excuse_nobody(self):
        deaths = Deaths()
        killed(deaths, *map(str, range(100)))
        assert not deaths.without_culprit(0.0)

    def test_bystanders_prove_nothing(self):
        deaths = Deaths()
        for process in range(10):
            deaths.died(f"process {process}", f"culprit {process}", 0.0)
            deaths.died(f"process {process}", f"bystander {process}", 0.0)
            deaths.cleared(f"bystander {process}")
        assert not deaths.without_culprit(0.0)

    def test_hit_twice_and_then_well_clears_both(self):
        deaths = Deaths()
        killed(deaths, "a", "a")
        deaths.cleared("a")
        assert deaths.without_culprit(0.0)

    def test_it_is_forgotten(self):
        deaths = Deaths()
        killed(deaths, "a", "b")
        deaths.cleared("a")
        deaths.cleared("b")
        assert deaths.without_culprit(REMEMBERED)
        assert not deaths.without_culprit(REMEMBERED + 0.1)

    def test_memory_is_bounded_by_time(self):
        deaths = Deaths()
        for number in range(1000):
            deaths.died(f"process {number}", f"job {number}", float(number))
        assert len(deaths._deaths) <= REMEMBERED + 1 and len(deaths._last) <= REMEMBERED + 1
