"""The oracle itself: a checker that cannot fail proves nothing, so each invariant is broken here once."""

from __future__ import annotations

import dataclasses
import os
import subprocess

import pytest

from jobschedd.job import Header, Outcome, State
from jobschedd.store.keys import Keys
from ledger import Account, End, Event, Ledger, Now, Told, check, find_stuck, read_ends, read_records
from redis_server import wait_until


def run_of(job: str, attempt: int = 1, tag: str = "") -> list[Event]:
    return [Event(tag or f"t{job}", job, attempt, kind) for kind in ("start", "stop")]


@pytest.fixture
def good() -> Account:
    """Three jobs; the second was started twice because its channel died."""
    return Account(
        told=[Told("t1", "accepted", "1"), Told("t2", "accepted", "2"), Told("t3", "accepted", "3")],
        events=[*run_of("1"), Event("t2", "2", 1, "start"), *run_of("3"), *run_of("2", 2)],
        ends=[End("1", 1, "succeeded", "exit"), End("2", 2, "succeeded", "exit"), End("3", 1, "succeeded", "exit")],
        records={
            "1": Now("done", 1, "succeeded"),
            "2": Now("done", 2, "succeeded"),
            "3": Now("done", 1, "succeeded"),
        },
    )


def only(account: Account, invariant: str, *words: str) -> None:
    """Exactly one violation, of this invariant, that names what it is about."""
    violations = check(account)
    assert len(violations.lines) == 1, str(violations)
    assert violations.lines[0].startswith(f"{invariant}: ")
    assert all(word in violations.lines[0] for word in words), violations.lines[0]


def without(events, *, kind: str, job: str):
    return [event for event in events if (event.kind, event.job) != (kind, job)]


class TestChecker:
    def test_a_good_history_passes(self, good):
        assert check(good).lines == []

    def test_nothing_at_all_is_good_too(self):
        assert check(Account([], [], [], {})).lines == []

    def test_a_job_that_vanished(self, good):
        """Accepted, never ran, forgotten by everybody but the submitter."""
        good.told = [*good.told, Told("t4", "accepted", "4")]
        only(good, "I1", "job 4", "never ran", "no record")

    def test_a_job_that_ran_and_has_no_end(self, good):
        good.ends = [end for end in good.ends if end.job != "3"]
        good.records = good.records | {"3": Now("running", 1, "none")}
        only(good, "I1", "job 3", "running")

    def test_two_accepted_ends(self, good):
        good.ends = [End("2", 1, "failed", "signal"), *good.ends]
        only(good, "I2", "job 2", "2 accepted ends", "failed signal")

    def test_one_id_for_two_submissions(self, good):
        good.told = [*good.told, Told("t4", "accepted", "3")]
        only(good, "I2", "t3", "t4")

    def test_one_submission_that_became_two_jobs(self, good):
        good.told = [*good.told, Told("t4", "unknown")]
        good.events = [*good.events, *run_of("4", tag="t4"), *run_of("5", tag="t4")]
        good.ends = [*good.ends, End("4", 1, "succeeded", "exit"), End("5", 1, "succeeded", "exit")]
        only(good, "I2", "t4", "job 4, job 5")

    def test_an_accepted_submission_that_also_ran_as_another_job(self, good):
        good.events = [*good.events, *run_of("9", tag="t1")]
        good.ends = [*good.ends, End("9", 1, "succeeded", "exit")]
        lines = check(good).lines
        assert any(line.startswith("I2: submission t1 is job 1, but also ran as job 9") for line in lines)

    def test_the_end_of_an_old_attempt(self, good):
        good.ends = [End("2", 1, "succeeded", "exit") if end.job == "2" else end for end in good.ends]
        good.events = [*good.events, Event("t2", "2", 1, "stop")]
        good.records = good.records | {"2": Now("done", 1, "succeeded")}
        only(good, "I3", "job 2", "attempt 1 counts", "attempt 2 was started")

    def test_record_and_history_disagree(self, good):
        good.records = good.records | {"1": Now("done", 1, "failed")}
        only(good, "I3", "job 1", "failed")

    def test_overlapping_attempts_of_a_job_that_forbids_them(self, good):
        good.told = [dataclasses.replace(told, forbids_overlap=True) for told in good.told]
        assert check(good).lines == [], "the first attempt was killed before the second began"
        good.events = [*good.events[:-1], Event("t2", "2", 1, "stop"), good.events[-1]]
        only(good, "I4", "job 2", "attempt 1 still ran")

    def test_overlapping_attempts_of_a_job_that_allows_them(self, good):
        good.events = [*good.events[:-1], Event("t2", "2", 1, "stop"), good.events[-1]]
        assert check(good).lines == []

    def test_an_attempt_that_ran_twice(self, good):
        good.events = [*good.events, Event("t1", "1", 1, "start")]
        only(good, "fence", "job 1", "start 2 times")

    def test_a_success_that_never_was(self, good):
        good.events = without(good.events, kind="stop", job="3")
        only(good, "truth", "job 3")

    def test_an_accepted_success_that_never_began(self, good):
        good.events = [event for event in good.events if event.job != "3"]
        only(good, "truth", "job 3")

    def test_an_unexpected_outcome(self, good):
        good.ends = [End("1", 1, "failed", "poison") if end.job == "1" else end for end in good.ends]
        good.records = good.records | {"1": Now("done", 1, "failed")}
        only(good, "outcome", "job 1", "poison")
        good.expected = frozenset()
        assert check(good).lines == []

    def test_a_refused_job_that_ran(self, good):
        good.told = [*good.told, Told("t4", "refused")]
        good.events = [*good.events, *run_of("4")]
        good.ends = [*good.ends, End("4", 1, "succeeded", "exit")]
        lines = check(good).lines
        assert [line for line in lines if "refused, yet ran as job 4" in line]

    @pytest.mark.parametrize("ran", [False, True])
    def test_a_submission_whose_answer_was_lost_may_run_or_not(self, good, ran):
        good.told = [*good.told, Told("t4", "unknown")]
        if ran:
            good.events = [*good.events, *run_of("4")]
            good.ends = [*good.ends, End("4", 1, "succeeded", "exit")]
        assert check(good).lines == []

    def test_but_if_it_ran_it_must_end(self, good):
        good.told = [*good.told, Told("t4", "unknown")]
        good.events = [*good.events, *run_of("4")]
        only(good, "I1", "job 4", "no accepted end")

    def test_a_job_out_of_nowhere(self, good):
        good.events = [*good.events, *run_of("8")]
        good.ends = [*good.ends, End("8", 1, "succeeded", "exit")]
        only(good, "I1", "job 8", "never accepted")

    def test_leftovers_and_stuck_entries(self, good):
        good.left, good.stuck, good.damaged = ["4711 sleep"], ["results still holds 1 entries"], ["t1 1"]
        lines = check(good).lines
        assert [line.partition(":")[0] for line in lines] == ["ledger", "I5", "I6"]

    def test_many_violations_stay_readable(self, good):
        good.told = [Told(f"t{number}", "accepted", str(number)) for number in range(1, 1001)]
        text = str(check(good))
        assert text.startswith("997 violations (I1 997 times)") and "and 977 more" in text
        assert len(text.splitlines()) == 22


