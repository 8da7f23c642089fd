"""The functions of channels: register, report, leave; and the race of a report with a requeue."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobschedd.clock import FakeClock
from jobschedd.config import RedisConfig
from jobschedd.errors import StoreRefused
from jobschedd.job import Outcome, ReportKind, State
from jobschedd.store.channel import ChannelStore
from jobschedd.store.connect import connect
from jobschedd.store.moves import Moves
from jobschedd.store.scripts import REPORT
from jobschedd.store.survey import UNREADABLE
from redis_server import RedisServer, wait_until
from store_driver import KEEP, Driver


@pytest.fixture
def channel(driver):
    return driver.channel()


class TestRegister:
    def test_it_announces_itself(self, driver, channel):
        assert driver.survey.channels() == {channel.incarnation: channel.info}
        assert driver.bell() == [f"c:{channel.incarnation}"]
        assert 14_000 < driver.client.pttl(driver.keys.lease(channel.incarnation)) <= 15_000

    def test_the_same_daemon_may_follow_itself(self, driver, channel):
        successor = driver.channel()
        assert driver.client.hget(driver.keys.owners, "n1/1") == successor.incarnation.encode()

    def test_another_daemon_may_not(self, driver, channel):
        with pytest.raises(StoreRefused, match="n1/1 is served by another daemon"):
            driver.channel(home="elsewhere")
        assert driver.client.hget(driver.keys.owners, "n1/1") == channel.incarnation.encode()

    def test_another_daemon_may_once_the_first_is_dead(self, driver, channel):
        channel.die()
        assert driver.channel(home="elsewhere").jobs() == []

    def test_a_description_that_nobody_can_read(self, driver):
        driver.client.hset(driver.keys.channels, "ab", b"{no json")
        driver.client.hset(driver.keys.channels, "cd", b'{"node": 7}')
        driver.client.hset(driver.keys.channels, "ef", b"\xff" * 10)
        driver.client.hset(driver.keys.channels, "ff", b"[" * 100_000)
        assert list(driver.survey.channels().values()) == [UNREADABLE] * 4
        assert driver.survey.channel("ab") == UNREADABLE
        assert driver.survey.channel("00") is None


class TestReport:
    def test_it_takes_the_entry_and_hands_the_report_in(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.submit()
        driver.bell()
        assert channel.report(job)
        assert channel.entries() == []
        (report,) = driver.reports()
        assert (report.job, report.attempt, report.entry) == (job, 1, entry)
        assert driver.bell() == [f"r:{channel.incarnation}:1"]

    @pytest.mark.parametrize("rights", [[], ["-exists"]])
    def test_nobody_is_woken_up_while_nothing_waits(self, driver, channel, rights):
        job, _ = driver.dispatched(channel)
        driver.bell()
        driver.client.acl_setuser("slave", enabled=True, nopass=True, keys="*", commands=["+@all", *rights])
        channel.store._client = connect(RedisConfig(url=driver.server.url, username="slave"), "slave")
        assert channel.report(job)
        said = f"r:{channel.incarnation}:1"
        assert (driver.bell(), driver.client.lrange(driver.keys.murmurs, 0, -1)) == (
            ([said], []) if rights else ([], [said.encode()])
        )

    def test_many_murmurs_ring(self, driver, channel):
        jobs = [driver.dispatched(channel)[0] for _ in range(2)]
        driver.bell()
        driver.client.rpush(driver.keys.murmurs, *["r:1:1"] * 998)
        assert all(channel.report(job) for job in jobs)
        assert driver.bell() == [f"r:{channel.incarnation}:1"]
        assert driver.client.llen(driver.keys.murmurs) == 999

    @pytest.mark.parametrize("rights", [[], ["-get"]])
    def test_several_share_an_entry(self, driver, rights):
        """For a slave without the rights to ask whether anybody reads that, each has one."""
        channel = driver.channel(window=100)
        sent = [driver.dispatched(channel) for _ in range(40)]
        driver.client.acl_setuser("slave", enabled=True, nopass=True, keys="*", commands=["+@all", *rights])
        channel.store._client = connect(RedisConfig(url=driver.server.url, username="slave"), "slave")
        assert all(channel.store.report_of(channel.incarnation, [(entry, job.encode()) for job, entry in sent]))
        assert driver.client.xlen(driver.keys.results) == (40 if rights else 2)

    def test_none_share_under_a_leader_of_an_older_version(self, driver, channel):
        """It took over from one of this version, and its collector would read the last of them only."""
        sent = [driver.dispatched(channel) for _ in range(3)]
        driver.client.set(driver.keys.leader, "old:99", px=60_000)
        assert all(channel.store.report_of(channel.incarnation, [(entry, b"x") for _, entry in sent]))
        assert driver.client.xlen(driver.keys.results) == 3

    def test_large_ones_share_none(self, driver, channel):
        sent = [driver.dispatched(channel) for _ in range(5)]
        assert all(channel.store.report_of(channel.incarnation, [(entry, b"x" * 40_000) for _, entry in sent]))
        assert driver.client.xlen(driver.keys.results) == 5

    def test_only_once(self, driver, channel):
        job, entry = driver.dispatched(channel)
        assert channel.report(job)
        assert not channel.report_entry(entry, job, 1)
        assert len(driver.reports()) == 1

    def test_after_a_requeue_it_says_nothing(self, driver, channel):
        job, entry = driver.dispatched(channel)
        channel.die()
        driver.requeue(channel)
        assert not channel.report_entry(entry, job, 1)
        assert driver.reports() == []

    def test_news_end_nothing(self, driver, channel):
        job, _ = driver.dispatched(channel)
        assert channel.report(job, ReportKind.STARTED)
        assert channel.jobs() == [job]
        assert driver.reports()[0].kind is ReportKind.STARTED

    def test_a_window_goes_with_it(self, driver, channel):
        _job, entry = driver.dispatched(channel)
        driver.submit()
        driver.bell()
        named, arguments = channel.store._report_arguments(channel.incarnation, 7, [(entry, b"x")])
        assert driver.client.fcall(REPORT, len(named), *named, *arguments) == [1]
        assert driver.bell() == [f"w:{channel.incarnation}:7:1"]
        assert driver.client.hget(driver.keys.lease(channel.incarnation), "window") == b"7"

    def test_without_a_lease_no_window_brings_one_back(self, driver, channel):
        _, entry = driver.dispatched(channel)
        channel.die()
        named, arguments = channel.store._report_arguments(channel.incarnation, 7, [(entry, b"x")])
        driver.client.fcall(REPORT, len(named), *named, *arguments)
        assert driver.client.exists(driver.keys.lease(channel.incarnation)) == 0

    def test_the_history_of_a_predecessor_can_be_looked_up(self, driver, channel):
        job, entry = driver.dispatched(channel)
        successor = driver.channel()
        found = successor.store.entries_of(channel.incarnation, [entry, "5-5"])
        assert [(one.id, one.fields[b"job"]) for one in found] == [(entry, job.encode())]


@pytest.fixture(scope="class")
def shared(_server_of_worker: RedisServer):
    """One driver for all examples; no other test of this module may wipe the server between them."""
    _server_of_worker.wipe()
    driver = Driver(_server_of_worker)
    driver.lead()
    yield driver
    driver.close()


class TestRace:
    """Whoever takes the entry away wins, and only he: a job is never both requeued and reported."""

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(jobs=st.integers(1, 30), portion=st.integers(1, 10), chunk=st.integers(1, 10))
    def test_a_report_races_a_requeue(self, shared, jobs, portion, chunk):
        channel = shared.channel(window=100)
        ids = shared.submit(jobs)
        shared.dispatch(channel, jobs)
        entries = channel.entries()
        channel.die()
        taken: dict[str, bool] = {}
        barrier = threading.Barrier(2)

        def report():
            with shared.server.client() as client:
                barrier.wait()
                for start in range(0, jobs, chunk):
                    some = entries[start : start + chunk]
                    named, arguments = channel.store._report_arguments(
                        channel.incarnation, "", [(entry, b"r") for entry, _ in some]
                    )
                    answers = client.fcall(REPORT, len(named), *named, *arguments)
                    taken.update(
                        {fields[b"job"].decode(): one == 1 for (_, fields), one in zip(some, answers, strict=True)}
                    )

        requeued: list[str] = []

        def requeue():
            with shared.server.client() as client:
                moves = Moves(client, shared.keys)
                barrier.wait()
                while True:
                    answer = moves.requeue(shared.fence, channel.incarnation, 1, KEEP, portion)
                    requeued.extend(answer.jobs)
                    if not answer.left:
                        return

        threads = [threading.Thread(target=target) for target in (report, requeue)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(taken) == sorted(ids)
        assert sorted(requeued) == sorted(job for job in ids if not taken[job])
        for job in ids:
            assert shared.state(job) is (State.DISPATCHED if taken[job] else State.PENDING)
        shared.client.delete(shared.keys.results, shared.keys.pending_list(1, 0), shared.keys.pending)


class TestPipes:
    """The channel's own way of reading, which never blocks."""

    def pump(self, store, done):
        import select
        import time

        deadline = time.monotonic() + 10
        while not done():
            assert time.monotonic() < deadline
            readable, _, _ = select.select([pipe.fileno() for pipe in store.pipes], [], [], 0.05)
            for pipe in store.pipes:
                if pipe.fileno() in readable:
                    pipe.read()

    def test_orders_and_hints_arrive(self, driver, channel):
        job, entry = driver.dispatched(channel)
        driver.moves.cancel([job], KEEP)
        orders, hints = [], []

        def received(some_orders, some_hints):
            orders.extend(some_orders)
            hints.extend(some_hints)
            channel.store.read_orders(received)

        channel.store.read_orders(received)
        self.pump(channel.store, lambda: orders and hints)
        assert (orders[0].id, orders[0].fields[b"job"]) == (entry, job.encode())
        assert (hints[0].what, hints[0].job) == ("cancel", job)
        later, _ = driver.dispatched(channel)
        self.pump(channel.store, lambda: len(orders) == 2)
        assert orders[1].fields[b"job"] == later.encode()

    def test_a_new_connection_reads_its_history_first(self, driver, channel):
        _job, entry = driver.dispatched(channel)
        again = ChannelStore(driver.client, driver.keys, channel.store.orders._clock, channel.incarnation, 0.05)
        orders = []
        again.read_orders(lambda some, hints: orders.extend(some))
        self.pump(again, lambda: orders)
        assert orders[0].id == entry
        again.close()

    def test_renewals_say_whether_there_was_a_lease(self, driver, channel):
        answers = []
        channel.store.renew(30_000, answers.append)
        self.pump(channel.store, lambda: answers)
        assert answers == [True]
        assert driver.client.pttl(driver.keys.lease(channel.incarnation)) > 20_000
        channel.die()
        channel.store.renew(30_000, answers.append)
        self.pump(channel.store, lambda: len(answers) == 2)
        assert answers == [True, False]


def test_one_accepted_end_after_the_whole_way(driver, channel):
    job, _entry = driver.dispatched(channel)
    channel.report(job, outcome=Outcome.FAILED, cause="exit")
    (report,) = driver.reports()
    driver.judge("done", job, report.attempt, report.entry, int(report.outcome), report.result, KEEP)
    assert driver.outcome(job) is Outcome.FAILED


@pytest.mark.parametrize("off", [-86_400.0, 86_400.0])
def test_a_wrong_clock_of_the_node_changes_no_lease(driver, redis_server, channel, off):
    """Leases are counted by the server; of the node's clock only the rate matters."""
    wrong = FakeClock(now=time.time() + off)
    store = ChannelStore(
        connect(RedisConfig(url=redis_server.url), "test"), driver.keys, wrong, channel.incarnation, 0.1
    )
    try:
        answers: list[bool] = []
        store.renew(5000, answers.append)
        wait_until(lambda: store.commands.read() or answers, 5, "the lease is renewed")
    finally:
        store.close()
    assert answers == [True]
    assert 4000 < driver.client.pttl(driver.keys.lease(channel.incarnation)) <= 5000
