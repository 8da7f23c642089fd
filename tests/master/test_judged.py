"""Lone jobs judged with their reports: whoever waits is told at once, and the collector only writes the history."""

from __future__ import annotations

import os

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.failpoints import FailpointHit
from jobschedd.job import Outcome, Result, State, encode
from jobschedd.master import collector as collector_module
from jobschedd.master.collector import GIVE_WAY
from jobschedd.master.history import TOGETHER
from jobschedd.store.moves import RetryAnswer
from store_driver import KEEP

WAITER = 3


def rows(master, columns="job, attempt, final, outcome, cause"):
    """The history, in order."""
    return master.rows(columns)


def judged(driver):
    """Jobs that wait there to be written down, with their records."""
    return {job.decode(): record for job, record in driver.client.hgetall(driver.keys.judged).items()}


def waiting(driver):
    """Entries in the result stream."""
    return driver.client.xlen(driver.keys.results)


def offered(driver, master, channel):
    """Have a leader see a job of the usual class, after which it offers the channel."""
    driver.submit()
    master.dispatch(2)
    channel.report(channel.jobs()[0])
    master.collect(2)
    master.dispatch(2)
    assert driver.client.exists(driver.keys.offers)


@pytest.fixture
def channel(driver, master):
    """Idle, and on offer."""
    channel = driver.channel(window=50, slots=50)
    offered(driver, master, channel)
    return channel


@pytest.fixture
def lone(driver, channel):
    """Submit a job that goes to the channel at once, and that somebody waits for."""

    def lone(waiter=WAITER, **item):
        (job,) = driver.submit(waiter=waiter, **item)
        assert driver.state(job) is State.DISPATCHED
        return job

    return lone


@pytest.fixture
def gave_way(monkeypatch):
    """As many as there were chances for others to have the processor."""
    chances = []
    monkeypatch.setattr("os.sched_yield", lambda: chances.append("taken"))
    return chances


def is_judged(driver, job):
    """Whether it has ended before a collector was there."""
    return driver.state(job) is State.DONE


def columns(master, job):
    """Its row, but for what differs with each job."""
    found = master.rows("job, what, node, channel, outcome, cause, final, attempt, exit_code")
    return [row[1:] for row in found if row[0] == job]


def test_the_verdict_comes_with_the_report(driver, master, channel, lone):
    job = lone(function="a:b")
    assert channel.report(job)
    assert driver.outcome(job) is Outcome.SUCCEEDED
    assert 0 < driver.client.pttl(driver.keys.job(job)) <= KEEP
    assert driver.client.lrange(driver.keys.inbox(WAITER), 0, -1) == [
        job.encode() + b":" + driver.client.get(driver.keys.job(job))
    ]
    assert channel.jobs() == []
    master.collect(2)
    assert rows(master)[-1] == (job, 1, 1, "succeeded", "exit")
    assert waiting(driver) == 0 and not driver.client.exists(driver.keys.judged)


def test_its_record_and_row_are_those_of_any_other(driver, master, channel, lone):
    at_once, other = lone(), lone()
    channel.report(at_once)
    driver.client.delete(driver.keys.offers)
    channel.report(other)
    assert is_judged(driver, at_once) and not is_judged(driver, other)
    master.collect(3)
    assert columns(master, at_once) == columns(master, other) != []
    one, another = driver.record(at_once), driver.record(other)
    assert (one.spec, one.result) == (another.spec, another.result)
    assert (one.header.waiter, one.header.flags, one.header.attempt) == (WAITER, 0, 1)


def test_the_collector_is_woken_for_the_first_only(driver, master, channel, lone):
    jobs = [lone() for _ in range(3)]
    for job in jobs:
        channel.report(job)
    assert waiting(driver) == 1
    assert set(judged(driver)) == set(jobs)
    master.collect(1, advance=0)
    assert waiting(driver) == 1, "more may come in a moment"
    master.collect(1)
    assert waiting(driver) == 0
    assert [row[0] for row in rows(master)][-3:] == jobs


def test_what_came_while_they_were_written_is_taken_in_unasked(driver, master, channel, lone, monkeypatch):
    first = lone()
    channel.report(first)
    late = lone()
    add = master.history.add

    def added(*arguments):
        monkeypatch.undo()
        add(*arguments)
        channel.report(late)

    monkeypatch.setattr(master.history, "add", added)
    master.collect(1)
    assert waiting(driver) == 0 and set(judged(driver)) == {late}, "nobody was woken up"
    master.collect(2)
    assert {row[0] for row in rows(master)} >= {first, late}
    assert judged(driver) == {}