class TestLedger:
    @staticmethod
    def run(item, job: str, attempt: int = 1) -> int:
        environment = os.environ | {"JOBSCHED_JOB_ID": job, "JOBSCHED_ATTEMPT": str(attempt)}
        return subprocess.run(item["command"], env=environment, check=False).returncode

    def test_a_job_writes_its_start_and_its_end(self, tmp_path):
        ledger = Ledger(tmp_path)
        assert self.run(ledger.item(), "7") == 0
        assert self.run(ledger.item(seconds=0.01, exit_code=3), "8", 2) == 3
        events, damaged = ledger.events()
        assert [(event.tag, event.job, event.attempt, event.kind) for event in events] == [
            ("t1", "7", 1, "start"),
            ("t1", "7", 1, "stop"),
            ("t2", "8", 2, "start"),
            ("t2", "8", 2, "stop"),
        ]
        assert damaged == []

    def test_a_killed_job_writes_no_end(self, tmp_path):
        ledger = Ledger(tmp_path)
        process = subprocess.Popen(
            ledger.item(seconds=30)["command"],
            env=os.environ | {"JOBSCHED_JOB_ID": "7", "JOBSCHED_ATTEMPT": "1"},
            start_new_session=True,
        )
        wait_until(lambda: ledger.events()[0], 5, "the job has begun")
        os.killpg(process.pid, 9)
        process.wait()
        assert [event.kind for event in ledger.events()[0]] == ["start"]

    def test_lines_of_many_jobs_never_mix(self, tmp_path):
        ledger = Ledger(tmp_path)
        environment = os.environ | {"JOBSCHED_JOB_ID": "7", "JOBSCHED_ATTEMPT": "1"}
        jobs = [subprocess.Popen(ledger.item()["command"], env=environment) for _ in range(50)]
        assert all(job.wait() == 0 for job in jobs)
        events, damaged = ledger.events()
        assert len(events) == 100 and not damaged

    def test_a_torn_line_is_seen(self, tmp_path):
        ledger = Ledger(tmp_path)
        ledger.path.write_text("t1 1 1 start 5\nt2 2 1 sta")
        events, damaged = ledger.events()
        assert len(events) == 1 and damaged == ["t2 2 1 sta"]

    def test_what_the_client_answers_is_written_down(self, tmp_path):
        from jobschedd.errors import InvalidJob, StoreUnavailable

        class Job:
            id = "5"

        class Client:
            answer: object = None

            def submit_many(self, items):
                if isinstance(self.answer, Exception):
                    raise self.answer
                return [Job for _ in items]

        ledger, client = Ledger(tmp_path), Client()
        ledger.submit(client, [ledger.item(overlap="forbid")])
        client.answer = StoreUnavailable("gone")
        ledger.submit(client, [ledger.item()])
        client.answer = InvalidJob("command", "bad")
        ledger.submit(client, [ledger.item()])
        assert ledger.told == [Told("t1", "accepted", "5", True), Told("t2", "unknown"), Told("t3", "refused")]
        assert ledger.jobs() == ["5"]


