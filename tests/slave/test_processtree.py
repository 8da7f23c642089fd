"""Seeing and ending processes; how whole jobs are swept is in test_process.py."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from jobschedd.slave import processtree
from jobschedd.slave.processtree import (
    Identity,
    children_by_scan,
    children_of,
    descendants_of,
    send,
    status_of,
    ticks_now,
)
from redis_server import wait_until
from station import ours


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_status(sleeper):
    wait_until(lambda: status_of(sleeper.pid).state == "S", 5, "it sleeps")
    status = status_of(sleeper.pid)
    assert (status.parent, status.group, status.session) == (os.getpid(), sleeper.pid, sleeper.pid)
    assert 0 <= ticks_now() - status.identity.start < 10 * processtree.TICKS


def test_a_name_made_to_confuse(tmp_path):
    path = tmp_path / "a) S 1 (b"
    path.symlink_to("/bin/sleep")
    process = subprocess.Popen([path, "60"])
    try:
        status = status_of(process.pid)
        assert (status.parent, status.identity.pid) == (os.getpid(), process.pid)
    finally:
        process.kill()
        process.wait()


def test_nobody():
    process = subprocess.Popen(["true"])
    process.wait()
    assert status_of(process.pid) is None
    assert children_of(process.pid) == []
    send(Identity(process.pid, 0), signal.SIGKILL)


def test_children_of_every_thread(sleeper):
    done, started = threading.Event(), []

    def start() -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        done.wait(10)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        wait_until(lambda: started, 5, "the thread has a child")
        assert set(ours(children_of(os.getpid()))) == {sleeper.pid, started[0].pid}
    finally:
        started[0].kill()
        started[0].wait()
        done.set()
        thread.join()


def test_without_the_kernel_s_list(sleeper, monkeypatch):
    assert ours(children_by_scan(os.getpid())) == [sleeper.pid]
    monkeypatch.setattr(processtree, "_kernel_lists_children", lambda: False)
    assert ours(children_of(os.getpid())) == [sleeper.pid]


def test_descendants_are_found_at_any_depth():
    process = subprocess.Popen(["sh", "-c", "sh -c 'setsid sleep 60 & sleep 60' & wait"])
    try:
        wait_until(lambda: len(descendants_of(process.pid)) == 3, 5, "three are below it")
        parents = {status.parent for status in descendants_of(process.pid)}
        assert process.pid in parents and len(parents) == 2
    finally:
        for status in descendants_of(process.pid):
            send(status.identity, signal.SIGKILL)
        process.kill()
        process.wait()


def test_a_recycled_number_is_not_signalled(sleeper):
    wait_until(lambda: status_of(sleeper.pid).state == "S", 5, "it sleeps")
    identity = status_of(sleeper.pid).identity
    send(Identity(sleeper.pid, identity.start - 1), signal.SIGKILL)
    # A SIGKILL is seen by the time that the next one is sent: the process would be gone or going.
    assert status_of(sleeper.pid).state == "S"
    assert sleeper.poll() is None
    send(identity, signal.SIGKILL)
    assert sleeper.wait(5) == -signal.SIGKILL
