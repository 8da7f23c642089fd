"""Life and death of children: real forks, real signals, the times divided by ten."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from node_harness import Node, alive, child, descendants, wait_until
from redis_server import hold

CHANNELS = [child(f"channel {number}") for number in (1, 2, 3)]


def test_one_process_for_each_child_and_nothing_else(node: Node) -> None:
    node.run(CHANNELS)
    titles = sorted(" ".join(each.cmdline()).strip() for each in psutil.Process(node.pid).children())
    assert titles == ["jobschedd: channel 1", "jobschedd: channel 2", "jobschedd: channel 3"]
    assert " ".join(psutil.Process(node.pid).cmdline()).strip() == "jobschedd: supervisor (test)"
    assert node.stop() == 0
    assert not descendants()


def test_stages_start_in_order_and_stop_in_reverse(node: Node) -> None:
    node.run([child("worker", stage=2), child("base", "slow", stage=0), child("middle", stage=1)])
    started = [each["child"] for each in node.log("started")]
    assert started == ["base", "middle", "worker"]
    events = [(each["message"], each.get("child")) for each in node.log(process="supervisor")]
    assert events.index(("ready", "base")) < events.index(("started", "middle"))
    assert node.stop() == 0
    assert [each["child"] for each in node.log("stopped", child=...)] == ["worker", "middle", "base"]


def test_a_stage_that_is_never_ready_delays_the_next_only_for_the_start_timeout(node: Node) -> None:
    node.run([child("base", "late", stage=0), child("worker", stage=1)], start_timeout=0.3)
    assert node.ready_pid("worker")
    assert not node.log("ready", child="base")
    assert node.stop() == 0


def test_a_killed_child_is_back_at_once_and_the_others_do_not_notice(node: Node) -> None:
    node.run(CHANNELS)
    before = {each["name"]: node.ready_pid(each["name"]) for each in CHANNELS}
    os.kill(before["channel 2"], signal.SIGKILL)
    began = time.monotonic()
    after = node.ready_pid("channel 2", other_than=before["channel 2"])
    assert time.monotonic() - began < 2
    assert after != before["channel 2"]
    assert node.ready_pid("channel 1") == before["channel 1"]
    assert node.ready_pid("channel 3") == before["channel 3"]
    assert node.log("died", child="channel 2")[0]["end"] == "signal KILL"


def test_a_child_killed_again_and_again_is_never_given_up(node: Node) -> None:
    node.run(CHANNELS[:1])
    pid = 0
    for _ in range(8):
        pid = node.ready_pid("channel 1", other_than=pid, timeout=2)
        os.kill(pid, signal.SIGKILL)
    assert node.ready_pid("channel 1", other_than=pid, timeout=2)
    assert node.stop() == 0


def test_fifty_children_dying_at_once_are_all_replaced(node: Node) -> None:
    names = [f"channel {number}" for number in range(50)]
    node.run([child(name) for name in names])
    before = {name: node.ready_pid(name) for name in names}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    after = {name: node.ready_pid(name, other_than=before[name]) for name in names}
    assert not set(before.values()) & set(after.values())
    assert {each["child"] for each in node.log("died")} == set(names)
    assert len(psutil.Process(node.pid).children()) == 50
    assert node.stop() == 0


def test_a_crash_loop_is_given_up_loudly_while_the_others_run_on(node: Node) -> None:
    node.configure([child("channel 1"), child("channel 2", "broken")])
    node.start()
    given_up = node.wait_log("GIVEN UP: it keeps dying before it is ready; mend it and reload (SIGHUP)")[0]
    assert given_up["child"] == "channel 2" and given_up["failures"] == 5 and given_up["level"] == "error"
    assert given_up["cause"] == "ValueError: no such module: nonsense\\nand a second line"
    assert len(node.log("died", child="channel 2")) == 4
    assert alive(node.ready_pid("channel 1"))
    status = node.wait_log("ready", status=...)[0]["status"]
    assert status.startswith("degraded: channel 2 given up after 5 failed starts: ValueError: no such module")
    assert "channel 1 running" in status

    node.configure([child("channel 1"), child("channel 2", "steady", fingerprint="broken")])
    node.send(signal.SIGHUP)
    assert node.ready_pid("channel 2")
    assert node.stop() == 0


def test_an_error_of_ours_is_one_line_without_a_traceback(node: Node) -> None:
    node.configure([child("channel 1", "refused"), child("channel 2")])
    node.start()
    assert node.wait_log("failed", process="channel 1")[0]["cause"] == "x.yaml:3: slave: nonsense"
    assert node.wait_log("died", child="channel 1")[0]["end"] == "exit code 78"
    assert node.stop() == 0
    assert "Traceback" not in node.text()


def test_when_every_child_was_given_up_the_node_ends_with_1(node: Node) -> None:
    node.configure([child("channel 1", "broken"), {"name": "server", "program": ["sleep", "1000"]}])
    node.start()
    assert node.wait() == 1
    assert node.log("stopped", child="server")


@pytest.mark.parametrize("how", ["hanging", "stopped"])
def test_a_silent_child_is_killed_and_replaced(node: Node, how: str) -> None:
    node.run([child("channel 1", "hanging" if how == "hanging" else "steady"), child("channel 2")])
    other = node.ready_pid("channel 2")
    pid = int(node.wait_log("ready", child="channel 1")[0]["pid"])
    if how == "stopped":
        hold(pid)
    assert node.wait_log("killed: it hangs", child="channel 1")[0]["pid"] == pid
    node.ready_pid("channel 1", other_than=pid)
    assert node.ready_pid("channel 2") == other
    assert node.stop(signal.SIGINT) == 0


def test_after_a_suspend_the_children_are_given_time(node: Node) -> None:
    node.run(CHANNELS)
    everybody = [node.pid, *(node.ready_pid(each["name"]) for each in CHANNELS)]
    for pid in everybody:
        hold(pid)
    time.sleep(1.6)  # longer than the liveness timeout: the one thing that cannot be waited for
    os.kill(node.pid, signal.SIGCONT)
    node.wait_log("a late round; the children get a fresh liveness timeout", late=...)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    node.send(signal.SIGUSR2)
    node.wait_log("state")
    assert not node.log("killed: it hangs")
    assert [node.ready_pid(each["name"]) for each in CHANNELS] == everybody[1:]


def test_what_a_dead_child_leaves_behind_is_killed(node: Node) -> None:
    node.run([child("channel 1", "family"), child("channel 2")])
    pid = node.ready_pid("channel 1")

    def sleeping() -> list[psutil.Process]:
        return [each for each in descendants() if each.name() in ("sleep", "sh")]

    whole = {"1001", "1002", "1003", "1004", "1005"}
    wait_until(lambda: {each.cmdline()[-1] for each in sleeping()} >= whole)
    escaped = sleeping()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(each.is_running() for each in escaped), 5, node.text)
    left = node.log("killed a process that a dead child left behind")
    assert len({each["pid"] for each in left}) == len(left)
    assert node.stop() == 0  # the new one leaves its family behind again, and the end waits for those, too
    assert not descendants()


def test_children_from_before_an_exec_are_not_ours_to_kill(node: Node) -> None:
    node.configure(CHANNELS[:1])
    node.start(prefix=["sh", "-c", 'sleep 1007 & exec "$@"', "sh"])
    pid = node.ready_pid("channel 1")
    helper = next(each for each in psutil.Process(node.pid).children() if each.name() == "sleep")
    os.kill(pid, signal.SIGKILL)
    node.ready_pid("channel 1", other_than=pid)
    assert helper.is_running()
    assert node.stop() == 0
    helper.kill()


def test_a_killed_supervisor_leaves_no_process(node: Node) -> None:
    server = {"name": "server", "program": ["sleep", "1006"], "stage": 0}
    behaviours = ["steady", "working", "deaf", "stubborn"]
    node.run([server, *(child(f"channel {each}", each, stage=1) for each in behaviours)])
    assert len(psutil.Process(node.pid).children()) == 5
    os.kill(node.pid, signal.SIGKILL)
    began = time.monotonic()
    node.wait()
    wait_until(lambda: not descendants(), 6, lambda: [each.cmdline() for each in descendants()])
    assert time.monotonic() - began < 5
    ends = node.log("ends", process="channel working")[0]
    assert (ends["stop"], ends["orphaned"]) == ("now", True)


def test_a_child_killed_in_the_fork_window_is_started_again(node: Node) -> None:
    os.environ["JOBSCHED_FAILPOINTS"] = f"supervisor.fork.after:kill:1:{node.directory / 'fired'}"
    try:
        node.run(CHANNELS[:1])
    finally:
        del os.environ["JOBSCHED_FAILPOINTS"]
    assert node.log("died", child="channel 1")[0]["end"] == "signal KILL"
    assert node.ready_pid("channel 1")


def test_a_child_whose_parent_died_in_the_fork_window_ends_itself(node: Node) -> None:
    node.configure(CHANNELS[:1])
    os.environ["JOBSCHED_FAILPOINTS"] = "supervisor.fork.after:stop"
    try:
        node.start()
    finally:
        del os.environ["JOBSCHED_FAILPOINTS"]
    pid = int(node.wait_log("started", child="channel 1")[0]["pid"])
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    os.kill(node.pid, signal.SIGKILL)
    node.wait()
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not alive(pid), 2)


def test_a_program_runs_in_its_own_session_and_is_ready_when_its_check_says_so(node: Node) -> None:
    ready_file = node.directory / "ready"
    server = {"name": "server", "program": ["sleep", "1008"], "ready_file": str(ready_file)}
    node.configure([server, child("channel 1", stage=1)], start_timeout=30)
    node.start()
    pid = int(node.wait_log("started", child="server")[0]["pid"])
    wait_until(lambda: psutil.Process(pid).name() == "sleep")
    assert os.getsid(pid) == pid
    assert not node.log("started", child="channel 1")
    ready_file.touch()
    node.ready_pid("channel 1")
    os.killpg(node.pid, signal.SIGINT)  # Ctrl-C: the foreground process group
    assert node.wait() == 0
    assert [each["child"] for each in node.log("stopped", child=...)] == ["channel 1", "server"]


def test_a_quiet_supervisor_sleeps(node: Node) -> None:
    """A program's status pipe is at its end from its exec on: that must not keep the supervisor awake."""
    node.run([{"name": "server", "program": ["sleep", "1009"]}, child("channel 1", stage=1)])
    node.ready_pid("channel 1")
    supervisor = psutil.Process(node.pid)
    began, before = time.monotonic(), sum(supervisor.cpu_times()[:2])
    wakes = supervisor.num_ctx_switches().voluntary
    wait_until(lambda: time.monotonic() - began > 1.5)
    # A few children's beats and its own time-outs; a loop without sleep makes thousands, or burns the CPU.
    assert supervisor.num_ctx_switches().voluntary - wakes < 60
    assert sum(supervisor.cpu_times()[:2]) - before < 0.5


