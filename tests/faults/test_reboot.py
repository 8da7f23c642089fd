"""A node that starts anew: noticed by the boot id, at once; pids of an earlier boot are nobody's."""

from __future__ import annotations

import os
import subprocess

import pytest

from jobschedd.job import State, decode_header
from jobschedd.slave.recovery import kill_survivors
from jobschedd.slave.register import _BOOT_AT, Register, _packed_boot, boot_id, read_boot
from jobschedd.slave.spool import Home
from jobschedd.store.keys import Keys
from ledger import Ledger, judge
from redis_server import wait_until

KEYS = Keys("test")


@pytest.fixture
def ledger(cluster):
    return Ledger(cluster.directory)


def pretend_another_boot(path):
    """The register says that it was made before the machine was started anew."""
    with open(path, "r+b") as file:
        file.seek(_BOOT_AT)
        file.write(_packed_boot("11111111-2222-3333-4444-555555555555"))


def record(server, job):
    with server.client() as client:
        return decode_header(client.get(KEYS.job(job)))


def crash(cluster, slave):
    """As a reboot: no process is left, and the registers tell of another boot."""
    processes = [slave.supervisor, *slave.supervisor.children(recursive=True)]
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()
    slave.popen.wait(5)
    registers = list(cluster.directory.rglob("register-*"))
    assert registers, "void: there is no register"
    for path in registers:
        pretend_another_boot(path)


def started(ledger):
    return sum(event.kind == "start" for event in ledger.events()[0])


class TestNode:
    def test_its_jobs_run_again_long_before_the_lease_ends(self, cluster, ledger, redis_server):
        timing = {"lease": 30, "heartbeat": 5}
        cluster.start("master", timing=timing)
        slave = cluster.start("slave", channels=1, timing=timing)
        with cluster.client() as client:
            ledger.submit(client, [ledger.item(seconds=1, max_crashes=1), ledger.item(seconds=0.1)])
            wait_until(lambda: started(ledger) == 1, 10, f"it runs\n{cluster.logs()}")
            crash(cluster, slave)
        slave.launch()
        took = wait_until(lambda: started(ledger) == 2, 8, f"it runs again\n{cluster.logs()}")
        print(f"runs again after {took:.2f} s")
        assert record(redis_server, ledger.jobs()[0]).crashes == 0, "nothing is charged"
        assert record(redis_server, ledger.jobs()[0]).tries == 0
        with redis_server.client() as client:
            account = judge(cluster, ledger, client, within=15)
        assert {end.outcome for end in account.ends if end.job in ledger.jobs()} == {"succeeded"}
        assert "rebooted=yes" in slave.log()

    def test_what_may_start_once_only_is_lost(self, cluster, redis_server):
        """Even what the register does not name: after a crash of the machine it may be incomplete."""
        timing = {"lease": 30, "heartbeat": 5}
        cluster.start("master", timing=timing)
        slave = cluster.start("slave", channels=1, timing=timing)
        with cluster.client() as client:
            job = client.submit(["sleep", "300"], retry_on_loss=False)
            wait_until(lambda: record(redis_server, job.id).state is State.RUNNING, 10, "it runs")
            crash(cluster, slave)
            for path in cluster.directory.rglob("register-*"):
                with open(path, "r+b") as file:  # the starts did not reach the disk
                    file.seek(4096)
                    file.write(bytes(8192))
            slave.launch()
            job.wait(10)
            assert (job.outcome, job.cause) == ("lost", "node_lost")


class TestRegister:
    def test_it_keeps_the_boot(self, tmp_path):
        register = Register.create(tmp_path, "a1", 1)
        assert read_boot(register.path) == boot_id() != ""
        register.close()

    @pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"\xff" * 60])
    def test_a_damaged_or_older_one_tells_of_no_boot(self, tmp_path, damage):
        register = Register.create(tmp_path, "a1", 1)
        register.close()
        if damage:
            with open(register.path, "r+b") as file:
                file.seek(_BOOT_AT)
                file.write(damage)
        else:
            os.truncate(register.path, 30)
        assert read_boot(register.path) == ""

    def test_a_pid_of_an_earlier_boot_is_left_alone(self, tmp_path):
        """It may belong to anybody by now, with the very same start time."""
        from jobschedd.slave.processtree import status_of

        home = Home(tmp_path, "c")
        register, spool = home.open("a1", 1)
        innocent = subprocess.Popen(["sleep", "300"], start_new_session=True)
        try:
            register.note(0, "1-1", innocent.pid, status_of(innocent.pid).identity.start)
            spool.close()
            register.close()
            (same_boot,) = Home(tmp_path, "c").predecessors()
            assert not same_boot.rebooted
            pretend_another_boot(register.path)
            (other_boot,) = Home(tmp_path, "c").predecessors()
            assert other_boot.rebooted
            kill_survivors(other_boot)
            assert innocent.poll() is None
            kill_survivors(same_boot)
            assert innocent.wait(5) == -9, "void: it would have been found"
        finally:
            innocent.kill()
            innocent.wait()
