"""Commands with real processes: every way to start, to end and to refuse to end."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import ClassVar

import pytest

from jobschedd.job import Captured, Cause, Order, Outcome, Spec
from jobschedd.slave import process
from jobschedd.slave.executable import REASONS
from jobschedd.slave.process import CommandRun, StartFailed, inherit_nothing
from jobschedd.slave.processtree import status_of
from redis_server import wait_until
from station import living, offspring

PYTHON = sys.executable


def whole(captured: Captured) -> bytes:
    assert not captured.truncated
    return captured.head + captured.tail


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


class TestEnds:
    def test_success(self, station):
        result = station.run("true")
        assert (result.outcome, result.cause, result.exit_code, result.signal) == (
            Outcome.SUCCEEDED,
            Cause.EXIT,
            0,
            None,
        )
        assert (result.node, result.channel) == ("n1", "c1")
        assert not result.escalated and not result.output_open and not result.error

    def test_its_exit_code(self, station):
        result = station.shell("exit 7")
        assert (result.outcome, result.cause, result.exit_code) == (Outcome.FAILED, Cause.EXIT, 7)

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGTERM])
    def test_a_signal_that_we_did_not_send(self, station, number):
        result = station.shell(f"ulimit -c 0; kill -{number:d} $$")
        assert (result.outcome, result.cause, result.signal) == (Outcome.FAILED, Cause.SIGNAL, number)
        assert result.exit_code is None
        assert number.name in result.error

    def test_a_shell_that_passes_on_a_signal_is_an_exit(self, station):
        result = station.shell("sh -c 'kill -KILL $$'; exit $?")
        assert (result.cause, result.exit_code, result.signal) == (Cause.EXIT, 137, None)
        assert "SIGKILL" in result.error

    def test_times_and_usage(self, station):
        before = time.time()
        # Whatever stays below our own peak could not be told apart.
        size = max(120 << 20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (32 << 20))
        code = f"import time\nx = bytearray({size})\nwhile time.process_time() < .2: pass"
        result = station.run(PYTHON, "-c", code)
        assert before <= result.started <= result.ended <= time.time()
        assert 0.2 <= result.duration <= 10
        assert result.duration == pytest.approx(result.ended - result.started)
        assert 0.2 <= result.cpu <= 5
        assert size <= result.peak_rss <= size + (280 << 20)

    def test_a_peak_below_our_own_is_not_made_up(self, station):
        assert station.run("true").peak_rss == 0

    def test_closed_output_is_not_the_end(self, station):
        run = station.start(shell="exec >&- 2>&-; sleep 0.3; exit 3")
        station.until(lambda: all(stream.fd < 0 for stream in run._streams))
        assert not station.results
        result = station.end_of(run)
        assert result.exit_code == 3
        assert result.duration >= 0.3

    def test_the_start_is_noted_with_pid_and_time(self, station):
        for _ in range(40):  # some of them straddle a tick of the kernel's clock
            run = station.start(command=("sleep", "60"))
            assert station.notes[-1] == status_of(run.pid).identity
            run.kill(Outcome.CANCELLED, Cause.CANCELLED)
            station.end_of(run)


class TestSurroundings:
    def test_signals_are_at_their_defaults(self, station):
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        try:
            result = station.run("cat", "/proc/self/status")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
            signal.signal(signal.SIGHUP, previous)
        fields = dict(line.split(":\t", 1) for line in whole(result.stdout).decode().splitlines())
        of_libc = 3 << 31  # 32 and 33: if whoever started us ignores them, no program may change that
        assert int(fields["SigBlk"], 16) == int(fields["SigIgn"], 16) & ~of_libc == 0

    def test_it_leads_a_session(self, station):
        result = station.run("cat", "/proc/self/stat")
        pid, group, session = (whole(result.stdout).split()[index] for index in (0, 4, 5))
        assert pid == group == session

    def test_nothing_of_ours_is_open_in_it(self, station):
        leaked = os.dup(0)
        os.set_inheritable(leaked, True)
        inherit_nothing()
        assert whole(station.shell("cd /proc/$$/fd && echo *").stdout) == b"0 1 2 3\n"  # 3: the shell's, to read *
        os.close(leaked)

    def test_stdin_ends_at_once(self, station):
        assert station.run("cat", within=5).exit_code == 0

    def test_stdin_of_the_job(self, station):
        data = os.urandom(1 << 20)
        result = station.run("sha256sum", stdin=data)
        assert whole(result.stdout).split()[0].decode() == hashlib.sha256(data).hexdigest()

    def test_directory(self, station, tmp_path):
        here = os.getcwd()
        (tmp_path / "below").mkdir()
        assert whole(station.run("pwd").stdout).decode() == f"{tmp_path}\n"
        assert whole(station.run("pwd", cwd="below").stdout).decode() == f"{tmp_path}/below\n"
        assert whole(station.run("pwd", cwd="/").stdout) == b"/\n"
        assert os.getcwd() == here

    def test_a_command_beside_the_job(self, station, tmp_path):
        script(tmp_path / "mine", "#!/bin/sh\necho here $0\n")
        assert whole(station.run("./mine").stdout) == b"here ./mine\n"

    def test_the_job_s_own_path(self, station, tmp_path):
        script(tmp_path / "only-here", "#!/bin/sh\necho found\n")
        result = station.run("only-here", env={"PATH": f"/nonexistent:{tmp_path}:/bin"})
        assert whole(result.stdout) == b"found\n"

    def test_environment(self, station, monkeypatch):
        monkeypatch.setenv("REDIS_PASSWORD", "secret")
        result = station.end_of(station.start("12_3", command=("env",), env={"MINE": "ä=1"}))
        lines = whole(result.stdout).decode().splitlines()
        assert {"JOBSCHED_JOB_ID=12_3", "JOBSCHED_ARRAY_INDEX=3", "JOBSCHED_NODE=n1", "MINE=ä=1"} <= set(lines)
        assert not any("secret" in line for line in lines)

    def test_started_without_standard_streams(self, tmp_path):
        # Closed ones are given to the next pipe: as 1 or 2 it must not be overwritten on its way into the job.
        code = f"""
            import os
            for fd in (0, 1, 2): os.close(fd)
            from pathlib import Path
            from jobschedd.slave.processtree import household
            from station import Station
            station = Station(Path({str(tmp_path)!r}), household)
            result = station.shell("cat; echo out; echo err >&2", stdin=b"in ")
            Path("verdict").write_bytes(result.stdout.head + result.stderr.head)
        """
        subprocess.run(
            [PYTHON, "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=30,
            check=True,
        )
        assert (tmp_path / "verdict").read_bytes() == b"in out\nerr\n"


class TestRefusals:
    """Nothing was started: an exception with the cause, no process, no descriptor left."""

    @pytest.fixture(autouse=True)
    def _nothing_left(self, station):
        station.run("true")  # opens what stays open
        before = os.listdir("/proc/self/fd")
        yield
        assert os.listdir("/proc/self/fd") == before
        assert offspring() == []

    def refused(self, station, *command: str, **spec) -> tuple[Cause, str]:
        begin = time.monotonic()
        with pytest.raises(StartFailed) as caught:
            station.start(**({"command": command} if command else {}), **spec)
        assert time.monotonic() - begin < 1
        return caught.value.cause, caught.value.message

    @pytest.mark.parametrize("name", ["no-such-command", "/no/such/command", "./none", "/etc/passwd/x", "", "x" * 300])
    def test_not_found(self, station, name):
        cause, message = self.refused(station, name)
        assert cause is Cause.NOT_FOUND
        assert (name or "''") in message

    @pytest.mark.parametrize("name", ["/etc/passwd", "/tmp", "./plain"])
    def test_not_executable(self, station, tmp_path, name):
        script(tmp_path / "plain", "#!/bin/sh\n", 0o644)
        assert self.refused(station, name)[0] is Cause.NOT_EXECUTABLE

    def test_not_executable_in_the_path(self, station, tmp_path):
        script(tmp_path / "plain", "#!/bin/sh\n", 0o644)
        cause, message = self.refused(station, "plain", env={"PATH": str(tmp_path)})
        assert cause is Cause.NOT_EXECUTABLE and "permission" in message

    def test_no_format_that_the_kernel_knows(self, station, tmp_path):
        script(tmp_path / "text", "echo hello\n")
        assert self.refused(station, "./text") == (
            Cause.NOT_EXECUTABLE,
            f"./text: cannot be executed: {REASONS[errno.ENOEXEC]}",
        )

    def test_bad_interpreter(self, station, tmp_path):
        script(tmp_path / "lost", "#!/no/such/interpreter -x\n")
        cause, message = self.refused(station, "./lost")
        assert cause is Cause.NOT_EXECUTABLE and "'/no/such/interpreter -x'" in message

    def test_windows_line_ends_are_shown(self, station, tmp_path):
        script(tmp_path / "dos", "#!/bin/sh\r\necho\r\n")
        assert r"'/bin/sh\r'" in self.refused(station, "./dos")[1]

    def test_dangling_link(self, station, tmp_path):
        (tmp_path / "link").symlink_to("/nowhere")
        assert self.refused(station, "./link")[0] is Cause.NOT_EXECUTABLE

    def test_text_busy(self, station, tmp_path):
        copy = tmp_path / "true"
        copy.write_bytes(Path("/bin/true").read_bytes())
        copy.chmod(0o755)
        with copy.open("r+b"):
            assert self.refused(station, "./true") == (
                Cause.NOT_EXECUTABLE,
                f"./true: cannot be executed: {REASONS[errno.ETXTBSY]}",
            )

    @pytest.mark.parametrize("directory", ["/nope", "/etc/passwd", "nope", "a\0b", "\ud800"])
    def test_directory(self, station, directory):
        cause, message = self.refused(station, "true", cwd=directory)
        assert cause is Cause.CWD and "directory" in message

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any directory")
    def test_directory_without_permission(self, station, tmp_path):
        (tmp_path / "closed").mkdir(mode=0)
        assert self.refused(station, "true", cwd="closed")[0] is Cause.CWD

    @pytest.mark.parametrize(
        "spec",
        [
            {"command": ("echo", "a\0b")},
            {"command": ("ec\0ho",)},
            {"command": ("/bin/ec\0ho",)},
            {"command": ("echo", "\ud800")},
            {"command": ("/\ud800",)},
            {"command": ("echo", "x" * 200_000)},
            {"command": ("echo", *["x" * 100_000] * 60)},
            {"command": ("echo",), "env": {"A": "a\0b"}},
            {"command": ("echo",), "env": {"A=B": "c"}},
            {"command": ("echo",), "env": {"": "c"}},
            {"command": ("echo",), "env": {"A": "\udfff\ud800"}},
            {"command": ("echo",), "env": {"PATH": "/bin\0"}},
            {"command": ()},
            {"shell": "echo \0"},
        ],
        ids=lambda spec: repr(spec)[:40],
    )
    def test_arguments_that_no_process_can_have(self, station, spec):
        cause, message = self.refused(station, **spec)
        assert cause is Cause.ARGV
        assert len(message.encode()) < 10_000

    def test_denied(self, station):
        station.set(allow_commands=("/opt/*",), allow_shell=False)
        assert self.refused(station, "true")[0] is Cause.DENIED
        assert self.refused(station, shell="true")[0] is Cause.DENIED

    @pytest.mark.parametrize("free", range(6))
    def test_no_more_descriptors(self, station, free):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        taken = [os.open("/dev/null", os.O_RDONLY)]
        while taken[-1] <= highest:  # no gap below shall be free
            taken.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + free, limits[1]))
        try:
            failure = None
            try:
                station.end_of(station.start(command=("true",), stdin=b"x"))
            except StartFailed as failed:
                failure = failed
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        assert (failure and (failure.cause, failure.__cause__.errno)) == (
            (Cause.RESOURCE, errno.EMFILE) if free < 5 else None
        )

    def test_a_start_that_cannot_be_noted_does_not_live(self, station):
        def note(pid: int, start: int) -> None:
            raise RuntimeError("no register")

        order = Order("1", 1, "1-0", Spec(command=("sleep", "60")))
        run = CommandRun(order, 0, station.loop, station.settings, lambda *_: None, note)
        with pytest.raises(RuntimeError, match="no register"):
            run.start()


class TestTimeLimit:
    def test_it_ends_at_term(self, station):
        result = station.run("sleep", "60", timeout=0.2)
        assert (result.outcome, result.cause, result.signal) == (Outcome.TIMED_OUT, Cause.TIMEOUT, signal.SIGTERM)
        assert 0.2 <= result.duration < 2
        assert not result.escalated
        assert "0.2" in result.error

    def test_it_ignores_term(self, station):
        result = station.shell('trap "" TERM; while :; do sleep 1; done', timeout=0.2)
        assert (result.outcome, result.signal, result.escalated) == (Outcome.TIMED_OUT, signal.SIGKILL, True)
        assert 0.5 <= result.duration < 3

    def test_its_last_words_are_kept(self, station):
        result = station.shell("trap 'echo bye; exit 5' TERM; sleep 60 & wait", timeout=0.2)
        assert (result.outcome, result.exit_code) == (Outcome.TIMED_OUT, 5)
        assert whole(result.stdout) == b"bye\n"

    def test_it_stopped_itself(self, station):
        result = station.shell("kill -STOP $$; sleep 60", timeout=0.2)
        assert result.outcome is Outcome.TIMED_OUT
        assert result.duration < 2

    def test_it_stopped_itself_and_ignores_term(self, station):
        result = station.shell('trap "" TERM CONT; while :; do kill -STOP $$; done', timeout=0.2)
        assert (result.outcome, result.escalated) == (Outcome.TIMED_OUT, True)

    def test_in_time(self, station):
        result = station.run("true", timeout=0.2)
        station.loop.run_once(0.5)
        assert result.outcome is Outcome.SUCCEEDED

    def test_children_of_a_shell_have_the_same_grace(self, station):
        # The shell dies of TERM at once; what it waited for is in the middle of its clean-up.
        station.set(term_grace=10.0)
        inner = "import os, signal, time\ndef stop(*_): time.sleep(.3); os.write(1, b'clean\\n'); os._exit(0)\n"
        inner += "signal.signal(15, stop); os.write(1, b'up\\n'); time.sleep(60)"
        run = station.start(command=("sh", "-c", '"$0" -c "$1"; true', PYTHON, inner))
        station.until(lambda: run._streams[0].excerpt.size)
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        result = station.end_of(run)
        assert whole(result.stdout) == b"up\nclean\n"
        assert not result.escalated


class TestStop:
    def test_cancel(self, station):
        run = station.start(command=("sleep", "60"))
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        result = station.end_of(run)
        assert (result.outcome, result.cause, result.signal) == (Outcome.CANCELLED, Cause.CANCELLED, signal.SIGTERM)

    def test_the_first_reason_counts(self, station):
        run = station.start(shell='trap "" TERM; sleep 60', timeout=0.1)
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        run.stop(Outcome.FAILED, Cause.DRAIN)
        result = station.end_of(run)
        assert (result.outcome, result.cause) == (Outcome.CANCELLED, Cause.CANCELLED)

    def test_kill_cuts_the_grace_short(self, station):
        station.set(term_grace=60.0)
        run = station.start(shell='trap "" TERM; echo up; while :; do sleep 1; done')
        station.until(lambda: run._streams[0].excerpt.size)
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        run.kill(Outcome.FAILED, Cause.DRAIN)
        run.kill(Outcome.FAILED, Cause.DRAIN)
        result = station.end_of(run)
        assert (result.outcome, result.signal, result.escalated) == (Outcome.CANCELLED, signal.SIGKILL, True)

    def test_kill_at_once(self, station):
        run = station.start(command=("sleep", "60"))
        run.kill(Outcome.FAILED, Cause.DRAIN)
        result = station.end_of(run)
        assert (result.cause, result.signal, result.escalated) == (Cause.DRAIN, signal.SIGKILL, False)

    def test_a_success_that_came_first_wins(self, station):
        run = station.start(command=("true",))
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        run.kill(Outcome.CANCELLED, Cause.CANCELLED)
        assert station.end_of(run).outcome is Outcome.SUCCEEDED

    def test_after_the_end_nothing_happens(self, station):
        run = station.start(command=("true",))
        station.end_of(run)
        run.stop(Outcome.CANCELLED, Cause.CANCELLED)
        run.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.loop.run_once(0.01)

    def test_races_with_the_natural_end(self, station):
        delays = [step / 10_000 for step in range(60)]
        for delay in delays:
            run = station.start(command=("sleep", "0.002"))
            station.loop.call_later(delay, lambda run=run: run.stop(Outcome.CANCELLED, Cause.CANCELLED))
            result = station.end_of(run)
            if result.outcome is Outcome.SUCCEEDED:
                assert result.exit_code == 0
            else:
                assert result.cause is Cause.CANCELLED
        assert len(station.results) == len(delays)


class TestNothingOutlivesIt:
    """Each leaves something behind that a killed process group would not catch."""

    LEAVERS: ClassVar = {
        "background": "sleep {n} & echo done",
        "background, output elsewhere": "sleep {n} >/dev/null 2>&1 & echo done",
        "own session": "setsid sleep {n} & sleep 0.1; echo done",
        "daemon": "(setsid sleep {n} >/dev/null 2>&1 </dev/null &) ; sleep 0.1; echo done",
        "daemon without our names": "(env -i setsid sleep {n} >/dev/null 2>&1 </dev/null &) ; sleep 0.1; echo done",
        "still below the main process": "env -i setsid sh -c 'sleep {n} & sleep {n}' & sleep 0.1; echo done",
        "ignores TERM": "(trap '' TERM; setsid sleep {n} >/dev/null 2>&1 &) ; sleep 0.1; echo done",
        "stopped": "(setsid sh -c 'kill -STOP $$; sleep {n}' sleep {n} >/dev/null 2>&1 &) ; sleep 0.1; echo done",
    }

    @pytest.fixture
    def mark(self, request, station):
        mark = f"{4_000_000 + os.getpid() % 100_000}.{abs(hash(request.node.name)) % 10_000_000}"
        yield mark
        left = living(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []
        station.until(lambda: offspring() == [], within=5)

    @pytest.mark.parametrize("kind", LEAVERS)
    def test_its_own_end(self, station, mark, kind):
        result = station.shell(self.LEAVERS[kind].format(n=mark), within=2)
        assert result.outcome is Outcome.SUCCEEDED
        assert whole(result.stdout) == b"done\n"
        assert not result.output_open

    @pytest.mark.parametrize("kind", LEAVERS)
    def test_a_time_limit(self, station, mark, kind):
        result = station.shell(self.LEAVERS[kind].format(n=mark) + f"; sleep {mark}", timeout=0.4)
        assert result.outcome is Outcome.TIMED_OUT
        assert result.duration < 3

    @pytest.mark.parametrize("kind", LEAVERS)
    def test_a_kill(self, station, mark, kind):
        run = station.start(shell=self.LEAVERS[kind].format(n=mark) + f"; sleep {mark}")
        station.until(lambda: run._streams[0].excerpt.size)
        run.kill(Outcome.CANCELLED, Cause.CANCELLED)
        assert station.end_of(run).outcome is Outcome.CANCELLED

    def test_a_tree_that_grows_while_it_is_killed(self, station, mark):
        text = f"f() {{ sleep {mark} & setsid sh -c 'sleep {mark} & sleep {mark}' & sleep 0.01; }}; while :; do f; done"
        result = station.shell(text, timeout=0.5)
        assert result.outcome is Outcome.TIMED_OUT

    def test_more_than_one_page_of_them(self, station, mark):
        result = station.shell(f"i=0; while [ $i -lt 800 ]; do setsid sleep {mark} & i=$((i+1)); done; echo done")
        assert whole(result.stdout) == b"done\n"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have a process that one may not signal")
    @pytest.mark.parametrize("whom", ["the main process", "what it left behind"])
    def test_not_ours_to_kill(self, station, mark, monkeypatch, whom):
        """A set-user-id program: the job ends all the same, says so, and is not in the way of the next."""
        monkeypatch.setattr(process, "KILL_PATIENCE", 0.3)
        monkeypatch.setattr("jobschedd.slave.processtree.ROUND", 0.1)
        station.run("true")
        background = "&" if whom == "what it left behind" else ""
        run = station.start(shell=f"setsid -w sleep {mark} >/dev/null 2>&1 {background or ';'} sleep 0.3")
        wait_until(lambda: living(mark), 5, "it runs")
        os.setresuid(65534, 65534, 0)
        try:
            if not background:
                run.stop(Outcome.CANCELLED, Cause.CANCELLED)
            result = station.end_of(run, within=4)
        finally:
            os.setresuid(0, 0, 0)
        assert "SIGKILL" in result.error
        assert result.outcome is (Outcome.SUCCEEDED if background else Outcome.CANCELLED)
        assert station.run("true", within=1).outcome is Outcome.SUCCEEDED
        for pid in living(mark):
            os.kill(pid, signal.SIGKILL)
        station.until(lambda: offspring() == [], within=5)

    def test_a_shell_with_job_control(self, station, mark):
        assert station.run("bash", "-mc", f"sleep {mark} & sleep {mark} & echo done").outcome is Outcome.SUCCEEDED

    def test_others_keep_theirs(self, station, mark):
        """An orphan of a job that still runs is not touched, whoever ends meanwhile."""
        keeper = station.start(shell=f"(setsid sleep {mark} >/dev/null 2>&1 &); echo up; read x", stdin=b"")
        station.end_of(keeper)
        keeper = station.start(shell=f"(setsid sleep {mark} >/dev/null 2>&1 &); echo up; sleep {mark}")
        hidden = station.start(shell=f"(env -i setsid sleep {mark} >/dev/null 2>&1 &); echo up; sleep {mark}")
        for run in (keeper, hidden):
            station.until(lambda run=run: run._streams[0].excerpt.size)
        station.until(lambda: len(living(mark)) == 4)
        assert station.shell("sleep 99 & true").outcome is Outcome.SUCCEEDED
        assert len(living(mark)) == 4
        keeper.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(keeper)
        assert len(living(mark)) == 2
        hidden.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(hidden)

    def test_an_orphan_without_a_name_dies_with_the_last_that_may_own_it(self, station, mark):
        older = station.start(command=("sleep", "60"))
        station.shell(f"(env -i setsid sleep {mark} >/dev/null 2>&1 </dev/null &); sleep 0.1", within=2)
        assert len(living(mark)) == 1  # it may be the older one's
        younger = station.start(command=("sleep", "60"))
        older.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(older)
        assert living(mark) == []
        younger.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(younger)

    def test_who_holds_its_output_is_its_own(self, station, mark):
        older = station.start(command=("sleep", "60"))
        result = station.shell(f"(env -i setsid sleep {mark} &); sleep 0.1", within=1.5)
        assert living(mark) == []
        assert not result.output_open
        older.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(older)

    def test_dead_orphans_of_a_long_job_are_reaped(self, station, mark, monkeypatch):
        monkeypatch.setattr("jobschedd.slave.processtree.ROUND", 0.1)
        run = station.start(shell=f"for i in 1 2 3 4 5; do (setsid true &); done; sleep {mark}")
        wait_until(lambda: len(offspring()) == 6, 5, "five orphans were adopted")
        station.until(lambda: offspring() == [run.pid], within=5)
        run.kill(Outcome.CANCELLED, Cause.CANCELLED)
        station.end_of(run)

    def test_our_own_other_children_are_spared(self, station):
        ours = subprocess.Popen(["sleep", "60"])
        station.shell("setsid sleep 99 & sleep 0.05")
        assert ours.poll() is None
        ours.kill()
        ours.wait()


class TestHeldOutput:
    def test_somebody_out_of_reach_holds_it(self, station, tmp_path):
        """It was passed to a process that is no descendant: it cannot be killed, but must not hold the slot either."""
        fifo = tmp_path / "hold"
        os.mkfifo(fifo)
        run = station.start(shell="echo up; read x < hold")
        station.until(lambda: run._streams[0].excerpt.size)
        holder = os.open(f"/proc/{run.pid}/fd/1", os.O_WRONLY)
        fifo.write_text("go\n")
        result = station.end_of(run)
        os.close(holder)
        assert (result.outcome, result.output_open) == (Outcome.SUCCEEDED, True)
        assert result.duration < process.DRAIN_PATIENCE

    def test_what_cannot_be_killed(self, station, tmp_path, monkeypatch):
        freezer = Path("/sys/fs/cgroup/freezer")
        if not os.access(freezer / "cgroup.procs", os.W_OK):
            pytest.skip("needs a writable freezer cgroup (v1) to make a process unkillable")
        monkeypatch.setattr(process, "KILL_PATIENCE", 0.3)
        monkeypatch.setattr("jobschedd.slave.processtree.ROUND", 0.1)
        group = freezer / f"jobschedd-test-{os.getpid()}"
        group.mkdir()
        try:
            run = station.start(command=("sleep", "60"))
            (group / "cgroup.procs").write_text(str(run.pid))
            (group / "freezer.state").write_text("FROZEN")
            run.kill(Outcome.CANCELLED, Cause.CANCELLED)
            result = station.end_of(run, within=3)
            assert result.outcome is Outcome.CANCELLED
            assert (result.exit_code, result.signal) == (None, None)
            assert str(run.pid) in result.error
            assert station.shell("sleep 99 & true", within=2).outcome is Outcome.SUCCEEDED
            (group / "freezer.state").write_text("THAWED")
            station.until(lambda: status_of(run.pid) is None, within=3)
        finally:
            (group / "freezer.state").write_text("THAWED")
            station.until(lambda: not (group / "cgroup.procs").read_text(), within=3)
            group.rmdir()


class TestOutput:
    def test_binary_is_kept_to_the_byte(self, station, tmp_path):
        data = os.urandom(40_000) + b"\0\xff\xfe no newline"
        (tmp_path / "data").write_bytes(data)
        result = station.shell("cat data; cat data >&2")
        assert whole(result.stdout) == whole(result.stderr) == data

    def test_head_and_tail(self, station):
        station.set(output_limit=4000)
        result = station.shell("seq 1 100000")
        everything = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
        assert result.stdout == Captured(everything[:1000], everything[-3000:], len(everything))
        assert result.stdout.truncated

    def test_a_line_of_ten_megabytes(self, station):
        result = station.shell("head -c 10M /dev/zero | tr '\\0' x; printf END")
        assert result.stdout.size == (10 << 20) + 3
        assert result.stdout.tail.endswith(b"xxxEND")

    def test_escapes_are_kept_raw(self, station):
        result = station.shell(r"printf '\033]52;c;aGk=\a\033[2J\r'")
        assert whole(result.stdout) == b"\x1b]52;c;aGk=\a\x1b[2J\r"

    def test_a_gigabyte(self, station):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.monotonic()
        result = station.shell("head -c 1G /dev/zero; echo; echo end", within=60)
        seconds = time.monotonic() - begin
        assert result.stdout.size == (1 << 30) + 5
        assert result.stdout.truncated and result.stdout.tail.endswith(b"\0\nend\n")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        assert seconds < 20, "slower than 50 MB/s"

    def test_a_flood_does_not_starve_others(self, station):
        flood = station.start(shell="cat /dev/zero")
        station.until(lambda: flood._streams[0].excerpt.size > 10 << 20)
        assert station.run("true", within=2).outcome is Outcome.SUCCEEDED
        flood.kill(Outcome.CANCELLED, Cause.CANCELLED)
        assert station.end_of(flood).stdout.truncated


class TestListening:
    def test_from_the_start(self, station):
        heard: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

        def listener(number: int, offset: int, data: bytes) -> None:
            assert offset == len(heard[number])
            heard[number] += data

        run = station.start(shell="for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.02; done; printf end")
        run.listen(listener)
        station.end_of(run)
        assert heard == {1: b"1\n2\n3\nend", 2: b"e1\ne2\ne3\n"}

    def test_later_gets_what_is_held_first(self, station):
        station.set(output_limit=400)
        heard = []
        run = station.start(shell="seq 1000; sleep 0.3; echo last")
        station.until(lambda: run._streams[0].excerpt.size >= 3893)
        run.listen(lambda *told: heard.append(told))
        everything = "".join(f"{number}\n" for number in range(1, 1001)).encode()
        assert heard == [(1, 0, everything[:100]), (1, 3593, everything[-300:])]
        station.end_of(run)
        assert heard[2:] == [(1, 3893, b"last\n")]

    def test_until_told_otherwise(self, station):
        heard = []
        run = station.start(shell="echo one; sleep 0.2; echo two")
        run.listen(lambda *told: heard.append(told))
        station.until(lambda: heard)
        run.listen(None)
        assert whole(station.end_of(run).stdout) == b"one\ntwo\n"
        assert heard == [(1, 0, b"one\n")]

    def test_one_that_fails_is_dropped_and_the_job_goes_on(self, station, caplog):
        def listener(number: int, offset: int, data: bytes) -> None:
            raise RuntimeError("the follower is gone")

        run = station.start(shell="echo one; sleep 0.1; echo two")
        run.listen(listener)
        assert whole(station.end_of(run).stdout) == b"one\ntwo\n"
        assert caplog.text.count("is not told any more") == 1


def descriptors() -> dict[str, str]:
    """What each open descriptor of this process is; without the one that this takes."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


class TestMany:
    def test_two_thousand_leave_nothing(self, station):
        station.run("true")
        gc.collect()  # what other tests have left open is not closed in between, and counted
        before = descriptors()
        left = 2000

        def feed() -> bool:
            nonlocal left
            while left and len(station.notes) - len(station.results) < 4:
                left -= 1
                station.start(command=("/bin/true",), timeout=3600)
            return not left and len(station.notes) == len(station.results)

        station.until(feed, within=60)
        assert all(result.outcome is Outcome.SUCCEEDED for result in station.results.values())
        assert set(descriptors().items()) <= set(before.items())
        assert offspring() == []


def test_modes_are_as_the_umask_of_the_channel_says(station, tmp_path):
    previous = os.umask(0o027)
    try:
        station.shell("> made")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o640