def test_their_rows_give_way_to_the_next_lone_job(driver, master, channel, lone, gave_way):
    for job in [lone() for _ in range(TOGETHER)]:
        channel.report(job)
    master.collect(2)
    assert judged(driver) == {}
    assert len(gave_way) == TOGETHER // GIVE_WAY + 1, "as the rows are made, and as they are written"


def test_rows_of_many_jobs_do_not(driver, master, channel, gave_way):
    jobs = driver.submit(TOGETHER)
    master.dispatch(2)
    for job in jobs:
        channel.report(job)
    master.collect(2)
    assert {row[0] for row in rows(master)} >= set(jobs)
    assert gave_way == []


def test_a_reply_that_was_lost(driver, master, channel, lone):
    job = lone()
    entry = driver.header(job).entry
    assert channel.report(job)
    before = driver.client.get(driver.keys.job(job))
    assert not channel.report_entry(entry, job, 1), "it was handed in"
    assert driver.client.get(driver.keys.job(job)) == before
    assert driver.client.llen(driver.keys.inbox(WAITER)) == 1


def test_retried_before_its_row_was_written(driver, master, channel, lone):
    job = lone()
    channel.report(job)
    assert driver.moves.retry([job]) == [RetryAnswer.PENDING]
    driver.dispatch(channel)
    channel.report(job)
    master.collect(3)
    assert [row for row in rows(master) if row[0] == job] == [
        (job, 1, 1, "succeeded", "exit"),
        (job, 2, 1, "succeeded", "exit"),
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"waiter": 0},
        {"key": "k"},
        {"expires": "1h"},
        {"on_success": ["hook"]},
        {"limit_keys": ["db"]},
    ],
    ids=str,
)
def test_whoever_has_more_to_look_up_or_tell_is_left_to_the_collector(driver, master, channel, item):
    (job,) = driver.submit(**({"waiter": WAITER} | item))
    master.dispatch(2)
    assert channel.report(job) and not is_judged(driver, job)
    master.collect(1)
    assert driver.outcome(job) is Outcome.SUCCEEDED


def test_so_is_one_that_another_waits_for(driver, master, channel, lone):
    job = lone()
    (dependent,) = driver.submit(after=[job])
    assert channel.report(job) and not is_judged(driver, job)
    master.collect(1)
    master.dispatch(2)
    assert driver.state(dependent) is State.DISPATCHED


def test_so_is_one_that_was_cancelled_meanwhile(driver, master, channel, lone):
    job = lone()
    driver.moves.cancel([job], KEEP)
    assert channel.report(job) and not is_judged(driver, job)


def test_so_is_one_that_failed(driver, master, channel, lone):
    job = lone(retries=1)
    assert channel.report(job, outcome=Outcome.FAILED) and not is_judged(driver, job)
    master.collect(1)
    assert driver.state(job) is State.SCHEDULED


def test_so_is_a_second_attempt(driver, master, channel, lone):
    job = lone(retries=1, retry_delay=0)
    channel.report(job, outcome=Outcome.FAILED)
    master.collect(1)
    master.dispatch(2)
    assert driver.client.exists(driver.keys.offers)
    assert channel.report(job) and not is_judged(driver, job)


def test_so_is_a_large_one(driver, master, channel, lone):
    job = lone()
    result = encode(Result(outcome=Outcome.SUCCEEDED, cause="exit", value=b"x" * 5000))
    assert channel.report(job, result=result) and not is_judged(driver, job)


def test_so_are_several_at_once(driver, master, channel, lone):
    jobs = [lone(), lone()]
    entries = [driver.header(job).entry for job in jobs]
    reports = [(entry, channel.packed(entry, job, 1)) for entry, job in zip(entries, jobs, strict=True)]
    assert all(channel.store.report_of(channel.incarnation, reports))
    assert not any(is_judged(driver, job) for job in jobs)


def test_so_are_those_of_a_slave_with_a_user_of_its_own(driver, master, channel, lone):
    job = lone()
    channel.store._may_record = False
    assert channel.report(job) and not is_judged(driver, job)


@pytest.mark.parametrize("how", ["another leads", "nobody leads", "nothing is offered"])
def test_so_are_all_without_a_leader_who_offers(driver, master, channel, lone, how):
    job = lone()
    if how == "nothing is offered":
        driver.client.delete(driver.keys.offers)
    else:
        driver.moves.release_lead("m1")
        if how == "another leads":
            driver.lead("m2")
    assert channel.report(job) and not is_judged(driver, job)


def test_so_are_all_while_nobody_writes_the_history(driver, master, channel, lone):
    driver.client.hset(driver.keys.judged, mapping={f"j{number}": "x" for number in range(1000)})
    job = lone()
    assert channel.report(job) and not is_judged(driver, job)