class TestStores:
    def test_an_idle_namespace_has_nothing_stuck(self, redis_server):
        with redis_server.client() as client:
            keys = Keys("test")
            client.set(keys.epoch, 1)
            client.hset(keys.owners, "a/1", "x")
            client.hset(keys.lease("x"), "window", 1)
            client.set(keys.job("1"), b"x" * 60)
            client.xadd(keys.dispatch("x"), {"a": "b"}, id="1-1")
            client.xdel(keys.dispatch("x"), "1-1")
            assert find_stuck(client, "test") == []

    @pytest.mark.parametrize(
        ("fill", "words"),
        [
            (lambda c, k: c.xadd(k.dispatch("x"), {"a": "b"}), "dispatch:x still holds 1 entries"),
            (lambda c, k: c.xadd(k.results, {"a": "b"}), "results still holds 1 entries"),
            (lambda c, k: c.rpush(k.pending_list(3, -5), "1", "2"), "pending:3:-5 still holds 2 ids"),
            (lambda c, k: c.zadd(k.scheduled, {"1": 5}), "scheduled still holds 1 ids"),
            (lambda c, k: c.zadd(k.expiring, {"1": 5}), "expiring still holds 1 ids"),
            (lambda c, k: c.sadd(k.cancelling, "1"), "cancelling still holds 1 ids"),
            (lambda c, k: c.hset(k.suspects, "x", "5"), "suspects still holds 1 incarnations"),
            (lambda c, k: c.xadd(k.dead, {"reason": "bad"}), "1 dead letters"),
        ],
    )
    def test_what_is_stuck_is_named(self, redis_server, fill, words):
        with redis_server.client() as client:
            fill(client, Keys("test"))
            assert any(words in line for line in find_stuck(client, "test"))
            assert find_stuck(client, "other") == []

    def test_records_are_read(self, redis_server):
        with redis_server.client() as client:
            keys = Keys("test")
            done = Header(state=State.DONE, outcome=Outcome.FAILED, attempt=3)
            client.set(keys.job("1"), done.pack(0))
            client.set(keys.job("2"), Header(state=State.PENDING).pack(0))
            records = read_records(client, "test", ["1", "2", "3"])
            assert records == {"1": Now("done", 3, "failed"), "2": Now("pending", 0, "none")}

    def test_ends_are_read_from_the_history_of_every_master(self, tmp_path):
        from jobschedd.job import Past, Result, encode
        from jobschedd.master.history import History, row

        def rows(job: str, attempt: int, outcome: Outcome, final: bool):
            result = Result(outcome=outcome, cause="exit")
            return [row("ab", job, Past(attempt, 0, 5, b""), result, encode(result), final)]

        first, second = History(str(tmp_path / "1.db")), History(str(tmp_path / "2.db"))
        first.add(rows("1", 1, Outcome.FAILED, False) + rows("1", 2, Outcome.SUCCEEDED, True))
        second.add(rows("1", 2, Outcome.SUCCEEDED, True) + rows("2", 1, Outcome.FAILED, True))
        ends = read_ends(sorted(tmp_path.glob("*.db")))
        first.close()
        second.close()
        assert ends == [End("1", 2, "succeeded", "exit"), End("2", 1, "failed", "exit")]
