"""Every move, its connection cut before the request, after it and inside the reply: it takes effect exactly once.

One fleet of real daemons and one client, all of whose connections lead through a proxy that breaks the one in
question. Whoever was cut recovers by its own means: the client repeats, the dispatcher looks at everything anew, the
collector starts over, the channel reconnects. At the end the oracle compares the accounts of all jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import Cluster, Daemon
from fault_proxy import FaultProxy, Where, hit
from jobschedd import Client
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import LEAVE, REGISTER, REPORT, script
from ledger import SUCCESS, Ledger, judge, read_ends
from redis_server import RedisServer, wait_until

DISPATCHER, COLLECTOR, CHANNEL, CLIENT = "m/dispatcher", "m/collector", "n1/", "client/"


class Fleet:
    """A master, a slave with two channels and a client behind one proxy."""

    def __init__(self) -> None:
        self.server = RedisServer().start()
        self.direct: Any = self.server.client()
        self.proxy = FaultProxy(str(self.server.socket), self.server.directory)
        self.cluster = Cluster(self.proxy.url)
        self.ledger = Ledger(self.cluster.directory)
        self.keys = Keys(self.cluster.namespace)
        self.master: Daemon = self.cluster.start("master", node="m")
        self.slave: Daemon = self.cluster.start("slave", node="n1", channels=2)
        self.client = Client(self.proxy.url, self.cluster.namespace, patience=20)
        self.retried: set[str] = set()  # have two accepted ends, as asked for

    def submit(self, count: int = 1, **item: Any) -> list[Any]:
        jobs = self.ledger.submit(self.client, [self.ledger.item(**item) for _ in range(count)])
        assert len(jobs) == count
        return jobs

    def starts(self, job: Any) -> list[int]:
        """The attempts of a job that have begun, as the job itself wrote down."""
        return [event.attempt for event in self.ledger.events()[0] if event.job == job.id and event.kind == "start"]

    def running(self, **item: Any) -> Any:
        """A job that has begun."""
        (job,) = self.submit(**item)
        self.until(lambda: self.starts(job), "it has begun")
        return job

    def ends(self, job: Any) -> list[str]:
        """Its accepted ends, in the history."""
        return [end.outcome for end in read_ends(self.cluster.history()) if end.job == job.id]

    def until(self, condition: Callable[[], object], what: str, within: float = 20.0) -> None:
        wait_until(condition, within, f"{what}\n{self.cluster.logs()[-20_000:]}")

    def ran_once(self, jobs: list[Any], outcome: str = "succeeded", attempt: int | None = 1) -> None:
        """Each ended so, once, and began once; None: an attempt may have gone to a channel that was just killed."""
        for job in jobs:
            self.until(lambda job=job: self.ends(job), f"job {job.id} has ended")
            assert self.ends(job) == [outcome]
            assert len(self.starts(job)) == 1
            assert attempt is None or self.starts(job) == [attempt]

    def close(self) -> None:
        self.client.close()
        self.cluster.close()
        self.proxy.close()
        self.direct.close()
        self.server.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Fleet]:
    """For all tests of this module; at the end, every invariant is checked over all their jobs."""
    fleet = Fleet()
    try:
        yield fleet
        fleet.proxy.heal()
        expected = SUCCESS | {("cancelled", "cancelled")}
        judge(fleet.cluster, fleet.ledger, fleet.direct, within=30, apart=fleet.retried, expected=expected)
    finally:
        fleet.close()


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    """Healthy and idle again."""
    shared.proxy.heal()
    shared.until(lambda: set(shared.slave.children()) == {"channel 1", "channel 2"}, "both channels are there")
    shared.client.wait(shared.submit(2), timeout=20)
    return shared


def _submit(fleet: Fleet, where: Where) -> None:
    before = int(fleet.direct.get(fleet.keys.next_id))
    cut = fleet.proxy.cut(script("submit").function, where, client=CLIENT)
    jobs = fleet.submit(3)
    hit(cut)
    assert int(fleet.direct.get(fleet.keys.next_id)) == before + 3
    fleet.ran_once(jobs)


def _cancel(fleet: Fleet, where: Where) -> None:
    (job,) = fleet.submit(delay=3600)
    cut = fleet.proxy.cut(script("cancel").function, where, client=CLIENT)
    (answer,) = fleet.client.cancel(job)
    hit(cut)
    assert (answer.answer, answer.outcome) in (("cancelled", None), ("ended", "cancelled"))
    fleet.until(lambda: fleet.ends(job), "its end is in the history")
    assert fleet.ends(job) == ["cancelled"] and not fleet.starts(job)


def _cancel_running(fleet: Fleet, where: Where) -> None:
    job = fleet.running(seconds=60)
    cut = fleet.proxy.cut(script("cancel").function, where, client=CLIENT)
    (answer,) = fleet.client.cancel(job)
    hit(cut)
    assert (answer.answer, answer.outcome) in (("requested", None), ("ended", "cancelled"))
    fleet.ran_once([job], "cancelled")


def _retry(fleet: Fleet, where: Where) -> None:
    (job,) = fleet.submit()
    fleet.client.wait([job], timeout=20)
    cut = fleet.proxy.cut(script("retry").function, where, client=CLIENT)
    fleet.client.retry(job)
    hit(cut)
    fleet.client.wait([job], timeout=20)
    fleet.until(lambda: len(fleet.ends(job)) == 2, "both ends are in the history")
    assert fleet.starts(job) == [1, 2], "once more, and no more"
    fleet.ledger.told = [told for told in fleet.ledger.told if told.job != job.id]
    fleet.retried.add(job.id)


def _keyed(fleet: Fleet, where: Where) -> None:
    """The same key twice, and the answer to the second is lost: still one job."""
    item = fleet.ledger.item(key=f"once-{where.name}", key_scope="running", hold=True)
    (job,) = fleet.ledger.submit(fleet.client, [item])
    cut = fleet.proxy.cut(script("submit").function, where, client=CLIENT)
    assert [again.id for again in fleet.client.submit_many([item])] == [job.id]
    hit(cut)
    fleet.client.release(job)
    fleet.ran_once([job])


def _hold(fleet: Fleet, where: Where) -> None:
    (job,) = fleet.submit(delay=1)
    cut = fleet.proxy.cut(script("hold").function, where, client=CLIENT)
    assert fleet.client.hold(job)[0].answer == "done"
    hit(cut)
    fleet.until(lambda: fleet.client.job(job).state == "pending", "its time has come")
    fleet.ran_once(fleet.submit(2))
    assert not fleet.starts(job)
    fleet.client.release(job)
    fleet.ran_once([job])


def _release(fleet: Fleet, where: Where) -> None:
    (job,) = fleet.submit(hold=True)
    fleet.ran_once(fleet.submit(1))
    cut = fleet.proxy.cut(script("release").function, where, client=CLIENT)
    fleet.client.release(job)
    hit(cut)
    fleet.ran_once([job])


def _prioritise(fleet: Fleet, where: Where) -> None:
    (job,) = fleet.submit(delay=1)
    cut = fleet.proxy.cut(script("prioritise").function, where, client=CLIENT)
    assert fleet.client.prioritise(job, 7)[0].answer == "done"
    hit(cut)
    fleet.ran_once([job])
    assert fleet.client.job(job).view.header.priority == 7


def _interrupt(fleet: Fleet, where: Where) -> None:
    """A drain whose time is over: the leader asks again, until the channel is empty."""
    job = fleet.client.submit(["sh", "-c", "[ $JOBSCHED_ATTEMPT = 2 ] || sleep 60"], channel="1")
    fleet.until(lambda: job.state == "running", "it runs")
    cut = fleet.proxy.cut(script("interrupt").function, where, client=DISPATCHER)
    fleet.client.drain("1", deadline=0, then="requeue")
    try:
        hit(cut)
        assert fleet.client.drained("1", 20)
    finally:
        fleet.client.resume("1")
    fleet.client.wait([job], timeout=20)
    assert (job.outcome, job.attempt) == ("succeeded", 2)


def _heard(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(script("heard").function, where, client=DISPATCHER)
    fleet.client.drain("1")
    try:
        hit(cut)
        assert fleet.client.drained("1", 20)
    finally:
        fleet.client.resume("1")
    fleet.ran_once(fleet.submit(2, channel="1"))


def _await(fleet: Fleet, where: Where) -> None:
    jobs = fleet.submit(2, seconds=0.3)  # of one alone the client may be told unasked
    cut = fleet.proxy.cut(script("await").function, where, client=CLIENT)
    fleet.client.wait(jobs, timeout=20)
    hit(cut)
    fleet.ran_once(jobs)


def _inbox(fleet: Fleet, where: Where) -> None:
    """The message that the job has ended is lost."""
    (job,) = fleet.submit(seconds=0.3)
    cut = fleet.proxy.cut(b"inbox:", where, client=CLIENT, in_reply=True)
    fleet.client.wait([job], timeout=20)
    hit(cut)
    fleet.ran_once([job])


def _follow(fleet: Fleet, where: Where) -> None:
    lines = "".join(f"line {number}\n" for number in range(20)).encode()
    job = fleet.client.submit(["sh", "-c", "for i in $(seq 0 19); do echo line $i; sleep 0.02; done"])
    cut = fleet.proxy.cut(script("follow").function, where, client=CLIENT)
    assert b"".join(piece.data for piece in fleet.client.follow(job)) == lines
    hit(cut)
    assert fleet.client.wait([job], timeout=20)[0].outcome == "succeeded"


def _lead(fleet: Fleet, where: Where) -> None:
    before = fleet.direct.get(fleet.keys.leader)
    hit(fleet.proxy.cut(script("lead").function, where, client=DISPATCHER))
    fleet.ran_once(fleet.submit(3))
    assert fleet.direct.get(fleet.keys.leader) == before, "the same lead goes on"


def _dispatch(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(script("dispatch").function, where, client=DISPATCHER)
    jobs = fleet.submit(5)
    hit(cut)
    fleet.ran_once(jobs)


def _bell(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(b"\r\np:", where, client=f"{DISPATCHER}/bell", in_reply=True)
    jobs = fleet.submit(5)
    hit(cut)
    fleet.ran_once(jobs)


def _collect(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(script("collect").function, where, client=COLLECTOR)
    jobs = fleet.submit(5)
    hit(cut)
    fleet.ran_once(jobs)


def _results(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(b"\r\nreport\r\n", where, client=f"{COLLECTOR}/results", in_reply=True)
    jobs = fleet.submit(5)
    hit(cut)
    fleet.ran_once(jobs)


def _delete(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(b"XDEL", where, client=COLLECTOR)
    jobs = fleet.submit(5)
    hit(cut)
    fleet.ran_once(jobs)
    fleet.until(lambda: fleet.direct.xlen(fleet.keys.results) == 0, "the result stream is empty")


def _promote(fleet: Fleet, where: Where) -> None:
    jobs = fleet.submit(3, delay=1)
    wait_until(lambda: all(job.view.header.since / 1000 - _now(fleet) < 0.5 for job in jobs), 5, "it is nearly due")
    cut = fleet.proxy.cut(script("promote").function, where, client=DISPATCHER)
    hit(cut)
    fleet.ran_once(jobs)


def _now(fleet: Fleet) -> float:
    seconds, micro = fleet.direct.time()
    return float(seconds) + micro / 1e6


def _hint(fleet: Fleet, where: Where) -> None:
    job = fleet.client.submit(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    fleet.until(lambda: job.state == "running", "it runs")
    fleet.client.cancel(job)
    hit(fleet.proxy.cut(script("hint").function, where, client=DISPATCHER))
    fleet.client.wait([job], timeout=20)
    fleet.until(lambda: fleet.ends(job), "its end is in the history")
    assert fleet.ends(job) == ["cancelled"]
    assert fleet.direct.scard(fleet.keys.cancelling) == 0


def _reap(fleet: Fleet, where: Where) -> None:
    hit(fleet.proxy.cut(script("reap").function, where, client=DISPATCHER))
    fleet.ran_once(fleet.submit(3))


def _orders(fleet: Fleet, where: Where) -> None:
    """The reply that carries the job to its channel is lost."""
    cut = fleet.proxy.cut(b"ledger-job", where, client=CHANNEL, in_reply=True)
    jobs = fleet.submit(4)
    hit(cut)
    fleet.ran_once(jobs)


def _report(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(REPORT, where, client=CHANNEL)
    jobs = fleet.submit(4)
    hit(cut)
    fleet.ran_once(jobs)


def _report_running(fleet: Fleet, where: Where) -> None:
    """The news that a job runs: said again, for the job may run for days."""
    cut = fleet.proxy.cut(b"started", where, client=CHANNEL)
    (job,) = fleet.submit(seconds=1.5)
    hit(cut)
    fleet.until(lambda: job.state == "running", "its record says that it runs", within=1.4)
    fleet.ran_once([job])


def _renew(fleet: Fleet, where: Where) -> None:
    hit(fleet.proxy.cut(b"PEXPIRE", where, client=CHANNEL))
    fleet.ran_once(fleet.submit(4))


def _kill_channels(fleet: Fleet, *channels: str) -> None:
    """The supervisor takes more and more time, a second at last, to replace one that is killed again and again."""
    killed = {channel: fleet.slave.kill(channel) for channel in channels}
    for channel, process in killed.items():
        fleet.slave.successor(channel, of=process, within=10)


def _register(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(REGISTER, where, client=CHANNEL)
    _kill_channels(fleet, "channel 1")
    hit(cut)
    _two_channels(fleet)
    fleet.ran_once(fleet.submit(4), attempt=None)


def _leave(fleet: Fleet, where: Where) -> None:
    """A successor's goodbye for the dead channel process."""
    cut = fleet.proxy.cut(LEAVE, where, client=CHANNEL)
    _kill_channels(fleet, "channel 1")
    hit(cut)
    _two_channels(fleet)
    fleet.ran_once(fleet.submit(4), attempt=None)


