"""Detaching, and the one lock that decides who runs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobschedd.node.pidfile import AlreadyRunning, PidFile, PidFileError
from node_harness import SCRIPT, Node, alive, child, wait_until


@pytest.fixture
def pidfile(tmp_path: Path) -> Path:
    return tmp_path / "node.pid"


def test_the_command_ends_with_0_when_the_daemon_is_ready(node: Node, pidfile: Path) -> None:
    node.configure([child("channel 1", "slow"), child("channel 2", "environment")])
    node.start("--detach", "--pidfile", str(pidfile), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert node.process is not None
    out, err = node.process.communicate(timeout=10)  # ends only because the daemon has let go of the streams
    assert (node.wait(), out, err) == (0, b"", b"")
    assert node.log("ready", child="channel 1"), "not before the slow one was ready"
    daemon = psutil.Process(int(pidfile.read_text()))
    assert os.getsid(daemon.pid) not in (daemon.pid, os.getsid(0)), "in a new session, and not its leader"
    assert daemon.cwd() == "/" and daemon.terminal() is None
    assert {os.readlink(f"/proc/{daemon.pid}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}
    assert [int(each["pipes"]) for each in node.log("descriptors")] == [3], "no child holds the readiness pipe"
    umask = Path(f"/proc/{daemon.pid}/status").read_text().split("Umask:")[1].split()[0]
    assert umask == "0027"
    daemon.terminate()
    wait_until(lambda: not alive(daemon.pid))
    assert not pidfile.exists()


def test_the_command_prints_why_the_daemon_did_not_come_up(node: Node, pidfile: Path) -> None:
    node.configure([child("channel 1")], refuse="no role for this node")
    node.start("--detach", "--pidfile", str(pidfile))
    assert node.wait() == 78
    assert f"jobschedd: {node.config}:1: role: no role for this node\n" in node.text()
    assert "Traceback" not in node.text()
    assert not pidfile.exists()


def test_the_command_fails_when_every_child_fails(node: Node) -> None:
    node.configure([child("channel 1", "broken")])
    node.start("--detach")
    assert node.wait() == 1
    assert "jobschedd: the daemon ended before it was ready; see its log" in node.text()


def test_a_daemon_killed_before_it_is_ready(node: Node) -> None:
    node.configure([child("channel 1", "late")], start_timeout=60)
    node.start("--detach")
    os.kill(node.wait_log("started")[0]["process_pid"], signal.SIGKILL)
    assert node.wait() == 1


def test_a_second_start_is_told_who_runs(node: Node, pidfile: Path) -> None:
    node.run([child("channel 1")], "--pidfile", str(pidfile))
    for arguments in ([], ["--detach"]):
        command = [sys.executable, str(SCRIPT), str(node.config), "--pidfile", str(pidfile), *arguments]
        second = subprocess.run(command, capture_output=True, text=True, timeout=10)
        assert second.returncode == 1
        assert f"already running, pid {node.pid} (it holds {pidfile})" in second.stderr
    assert int(pidfile.read_text()) == node.pid
    assert node.stop() == 0


def test_of_twenty_starts_at_once_exactly_one_runs(node: Node, pidfile: Path) -> None:
    node.configure([child("channel 1")])
    command = [sys.executable, str(SCRIPT), str(node.config), "--pidfile", str(pidfile)]
    crowd = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(20)]
    try:
        wait_until(lambda: sum(each.poll() is None for each in crowd) == 1, 30)
        winner = next(each for each in crowd if each.poll() is None)
        losers = [each for each in crowd if each is not winner]
        assert {each.wait() for each in losers} == {1}
        said = [each.communicate()[1] for each in losers]
        assert all(f"already running, pid {winner.pid}" in each for each in said), said
        assert int(pidfile.read_text()) == winner.pid
        winner.terminate()
        assert winner.wait(10) == 0
    finally:
        for each in crowd:
            each.kill()
            each.wait()
            if each.stderr is not None:
                each.stderr.close()


def test_a_killed_daemon_can_be_replaced_at_once(node: Node, pidfile: Path) -> None:
    node.run([child("channel 1", "working")], "--pidfile", str(pidfile))
    old = node.pid
    os.kill(old, signal.SIGKILL)
    node.wait()
    # Its children still finish: they must not hold the lock meanwhile.
    node.log_path.unlink()
    node.run([child("channel 1")], "--pidfile", str(pidfile))
    assert int(pidfile.read_text()) == node.pid != old
    assert node.stop() == 0


@pytest.mark.parametrize("content", ["", "1\n", "999999999\n", "nonsense\n", "\0" * 5000])
def test_what_a_stale_file_says_does_not_matter(pidfile: Path, content: str) -> None:
    pidfile.write_text(content)
    with PidFile(pidfile):
        assert pidfile.read_text() == f"{os.getpid()}\n"
        with pytest.raises(AlreadyRunning, match=f"already running, pid {os.getpid()}"), PidFile(pidfile):
            pass
    assert not pidfile.exists()


def test_a_symbolic_link_is_refused(pidfile: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    pidfile.symlink_to(precious)
    with pytest.raises(PidFileError, match=r"node\.pid: it is a symbolic link"), PidFile(pidfile):
        pass
    assert precious.read_text() == "data"


def test_what_is_no_regular_file_is_refused(pidfile: Path, tmp_path: Path) -> None:
    os.mkfifo(pidfile)
    with pytest.raises(PidFileError, match="not a regular file"), PidFile(pidfile):
        pass
    assert stat.S_ISFIFO(pidfile.stat().st_mode)
    with pytest.raises(PidFileError, match="Is a directory"), PidFile(tmp_path):
        pass
    with pytest.raises(PidFileError, match="No such file or directory"), PidFile(tmp_path / "absent" / "pid"):
        pass


def test_a_forked_child_does_not_remove_it(pidfile: Path) -> None:
    with PidFile(pidfile):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert pidfile.exists()
        with pytest.raises(AlreadyRunning), PidFile(pidfile):
            pass
