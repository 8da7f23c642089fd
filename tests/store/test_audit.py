"""Move: audit and recover. What a record says and where its job stands agree, whoever deleted a key of ours."""

from __future__ import annotations

import pytest

from jobschedd.job import Outcome, ReportKind, State
from jobschedd.store.moves import Recovered


@pytest.fixture
def channel(driver):
    return driver.channel(window=20)


def audit(driver):
    """A whole walk: (repairs made, orders that are gone, as they are told)."""
    cursor, repaired, gone = "0", 0, []
    while True:
        answer = driver.moves.audit(driver.fence, cursor, 100)
        repaired += answer.repaired
        gone += [(order, answer.now_ms) for order in answer.gone]
        cursor = answer.cursor
        if cursor == "0":
            return repaired, gone


def recover(driver, gone, told=True):
    # A millisecond later: what was seen in the very same might have been reported in it, too.
    driver.wait_ms(max(seen for _, seen in gone))
    return driver.moves.recover(driver.fence, [(order, seen, told) for order, seen in gone], 60_000)


def test_where_nothing_is_missing_nothing_is_done(driver, channel):
    """Jobs in every state, and what other namespaces have."""
    driver.submit(3)
    driver.submit(2, delay="1h", expires="2h")
    driver.submit(1, expires="1h", channel="absent")
    driver.dispatch(channel, 2)
    driver.client.set("jobsched:{other}:job:1", b"x" * 80)
    driver.client.set(driver.keys.job("999"), b"no record")
    (job, _) = driver.dispatched(channel, priority=3)
    driver.start(job)
    driver.moves.cancel([job], 1000)
    (ended, _) = driver.dispatched(channel, priority=4)
    driver.end(ended)
    before = {key: driver.client.dump(key) for key in driver.client.keys("*")}
    assert audit(driver) == (0, [])
    assert {key: driver.client.dump(key) for key in driver.client.keys("*")} == before


class TestPending:
    @pytest.mark.parametrize("more", [0, 2])
    def test_the_list_is_gone_and_maybe_begun_anew(self, driver, channel, more):
        jobs = driver.submit(5)
        driver.client.delete(driver.keys.pending_list(1, 0))
        jobs += driver.submit(more)
        assert audit(driver)[0] == 5
        assert driver.pending() == jobs, "in their order, the oldest in front"
        assert driver.client.smembers(driver.keys.pending) == {b"1:0"}
        assert audit(driver)[0] == 0

    def test_a_single_id(self, driver):
        jobs = driver.submit(5)
        driver.client.lrem(driver.keys.pending_list(1, 0), 0, jobs[2])
        assert audit(driver)[0] == 1
        assert sorted(driver.pending()) == jobs

    def test_the_names_of_the_lists(self, driver):
        driver.submit(2)
        driver.submit(2, priority=7)
        driver.bell()
        driver.client.delete(driver.keys.pending)
        assert audit(driver)[0] == 2
        assert driver.client.smembers(driver.keys.pending) == {b"1:0", b"1:7"}
        assert sorted(driver.bell()) == ["p:1:0:2", "p:1:7:2"]

    def test_a_list_too_long_to_be_read(self, driver, channel):
        """What was lost is older than what has come since."""
        lost = driver.submit(20)
        driver.client.delete(driver.keys.pending_list(1, 0))
        driver.submit(10_001)
        assert audit(driver)[0] == 20
        assert set(lost) <= set(driver.pending())
        assert driver.dispatch(channel, 20).sent == 20
        assert set(channel.jobs()) == set(lost)
        assert audit(driver) == (0, [])

    def test_tombstones_are_left_alone(self, driver):
        jobs = driver.submit(3)
        driver.moves.cancel([jobs[1]], 60_000)
        assert audit(driver)[0] == 0


