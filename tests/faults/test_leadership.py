"""One leader at a time: what a stale one, or a stale channel, writes after its pause changes nothing."""

from __future__ import annotations

import time

import pytest

from faults.scene import of_account, tallied
from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, Result, encode
from jobschedd.store.keys import Keys
from jobschedd.store.marks import KnownEnd, Marks
from jobschedd.store.moves import Assignment, Verb, Verdict
from ledger import Ledger, judge
from redis_server import wait_until
from store_driver import KEEP, Driver

KEYS = Keys("test")
MANY = 10_000


@pytest.fixture
def driver(redis_server):
    driver = Driver(redis_server)
    yield driver
    driver.close()


@pytest.fixture
def ledger(cluster):
    return Ledger(cluster.directory)


def everything(driver):
    """All that the namespace holds, as bytes."""
    return {key: driver.client.dump(key) for key in driver.client.keys(KEYS.base + "*")}


def leader(server):
    with server.client() as client:
        holder = client.get(KEYS.leader)
    return "" if holder is None else holder.decode()


class TestStaleWrites:
    def test_of_a_paused_leader(self, driver):
        """Every write of the master, under fences of leads that are over: none is accepted, nothing changes."""
        fences = []
        for number in range(50):
            fences.append(driver.lead(f"m{number % 5}"))
            driver.moves.release_lead(f"m{number % 5}")
        driver.lead("now")
        channel = driver.channel(window=50)
        (waiting,) = driver.submit()
        driver.submit(delay="1ms")
        (job,), dead = driver.submit(priority=5), driver.channel("2")
        driver.dispatch(channel, 1, priority=5)
        entry = driver.header(job).entry
        driver.dispatched(dead, priority=7)
        dead.die()
        result = encode(Result(outcome=Outcome.FAILED, cause="exit"))
        moves, marks = driver.moves, Marks(driver.client, KEYS)
        writes = [
            lambda fence: moves.dispatch(fence, [Assignment(1, 0, channel.incarnation, 5)], KEEP),
            lambda fence: moves.collect(fence, [Verb.DONE, job, 1, entry, int(Outcome.FAILED), result, KEEP, "", ""]),
            lambda fence: moves.collect(fence, [Verb.RETURN, job, 1, entry, KEEP, "", "", "", ""]),
            lambda fence: moves.requeue(fence, dead.incarnation, 1, KEEP, 10),
            lambda fence: moves.reap(fence, [dead.incarnation]),
            lambda fence: moves.promote(fence, KEEP, 10),
            lambda fence: moves.repeat_hints(fence, 10),
            lambda fence: marks.settle(fence, [KnownEnd(waiting, 1, 2e9, Outcome.FAILED, result)], [KEEP]),
        ]
        before = everything(driver)
        with tallied("stale", "leads that are over") as figures:
            refused = 0
            for number in range(MANY):
                # Near misses, too: the right instance in another epoch, the right epoch of another instance.
                fence = (*fences, "now:1", "now:52", "m1:51", "", ":51")[number % (len(fences) + 5)]
                try:
                    writes[number % len(writes)](fence)
                except NotTheLeader:
                    refused += 1
            figures |= {"writes": MANY, "accepted": MANY - refused}
            assert refused == MANY
            assert everything(driver) == before

    def test_of_a_paused_channel(self, driver):
        """Reports on entries that were taken away, straight to the collector and through the channel's function."""
        driver.lead()
        stale, current = driver.channel("1", window=500), driver.channel("2", window=500)
        jobs = driver.submit(500)
        driver.dispatch(stale, 500)
        old = {job: driver.header(job) for job in jobs}
        stale.die()
        assert driver.requeue(stale, most=1000).requeued == 500
        driver.dispatch(current, 500)
        now = {job: driver.header(job) for job in jobs}
        assert all(now[job].attempt == 2 and now[job].incarnation == current.incarnation for job in jobs)
        result = encode(Result(outcome=Outcome.FAILED, cause="exit"))
        fences = [
            lambda job: (old[job].attempt, old[job].entry),
            lambda job: (old[job].attempt, now[job].entry),
            lambda job: (now[job].attempt, old[job].entry),
            lambda job: (now[job].attempt + 1, now[job].entry),
            lambda job: (now[job].attempt, "0-0"),
        ]
        before = {job: driver.client.get(KEYS.job(job)) for job in jobs}
        with tallied("stale", "channels that were superseded") as figures:
            accepted, judged = self._late(driver, jobs, fences, old, result, stale)
            figures |= {"writes": judged, "accepted": accepted}
            assert (judged, accepted) == (MANY, 0)
            assert {job: driver.client.get(KEYS.job(job)) for job in jobs} == before
            assert driver.client.xlen(KEYS.results) == 0

    def _late(self, driver, jobs, fences, old, result, stale):
        accepted = judged = 0
        for turn, fence in enumerate(fences * 2):
            verb = Verb.DONE if turn < len(fences) else Verb.RETRY
            arguments = []
            for job in jobs:
                rest = (int(Outcome.FAILED), result, KEEP, "", "") if verb == Verb.DONE else (0, 1, 0, KEEP, "")
                arguments += [verb, job, *fence(job), *rest]
            verdicts = driver.moves.collect(driver.fence, arguments)
            accepted += sum(verdict is Verdict.ACCEPTED for verdict, _ in verdicts)
            judged += len(verdicts)
        for _ in range(10):
            answers = stale.store.report_of(stale.incarnation, [(old[job].entry, b"late") for job in jobs])
            accepted += sum(answers)
            judged += len(answers)
        return accepted, judged


