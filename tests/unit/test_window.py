"""The window: slots, and what is expected to start within the time given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.slave.window import ENOUGH, MOST_PREFETCH, Window


def used(duration: float, times: int = 200, slots: int = 1, seconds: float = 0.05) -> Window:
    window = Window(slots, seconds)
    for _ in range(times):
        window.note_end(duration)
    return window


def test_unknown_durations_prefetch_nothing():
    window = Window(3, 0.05)
    for _ in range(ENOUGH):
        assert window.size(0.0) == 3
        window.note_end(0.0001)
    assert window.size(0.0) > 3


def test_instant_jobs_prefetch_up_to_the_bound():
    assert used(0.0, slots=4).prefetch() == MOST_PREFETCH


@pytest.mark.parametrize("duration", [0.05, 0.1, 5.0, 3600.0])
def test_long_jobs_prefetch_nothing(duration):
    assert used(duration).size(0.0) == 1


def test_one_long_job_counts_at_once():
    window = used(0.0001)
    assert window.prefetch() > 0
    window.note_end(2.0)
    assert window.prefetch() == 0


def test_trust_comes_back_slowly():
    window = used(0.0001)
    window.note_end(2.0)
    for _ in range(10):
        window.note_end(0.0001)
    assert window.prefetch() == 0
    for _ in range(200):
        window.note_end(0.0001)
    assert window.prefetch() > 0


def test_while_a_job_runs_on_nothing_waits_behind_it():
    window = used(0.0001, slots=2)
    assert window.size(0.049) > 2
    assert window.size(0.051) == 2


def test_late_prefetch_ends_trust_until_more_has_ended():
    window = used(0.0001)
    window.note_late()
    assert window.prefetch() == 0
    for _ in range(ENOUGH):
        window.note_end(0.0001)
    assert window.prefetch() > 0


def test_switched_off():
    assert used(0.0001, seconds=0.0).size(0.0) == 1


@given(st.integers(1, 64), st.lists(st.floats(0, 10), max_size=50), st.floats(0, 1))
def test_never_below_the_slots_nor_beyond_the_time(slots, durations, longest):
    window = Window(slots, 0.05)
    for duration in durations:
        window.note_end(duration)
    assert slots <= window.size(longest) <= slots + MOST_PREFETCH
    prefetch = window.prefetch()
    assert prefetch == 0 or prefetch & (prefetch - 1) == 0, "a power of two"
    if durations and prefetch:
        assert prefetch * min(durations) / slots <= 0.05 + 1e-9


@pytest.mark.parametrize("slots", [1, 4])
def test_without_a_reserve_every_end_is_said_at_once(slots: int):
    window = used(10.0, slots=slots)
    assert window.prefetch() == 0
    assert window.is_running_dry(slots - 1, unsaid=1, filled=slots)
    assert window.is_running_dry(slots - 1, unsaid=1, filled=0)


def test_where_the_window_was_full_half_of_it_is_said_at_a_time_as_long_as_nobody_knows_better():
    window = used(0.002, slots=2)
    full = window.size(0.0)
    assert full > 20
    assert not window.is_running_dry(full - 1, unsaid=1, filled=full)
    assert not window.is_running_dry(full - full // 2 + 1, unsaid=full // 2 - 1, filled=full)
    assert window.is_running_dry(full // 2, unsaid=(full + 1) // 2, filled=full)


def said_at_a_time(window: Window) -> int:
    """Ends of a full window that wait for each other until they are said."""
    full = window.size(0.0)
    return next(unsaid for unsaid in range(1, full) if window.is_running_dry(full - unsaid, unsaid, full))


def test_once_it_is_known_how_soon_more_come_as_much_is_said_at_a_time_as_leaves_enough_to_go_on():
    window = used(0.002, slots=2)
    full = window.size(0.0)
    before = said_at_a_time(window)
    for _ in range(100):
        window.note_refill(0.004)  # in which each slot starts two
    assert before == (full + 1) // 2 < said_at_a_time(window)
    assert full - 2 - 5 <= said_at_a_time(window) < full - 2 - 2


def test_a_slow_refill_counts_at_once():
    window = used(0.002, slots=2)
    for _ in range(100):
        window.note_refill(0.001)
    quick = said_at_a_time(window)
    window.note_refill(0.01)
    assert said_at_a_time(window) < quick
    window.note_refill(3600.0)  # nothing waited meanwhile
    assert said_at_a_time(window) == (window.size(0.0) + 1) // 2, "never less than half"
    for _ in range(100):
        window.note_refill(0.001)
    assert said_at_a_time(window) == quick


def test_a_full_window_is_no_excuse_for_an_idle_slot():
    window = used(0.002, slots=2)
    assert window.is_running_dry(2, unsaid=1, filled=window.size(0.0))


def test_where_it_was_not_full_ends_are_said_while_a_quarter_of_the_reserve_is_left():
    window = used(0.002, slots=2)
    quarter = 2 + window.prefetch() // 4
    assert not window.is_running_dry(quarter + 1, unsaid=5, filled=0)
    assert window.is_running_dry(quarter, unsaid=1, filled=0)