class TestTimes:
    def test_scheduled(self, driver):
        (job,) = driver.submit(delay="1h")
        due = driver.client.zscore(driver.keys.scheduled, job)
        driver.client.delete(driver.keys.scheduled)
        assert audit(driver)[0] == 1
        assert driver.client.zscore(driver.keys.scheduled, job) == due

    def test_expiring(self, driver):
        (job,) = driver.submit(expires="1h")
        until = driver.client.zscore(driver.keys.expiring, job)
        driver.client.delete(driver.keys.expiring)
        assert audit(driver)[0] == 1
        assert driver.client.zscore(driver.keys.expiring, job) == until

    def test_cancelling(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.moves.cancel([job], 1000)
        driver.client.delete(driver.keys.cancelling)
        assert audit(driver)[0] == 1
        assert driver.client.smembers(driver.keys.cancelling) == {job.encode()}

    def test_waiting(self, driver):
        (first,) = driver.submit()
        (job,) = driver.submit(after=[first])
        assert driver.state(job) is State.WAITING
        driver.client.delete(driver.keys.waiting)
        assert audit(driver)[0] == 1
        assert driver.client.zrange(driver.keys.waiting, 0, -1) == [job.encode()]

    def test_one_that_is_held_stays_where_it_is(self, driver, channel):
        (job,) = driver.submit(hold=True)
        driver.dispatch(channel, 5)
        assert driver.pending() == [] and driver.state(job) is State.PENDING
        assert audit(driver) == (0, [])


class TestOrders:
    def test_the_stream_is_gone(self, driver, channel):
        """Its channel is told to end it; then somebody else gets it, uncharged."""
        job, entry = driver.dispatched(channel)
        driver.start(job)
        driver.client.delete(driver.keys.dispatch(channel.incarnation))
        repaired, gone = audit(driver)
        assert (repaired, [order for order, _ in gone]) == (0, [(job, 1, entry)])
        assert recover(driver, gone, told=False) == [Recovered.TOLD]
        assert channel.hints()[-1] == {b"cancel": job.encode(), b"attempt": b"1"}
        assert driver.state(job) is State.RUNNING
        assert recover(driver, gone) == [Recovered.TAKEN]
        header = driver.header(job)
        assert (header.state, header.attempt, header.tries, header.crashes) == (State.PENDING, 1, 0, 0)
        assert driver.pending() == [job]
        assert recover(driver, gone) == [Recovered.FINE]

    def test_a_report_that_waits_is_no_loss(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert channel.report(job)
        repaired, gone = audit(driver)
        assert repaired == 0 and len(gone) == 1
        for told in (False, True):
            assert recover(driver, gone, told) == [Recovered.WAIT]
        assert channel.hints() == []
        driver.end(job)
        assert recover(driver, gone) == [Recovered.FINE]
        assert driver.outcome(job) is Outcome.SUCCEEDED

    def test_a_report_that_is_gone(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert channel.report(job)
        driver.client.delete(driver.keys.results)
        assert recover(driver, audit(driver)[1]) == [Recovered.TAKEN]
        assert driver.state(job) is State.PENDING

    def test_what_may_start_once_only_is_lost(self, driver, channel):
        job, _ = driver.dispatched(channel, retry_on_loss=False)
        driver.client.delete(driver.keys.dispatch(channel.incarnation))
        assert recover(driver, audit(driver)[1]) == [Recovered.TAKEN]
        assert (driver.outcome(job), driver.cause(job)) == (Outcome.LOST, "channel_lost")
        assert driver.ended_messages() == [job]

    def test_cancelled_meanwhile_it_ends(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.moves.cancel([job], 1000)
        driver.client.delete(driver.keys.dispatch(channel.incarnation))
        assert recover(driver, audit(driver)[1]) == [Recovered.TAKEN]
        assert driver.outcome(job) is Outcome.CANCELLED

    def test_a_late_report_is_refused(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.client.delete(driver.keys.dispatch(channel.incarnation))
        recover(driver, audit(driver)[1])
        assert not channel.report_entry(entry, job, 1)
        assert driver.state(job) is State.PENDING

    def test_given_to_another_meanwhile(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.client.delete(driver.keys.dispatch(channel.incarnation))
        _, gone = audit(driver)
        recover(driver, gone)
        other = driver.channel("2")
        driver.dispatch(other, 1)
        assert recover(driver, gone) == [Recovered.FINE]
        assert driver.header(job).attempt == 2 and other.jobs() == [job]


class TestTables:
    def test_channels_that_live_announce_themselves_anew(self, driver, channel):
        dead = driver.channel("2")
        driver.dispatched(dead)
        dead.die()
        driver.client.delete(driver.keys.channels)
        assert audit(driver)[0] == 2
        assert not driver.client.exists(driver.keys.lease(channel.incarnation))
        channel.register(20)
        known = driver.survey.channels()
        assert set(known) == {channel.incarnation, dead.incarnation}
        assert driver.requeue(dead).requeued == 1, "nobody is left with a dead one whose description is gone"

    def test_owners_too(self, driver, channel):
        driver.client.delete(driver.keys.owners)
        assert audit(driver)[0] == 1
        channel.register(20)
        assert driver.client.hgetall(driver.keys.owners) == {b"n1/1": channel.incarnation.encode()}

    def test_what_has_left_stays_away(self, driver, channel):
        channel.leave()
        driver.requeue(channel, 0)
        assert audit(driver)[0] == 0

    def test_a_class_is_learnt_from_a_job_and_its_number_given_to_no_other(self, driver):
        driver.submit(labels=["gpu"])
        driver.submit()
        assert driver.survey.classes().keys() == {1, 2}
        driver.client.delete(driver.keys.classes)
        driver.submit(channel="new")
        assert driver.survey.classes().keys() == {3}
        assert driver.survey.class_of_pending(1, 0).labels == ("gpu",)
        assert driver.survey.class_of_pending(9, 0) is None


def test_another_master_audits_nothing(driver, channel):
    from jobschedd.errors import NotTheLeader

    driver.submit(2)
    driver.client.delete(driver.keys.pending_list(1, 0))
    with pytest.raises(NotTheLeader):
        driver.moves.audit("m2:1", "0", 100)
    with pytest.raises(NotTheLeader):
        driver.moves.recover("m2:1", [], 1)
    assert driver.pending() == []


def test_started_news_alone_explain_nothing(driver, channel):
    """What waits in the result stream keeps a suspect waiting, whatever it is; then it is taken back."""
    job, _ = driver.dispatched(channel)
    other, _ = driver.dispatched(channel)
    channel.report(other, ReportKind.STARTED)
    driver.client.delete(driver.keys.dispatch(channel.incarnation))
    _, gone = audit(driver)
    assert recover(driver, gone) == [Recovered.WAIT] * 2
    driver.client.delete(driver.keys.results)
    assert recover(driver, gone) == [Recovered.TAKEN] * 2
    assert {driver.state(job), driver.state(other)} == {State.PENDING}


class TestArrays:
    @pytest.mark.parametrize("limit", [0, 2])
    def test_on_their_way_nothing_is_missing(self, driver, limit):
        text = "1-6" + (f"%{limit}" if limit else "")
        (array,) = driver.submit(array=text, expires="1h")
        channel = driver.channel(window=4)
        assert audit(driver) == (0, [])
        driver.dispatch(channel, 4)
        assert len(channel.jobs()) == (limit or 4)
        assert audit(driver) == (0, [])
        driver.end(channel.jobs()[0])
        channel.report(channel.jobs()[0])
        driver.bring_back(channel.jobs()[0])
        assert audit(driver)[0] == 0
        assert driver.state(array) is State.RUNNING

    def test_the_marker_is_gone_with_its_list(self, driver):
        (array,) = driver.submit(array="1-6")
        channel = driver.channel(window=2)
        driver.dispatch(channel, 2)
        driver.client.delete(driver.keys.pending_list(1, 0))
        assert audit(driver)[0] == 1
        assert driver.pending() == [array]


def test_the_counter_of_ids(driver):
    """A namespace that never had a job has lost nothing; one that had goes on above what it gave."""
    from jobschedd.store.marks import Known, Marks

    marks = Marks(driver.client, driver.keys)
    known = marks.check("m1", "n", Known(), "a" * 16)
    assert known.next_id == 0
    assert driver.submit() == ["1"]
    driver.client.delete(driver.keys.next_id)
    known = marks.check("m1", "n", known, "")
    assert known.next_id >= 100_000
    assert driver.submit() == [str(known.next_id + 1)]
