"""The crash-point matrix: every failpoint of the product x every way to break a process there.

A process is killed, or stopped for longer than its lease, or gets an exception where nobody expects one: once,
between two of its effects, in the middle of a load. The matrix is made from the list of the failpoints, so that
none is missing; a case whose point was never passed proves nothing, and fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest
import redis

from faults.scene import SILENCE, Scene, let_pass, marker_of, of_account, resume, tallied
from jobschedd.failpoints import FAILPOINTS
from jobschedd.master.dispatcher import MOST_CLASSES
from jobschedd.store.attempts import Query
from jobschedd.store.keys import Keys
from ledger import SUCCESS, Account, End, Ledger
from redis_server import wait_until

FAULTS = ("kill", "stop", "raise")
#: Which cases "make test" runs; another seed, another sample. "make faults" runs them all.
SEED = int(os.environ.get("FAULTS_SEED", "1"))
SAMPLE = 12
#: Bytes on each output stream of a job with a large result.
LARGE = 900_000
#: A function whose process ends under it has failed, as one that crashes its interpreter: retries are for that.
CANCELLED = frozenset({("cancelled", "tasks"), ("cancelled", "cancelled")})
LOST = frozenset({("lost", "channel_lost"), ("lost", "no_answer"), ("failed", "drain"), ("failed", "exception")})


def _nothing(scene: Scene) -> None:
    """The load alone passes the point."""


def _schedule(scene: Scene) -> None:
    scene.under_way()
    scene.client.schedules.add(name="tick", every="1s", shell="true", if_running="allow", end=time.time() + 6)


def _kill_channel(scene: Scene) -> None:
    scene.under_way()
    scene.slave.kill("channel 1")


def _cut_channels(scene: Scene) -> None:
    scene.under_way()
    with scene.redis.client() as admin:
        for connection in admin.client_list():
            if "/2" in connection["name"]:
                admin.client_kill_filter(_id=connection["id"])


def _ask_for_history(scene: Scene) -> None:
    """And do not wait for an answer: the clerk is what breaks."""
    scene.under_way()
    archives = scene.client.session.archives()
    wait_until(lambda: archives.ask(Query())[1], 10, "a master is there to be asked")
    archives.close()


def _reload(scene: Scene) -> None:
    scene.under_way()
    config = scene.slave.config
    config.write_text(config.read_text().replace("slots: 2", "slots: 3"))
    scene.slave.signal("supervisor", signal.SIGHUP)


def _drain_with_a_deadline(scene: Scene) -> None:
    """What runs on a channel is interrupted, and runs again once the channel is resumed."""
    scene.ledger.submit(scene.client, [scene.ledger.item(seconds=2, channel="1") for _ in range(2)])
    wait_until(lambda: any(job.state == "running" for job in scene.client.jobs("running")), 20, "something runs")
    scene.client.drain("1", deadline=0, then="requeue")
    marker = marker_of(scene.cluster.directory)
    scene.keep_up_until(marker.exists, 20, f"void: nothing was interrupted\n{scene.cluster.logs()}")
    scene.client.resume("1")


def _cancel_an_array(scene: Scene) -> None:
    """With tasks on both channels, and others that have not started."""
    array = scene.client.submit(["sleep", "60"], array="1-1000", priority=100)
    wait_until(lambda: array.counts is not None and array.counts.active >= 3, 20, "its tasks are out")
    scene.client.cancel(array)


def _stop_slave(scene: Scene) -> None:
    scene.under_way()
    scene.slave.signal("supervisor", signal.SIGTERM)


def _stall_with_large_results(scene: Scene) -> None:
    """Megabytes wait in the spool, more than one report takes."""
    large = f"head -c {LARGE} /dev/zero; head -c {LARGE} /dev/zero >&2; sleep 0.2"
    scene.under_way()
    scene.client.submit_many([{"shell": large, "channel": "2", "priority": 100} for _ in range(40)])
    marker = marker_of(scene.cluster.directory)
    for _ in range(10):
        if not marker.exists():
            scene.redis.pause()
            let_pass(0.4)
            scene.redis.resume()
            let_pass(0.2)


def _many_classes(scene: Scene) -> None:
    """More classes than are remembered, nothing of them pending: the next survey forgets them."""
    scene.under_way()
    keys = Keys(scene.cluster.namespace)
    with scene.redis.client() as client:
        client.hset(keys.classes, mapping={f"/none-{n}": 10_000 + n for n in range(MOST_CLASSES + 200)})
        client.set(keys.next_class, 20_000)
        client.rpush(keys.bell, "a")


def _add_reports(scene: Scene, admin: redis.Redis, stream: str, count: int) -> None:
    """So many at least, of jobs that begin now."""
    newest = admin.xrevrange(stream, count=1)
    seen = newest[0][0].decode() if newest else "0-0"
    scene.ledger.submit(scene.client, [scene.ledger.item(priority=100) for _ in range(count)])
    wait_until(lambda: len(admin.xrange(stream, f"({seen}")) >= count, 10, "their reports wait")


def _lose_reports(scene: Scene) -> None:
    """What was reported, and is not collected yet, is deleted: those jobs run again."""
    keys = Keys(scene.cluster.namespace)
    scene.under_way()
    with scene.redis.client() as admin:
        collector = scene.master.pause("collector")
        wait_until(lambda: collector.status() == psutil.STATUS_STOPPED, 10, "it stands still")
        # What is there may be judged already, and what comes next may be the answer to a read that was under way.
        _add_reports(scene, admin, keys.results, 1)
        _add_reports(scene, admin, keys.results, 4)
        admin.delete(keys.results)
        scene.master.resume("collector")


@dataclass(frozen=True)
class Case:
    """Where a point is, and what it takes to pass it ``nth`` times in mid-load."""

    who: str  # master, slave, client; rebuild: a master while it brings lost data back
    nth: int = 3
    trouble: Callable[[Scene], None] = _nothing
    pubsub: bool = False
    slots: int = 2
    output_limit: int | None = None
    hooked: bool = False


CASES = {
    "client.submit.before": Case("client", 1),
    "client.submit.after": Case("client", 1),
    "client.reserve.after": Case("client", 1),
    "client.wait.registered": Case("client", 1),
    "client.wait.told": Case("client", 1),
    "dispatcher.lead.acquired": Case("master", 1),
    "dispatcher.lead.kept": Case("master", 1),
    "dispatcher.configure.after": Case("master", 1),
    "dispatcher.heal.after": Case("master", 1),
    "dispatcher.keep.after": Case("master", 1),
    "dispatcher.forget.after": Case("master", 1, _many_classes),
    "dispatcher.survey.after": Case("master", 1),
    "dispatcher.bell.after": Case("master"),
    "dispatcher.dispatch.before": Case("master"),
    "dispatcher.dispatch.after": Case("master"),
    "dispatcher.offer.after": Case("master", 1),
    "dispatcher.requeue.before": Case("master", 1, _kill_channel),
    "dispatcher.requeue.after": Case("master", 1, _kill_channel),
    "dispatcher.promote.after": Case("master", 1),
    "dispatcher.interrupt.after": Case("master", 1, _drain_with_a_deadline),
    "dispatcher.timetable.after": Case("master", 1),
    "dispatcher.fire.before": Case("master", 2, _schedule),
    "dispatcher.fire.after": Case("master", 2, _schedule),
    "dispatcher.unblock.before": Case("master", 2),
    "dispatcher.unblock.after": Case("master", 2),
    "dispatcher.cancel.before": Case("master", 1, _cancel_an_array),
    "dispatcher.audit.after": Case("master", 1),
    "dispatcher.recover.after": Case("master", 1, _lose_reports),
    "guard.begin.after": Case("rebuild", 1),
    "guard.settle.after": Case("rebuild", 1),
    "guard.admit.after": Case("rebuild", 1),
    "guard.restore.after": Case("rebuild", 1),
    "guard.finish.after": Case("rebuild", 1),
    "publisher.publish.before": Case("master", pubsub=True),
    "publisher.publish.after": Case("master", pubsub=True),
    "collector.begin.after": Case("master", 1),
    "collector.heard.after": Case("master", pubsub=True),
    "collector.passed_on.after": Case("master", pubsub=True),
    "collector.read.after": Case("master"),
    "collector.verdict.after": Case("master"),
    "collector.history.after": Case("master"),
    "collector.delete.after": Case("master"),
    "hooks.notice.after": Case("master", 1, hooked=True),
    "hooks.route.before": Case("master", 1, hooked=True),
    "hooks.route.after": Case("master", 1, hooked=True),
    "hooks.deliver.after": Case("master", 1, hooked=True),
    "clerk.answer.before": Case("master", 1, _ask_for_history),
    "clerk.prune.after": Case("master", 1),
    "channel.connect.opened": Case("slave", 1),
    "channel.register.after": Case("slave", 1),
    "channel.recovery.sent": Case("slave", 1, _kill_channel),
    "channel.recovery.crashed": Case("slave", 1, _kill_channel),
    "channel.recovery.left": Case("slave", 1, _kill_channel),
    "channel.recovery.discarded": Case("slave", 1, _kill_channel),
    "channel.connect.after": Case("slave", 1),
    "channel.disconnect.after": Case("slave", 1, _cut_channels),
    "channel.heard.after": Case("slave", pubsub=True),
    "channel.answer.sent": Case("slave", pubsub=True),
    "channel.read.after": Case("slave"),
    "channel.start.before": Case("slave"),
    "channel.start.registered": Case("slave"),
    "channel.start.spawned": Case("slave"),
    "channel.function.sent": Case("slave"),
    "channel.exit.before_spool": Case("slave"),
    "channel.spool.after": Case("slave"),
    "channel.spool.compacted": Case("slave", 1, _stall_with_large_results, slots=8, output_limit=LARGE),
    "channel.spool.renamed": Case("slave", 1, _stall_with_large_results, slots=8, output_limit=LARGE),
    "channel.report.sent": Case("slave"),
    "channel.report.acknowledged": Case("slave"),
    "channel.return.before": Case("slave", 1),
    "channel.drain.after": Case("slave", 1, _stop_slave),
    "channel.leave.before": Case("slave", 1, _stop_slave),
    "channel.leave.after": Case("slave", 1, _stop_slave),
    "runner.start.before": Case("slave"),
    "runner.start.registered": Case("slave"),
    "runner.result.before": Case("slave"),
    "runner.result.after": Case("slave"),
    "supervisor.fork.after": Case("slave", 1),
    "supervisor.bury.after": Case("slave", 1, _kill_channel),
    "supervisor.reload.loaded": Case("slave", 1, _reload),
    "supervisor.reload.after": Case("slave", 1, _reload),
    "supervisor.stop.told": Case("slave", 1, _stop_slave),
}
MATRIX = [(point, fault) for point in FAILPOINTS for fault in FAULTS]
SAMPLED = set(random.Random(SEED).sample(MATRIX, SAMPLE))


def test_every_failpoint_has_a_case():
    assert sorted(CASES) == sorted(FAILPOINTS), "the matrix needs to know how each point is passed"


#: Who -> the test that breaks it; all others are daemons under a load.
TESTED_AS = {"client": "client", "rebuild": "rebuild"}


def _params(who: str) -> list[object]:
    return [
        pytest.param(point, fault, marks=[] if (point, fault) in SAMPLED else pytest.mark.faults)
        for point, fault in MATRIX
        if point in CASES and TESTED_AS.get(CASES[point].who, "daemon") == who
    ]


@pytest.mark.parametrize(("point", "fault"), _params("daemon"))
def test_broken_between_two_effects(cluster, ledger, redis_server, point, fault):
    """Every job of the load reaches exactly one end: its own, except for the one whose runner broke."""
    case, marker = CASES[point], marker_of(cluster.directory)
    scene = Scene(cluster, ledger, redis_server)
    setting = f"{point}:{fault}:{case.nth}:{marker}"
    with tallied("matrix", fault, point=point, seed=SEED) as figures, scene.client:
        armed = {"on_master" if case.who == "master" else "on_slave": setting}
        scene.start(pubsub=case.pubsub, slots=case.slots, output_limit=case.output_limit, hooked=case.hooked, **armed)
        scene.load()
        case.trouble(scene)
        scene.keep_up_until(marker.exists, 20, f"void: {point} was never passed")
        if fault == "stop":
            _outlast_the_lease(scene)
        account = scene.verdict(within=40, expected=SUCCESS | _other_ends(case))
        if case.trouble is _schedule:
            _each_second_has_one_job(scene)
        ends = _without_the_array(account, ledger) if case.trouble is _cancel_an_array else account.ends
        unlucky = [end for end in ends if end.outcome != "succeeded"]
        # The classic wire promises at most one start: what was on its way, or in the process that died, is lost.
        assert len(unlucky) <= (8 if case.pubsub else 0), f"these ended otherwise: {unlucky}"
        figures |= of_account(account)
        figures["unlucky"] = len(unlucky)


def _other_ends(case: Case) -> frozenset[tuple[str, str]]:
    if case.trouble is _cancel_an_array:
        return CANCELLED
    return LOST if case.pubsub else frozenset()


def _without_the_array(account: Account, ledger: Ledger) -> list[End]:
    """The ends of the load. The others are those of the array and of its tasks that had begun: all were cancelled."""
    load = set(ledger.jobs())
    others = {end.job: end.outcome for end in account.ends if end.job not in load}
    array, *tasks = sorted(others)
    assert tasks and all(task.startswith(f"{array}_") for task in tasks), others
    assert set(others.values()) == {"cancelled"}, others
    return [end for end in account.ends if end.job in load]


def _each_second_has_one_job(scene: Scene) -> None:
    times = sorted(job.view.spec.scheduled_for for job in scene.client.jobs(name="tick"))
    assert times == list(range(times[0], times[-1] + 1000, 1000)), "a time of the schedule has no job, or two"


def _outlast_the_lease(scene: Scene) -> None:
    stopped = scene.stopped()
    assert stopped, f"void: nobody is stopped\n{scene.cluster.logs()}"
    let_pass(SILENCE)
    resume(stopped)


@pytest.mark.parametrize("point", ["channel.spool.after", "channel.report.sent", "channel.report.acknowledged"])
def test_what_is_spooled_never_runs_again(cluster, ledger, redis_server, point):
    """One job, and its channel dies between the end of it and the end of its report."""
    scene = Scene(cluster, ledger, redis_server)
    with scene.client:
        scene.start(on_slave=f"{point}:kill:1:{marker_of(cluster.directory)}")
        ledger.submit(scene.client, [ledger.item(channel="1")])
        account = scene.verdict()
    assert marker_of(cluster.directory).exists(), f"void: {point} was never passed"
    assert [(event.kind, event.attempt) for event in account.events] == [("start", 1), ("stop", 1)]


SUBMITTER = """
import json, sys
from jobschedd import Client
client = Client(sys.argv[1], namespace=sys.argv[2])
jobs = client.submit_many(json.load(sys.stdin))
print(*(job.id for job in jobs), flush=True)
client.wait(jobs, timeout=60)
print("ended", flush=True)
"""


@pytest.mark.parametrize(("point", "fault"), _params("client"))
def test_a_submitter_broken_in_its_call(cluster, ledger, redis_server, point, fault):
    """What it was told is true; of what it was not told, all is there or nothing, and what is there ends once."""
    scene = Scene(cluster, ledger, redis_server)
    marker = marker_of(cluster.directory)
    items = [ledger.item(seconds=0.3) for _ in range(5)]
    if point == "client.reserve.after":
        items[0]["ref"] = "first"
        items[1:] = [item | {"after": "first:any"} for item in items[1:]]
    nothing = point in ("client.submit.before", "client.reserve.after") and fault != "stop"
    with tallied("matrix", fault, point=point, seed=SEED) as figures, scene.client:
        scene.start()
        submitter = subprocess.Popen(
            [sys.executable, "-c", SUBMITTER, cluster.redis_url, cluster.namespace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=cluster.environment(JOBSCHED_FAILPOINTS=f"{point}:{fault}:1:{marker}"),
        )
        submitter.stdin.write(json.dumps(items))
        submitter.stdin.close()
        submitter.stdin = None
        wait_until(marker.exists, 20, f"void: {point} was never passed\n{cluster.logs()}")
        if fault == "stop":
            _outlast_the_lease(scene)
        said, errors = submitter.communicate(timeout=60)
        expected = {"kill": -signal.SIGKILL, "stop": 0, "raise": 1}[fault]
        assert submitter.returncode == expected, errors
        assert ("ended" in said) == (fault == "stop")
        ids = said.removesuffix("ended\n").split()
        for item, job in zip(items, ids or [""] * len(items), strict=True):
            ledger.accepted(item, job) if ids else ledger.unknown(item)
        scene.load()  # comes last: when it has ended, the others have
        account = scene.verdict()
        ran = {told.tag for told in ledger.told[:5]} & {event.tag for event in account.events}
        assert len(ran) == (0 if nothing else 5)
        figures |= of_account(account)


@pytest.mark.parametrize(("point", "fault"), _params("rebuild"))
def test_a_rebuild_broken_between_two_steps(cluster, ledger, redis_server, point, fault):
    """Emptied under two running jobs; the master that brings them back breaks. They come back, and new ones run."""
    marker = marker_of(cluster.directory)
    with tallied("matrix", fault, point=point, seed=SEED) as figures, cluster.client() as client:
        cluster.start("master", environment={"JOBSCHED_FAILPOINTS": f"{point}:{fault}:1:{marker}"})
        cluster.start("slave", channels=2)
        scene = Scene(cluster, ledger, redis_server)
        keys = Keys(cluster.namespace)
        with scene.client, redis_server.client() as admin:
            ledger.submit(client, [ledger.item(seconds=12) for _ in range(2)])
            wait_until(lambda: scene.started() == 2, 20, f"both run\n{cluster.logs()}")
            wait_until(lambda: admin.exists(keys.identity) and admin.exists(keys.leader), 5, "somebody leads")
            admin.flushall()
            wait_until(lambda: admin.exists(keys.loss), 5, f"it is noticed\n{cluster.logs()}")
            admin.hset(keys.loss, "order", "rebuild")
            scene.keep_up_until(marker.exists, 20, f"void: {point} was never passed")
            if fault == "stop":
                _outlast_the_lease(scene)
            scene.keep_up_until(lambda: not admin.exists(keys.loss), 30, "the rebuild is over")
            ledger.submit(client, [ledger.item() for _ in range(3)])
            account = scene.verdict(within=40)
        assert {event.attempt for event in account.events} == {1}, "what ran all the time runs on"
        figures |= of_account(account)
