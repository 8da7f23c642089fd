"""What follows from a report: the whole table."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import (
    RETRYABLE,
    UNCHARGED,
    Cause,
    Flag,
    Header,
    Outcome,
    Report,
    ReportKind,
    Spec,
    State,
    decode_result,
)
from jobschedd.master.retries import MOST_EXCUSED, Again, End, back_off, decide

CANCEL = Flag.CANCEL_REQUESTED
F, T, S, C, L = Outcome.FAILED, Outcome.TIMED_OUT, Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.LOST


def after(
    outcome=Outcome.NONE, cause="", kind=ReportKind.RESULT, flags=Flag.NONE, tries=0, crashes=0, excused=False, **spec
):
    header = Header(state=State.RUNNING, flags=flags, tries=tries, crashes=crashes, attempt=1)
    report = Report(
        kind=kind, job="1", attempt=1, entry="1-1", incarnation="i", outcome=outcome, cause=cause, result=b"own",
        reason="n1/c1",
    )  # fmt: skip
    return decide(header, Spec(command=("true",), **spec), report, 5.0, random.Random(1), excused)


def is_again(decision, tries, crashes=0):
    return isinstance(decision, Again) and (decision.tries, decision.crashes) == (tries, crashes)


class TestResults:
    def test_a_success_is_the_end_even_where_retries_are_left(self):
        assert after(S, "exit", retries=5) == End(S, b"own")

    def test_a_success_that_came_before_the_cancel_wins(self):
        assert after(S, "exit", flags=CANCEL) == End(S, b"own")

    def test_without_retries_a_failure_is_the_end(self):
        assert after(F, "exit") == End(F, b"own")

    @pytest.mark.parametrize("cause", sorted(RETRYABLE))
    def test_a_failure_that_may_mend_is_tried_again_and_charged(self, cause):
        assert is_again(after(F, cause, retries=2, tries=1, crashes=1), 2, 1)

    @pytest.mark.parametrize("cause", sorted(set(Cause) - RETRYABLE - UNCHARGED))
    def test_a_failure_that_would_come_again_is_the_end(self, cause):
        assert after(F, cause, retries=2) == End(F, b"own")

    def test_the_budget_is_a_budget(self):
        assert after(F, "exit", retries=2, tries=2) == End(F, b"own")

    def test_a_time_out_is_tried_again(self):
        assert is_again(after(T, "timeout", retries=1), 1)

    @pytest.mark.parametrize("outcome", [C, L, Outcome.EXPIRED, Outcome.SKIPPED])
    def test_other_ends_are_final(self, outcome):
        assert after(outcome, "exit", retries=1) == End(outcome, b"own")

    def test_the_job_says_which_causes_count(self):
        assert is_again(after(F, "not_found", retries=1, retry_on=("not_found",)), 1)
        assert after(F, "exit", retries=1, retry_on=("not_found",)) == End(F, b"own")
        assert after(F, "exit", retries=1, retry_on=()) == End(F, b"own")

    def test_a_cancelled_job_is_not_tried_again(self):
        assert after(F, "exit", flags=CANCEL, retries=5) == End(F, b"own")


class TestInterruptions:
    @pytest.mark.parametrize("cause", sorted(UNCHARGED))
    def test_an_interruption_charges_nothing(self, cause):
        assert after(F, cause, tries=3, crashes=1) == Again(0.0, 3, 1)

    @pytest.mark.parametrize("cause", sorted(UNCHARGED))
    def test_at_most_one_start_means_lost(self, cause):
        assert after(F, cause, retry_on_loss=False, retries=5) == End(L, b"own")

    @pytest.mark.parametrize("cause", sorted(UNCHARGED))
    def test_interrupted_while_being_cancelled_is_cancelled(self, cause):
        decision = after(F, cause, flags=CANCEL, retries=5)
        assert isinstance(decision, End) and decision.outcome is C
        assert decode_result(decision.result).cause == Cause.CANCELLED


class TestCrashes:
    def crash(self, **more):
        return after(kind=ReportKind.CRASHED, **more)

    def test_the_first_crash_is_forgiven_and_counted_apart(self):
        assert self.crash(tries=3) == Again(0.0, 3, 1)

    @pytest.mark.parametrize("most", [1, 2, 3, 10])
    def test_poison_at_exactly_the_cap(self, most):
        for crashes in range(most - 1):
            assert self.crash(crashes=crashes, max_crashes=most) == Again(0.0, 0, crashes + 1)
        decision = self.crash(crashes=most - 1, max_crashes=most)
        assert isinstance(decision, End) and decision.outcome is F
        result = decode_result(decision.result)
        assert (result.cause, result.node, result.channel, result.ended) == (Cause.POISON, "n1", "c1", 5.0)

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_excused_while_channels_die_without_any_jobs_doing(self, most):
        last = most + MOST_EXCUSED - 1
        assert self.crash(crashes=last - 1, max_crashes=most, excused=True) == Again(0.0, 0, last)
        decision = self.crash(crashes=last, max_crashes=most, excused=True)
        assert isinstance(decision, End) and decode_result(decision.result).cause == Cause.POISON

    def test_at_most_one_start_means_lost(self):
        decision = self.crash(retry_on_loss=False)
        assert isinstance(decision, End) and decision.outcome is L
        assert decode_result(decision.result).cause == Cause.CHANNEL_LOST

    def test_while_being_cancelled_it_is_cancelled(self):
        decision = self.crash(flags=CANCEL)
        assert isinstance(decision, End) and decision.outcome is C

    def test_retries_have_nothing_to_do_with_it(self):
        assert self.crash(retries=0, crashes=0) == Again(0.0, 0, 1)


class TestBackOff:
    @given(st.floats(0, 1e4), st.floats(0, 1e5), st.integers(0, 250), st.integers())
    def test_within_its_bounds(self, first, longest, tries, seed):
        delay = back_off(Spec(retry_delay=first, retry_max_delay=longest), tries, random.Random(seed))
        whole = min(longest, first * 2.0 ** min(tries, 60))
        assert whole / 2 <= delay <= whole * (1 + 1e-9)

    def test_it_doubles_up_to_the_cap(self):
        class Most(random.Random):
            def uniform(self, a, b):
                return b

        spec = Spec(retry_delay=1.0, retry_max_delay=10.0)
        assert [back_off(spec, tries, Most()) for tries in range(6)] == [1, 2, 4, 8, 10, 10]
