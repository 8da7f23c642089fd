"""Connections that are open, and silent: noticed in time, opened anew, and nothing is lost or done twice.

The proxy holds everything back, as a router does that drops packets; what was held arrives late, when it heals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import Cluster
from fault_proxy import FaultProxy
from jobschedd import Client
from jobschedd.errors import StoreUnavailable
from jobschedd.store.scripts import channel_library, load_moves
from ledger import Ledger, judge
from node_harness import alive
from redis_server import RedisServer, wait_until

#: What a command may take, what a blocked read may take on top (block: 0.1 s here), and a busy test machine.
NOTICED = 3.0 + 0.1 + 1.5
DIRECTIONS = ["requests", "replies", "both"]
LEASE = 1.5


def _hole(proxy: FaultProxy, direction: str, client: str) -> None:
    proxy.black_hole(requests=direction != "replies", replies=direction != "requests", client=client)


def _started(ledger: Ledger) -> int:
    return sum(event.kind == "start" for event in ledger.events()[0])


@pytest.fixture
def through(cluster: Cluster, proxy: FaultProxy) -> Cluster:
    """All daemons and clients of this cluster come by the proxy."""
    cluster.redis_url = proxy.url
    return cluster


def _marked(first: str) -> Iterator[Any]:
    for direction in DIRECTIONS:
        yield pytest.param(direction, marks=() if direction == first else (pytest.mark.faults,))


@pytest.mark.parametrize("direction", list(_marked("replies")))
def test_a_submitter(through, proxy, redis_server, direction):
    """Told after 3 s, repeats, and what arrives late is not a second job."""
    with Client(proxy.url, patience=20) as client, redis_server.client() as direct:
        client.submit(["true"])
        _hole(proxy, direction, "client/")
        begin = time.monotonic()
        with Client(proxy.url, patience=0.1) as hasty, pytest.raises(StoreUnavailable):
            hasty.submit(["true"])
        assert time.monotonic() - begin < NOTICED
        timer = threading.Timer(3.5, proxy.heal)  # while the next submit is under way
        timer.start()
        assert client.submit(["true"]).id == "2"
        timer.join()
        assert client.submit(["true"]).id == "3"
        assert direct.get(client.session.keys.next_id) == b"3"


@pytest.mark.parametrize("direction", list(_marked("both")))
@pytest.mark.parametrize(
    "who",
    [
        "n1/1",
        "collector/results",
        *(pytest.param(who, marks=pytest.mark.faults) for who in ("m/dispatcher", "m/collector", "dispatcher/bell")),
    ],
)
def test_one_process_is_cut_off_for_a_while(through, ledger, proxy, redis_server, who, direction):
    through.start("master", node="m")
    through.start("slave", node="n1", channels=1)
    daemon = "node n1" if who.startswith("n1") else "master"
    with Client(redis_server.url, through.namespace) as client, redis_server.client() as direct:
        ledger.submit(client, [ledger.item(seconds=0.2) for _ in range(5)])
        wait_until(lambda: _started(ledger) >= 1, 15, f"they have begun\n{through.logs()}")
        _hole(proxy, direction, who)
        begin = time.monotonic()
        ledger.submit(client, [ledger.item() for _ in range(5)])
        wait_until(lambda: "waiting for Redis" in through.logs(), NOTICED, f"the {daemon} notices\n{through.logs()}")
        print(f"noticed after {time.monotonic() - begin:.2f} s")
        proxy.heal()
        healed = time.monotonic()
        before = _started(ledger)
        ledger.submit(client, [ledger.item() for _ in range(3)])
        wait_until(lambda: _started(ledger) > before, 8, f"work goes on\n{through.logs()}")
        print(f"work went on after {time.monotonic() - healed:.2f} s")
        judge(through, ledger, direct, within=20)


@pytest.mark.parametrize("overlap", ["forbid", pytest.param("allow", marks=pytest.mark.faults)])
def test_a_node_is_cut_off_for_longer_than_its_lease(through, ledger, proxy, redis_server, overlap):
    """Silently, in mid-job. Another node takes the job over; where that is forbidden, the first has ended it."""
    through.start("master", node="m")
    with Client(redis_server.url, through.namespace) as client, redis_server.client() as direct:
        through.start("slave", node="n1", channels=1)
        ledger.submit(client, [ledger.item(seconds=5, overlap=overlap)])
        wait_until(lambda: _started(ledger) == 1, 10, f"it has begun\n{through.logs()}")
        through.redis_url = redis_server.url
        through.start("slave", node="n2", channels=1)
        proxy.black_hole(client="n1/")
        wait_until(lambda: _started(ledger) == 2, 8, f"the other node runs it\n{through.logs()}")
        first = ledger.events()[0][0]
        runs = alive(first.pid)
        assert runs == (overlap == "allow")
        proxy.heal()
        account = judge(through, ledger, direct, within=20)
    assert [end.attempt for end in account.ends] == [2]


def _load_functions(redis_server: RedisServer) -> None:
    with redis_server.client() as direct:
        direct.function_load(channel_library())
        load_moves(direct)


@pytest.mark.faults
@pytest.mark.parametrize(("delay", "rate"), [(0.25, 0), (0.0, 2000)], ids=["latency", "trickle"])
def test_slow_is_not_dead(through, ledger, proxy, redis_server, delay, rate):
    """Half a second both ways, or a few bytes at a time: no lease ends, nothing runs twice.

    Of functions, a hundred kilobytes, a trickle brings none in time: the server has had them since it was started.
    """
    if rate:
        _load_functions(redis_server)
    through.start("master", node="m", timing={"lease": 4.0, "heartbeat": 1.0, "leader_lease": 4.0})
    through.start("slave", node="n1", channels=1, timing={"lease": 4.0, "heartbeat": 1.0})
    with Client(redis_server.url, through.namespace) as client, redis_server.client() as direct:
        proxy.slow(delay=delay, rate=rate)
        ledger.submit(client, [ledger.item(seconds=0.5) for _ in range(4)])
        wait_until(lambda: _started(ledger) == 4, 60, f"they have begun\n{through.logs()}")
        proxy.heal()
        account = judge(through, ledger, direct, within=30)
    assert {event.attempt for event in account.events} == {1} or rate
    assert "lost the lead" not in through.logs() and "it hangs" not in through.logs()


@pytest.mark.faults
def test_flapping(through, ledger, proxy, redis_server):
    """Half a second on, half a second off: the job of a whole lease is not handed around."""
    through.start("master", node="m")
    through.start("slave", node="n1", channels=2)
    with Client(redis_server.url, through.namespace) as client, redis_server.client() as direct:
        ledger.submit(client, [ledger.item(seconds=6) for _ in range(2)])
        wait_until(lambda: _started(ledger) == 2, 10, f"they have begun\n{through.logs()}")
        for number in range(10):
            proxy.black_hole() if number % 2 == 0 else proxy.heal()
            until = time.monotonic() + 0.5
            wait_until(lambda until=until: time.monotonic() >= until, 2, "half a second", every=0.02)
        proxy.heal()
        account = judge(through, ledger, direct, within=20)
    assert all(event.attempt <= 2 for event in account.events)


def test_jobs_are_looked_after_while_redis_is_silent(through, ledger, proxy, redis_server):
    """Neither a time-out nor the output of a job waits for a server that does not answer."""
    through.start("master", node="m")
    through.start("slave", node="n1", channels=[{"name": "1", "slots": 2}])
    stamp = through.directory / "ended"
    with Client(redis_server.url, through.namespace) as client:
        line = f"trap 'date +%s.%N > {stamp}; exit' TERM; while :; do sleep 0.02; done"
        job = client.shell(line, timeout=4)
        talks = client.shell(f"yes | head -c 3000000; date +%s.%N > {stamp}2", delay=0)
        wait_until(lambda: job.state == "running", 10, f"it runs\n{through.logs()}")
        began = job.view.header.since / 1000
        proxy.black_hole()
        wait_until(lambda: stamp.exists() and stamp.read_text().strip(), 12, "the time-out came")
        late = float(stamp.read_text()) - began - 4
        assert late < 1.0, f"{late:.2f} s late"
        proxy.heal()
        client.wait([job, talks], timeout=20)
        assert (job.outcome, talks.outcome) == ("timed_out", "succeeded")
