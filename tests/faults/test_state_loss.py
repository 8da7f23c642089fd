"""Redis emptied, replaced or rolled back: noticed at once, nothing goes on by itself, and what is known comes back."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from jobschedd.errors import DataLost
from jobschedd.job import State, decode_header
from jobschedd.store.keys import Keys
from ledger import Ledger, judge
from redis_server import wait_until

KEYS = Keys("test")
NOTICED = 2.0


@pytest.fixture
def ledger(cluster):
    return Ledger(cluster.directory)


def started(ledger):
    return sum(event.kind == "start" for event in ledger.events()[0])


def stopped(ledger):
    return sum(event.kind == "stop" for event in ledger.events()[0])


def loss(server):
    with server.client() as client:
        return client.hget(KEYS.loss, "what")


def identity(server):
    with server.client() as client:
        return client.get(KEYS.identity)


def record(server, job):
    with server.client() as client:
        data = client.get(KEYS.job(str(job)))
    return None if data is None else decode_header(data)


def mark(server):
    with server.client() as client:
        return int(client.get(KEYS.mark) or 0)


def is_led(server):
    with server.client() as client:
        return bool(client.get(KEYS.leader)) and bool(client.get(KEYS.identity))


def fleet(cluster, server, **slave):
    """A master and a slave that work together."""
    master = cluster.start("master")
    node = cluster.start("slave", **({"channels": 2} | slave))
    with cluster.client() as client:
        client.submit(["true"]).wait(10)
    wait_until(lambda: is_led(server), 5, "somebody leads")
    return master, node


def pass_time(seconds):
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 5, "time passes", every=0.05)


# -- how data are lost; each leaves a server that answers -----------------------------------------------------------


def flush(server):
    with server.client() as client:
        client.flushall()


def restart_empty(server):
    server.kill()
    for path in server.directory.glob("appendonlydir"):
        shutil.rmtree(path)
    for path in (*server.directory.glob("*.rdb"), *server.directory.glob("*.aof")):
        path.unlink()
    server.start()


def keep_copy(server):
    """A copy of the data as they are now."""
    with server.client() as client:
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 10, "the AOF is rewritten")
    server.stop()
    copy = server.directory / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(server.directory / "appendonlydir", copy)
    server.start()


def restore_copy(server):
    server.kill()
    shutil.rmtree(server.directory / "appendonlydir")
    shutil.copytree(server.directory / "copy", server.directory / "appendonlydir")
    server.start()


class TestNoticed:
    @pytest.mark.parametrize("lose", [flush, restart_empty])
    def test_emptied(self, cluster, redis_server, lose):
        master, node = fleet(cluster, redis_server)
        before = identity(redis_server)
        lose(redis_server)
        took = wait_until(lambda: loss(redis_server), NOTICED, f"it is noticed\n{cluster.logs()}")
        print(f"noticed after {took:.2f} s")
        assert loss(redis_server) == b"emptied"
        wait_until(lambda: "data are lost" in node.log(), NOTICED, f"the channels notice too\n{cluster.logs()}")
        pass_time(1.5)
        assert identity(redis_server) is None, "nobody made it look well again"
        assert not is_led(redis_server)
        told = "nothing is dispatched until an operator decides"
        wait_until(lambda: told in master.log(), NOTICED, f"the master says so\n{cluster.logs()}")
        assert master.log().count(told) == 1, "said once"
        assert before is not None

    def test_rolled_back(self, cluster, redis_server):
        _, node = fleet(cluster, redis_server, channels=1)
        keep_copy(redis_server)
        copied = mark(redis_server)
        # What goes back by less than a mark, a fraction of a second, looks like a server that lost its last writes.
        wait_until(lambda: mark(redis_server) > copied, 10, f"somebody leads on\n{cluster.logs()}")
        with cluster.client() as client:
            # Every read of orders asks for the mark first: the second one that brings a job began after the mark moved.
            for _ in range(2):
                client.submit(["true"]).wait(15)
        restore_copy(redis_server)
        wait_until(lambda: loss(redis_server), NOTICED, f"it is noticed\n{cluster.logs()}")
        assert loss(redis_server) == b"rolled back"
        wait_until(lambda: "data are lost" in node.log(), NOTICED + 1, f"the channels notice too\n{cluster.logs()}")

    @pytest.mark.parametrize("lose", [flush, restart_empty])
    def test_while_no_master_was_up(self, cluster, redis_server, lose):
        """What it knew is on its disk."""
        master, _ = fleet(cluster, redis_server)
        assert master.stop() == 0
        lose(redis_server)
        master.start()
        wait_until(lambda: loss(redis_server) == b"emptied", NOTICED, f"it is noticed\n{cluster.logs()}")

    def test_a_restart_with_its_data_is_no_loss(self, cluster, redis_server):
        fleet(cluster, redis_server)
        for hard in (False, True):
            redis_server.restart(hard=hard)
            with cluster.client() as client:
                client.submit(["true"]).wait(15)
        assert loss(redis_server) is None

    def test_a_standby_without_memory_does_not_lead_an_emptied_redis(self, cluster, redis_server):
        fleet(cluster, redis_server)
        flush(redis_server)
        wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
        cluster.start("master")
        pass_time(1.5)
        assert not is_led(redis_server)


class TestShown:
    def test_to_the_operator_and_to_submitters(self, cluster, redis_server):
        master, _ = fleet(cluster, redis_server)
        flush(redis_server)
        wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
        doctor = cluster.run("doctor")
        assert doctor.returncode == 1
        assert "Redis has lost all data" in doctor.stdout and "jobsched rebuild" in doctor.stdout
        assert "--accept-loss" in doctor.stdout and "node1" in doctor.stdout
        (finding,) = [f for f in json.loads(cluster.run("doctor", "--json").stdout)["findings"] if f["check"] == "data"]
        assert finding["level"] == "error"
        for command in ("nodes", "channels"):
            assert "lost all data" in cluster.run(command).stderr
        refused = cluster.run("submit", "--", "true")
        assert refused.returncode == 75 and refused.stdout == "" and "lost data" in refused.stderr
        with cluster.client() as client, pytest.raises(DataLost):
            client.submit(["true"])

        def status():
            return [line for line in master.notifications() if line.startswith("STATUS=")]

        wait_until(lambda: any("stopped, see jobsched doctor" in line for line in status()), 5, "STATUS= says so")

    def test_nothing_is_lost_nothing_is_rebuilt(self, cluster, redis_server):
        fleet(cluster, redis_server)
        answer = cluster.run("rebuild")
        assert answer.returncode == 1 and "nothing is lost" in answer.stderr
        assert "ok      data" in cluster.run("doctor").stdout


class TestRebuild:
    @pytest.mark.parametrize("lose", [flush, restart_empty])
    def test_what_runs_and_what_ended_meanwhile_comes_back_once(self, cluster, ledger, redis_server, lose):
        fleet(cluster, redis_server)
        before = identity(redis_server)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=1), ledger.item(seconds=9)])
            wait_until(lambda: started(ledger) == 2, 10, f"both run\n{cluster.logs()}")
            lose(redis_server)
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            wait_until(lambda: stopped(ledger) == 1, 5, "the first goes on to its end")
            answer = cluster.run("rebuild")
            assert answer.returncode == 0, answer.stderr + cluster.logs()
            assert "2 jobs restored" in answer.stdout, cluster.logs()
            assert identity(redis_server) == before
            ledger.submit(client, [ledger.item()])
            assert int(ledger.jobs()[-1]) > int(ledger.jobs()[-2]) + 100, "no id twice"
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=20)
        assert [event.attempt for event in account.events] == [1] * 6, "each ran once"
        assert {end.outcome for end in account.ends if end.job in ledger.jobs()} == {"succeeded"}

    def test_what_a_node_had_received_and_not_begun(self, cluster, ledger, redis_server):
        fleet(cluster, redis_server, channels=[{"name": "1", "slots": 1}])
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=4)])
            wait_until(lambda: started(ledger) == 1, 10, "one runs")
            flush(redis_server)
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            assert cluster.run("rebuild").returncode == 0
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=20)

    def test_a_copy_that_knows_less_does_not_run_what_has_ended(self, cluster, ledger, redis_server):
        fleet(cluster, redis_server)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=3), ledger.item(seconds=12)])
            wait_until(lambda: started(ledger) == 2, 10, "both run")
            ledger.submit(client, [ledger.item(delay=8)])
            keep_copy(redis_server)
            ledger.submit(client, [ledger.item(seconds=0.1)])
            wait_until(lambda: stopped(ledger) == 2, 15, f"two have ended\n{cluster.logs()}")
            wait_until(lambda: record(redis_server, ledger.jobs()[0]).state is State.DONE, 5, "and are collected")
        pass_time(1)
        restore_copy(redis_server)
        wait_until(lambda: loss(redis_server) == b"rolled back", NOTICED, "it is noticed")
        assert record(redis_server, ledger.jobs()[0]).state is not State.DONE
        answer = cluster.run("rebuild")
        assert answer.returncode == 0, answer.stderr + cluster.logs()
        assert record(redis_server, ledger.jobs()[0]).state is State.DONE
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=25)
        assert [event.attempt for event in account.events] == [1] * 8, "nothing ran twice"

    def test_tasks_of_an_array_that_a_copy_shows_unstarted(self, cluster, redis_server):
        """What has ended has ended, what runs goes on, and the rest is held as it was."""
        fleet(cluster, redis_server)
        ran, go = cluster.directory / "ran", cluster.directory / "go"
        text = f"i=$JOBSCHED_ARRAY_INDEX; echo $i >> {ran}; while [ $i -gt 3 -a ! -e {go} ]; do sleep 0.1; done"
        with cluster.client() as client:
            array = client.submit(["sh", "-c", text], array="1-6", hold=True)
            keep_copy(redis_server)
            client.release([array])
            wait_until(lambda: ran.exists() and len(ran.read_text().split()) == 5, 15, f"they run\n{cluster.logs()}")
            wait_until(lambda: array.refresh().counts.outcomes == {"succeeded": 3}, 10, "three have ended")
            wait_until(lambda: cluster.run("history", "--json").stdout.count(f'"{array.id}_') == 3, 10, "for good")
            restore_copy(redis_server)
            wait_until(lambda: loss(redis_server) == b"rolled back", NOTICED, "it is noticed")
            answer = cluster.run("rebuild")
            assert answer.returncode == 0, answer.stderr + cluster.logs()
            counts = array.refresh().counts
            assert (counts.outcomes, counts.active, counts.not_started) == ({"succeeded": 3}, 2, 1), cluster.logs()
            go.touch()
            wait_until(lambda: array.refresh().counts.outcomes == {"succeeded": 5}, 15, "these end")
            pass_time(1)
            assert sorted(ran.read_text().split()) == ["1", "2", "3", "4", "5"], "held it was, and held it is"
            client.release([array])
            assert array.wait(15).outcome == "succeeded"
        assert sorted(ran.read_text().split()) == ["1", "2", "3", "4", "5", "6"], "each ran once"

    def test_a_node_that_was_away_comes_back_later(self, cluster, ledger, redis_server):
        _, node = fleet(cluster, redis_server)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=1)])
            wait_until(lambda: started(ledger) == 1, 10, "it runs")
            busy = [role for role, child in node.children().items() if len(child.children())]
            flush(redis_server)
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            wait_until(lambda: stopped(ledger) == 1, 5, "it has ended")
            for role in busy:
                node.pause(role)
            assert cluster.run("rebuild").returncode == 0
            for role in busy:
                node.resume(role)
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=20)

    def test_a_channel_that_died_too_has_its_results(self, cluster, ledger, redis_server):
        """The spool knows less than a living process, but enough for the end of the job."""
        _, node = fleet(cluster, redis_server, channels=1)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=0.5)])
            wait_until(lambda: started(ledger) == 1, 10, "it runs")
            flush(redis_server)
            wait_until(lambda: stopped(ledger) == 1, 5, "it has ended")
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            pass_time(0.3)
            node.successor("channel 1", of=node.kill("channel 1"))
            assert cluster.run("rebuild").returncode == 0
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=20)
        assert [end.outcome for end in account.ends if end.job in ledger.jobs()] == ["succeeded"]

    def test_a_result_that_is_sent_before_anybody_has_noticed(self, cluster, redis_server):
        """An emptied Redis answers that the entry is gone: that must not pass for 'given to another'."""
        fleet(cluster, redis_server, channels=1, timing={"block": 1, "leader_lease": 3, "lease": 3})
        go = cluster.directory / "go"
        with cluster.client() as client:
            job = client.submit(["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; echo done"])
            wait_until(lambda: record(redis_server, job.id).state is State.RUNNING, 5, "it runs")
            flush(redis_server)
            go.touch()
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            assert cluster.run("rebuild").returncode == 0, cluster.logs()
            job.wait(15)
            assert (job.outcome, job.output(), job.view.header.attempt) == ("succeeded", b"done\n", 1)


class TestAcceptLoss:
    def test_a_new_identity_and_old_results_put_aside(self, cluster, ledger, redis_server):
        fleet(cluster, redis_server)
        before = identity(redis_server)
        with cluster.client() as client:
            old = [client.submit(["sleep", "1"]), client.submit(["sleep", "6"])]
            wait_until(lambda: record(redis_server, old[1].id).state is State.RUNNING, 5, "both run")
            flush(redis_server)
            wait_until(lambda: loss(redis_server), NOTICED, "it is noticed")
            pass_time(1.5)  # one has ended by now
            assert cluster.run("rebuild", "--accept-loss").returncode == 0, cluster.logs()
            assert identity(redis_server) not in (None, before)
            ledger.submit(client, [ledger.item() for _ in range(5)])
            assert int(ledger.jobs()[0]) > int(old[1].id) + 100

            def aside():
                return "given up: node2/" in cluster.run("doctor").stdout

            wait_until(aside, 15, f"the doctor tells of the results\n{cluster.logs()}", every=0.5)
        with redis_server.client() as client:
            judge(cluster, ledger, client, within=20)
        found = list(cluster.directory.rglob(f"aside-{before.decode()}"))
        assert found and sum(path.stat().st_size for path in found) > 100