class TestHandOver:
    def test_in_order_it_takes_half_a_second_at_most(self, cluster, redis_server):
        first = cluster.start("master", timing={"leader_lease": 10})
        wait_until(lambda: leader(redis_server), 5, "the first leads")
        second = cluster.start("master", timing={"leader_lease": 10})
        wait_until(lambda: "standing by" in second.log(), 5, "the second stands by")
        masters, gaps = [first, second], []
        for _ in range(3):
            holder = leader(redis_server)
            with redis_server.client() as client:
                masters[0].popen.terminate()
                wait_until(lambda: client.get(KEYS.leader) != holder.encode(), 5, "it lets go", every=0.001)  # noqa: B023
                gaps.append(wait_until(lambda: client.get(KEYS.leader), 5, "the other leads", every=0.001))
            assert masters[0].stop() == 0
            masters[0].start()
            masters.reverse()
        print("gaps: " + ", ".join(f"{gap:.3f} s" for gap in gaps))
        assert max(gaps) <= 0.5

    @pytest.mark.slow
    def test_after_its_death_twelve_seconds_at_most(self, cluster, redis_server):
        """The whole machine of the leader dies; with the time bounds that users have."""
        first = cluster.start("master", timing={"leader_lease": 10, "block": 1})
        wait_until(lambda: leader(redis_server), 5, "the first leads")
        cluster.start("master", timing={"leader_lease": 10, "block": 1})
        holder = leader(redis_server)
        everybody = [first.supervisor, *first.children().values()]
        for process in everybody:
            process.suspend()  # nobody may react to the death of another
        for process in everybody:
            process.kill()
        took = wait_until(lambda: leader(redis_server) not in ("", holder), 12, f"the second leads\n{cluster.logs()}")
        print(f"taken over after {took:.2f} s")
        assert took > 5, "void: it was handed over"

    @pytest.mark.parametrize("paused", [["dispatcher"], ["collector"], ["dispatcher", "collector"]])
    def test_a_leader_that_pauses_again_and_again(self, cluster, ledger, redis_server, paused):
        """Stopped past its lease and continued, under load: every job has one end."""
        masters = [cluster.start("master"), cluster.start("master")]
        cluster.start("slave", channels=2)
        with cluster.client() as client:
            for turn in range(3):
                ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(30)])
                master = masters[turn % 2]
                for role in paused:
                    master.pause(role)
                until = time.monotonic() + 1.5
                wait_until(lambda: time.monotonic() >= until, 5, "its lease passes", every=0.05)  # noqa: B023
                for role in paused:
                    master.resume(role)
        with tallied("paused", " and ".join(paused)) as figures, redis_server.client() as client:
            figures |= of_account(judge(cluster, ledger, client, within=30))