def test_a_program_that_cannot_be_executed_says_so(node: Node) -> None:
    node.configure([{"name": "server", "program": ["/nonexistent/server"]}, child("channel 1", stage=1)])
    node.start()
    died = node.wait_log("died", child="server")[0]
    assert died["end"] == "exit code 127" and died["cause"].startswith("cannot execute /nonexistent/server: No such")
    assert node.stop() == 0


# The stop


def test_term_drains(node: Node) -> None:
    node.run([child("channel 1", "working"), child("channel 2")])
    assert node.stop() == 0
    assert node.log("told", process="channel 1")[0]["stop"] == "drain"
    assert node.log("ends", process="channel 1")[0]["stop"] == "drain"
    assert not node.log("killed: it did not stop in time")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_stops_now(node: Node, second: signal.Signals) -> None:
    node.run([child("channel 1", "working", drain_timeout=30)])
    node.send(signal.SIGTERM)
    node.wait_log("told", process="channel 1", stop="drain")
    assert node.stop(second) == 0
    assert node.log("ends", process="channel 1")[0]["stop"] == "now"


def test_a_child_that_does_not_drain_is_killed_after_its_drain_timeout(node: Node) -> None:
    node.run([child("channel 1", "stubborn", drain_timeout=0.3), child("channel 2", "working", drain_timeout=5)])
    assert node.stop() == 0
    killed = node.log("killed: it did not stop in time")
    assert [each["child"] for each in killed] == ["channel 1"]
    assert node.log("ends", process="channel 2")[0]["stop"] == "drain"