@pytest.mark.parametrize("broken", ["judged", "hooked", "inbox"])
def test_nothing_is_lost_where_a_key_is_not_what_it_should_be(driver, master, channel, lone, broken):
    job = lone()
    key = driver.keys.inbox(WAITER) if broken == "inbox" else driver.keys.base + broken
    driver.client.sadd(key, "no such thing")
    assert channel.report(job)
    assert len(driver.reports()) == 1, "the report was handed in as any other"
    driver.client.delete(key)
    master.collect(2)
    assert driver.outcome(job) is Outcome.SUCCEEDED
    assert rows(master)[-1] == (job, 1, 1, "succeeded", "exit")


def test_other_rows_do_not_wait_for_a_key_that_cannot_be_read(driver, master, channel, lone):
    driver.client.sadd(driver.keys.judged, "no such thing")
    job = lone()
    channel.report(job)
    master.collect(2)
    assert rows(master)[-1] == (job, 1, 1, "succeeded", "exit")
    assert waiting(driver) == 0


def test_a_late_report_of_a_job_that_another_got(driver, master, channel, lone):
    job = lone()
    entry = driver.header(job).entry
    channel.die()
    other = driver.channel("2", window=5)
    driver.requeue(channel)
    driver.dispatch(other)
    assert not channel.report_entry(entry, job, 1)
    assert driver.state(job) is State.DISPATCHED and driver.header(job).attempt == 2


class TestHistory:
    def test_it_cannot_be_written_and_rows_follow_later(self, driver, master, channel, lone):
        jobs = [lone() for _ in range(3)]
        os.rename(master.history_path, master.history_path + ".aside")
        os.mkdir(master.history_path)
        master.restart_collector()
        for job in jobs:
            channel.report(job)
            master.collect(2)
        assert set(judged(driver)) == set(jobs)
        os.rmdir(master.history_path)
        for _ in range(3):
            master.collect(1, advance=5.1)
        assert [row[0] for row in rows(master)] == jobs
        assert judged(driver) == {} and waiting(driver) == 0

    @pytest.mark.parametrize("step", ["collector.history.after", "collector.delete.after"])
    def test_a_crash_between_two_steps(self, driver, master, channel, lone, monkeypatch, step):
        job = lone()
        channel.report(job)

        def failpoint(name):
            if name == step:
                raise FailpointHit(name)

        monkeypatch.setattr(collector_module, "failpoint", failpoint)
        with pytest.raises(FailpointHit):
            master.collect(3)
        monkeypatch.undo()
        master.restart_collector()
        master.collect(3)
        assert [row for row in rows(master) if row[0] == job] == [(job, 1, 1, "succeeded", "exit")]
        assert judged(driver) == {} and waiting(driver) == 0

    def test_at_its_stop_the_collector_takes_them_in(self, driver, master, channel, lone):
        job = lone()
        channel.report(job)
        master.collector.run(lambda: True, master.waited.append, lambda said: None)
        assert rows(master)[-1][0] == job
        assert judged(driver) == {}

    def test_a_new_leader_takes_them_in(self, driver, master, make_master, channel, lone):
        job = lone()
        channel.report(job)
        driver.client.delete(driver.keys.results)
        driver.moves.release_lead("m1")
        heir = make_master("m2")
        heir.dispatch(1)
        heir.collect(2)
        assert rows(heir)[-1][0] == job

    def test_who_leads_no_longer_leaves_them_to_the_leader(self, driver, master, make_master, channel, lone):
        master.collect(2)
        driver.moves.release_lead("m1")
        heir = make_master("m2")
        heir.dispatch(1)
        offered(driver, heir, channel)
        job = lone()
        channel.report(job)
        assert is_judged(driver, job)
        with pytest.raises(NotTheLeader):
            master.collect(3)
        assert set(judged(driver)) == {job} and job not in [row[0] for row in rows(master)]
        heir.collect(3)
        assert rows(heir)[-1][0] == job and judged(driver) == {}

    def test_between_two_leaders_who_led_last_takes_them_in(self, driver, master, channel, lone):
        job = lone()
        channel.report(job)
        driver.moves.release_lead("m1")
        master.collect(2)
        assert rows(master)[-1][0] == job

    def test_bytes_that_are_no_record(self, driver, master, channel, lone):
        driver.client.hset(driver.keys.judged, "7", b"nonsense")
        job = lone()
        channel.report(job)
        master.collect(3)
        assert rows(master)[-1][0] == job and judged(driver) == {}


def test_a_full_server_judges_them(driver, master, channel, lone):
    job = lone()
    driver.client.config_set("maxmemory", 1)
    try:
        assert channel.report(job)
    finally:
        driver.client.config_set("maxmemory", 0)
    assert is_judged(driver, job)