def _requeue_left(fleet: Fleet, where: Where) -> None:
    cut = fleet.proxy.cut(script("requeue").function, where, client=DISPATCHER)
    job = fleet.running(seconds=1)
    _kill_channels(fleet, "channel 1", "channel 2")
    hit(cut)
    _two_channels(fleet)
    fleet.until(lambda: fleet.ends(job), "it has ended")
    assert len(fleet.starts(job)) == 2 and fleet.ends(job) == ["succeeded"]


def _requeue_lost(fleet: Fleet, where: Where) -> None:
    """Both channels fall silent for longer than their leases: the entries are taken from them, once."""
    jobs = [fleet.running(seconds=2) for _ in range(2)]
    cut = fleet.proxy.cut(script("requeue").function, where, client=DISPATCHER)
    for channel in ("channel 1", "channel 2"):
        fleet.slave.pause(channel)
    try:
        hit(cut)
        fleet.until(lambda: all(job.state == "pending" for job in jobs), "both are pending again")
    finally:
        for channel in ("channel 1", "channel 2"):
            fleet.slave.resume(channel)
    for job in jobs:
        fleet.until(lambda job=job: fleet.ends(job), "it has ended")
        assert fleet.starts(job) == [1, 2] and fleet.ends(job) == ["succeeded"]


