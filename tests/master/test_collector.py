"""The collector, turn by turn: verdict, history, deletion; and what a crash between two of them costs: nothing."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.failpoints import FailpointHit
from jobschedd.job import (
    Captured,
    Outcome,
    Report,
    ReportKind,
    Result,
    State,
    decode_result,
    encode,
)
from jobschedd.master import collector as collector_module
from jobschedd.store.results import ResultEntry, slices
from store_driver import KEEP

ANOTHER_MESSAGE = encode(Result(outcome=Outcome.NONE, cause=""))
#: Entries that the first read of a result stream brings.
FULL = 10
STEPS = ["collector.read.after", "collector.verdict.after", "collector.history.after", "collector.delete.after"]


@pytest.fixture
def channel(driver, master):
    return driver.channel(window=50)


def rows(master, columns="job, attempt, final, outcome, cause"):
    """The history, in order."""
    return master.rows(columns)


def run(driver, channel, **item):
    """Submit and dispatch one."""
    return driver.dispatched(channel, **item)[0]


def waiting(driver):
    """Entries in the result stream."""
    return driver.client.xlen(driver.keys.results)


def backlog(driver, channel, count=2 * FULL + 5):
    """Ends that no collector has seen, more than a first read brings; their jobs."""
    jobs = [run(driver, channel) for _ in range(count)]
    for job in jobs:
        channel.report(job)
    return jobs


class TestEnds:
    def test_record_history_stream(self, driver, master, channel):
        job = run(driver, channel, command=["echo", "hi"], name="greet")
        channel.report(job)
        master.collect(1)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert rows(master) == [(job, 1, 1, "succeeded", "exit")]
        assert rows(master, "name, what, node, channel, exit_code") == [("greet", "echo hi", "n1", "1", None)]
        assert waiting(driver) == 0

    def test_times_are_in_seconds_of_the_epoch(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job)
        master.collect(1)
        ((submitted, dispatched),) = rows(master, "submitted, dispatched")
        assert abs(submitted - driver.now_ms() / 1000) < 10
        assert submitted <= dispatched <= submitted + 10

    def test_retention_is_by_outcome(self, driver, master, channel):
        good, bad = run(driver, channel), run(driver, channel)
        channel.report(good)
        channel.report(bad, outcome=Outcome.FAILED)
        master.collect(1)
        assert driver.client.pttl(driver.keys.job(good)) <= KEEP < driver.client.pttl(driver.keys.job(bad))

    def test_a_start_is_on_the_record_and_not_in_the_history(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job, ReportKind.STARTED)
        master.collect(1)
        assert driver.state(job) is State.RUNNING
        assert rows(master) == [] and waiting(driver) == 0

    def test_a_return_is_uncharged_and_not_in_the_history(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job, ReportKind.RETURN)
        master.collect(1)
        assert driver.state(job) is State.PENDING
        assert rows(master) == [] and waiting(driver) == 0

    def test_start_and_end_in_one_read(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job, ReportKind.STARTED)
        channel.report(job)
        master.collect(1)
        assert driver.outcome(job) is Outcome.SUCCEEDED

    def test_many(self, driver, master, channel):
        wide = driver.channel("wide", window=3000)
        driver.submit(2500)
        driver.dispatch(wide, 2500)
        result = encode(Result(outcome=Outcome.SUCCEEDED, cause="exit"))
        reports = [
            (entry, Report(kind=ReportKind.RESULT, job=fields[b"job"].decode(), attempt=1, entry=entry,
                           incarnation=wide.incarnation, outcome=Outcome.SUCCEEDED, cause="exit", result=result))
            for entry, fields in wide.entries()
        ]  # fmt: skip
        wide.store.report_of(wide.incarnation, [(entry, encode(report)) for entry, report in reports])
        master.collect(8)
        assert waiting(driver) == 0
        assert len(rows(master)) == 2500

    def test_as_many_as_a_read_brings(self, driver, master, channel):
        """The next ones are asked for at once, and there are none: then the rows of these are made."""
        jobs = [run(driver, channel) for _ in range(FULL)]
        for job in jobs:
            channel.report(job)
        master.collect(1)
        assert {driver.outcome(job) for job in jobs} == {Outcome.SUCCEEDED}
        master.collect(1)
        assert len(rows(master)) == FULL and waiting(driver) == 0

    def test_a_crash_between_the_verdicts_and_the_rows(self, driver, master, channel):
        jobs = [run(driver, channel) for _ in range(FULL)]
        for job in jobs:
            channel.report(job)
        master.collect(1)
        assert waiting(driver) == FULL
        master.restart_collector()
        master.collect(3)
        assert len(rows(master)) == FULL and waiting(driver) == 0

    def test_ends_that_no_channel_reported(self, driver, master, channel):
        cancelled, late = driver.submit()[0], driver.submit(expires="1ms")[0]
        lost = run(driver, channel, retry_on_loss=False, priority=5)
        driver.moves.cancel([cancelled], KEEP)
        driver.wait_ms(driver.header(late).expires)
        driver.moves.promote(driver.fence, KEEP, 10)
        channel.die()
        driver.requeue(channel)
        master.collect(1)
        assert rows(master) == [
            (cancelled, 0, 1, "cancelled", "cancelled"),
            (late, 0, 1, "expired", "expired"),
            (lost, 1, 1, "lost", "node_lost"),
        ]
        assert waiting(driver) == 0


class TestRetries:
    def test_each_attempt_has_its_row(self, driver, master, channel):
        job = run(driver, channel, retries=2, retry_delay=0)
        for _ in range(3):
            channel.report(job, outcome=Outcome.FAILED, cause="exit")
            master.collect(1)
            driver.dispatch(channel)
        assert driver.outcome(job) is Outcome.FAILED
        assert rows(master) == [(job, n, int(n == 3), "failed", "exit") for n in (1, 2, 3)]

    def test_cancelled_between_two_tries_the_end_has_a_row_of_its_own(self, driver, master, channel):
        job = run(driver, channel, retries=2, retry_delay=60)
        channel.report(job, outcome=Outcome.FAILED, cause="exit")
        master.collect(1)
        assert driver.state(job) is State.SCHEDULED
        driver.moves.cancel([job], KEEP)
        master.collect(1)
        assert rows(master) == [(job, 1, 0, "failed", "exit"), (job, 1, 1, "cancelled", "cancelled")]

    def test_asked_to_cancel_while_it_failed_it_is_not_tried_again(self, driver, master, channel):
        job = run(driver, channel, retries=2, retry_delay=60)
        driver.moves.cancel([job], KEEP)
        channel.report(job, outcome=Outcome.FAILED, cause="exit")
        master.collect(1)
        assert driver.outcome(job) is Outcome.FAILED

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_poison_at_exactly_max_crashes(self, driver, master, channel, most):
        job = run(driver, channel, max_crashes=most, retries=5)
        for crash in range(1, most + 1):
            assert driver.state(job) is State.DISPATCHED
            channel.report(job, ReportKind.CRASHED, reason="n1/1")
            master.collect(1)
            if crash < most:
                assert driver.state(job) is State.PENDING
                assert driver.header(job).crashes == crash
                driver.dispatch(channel)
        assert driver.outcome(job) is Outcome.FAILED and driver.cause(job) == "poison"
        assert (driver.header(job).tries, driver.header(job).crashes) == (0, most)
        lost = [(job, n, 0, "lost", "channel_lost") for n in range(1, most)]
        assert rows(master) == [*lost, (job, most, 1, "failed", "poison")]
        assert rows(master, "node, channel")[-1] == ("n1", "1")

    def test_not_poison_while_processes_die_without_its_doing(self, driver, master, channel):
        for name in ("2", "3"):
            dead = driver.channel(name=name)
            job = run(driver, dead)
            dead.report(job, ReportKind.CRASHED, reason=f"n1/{name}")
            master.collect(1)
            driver.dispatch(channel)
            channel.report(job)
            master.collect(1)
            assert driver.outcome(job) is Outcome.SUCCEEDED
        unlucky = run(driver, channel, max_crashes=1)
        channel.report(unlucky, ReportKind.CRASHED, reason="n1/1")
        master.collect(1)
        assert (driver.state(unlucky), driver.header(unlucky).crashes) == (State.PENDING, 1)

    def test_retried_by_a_user_before_the_end_was_noted(self, driver, master, channel):
        (job,) = driver.submit()
        driver.moves.cancel([job], KEEP)
        driver.moves.retry([job])
        master.collect(1)
        assert rows(master) == [], "no row for an end that is none any more"
        driver.dispatch(channel)
        channel.report(job)
        master.collect(1)
        assert rows(master) == [(job, 1, 1, "succeeded", "exit")]


class TestUnderLoad:
    """While the server judges some, the rows of those before are written, and those that follow are read."""

    def test_rows_are_written_and_leave_the_stream_while_others_are_judged(self, driver, master, channel, monkeypatch):
        monkeypatch.setattr(collector_module, "MANY_ROWS", FULL)
        jobs = backlog(driver, channel, 5 * FULL)
        monkeypatch.setattr(master.results, "_adapt", lambda entries: None)
        for turn in range(5):
            master.collect(1, advance=0)
            assert (len(rows(master)), waiting(driver)) == (FULL * turn, FULL * min(5, 6 - turn))
        master.collect(1)
        assert sorted(rows(master, "job")) == sorted((job,) for job in jobs) and waiting(driver) == 0

    def test_a_few_rows_wait_for_more(self, driver, master, channel):
        jobs = [run(driver, channel) for _ in range(2)]
        channel.report(jobs[0])
        master.collect(1)
        channel.report(jobs[1])
        master.collect(1, advance=0.01)
        assert len(rows(master)) == 1
        master.collect(1)
        assert len(rows(master)) == 2

    def test_a_failure_is_decided_on_when_all_before_it_are_judged(self, driver, master, channel, monkeypatch):
        jobs = [run(driver, channel, max_crashes=5) for _ in range(FULL + 1)]
        for job in jobs[:FULL]:
            channel.report(job)
        channel.report(jobs[FULL], ReportKind.CRASHED, reason="n1/1")
        master.collect(1)
        decided = []
        survey_records = master.collector._survey.records

        def records(ids):
            decided.append(master.collector._asked)
            return survey_records(ids)

        monkeypatch.setattr(master.collector._survey, "records", records)
        master.collect(1)
        assert decided[0] is None and len(decided) >= 1
        assert driver.header(jobs[FULL]).crashes == 1

    def test_at_its_stop_it_hears_the_verdicts(self, driver, master, channel):
        jobs = backlog(driver, channel)
        master.collect(1)
        master.collector.run(lambda: True, master.waited.append, lambda said: None)
        assert sorted(rows(master, "job")) == sorted((job,) for job in jobs[:FULL])
        assert waiting(driver) == len(jobs) - FULL

    def test_what_the_server_was_judging_when_it_died_is_judged_again(self, driver, master, channel):
        jobs = backlog(driver, channel)
        master.collect(1)
        driver.server.kill()
        turns = iter([False] * 6 + [True])
        restarts = iter([driver.server.start])
        master.collector.run(
            lambda: next(turns), lambda seconds: master.clock.advance(1), lambda said: next(restarts, lambda: None)()
        )
        master.collect(3)
        assert {driver.outcome(job) for job in jobs} == {Outcome.SUCCEEDED}
        assert sorted(rows(master, "job")) == sorted((job,) for job in jobs) and waiting(driver) == 0

    def test_another_leads_meanwhile(self, driver, master, make_master, channel):
        jobs = backlog(driver, channel)
        master.collect(1)
        driver.moves.release_lead("m1")
        heir = make_master("m2")
        heir.dispatch(1)
        turns = iter([False] * 3 + [True])
        said = []
        master.collector.run(lambda: next(turns), master.waited.append, said.append)
        assert said[-1] == "standing by" and not master.results.reads_ahead
        heir.collect(3)
        assert {driver.outcome(job) for job in jobs} == {Outcome.SUCCEEDED}
        written = rows(master, "job") + rows(heir, "job")
        assert sorted(written) == sorted((job,) for job in jobs) and waiting(driver) == 0


class TestCrashes:
    """Dead between two of its steps, the next collector repeats one of them."""

    @pytest.fixture
    def crash_at(self, monkeypatch, master):
        def crash_at(step):
            def failpoint(name):
                if name == step:
                    raise FailpointHit(name)

            monkeypatch.setattr(collector_module, "failpoint", failpoint)
            with pytest.raises(FailpointHit):
                master.collect(3)
            monkeypatch.undo()
            master.restart_collector()

        return crash_at

    @pytest.mark.parametrize("step", STEPS)
    def test_one_end_one_row_nothing_left(self, driver, master, channel, crash_at, step):
        good = run(driver, channel, waiter=3)
        bad = run(driver, channel, retries=1, retry_delay=60)
        crashed = run(driver, channel)
        returned = run(driver, channel)
        poison = run(driver, channel, max_crashes=1)
        (cancelled,) = driver.submit(priority=-5)
        channel.report(good)
        channel.report(bad, outcome=Outcome.FAILED, cause="exit")
        channel.report(crashed, ReportKind.CRASHED, reason="n1/1")
        channel.report(returned, ReportKind.RETURN)
        channel.report(poison, ReportKind.CRASHED, reason="n1/1")
        driver.moves.cancel([cancelled], KEEP)
        crash_at(step)
        master.collect(3)
        assert driver.outcome(good) is Outcome.SUCCEEDED
        assert driver.cause(poison) == "poison"
        header = driver.header(bad)
        assert (header.state, header.tries, header.attempt) == (State.SCHEDULED, 1, 1)
        header = driver.header(crashed)
        assert (header.state, header.crashes) == (State.PENDING, 1)
        assert driver.pending() == [crashed, returned]
        assert driver.client.lindex(driver.keys.inbox(3), -1).partition(b":")[0] == good.encode()
        assert rows(master) == [
            (good, 1, 1, "succeeded", "exit"),
            (bad, 1, 0, "failed", "exit"),
            (crashed, 1, 0, "lost", "channel_lost"),
            (poison, 1, 1, "failed", "poison"),
            (cancelled, 0, 1, "cancelled", "cancelled"),
        ]
        assert waiting(driver) == 0

    @pytest.mark.parametrize("step", STEPS)
    def test_with_another_batch_under_way(self, driver, master, channel, crash_at, step):
        jobs = backlog(driver, channel)
        crash_at(step)
        master.collect(4)
        assert {driver.outcome(job) for job in jobs} == {Outcome.SUCCEEDED}
        assert sorted(rows(master, "job")) == sorted((job,) for job in jobs)
        assert waiting(driver) == 0

    def test_a_retry_that_has_gone_on_keeps_its_row(self, driver, master, channel, crash_at):
        job = run(driver, channel, retries=3, retry_delay=0)
        channel.report(job, outcome=Outcome.FAILED, cause="exit")
        crash_at("collector.verdict.after")
        driver.dispatch(channel)
        assert driver.header(job).attempt == 2
        channel.report(job)
        master.collect(3)
        assert rows(master) == [(job, 1, 0, "failed", "exit"), (job, 2, 1, "succeeded", "exit")]


class TestHistoryFails:
    def test_jobs_go_on_and_rows_follow_later(self, driver, master, channel, tmp_path):
        os.mkdir(master.history_path)
        jobs = [run(driver, channel) for _ in range(3)]
        for job in jobs:
            channel.report(job)
            master.collect(1)
            assert driver.outcome(job) is Outcome.SUCCEEDED
        assert waiting(driver) == 3
        os.rmdir(master.history_path)
        master.collect(1)
        assert waiting(driver) == 3, "it is not tried at every turn"
        master.collect(1, advance=5.1)
        assert waiting(driver) == 0
        assert [job for job, *_ in rows(master)] == jobs

    def test_a_locked_file_holds_up_no_verdict_twice(self, driver, master, channel, monkeypatch):
        monkeypatch.setattr("jobschedd.master.history.LOCK_PATIENCE", 0.05)
        first, second = run(driver, channel), run(driver, channel)
        channel.report(first)
        master.collect(1)
        blocker = sqlite3.connect(master.history_path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        channel.report(second)
        master.collect(3)
        assert driver.outcome(second) is Outcome.SUCCEEDED
        assert waiting(driver) == 1
        blocker.execute("ROLLBACK")
        blocker.close()
        master.collect(1, advance=5.1)
        assert waiting(driver) == 0 and len(rows(master)) == 2

    def test_a_damaged_file(self, driver, master, channel, tmp_path):
        with open(master.history_path, "wb") as file:
            file.write(b"not a database" * 1000)
        job = run(driver, channel)
        channel.report(job)
        master.collect(1)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        os.unlink(master.history_path)
        master.collect(1, advance=5.1)
        assert len(rows(master)) == 1 and waiting(driver) == 0

    @pytest.mark.parametrize("bound", ["MOST_UNWRITTEN", "MOST_UNWRITTEN_BYTES"])
    def test_what_does_not_fit_into_memory_is_read_again(self, driver, master, channel, monkeypatch, bound):
        monkeypatch.setattr(collector_module, bound, 4)
        os.mkdir(master.history_path)
        jobs = [run(driver, channel) for _ in range(12)]
        for job in jobs:
            channel.report(job)
            master.collect(1)
        assert waiting(driver) == 12
        assert len(master.collector._unwritten) <= 5
        os.rmdir(master.history_path)
        master.collect(6, advance=5.1)
        assert waiting(driver) == 0
        assert Counter(job for job, *_ in rows(master)) == dict.fromkeys(jobs, 1)

    def test_numbers_that_no_column_holds(self, driver, master, channel):
        job = run(driver, channel)
        result = encode(Result(outcome=Outcome.FAILED, cause="exit", exit_code=2**63, signal=-(2**63)))
        channel.report(job, outcome=Outcome.FAILED, cause="exit", result=result)
        master.collect(1)
        assert rows(master) == [(job, 1, 1, "failed", "exit")]


class TestUnreadable:
    def letters(self, driver):
        return driver.client.xrange(driver.keys.dead)

    @pytest.mark.parametrize(
        "fields",
        [{"report": b"\xff\xff"}, {"report": b""}, {"spam": b"x"}, {"report": ANOTHER_MESSAGE}],
        ids=["junk", "empty", "foreign", "another message"],
    )
    def test_it_is_buried_once_and_blocks_nobody(self, driver, master, channel, fields):
        job = run(driver, channel)
        driver.client.xadd(driver.keys.results, fields)
        channel.report(job)
        master.collect(3)
        master.restart_collector()
        master.collect(3)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert len(self.letters(driver)) == 1 and waiting(driver) == 0

    @pytest.mark.parametrize("at", [0, 1, 2])
    @pytest.mark.parametrize("spoilt", [1, 2])
    def test_it_costs_those_nothing_that_came_with_it(self, driver, master, channel, at, spoilt):
        jobs = [run(driver, channel) for _ in range(2)]
        for job in jobs:
            channel.report(job)
        reports = [encode(report) for report in driver.reports()]
        driver.client.delete(driver.keys.results)
        reports[at:at] = [b"\xff"] * spoilt
        together = [part for report in reports for part in ("report", report)]
        driver.client.execute_command("XADD", driver.keys.results, "*", *together)
        master.restart_collector()
        master.collect(6)
        assert [driver.outcome(job) for job in jobs] == [Outcome.SUCCEEDED] * 2
        assert len(self.letters(driver)) == spoilt and waiting(driver) == 0
        assert len(rows(master)) == 2

    def test_several_together_and_nothing_else(self, driver, master):
        driver.client.execute_command("XADD", driver.keys.results, "*", *["report", b"\xff"] * 3)
        master.collect(1)
        master.restart_collector()  # before they have left the stream: they are read again
        master.collect(6)
        assert len(self.letters(driver)) == 3 and waiting(driver) == 0

    def test_a_channel_that_could_not_read_its_order(self, driver, master, channel):
        driver.client.xadd(driver.keys.dispatch(channel.incarnation), {"spam": "1"})
        ((entry, _),) = channel.entries()
        channel.report_entry(entry, "", 0, ReportKind.UNREADABLE, reason="KeyError", sample=b"{spam}")
        master.collect(2)
        ((_, letter),) = self.letters(driver)
        assert b"KeyError" in letter[b"reason"] and letter[b"sample"] == b"{spam}"

    def test_the_sample_is_short(self, driver, master):
        driver.client.xadd(driver.keys.results, {"report": b"\xc1" * 1_000_000})
        master.collect(2)
        ((_, letter),) = self.letters(driver)
        assert len(letter[b"sample"]) == 256

    def test_a_report_on_a_job_that_nobody_knows(self, driver, master, channel):
        channel.report_entry("", "99", 1)
        driver.client.xadd(driver.keys.results, {"ended": "no number \xff"})
        master.collect(2)
        assert waiting(driver) == 0 and rows(master) == []

    def test_another_channel_cannot_end_it(self, driver, master, channel):
        job = run(driver, channel)
        thief = driver.channel("2")
        report = Report(
            kind=ReportKind.RESULT, job=job, attempt=1, entry="1-1", incarnation=thief.incarnation,
            outcome=Outcome.SUCCEEDED, result=encode(Result(outcome=Outcome.SUCCEEDED, cause="exit")),
        )  # fmt: skip
        driver.client.xadd(driver.keys.results, {"report": encode(report)})
        master.collect(2)
        assert driver.state(job) is State.DISPATCHED and rows(master) == []


class TestMended:
    """The entry is gone from the dispatch stream: whatever is wrong with the result, the job must end."""

    def test_too_much_output(self, driver, master, channel):
        job = run(driver, channel)
        result = Result(
            outcome=Outcome.FAILED, cause="exit", exit_code=3, error="boom",
            stdout=Captured(b"x" * 150_000, b"y" * 150_000, 10**9),
        )  # fmt: skip
        channel.report(job, outcome=Outcome.FAILED, cause="exit", result=encode(result))
        master.collect(1)
        assert driver.outcome(job) is Outcome.FAILED
        kept = decode_result(driver.record(job).result)
        assert (kept.exit_code, kept.stdout) == (3, Captured(size=10**9)) and kept.stdout.truncated
        assert kept.error.startswith("boom\n") and "max_payload" in kept.error
        assert len(driver.record(job).result) < 1000
        assert rows(master) == [(job, 1, 1, "failed", "exit")]

    def test_bytes_that_are_no_result(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job, outcome=Outcome.SUCCEEDED, result=b"\xff")
        master.collect(1)
        assert driver.outcome(job) is Outcome.SUCCEEDED
        assert "unreadable result" in decode_result(driver.record(job).result).error

    def test_no_outcome(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job, outcome=Outcome.NONE, cause="")
        master.collect(1)
        assert driver.outcome(job) is Outcome.FAILED
        assert driver.cause(job) == "unreadable"

    def test_a_spec_that_nobody_can_read(self, driver, master, channel):
        job = run(driver, channel)
        driver.client.setrange(driver.keys.job(job), 60, b"\xff")
        channel.report(job, ReportKind.CRASHED, reason="n1/1")
        master.collect(1)
        assert driver.state(job) is State.PENDING
        driver.dispatch(channel)
        channel.report(job, ReportKind.CRASHED, reason="n1/1")
        master.collect(1)
        assert driver.cause(job) == "poison"


class TestLead:
    def test_a_standby_judges_nothing(self, driver, master, make_master, channel):
        standby = make_master("m2")
        job = run(driver, channel)
        channel.report(job)
        assert standby.collect(2) == "standing by"
        assert standby.waited == [0.25] * 2
        assert driver.state(job) is State.DISPATCHED

    def test_it_begins_at_the_oldest_when_it_takes_over(self, driver, master, make_master, channel):
        standby = make_master("m2")
        standby.collect(1)
        job = run(driver, channel)
        channel.report(job)
        driver.moves.release_lead("m1")
        standby.dispatch(1)
        standby.collect(2)
        assert driver.outcome(job) is Outcome.SUCCEEDED and len(rows(standby)) == 1

    def test_one_that_lost_the_lead_judges_nothing_and_steps_down(self, driver, master, make_master, channel):
        master.collect(1)
        job = run(driver, channel)
        driver.moves.release_lead("m1")
        heir = make_master("m2")
        heir.dispatch(1)
        channel.report(job)
        with pytest.raises(NotTheLeader):
            master.collect(1)
        assert driver.state(job) is State.DISPATCHED
        turns, said = iter([False, False, True]), []
        channel.report_entry("", "99", 1)
        master.collector.run(lambda: next(turns), master.waited.append, said.append)
        assert said == ["standing by"]
        heir.collect(2)
        assert driver.outcome(job) is Outcome.SUCCEEDED

    @pytest.mark.parametrize("led", [True, False])
    def test_at_its_stop_it_finishes_what_it_has_judged(self, driver, master, channel, led):
        """The dispatcher, which stops at the same time, may have given the lead up before."""
        channel.report(run(driver, channel))
        master.collect(1)
        channel.report(run(driver, channel))
        master.collect(1, advance=0)
        assert waiting(driver) == 1 and len(rows(master)) == 1, "the next transaction is not due yet"
        if not led:
            driver.moves.release_lead("m1")
            channel.report_entry("", "99", 1)
        turns = iter([led, True])
        master.collector.run(lambda: next(turns), master.waited.append, lambda said: None)
        assert waiting(driver) == (0 if led else 1) and len(rows(master)) == 2

    def test_what_a_server_judged_that_died_is_judged_again(self, driver, master, channel):
        """It may come back with older data, which know nothing of the verdict."""
        channel.report(run(driver, channel))
        master.collect(1)
        channel.report(run(driver, channel))
        master.collect(1, advance=0)
        driver.server.kill()
        turns = iter([False, True])
        master.collector.run(lambda: next(turns), master.waited.append, lambda said: driver.server.start())
        assert waiting(driver) == 1

    def test_under_a_new_epoch_of_its_own_it_goes_on(self, driver, master, channel):
        master.collect(1)
        job = run(driver, channel)
        driver.moves.release_lead("m1")
        master.restart_dispatcher()
        master.dispatch(1)
        channel.report(job)
        turns = iter([False, False, False, True])
        master.collector.run(lambda: next(turns), master.waited.append, lambda said: None)
        assert driver.outcome(job) is Outcome.SUCCEEDED

    def test_an_emptied_redis_is_another_one(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job)
        master.collect(1)
        driver.client.flushall()
        master.restart_dispatcher()
        master.dispatch(1)
        driver.fence = driver.moves.leader()
        channel = driver.channel()
        again = run(driver, channel)
        assert again == job, "ids are counted from the start again"
        channel.report(again, outcome=Outcome.FAILED, cause="exit")
        turns = iter([False, False, False, True])
        master.collector.run(lambda: next(turns), master.waited.append, lambda said: None)
        master.collect(2)
        assert sorted(outcome for _, _, _, outcome, _ in rows(master)) == ["failed", "succeeded"]

    def test_without_redis_it_waits_and_then_goes_on(self, driver, master, channel):
        job = run(driver, channel)
        channel.report(job)
        driver.server.kill()
        said, turns = [], iter([False] * 3 + [True])
        master.collector.run(lambda: next(turns), master.waited.append, said.append)
        assert all(one.startswith("waiting for Redis") for one in said) and len(said) == 3
        driver.server.start()
        master.collect(2)
        assert driver.outcome(job) is Outcome.SUCCEEDED and len(rows(master)) == 1


class TestReading:
    def test_big_reports_are_read_in_small_numbers(self, driver, master):
        blob = b"x" * 1_000_000
        for _ in range(60):
            driver.client.xadd(driver.keys.results, {"report": blob})
        master.results._count = 1000
        sizes = []
        while entries := master.results.read(0.005):
            sizes.append(len(entries))
        assert sizes[1:] == []
        master.results.rewind()
        assert len(master.results.read(0.005)) == 16

    def test_small_ones_in_ever_greater(self, driver, master):
        for _ in range(2000):
            driver.client.xadd(driver.keys.results, {"report": b"x"})
        sizes = []
        while entries := master.results.read(0.005):
            sizes.append(len(entries))
        assert sizes == [10, 100, 1000, 890]

    def test_what_comes_together_counts_each(self, driver, master):
        """At most a thousand reports in one call of the server, however they came."""
        for _ in range(400):
            driver.client.execute_command("XADD", driver.keys.results, "*", *["report", b"x"] * 32)
        sizes = []
        while entries := master.results.read(0.005):
            sizes.append(len(entries))
            assert all(sum(len(entry.reports) for entry in some) <= 1031 for some in slices(entries))
        assert sizes[:3] == [10, 31, 31] and sum(sizes) == 400

    def test_no_entry_is_parted(self):
        entries = [ResultEntry(str(at), (b"report", b"x") * reports) for at, reports in enumerate((3, 1, 1, 9, 1, 2))]
        assert [len(some) for some in slices(entries, most=4)] == [2, 2, 2]
        assert [entry for some in slices(entries, most=4) for entry in some] == entries
