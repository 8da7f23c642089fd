"""SIGHUP: all or nothing, and only what changed is touched."""

from __future__ import annotations

import os
import signal

import psutil

from node_harness import Node, alive, child, wait_until


def reload(node: Node) -> None:
    before = len(node.log("reloaded"))
    node.send(signal.SIGHUP)
    node.wait_log("reloaded", count=before + 1)


def test_added_start_removed_drain_changed_are_replaced_unchanged_stay(node: Node) -> None:
    node.run([child("kept"), child("removed", "working"), child("changed", "working", fingerprint="1")])
    before = {name: node.ready_pid(name) for name in ("kept", "removed", "changed")}
    node.configure([child("added"), child("kept"), child("changed", "working", fingerprint="2")])
    reload(node)
    assert node.ready_pid("added")
    fresh = node.ready_pid("changed", other_than=before["changed"])
    assert alive(before["changed"]), "the new one starts beside the draining old one, not after it"
    stopped = {each["pid"] for each in node.wait_log("stopped", count=2, child=...)}
    assert stopped == {before["removed"], before["changed"]}
    assert [each["stop"] for each in node.log("ends")] == ["drain", "drain"]
    assert node.ready_pid("kept") == before["kept"] and node.ready_pid("changed") == fresh
    assert not node.log("died")
    assert node.stop() == 0


def test_a_removed_child_that_does_not_drain_is_killed(node: Node) -> None:
    node.run([child("kept"), child("removed", "stubborn", drain_timeout=0.1)])
    node.configure([child("kept")])
    reload(node)
    node.wait_log("killed: it did not stop in time", child="removed")
    node.wait_log("stopped", child="removed")
    assert node.stop() == 0


def test_a_bad_file_changes_nothing_and_is_told_with_its_line(node: Node) -> None:
    node.run([child("channel 1")])
    pid = node.ready_pid("channel 1")
    node.configure([child("channel 2")], problem="unknown key 'slot', did you mean 'slots'?")
    node.send(signal.SIGHUP)
    refusal = node.wait_log("reload refused, everything goes on as before")[0]
    where = f"{node.config}:7: slave.channels: unknown key 'slot'"
    assert refusal["level"] == "error" and refusal["problem"].startswith(where)
    node.send(signal.SIGUSR2)
    assert f"reload failed: {where}" in node.wait_log("state")[0]["status"]
    assert node.ready_pid("channel 1") == pid

    node.configure([child("channel 1")], problem=None)
    reload(node)
    node.send(signal.SIGUSR2)
    assert node.wait_log("state", count=2)[-1]["status"] == "channel 1 running; channel 1: idle"
    assert node.ready_pid("channel 1") == pid


def test_a_defect_in_load_and_a_double_name_change_nothing_either(node: Node) -> None:
    node.run([child("channel 1")])
    pid = node.ready_pid("channel 1")
    node.configure(bug=True)
    node.send(signal.SIGHUP)
    first = node.wait_log("reload failed, everything goes on as before")[0]
    assert first["cause"] == "ZeroDivisionError: a defect in load"
    node.configure([child("channel 1"), child("channel 2"), child("channel 2")], bug=False)
    node.send(signal.SIGHUP)
    second = node.wait_log("reload failed, everything goes on as before", count=2)[1]
    assert second["cause"] == "ValueError: several children are named channel 2"
    assert node.ready_pid("channel 1") == pid
    assert len(psutil.Process(node.pid).children()) == 1


def test_a_bad_first_file_is_the_callers_error(node: Node) -> None:
    node.configure([], problem="nothing here")
    node.start()
    assert node.wait() != 0
    assert "nothing here" in node.text()


def test_a_slow_load_is_no_silence_of_the_children(node: Node) -> None:
    node.run([child("channel 1"), child("channel 2", "working")])
    pids = [node.ready_pid("channel 1"), node.ready_pid("channel 2")]
    node.configure(load_takes=1.5)  # longer than the liveness timeout
    reload(node)
    node.send(signal.SIGUSR2)
    node.wait_log("state")
    assert not node.log("killed: it hangs")
    assert [node.ready_pid("channel 1"), node.ready_pid("channel 2")] == pids
    node.configure(load_takes=0)
    assert node.stop() == 0


def test_a_storm_is_coalesced_and_the_last_file_counts(node: Node) -> None:
    node.run([child("channel 1")], reload_pause=0.3)
    pid = node.ready_pid("channel 1")
    for number in range(100):
        node.configure([child("channel 1"), child(f"channel {number + 2}")])
        node.send(signal.SIGHUP)
    node.ready_pid("channel 101")
    assert 1 <= len(node.log("reloaded")) <= 10
    wait_until(lambda: len(psutil.Process(node.pid).children()) == 2, hint=node.text)
    assert node.ready_pid("channel 1") == pid
    assert node.stop() == 0


def test_during_the_start_and_during_a_drain(node: Node) -> None:
    node.configure([child("base", "slow", stage=0), child("channel 1", "working", stage=1)])
    node.start()
    node.wait_log("started", child="base")
    node.configure([child("base", "slow", stage=0), child("channel 2", "working", stage=1)])
    node.send(signal.SIGHUP)
    node.ready_pid("channel 2")
    assert not node.log("started", child="channel 1")
    node.send(signal.SIGTERM)
    node.wait_log("told", process="channel 2")
    node.configure([child("channel 3")])
    node.send(signal.SIGHUP)
    assert node.wait() == 0
    assert not node.log("started", child="channel 3")


def test_a_changed_program_starts_after_its_predecessor_ended(node: Node) -> None:
    lock = node.directory / "lock"
    lock.touch()
    server = {"name": "server", "program": ["flock", "-n", str(lock), "sleep", "1009"], "fingerprint": "1"}
    node.run([server, child("channel 1", stage=1)])
    before = node.ready_pid("server")
    node.configure([{**server, "fingerprint": "2"}, child("channel 1", stage=1)])
    reload(node)
    # Side by side, flock -n would have ended the second one at once.
    assert node.ready_pid("server", other_than=before) != before
    assert not node.log("died", child="server")
    assert node.stop() == 0


def test_all_children_may_go_and_come_back(node: Node) -> None:
    node.run([child("channel 1")])
    node.configure([])
    reload(node)
    node.wait_log("stopped", child="channel 1")
    node.configure([child("channel 1")])
    reload(node)
    os.kill(node.ready_pid("channel 1"), 0)
    assert node.stop() == 0