def test_a_child_that_does_not_stop_now_is_killed(node: Node) -> None:
    node.run([child("channel 1", "deaf", drain_timeout=60)])
    began = time.monotonic()
    assert node.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 2
    assert node.log("killed: it did not stop in time", child="channel 1")


def test_term_at_any_moment_ends_orderly(node: Node) -> None:
    chance = random.Random(20)
    pidfile = node.directory / "node.pid"
    children = [child("base", "slow"), child("channel 1", stage=1), child("channel 2", "broken", stage=1)]
    for _ in range(8):
        node.log_path.unlink(missing_ok=True)
        node.configure(children)
        node.start("--pidfile", str(pidfile))
        time.sleep(chance.uniform(0, 1.0))
        code = node.stop()
        # Before our first line Python itself still has the default: the kernel ends it, with nothing begun.
        assert code == 0 or (code == -signal.SIGTERM and not node.log("up")), node.text()
        assert not pidfile.exists()
        assert not descendants()


# Other signals and surroundings


def test_usr2_dumps_the_state(node: Node) -> None:
    node.run(CHANNELS)
    node.send(signal.SIGUSR2)
    wait_until(lambda: len(node.log("state of a process")) == 3)
    assert node.log("state")[0]["status"].startswith("3 channels running")
    wait_until(lambda: node.text().count("most recent call first") == 3, hint=node.text)
    assert node.stop() == 0


