"""The restart policy: pure, so every rule is one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobschedd.node.restart import RestartLimits, RestartPolicy

LIMITS = RestartLimits()


def test_ready_once_and_dead_comes_back_at_once_then_slower_but_within_a_second() -> None:
    policy = RestartPolicy(LIMITS)
    delays = [policy.after_death(uptime=1, ready_for=0.5) for _ in range(7)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_long_life_forgives_everything() -> None:
    policy = RestartPolicy(LIMITS)
    for _ in range(5):
        policy.after_death(uptime=1, ready_for=0.5)
    assert policy.after_death(uptime=11, ready_for=10) == 0.0


def test_five_quick_deaths_before_ready_are_given_up() -> None:
    policy = RestartPolicy(LIMITS)
    assert [policy.after_death(0.1, None) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, None]
    assert policy.failures == 5


def test_being_ready_in_between_starts_the_count_anew() -> None:
    policy = RestartPolicy(LIMITS)
    for _ in range(3):
        assert [policy.after_death(0.1, None) for _ in range(4)].count(None) == 0
        assert policy.after_death(5, ready_for=1) is not None


def test_slow_failures_are_slowed_down_up_to_the_limit_and_never_given_up() -> None:
    policy = RestartPolicy(LIMITS)
    delays = [policy.after_death(uptime=60, ready_for=None) for _ in range(12)]
    assert delays[:3] == [0.1, 0.2, 0.4] and delays[-1] == 30.0 and None not in delays


def test_a_machine_that_cannot_fork_is_no_reason_to_give_up() -> None:
    policy = RestartPolicy(LIMITS)
    delays = [policy.after_failed_fork() for _ in range(12)]
    assert delays[0] == 0.1 and delays[-1] == 30.0 and policy.failures == 0


lives = st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats(0, 100)), max_size=50)


@given(lives)
def test_delays_stay_within_their_limits(history: list[tuple[float, float | None]]) -> None:
    policy = RestartPolicy(LIMITS)
    for uptime, ready_for in history:
        delay = policy.after_death(uptime, ready_for)
        if delay is None:
            assert policy.failures == LIMITS.max_failures
            return
        assert 0 <= delay <= (LIMITS.delay_limit if ready_for is None else LIMITS.ready_delay_limit)