def _two_channels(fleet: Fleet) -> None:
    fleet.until(lambda: fleet.direct.hlen(fleet.keys.channels) == 2, "the dead incarnation is forgotten, two are left")


MOVES = [
    _submit,
    _cancel,
    _cancel_running,
    _retry,
    _keyed,
    _hold,
    _release,
    _prioritise,
    _interrupt,
    _heard,
    _await,
    _inbox,
    _follow,
    _lead,
    _dispatch,
    _bell,
    _collect,
    _results,
    _delete,
    _promote,
    _hint,
    _reap,
    _orders,
    _report,
    _report_running,
    _renew,
    _register,
    _leave,
    _requeue_left,
    _requeue_lost,
]
#: Cut at a reply that carries something: there is no "before the request" in it.
OF_REPLIES = {_inbox, _bell, _results, _orders}
#: Outside of ``make faults``, one cut of each is enough, and none of the slowest.
SLOW = {_requeue_lost, _register}


def _cases() -> Iterator[Any]:
    for move in MOVES:
        for where in (Where.BEFORE, Where.AFTER, Where.INSIDE):
            if where is Where.BEFORE and move in OF_REPLIES:
                continue
            sampled = where is Where.AFTER and move not in SLOW
            marks = () if sampled else (pytest.mark.faults,)
            yield pytest.param(move, where, id=f"{move.__name__.strip('_')}-{where.name.lower()}", marks=marks)


@pytest.mark.parametrize(("move", "where"), list(_cases()))
def test_takes_effect_once(fleet: Fleet, move: Callable[[Fleet, Where], None], where: Where):
    move(fleet, where)


def test_every_script_and_function_is_cut():
    """A new move without a case here is a hole in the table."""
    scripts = {"submit", "cancel", "retry", "await", "follow", "lead", "dispatch", "collect", "requeue", "reap"}
    scripts |= {"promote", "hint", "hold", "release", "prioritise", "interrupt", "heard"}
    cut = {name for move in MOVES for name in move.__code__.co_consts if isinstance(name, str)}
    assert scripts <= cut