def test_usr1_reopens_the_log_everywhere(node: Node) -> None:
    node.run([child("channel 1", "working")])
    moved = node.log_path.rename(node.directory / "log.1")
    node.send(signal.SIGUSR1)
    wait_until(node.log_path.exists)
    assert node.stop() == 0
    wait_until(lambda: node.log("ends", process="channel 1"), hint=moved.read_text)
    assert node.log("stopped", exit_code=0)


def test_a_child_inherits_nothing_of_the_supervisor(node: Node) -> None:
    node.run([child("channel 1"), child("channel 2"), child("channel 3", "environment", stage=1)])
    # Its own status pipe and its own wake-up pipe.
    assert node.wait_log("descriptors")[0]["pipes"] == 3
    assert int(node.wait_log("signals")[0]["blocked"], 16) == 0
    assert node.stop() == 0


def test_it_lives_with_blocked_signals_closed_descriptors_and_an_empty_environment(node: Node) -> None:
    node.configure([child("channel 1"), child("channel 2", "environment")])
    block = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); "
        "os.umask(0); [os.close(fd) for fd in (0, 1, 2)]; os.execve(sys.argv[1], sys.argv[1:], {'TZ': ':odd'})"
    )
    node.start(prefix=[sys.executable, "-c", block])
    node.ready_pid("channel 1")
    descriptors = Path(f"/proc/{node.pid}/fd")
    assert [os.readlink(descriptors / str(number)) for number in (0, 1, 2)] == ["/dev/null"] * 3
    assert int(node.wait_log("signals")[0]["blocked"], 16) == 0
    assert node.stop() == 0


def test_no_threads_and_no_busy_loop(node: Node) -> None:
    node.run(CHANNELS, liveness_timeout=10)
    supervisor = psutil.Process(node.pid)
    assert supervisor.num_threads() == 1
    family = [supervisor, *supervisor.children()]
    before = sum(sum(each.cpu_times()[:2]) for each in family)
    time.sleep(1.0)  # what is measured is that nothing happens
    assert sum(sum(each.cpu_times()[:2]) for each in family) - before <= 0.05
