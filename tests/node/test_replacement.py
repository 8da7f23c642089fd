"""A new build: the supervisor executes itself anew, same pid, the old children drain beside the new."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from node_harness import Node, NotifySocket, alive, child


def install(node: Node, build: str, **settings: object) -> None:
    ups = len(node.log("up"))
    node.configure(build=build, **settings)
    node.send(signal.SIGHUP)
    node.wait_log("up", count=ups + 1)


def test_same_pid_new_children_and_the_old_ones_drain(node: Node) -> None:
    node.run([child("channel 1", "working"), child("channel 2")], build="1")
    old = {name: node.ready_pid(name) for name in ("channel 1", "channel 2")}
    install(node, "2")
    assert [each["process_pid"] for each in node.log("up")] == [node.pid, node.pid]
    assert node.wait_log("took over from the former build")[0]["children"] == 2
    new = {name: node.ready_pid(name, other_than=pid) for name, pid in old.items()}
    assert alive(old["channel 1"]), "it drains for half a second beside its successor"
    stopped = {each["pid"] for each in node.wait_log("stopped", count=2, child=...)}
    assert stopped == set(old.values())
    assert node.log("ends", process="channel 1")[0]["stop"] == "drain"
    assert {each.pid for each in psutil.Process(node.pid).children()} == set(new.values())

    # The successor is as good as the original: it restarts, notices hangs, reloads, is replaced again, stops.
    os.kill(new["channel 2"], signal.SIGKILL)
    again = node.ready_pid("channel 2", other_than=new["channel 2"])
    install(node, "3")
    assert node.ready_pid("channel 2", other_than=again)
    descriptors = len(os.listdir(f"/proc/{node.pid}/fd"))
    node.wait_log("stopped", count=4, child=...)
    install(node, "4")
    node.wait_log("stopped", count=6, child=...)
    assert len(os.listdir(f"/proc/{node.pid}/fd")) <= descriptors, "no descriptor is left over from an exec"
    assert node.stop() == 0


def test_a_program_is_no_part_of_the_build_and_stays(node: Node) -> None:
    server = {"name": "server", "program": ["sleep", "1010"], "fingerprint": "1"}
    node.run([server, child("channel 1", stage=1)], build="1")
    pid, channel = node.ready_pid("server"), node.ready_pid("channel 1")
    install(node, "2")
    node.ready_pid("channel 1", other_than=channel)
    assert alive(pid) and not node.log("stopped", child="server")
    os.kill(pid, signal.SIGKILL)
    assert node.ready_pid("server", other_than=pid)
    assert node.stop() == 0


def test_a_bad_file_keeps_the_old_build(node: Node) -> None:
    node.run([child("channel 1")], build="1")
    pid = node.ready_pid("channel 1")
    node.configure(build="2", problem="broken")
    node.send(signal.SIGHUP)
    node.wait_log("reload refused, everything goes on as before")
    assert node.ready_pid("channel 1") == pid
    assert len(node.log("up")) == 1


def test_what_only_the_new_build_refuses_leaves_the_old_children_at_work(node: Node) -> None:
    node.run([child("channel 1", "working")], build="1")
    pid = node.ready_pid("channel 1")
    install(node, "2", only_new_build_refuses=True)
    node.wait_log("reload refused, everything goes on as before")
    assert alive(pid) and not node.log("told")
    node.configure(only_new_build_refuses=False)
    node.send(signal.SIGHUP)
    assert node.ready_pid("channel 1", other_than=pid)
    node.wait_log("stopped", child="channel 1")
    assert node.stop() == 0


def test_when_exec_fails_the_old_build_goes_on(node: Node) -> None:
    node.run([child("channel 1")], build="1", python="/nonexistent/python")
    pid = node.ready_pid("channel 1")
    node.configure([child("channel 1"), child("channel 2")], build="2")
    node.send(signal.SIGHUP)
    node.wait_log("cannot re-execute; going on with the old build")
    assert node.ready_pid("channel 2")
    assert node.ready_pid("channel 1") == pid
    assert node.stop() == 0


def test_the_lock_the_detachment_and_the_notify_socket_survive(node: Node) -> None:
    pidfile = node.directory / "node.pid"
    notify = NotifySocket(str(node.directory / "notify"))
    node.configure([child("channel 1", "environment")], build="1")
    environment = {**os.environ, "NOTIFY_SOCKET": notify.address, "WATCHDOG_USEC": "300000"}
    relative = os.path.relpath(node.config)
    node.start("--detach", "--pidfile", str(pidfile), env=environment)
    assert node.wait() == 0
    daemon = int(pidfile.read_text())
    node.configure(build="2")
    os.kill(daemon, signal.SIGHUP)
    up = node.wait_log("up", count=2)[1]
    assert up["process_pid"] == daemon and up["cwd"] == "/" and not os.path.isabs(relative)
    node.wait_log("stopped", child="channel 1")
    assert notify.wait_for("RELOADING=1").split("\n")[1].startswith("MONOTONIC_USEC=")
    seen = len(notify.messages())
    notify.wait_for("WATCHDOG=1", after=seen)
    assert [each["names"] for each in node.log("environment")] == ["", ""]

    second = Node(node.directory)
    second.start("--pidfile", str(pidfile))
    assert second.wait() == 1
    assert f"already running, pid {daemon}" in second.text()
    os.kill(daemon, signal.SIGTERM)
    node.wait_log("stopped", exit_code=0)
    notify.close()
    assert not Path(pidfile).exists()
