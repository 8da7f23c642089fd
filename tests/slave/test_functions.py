"""Functions in real runner processes: every way to end, to be ended, and to be taken back."""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobschedd.job import Captured, Cause, Order, Outcome, Result, Spec
from jobschedd.slave import functions, runnerprocess
from jobschedd.slave.exchange import DATAGRAM
from jobschedd.slave.functions import FunctionRunner
from jobschedd.slave.loop import Loop
from jobschedd.slave.oom import OomWatch
from jobschedd.slave.processtree import Household, become_subreaper, status_of
from jobschedd.slave.register import Register, read_starts
from jobschedd.slave.settings import ExecutionSettings
from station import living

FIXTURES = Path(__file__).parent / "fixtures"


class Slot:
    """One slot of a channel: a loop, a register, and what ended."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = Loop()
        self.settings = ExecutionSettings(
            node="n1",
            channel="c1",
            workdir=str(directory),
            python_path=(str(FIXTURES), str(directory / "lib")),
            term_grace=0.3,
        )
        self.register = Register.create(directory, "ab" * 8, 1)
        self.results: dict[str, Result] = {}
        self.sequence: list[str] = []
        self.on_end: Callable[[Order], None] = lambda order: None
        self._runner: FunctionRunner | None = None
        self._count = 0

    @property
    def runner(self) -> FunctionRunner:
        if self._runner is None:
            offset = self.register.offset_of(0)
            self._runner = FunctionRunner(0, self.loop, self.settings, self.register.fd, offset, self._ended)
        return self._runner

    def set(self, **changes: Any) -> None:
        assert self._runner is None, "too late"
        self.settings = replace(self.settings, **changes)

    def order(self, function: str, *args: object, kwargs: object = None, **spec: Any) -> Order:
        self._count += 1
        spec.setdefault("args", json.dumps(args).encode() if args else b"")
        if kwargs is not None:
            spec["kwargs"] = json.dumps(kwargs).encode()
        name = function if ":" in function else f"tasks:{function}"
        return Order(str(self._count), 1, f"1700000000000-{self._count}", Spec(function=name, **spec))

    def submit(self, function: str, *args: object, **options: Any) -> str:
        order = self.order(function, *args, **options)
        self.hand_over(order)
        return order.job

    def hand_over(self, order: Order) -> None:
        self.runner.submit(order)
        self.runner.go()

    def run(self, function: str, *args: object, **options: Any) -> Result:
        return self.end_of(self.submit(function, *args, **options))

    def value(self, function: str, *args: object, **options: Any) -> Any:
        result = self.run(function, *args, **options)
        assert result.outcome is Outcome.SUCCEEDED, result
        return json.loads(result.value)

    def end_of(self, job: str, within: float = 20.0) -> Result:
        self.until(lambda: job in self.results, within)
        return self.results[job]

    def until(self, condition: Callable[[], object], within: float = 20.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that in time"
            self.loop.run_once(0.02)

    def drain(self, within: float = 60.0) -> None:
        self.until(lambda: not self.runner.in_flight, within)

    def _ended(self, order: Order, result: Result) -> None:
        assert order.job not in self.results, "ended twice"
        self.results[order.job] = result
        self.sequence.append(order.job)
        self.on_end(order)


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    monkeypatch.setattr(runnerprocess, "household", Household())
    become_subreaper()
    slot = Slot(tmp_path)
    yield slot
    pid = slot.runner.pid
    slot.runner.close()
    slot.register.close()
    slot.loop.close()
    assert not pid or status_of(pid) is None


def whole(captured: Captured) -> str:
    assert not captured.truncated
    return (captured.head + captured.tail).decode()


def ended(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.cause


class TestCalls:
    def test_arguments_and_value(self, slot):
        result = slot.run("echo", 1, "ä", None, kwargs={"b": [2.5]})
        assert ended(result) == (Outcome.SUCCEEDED, Cause.EXIT)
        assert result.exit_code == 0
        assert json.loads(result.value) == {"args": [1, "ä", None], "kwargs": {"b": [2.5]}}
        assert (result.node, result.channel, result.pid) == ("n1", "c1", slot.runner.pid)

    def test_one_warm_process_serves_all(self, slot):
        first, second = slot.value("identity"), slot.value("identity")
        assert first["pid"] == second["pid"] != os.getpid()
        assert (first["calls"], second["calls"]) == (1, 2)

    def test_it_is_started_with_the_first_order(self, slot):
        assert slot.runner.pid == 0
        slot.run("nothing")
        assert slot.runner.pid > 0

    def test_json_values(self, slot):
        assert slot.value("tuples") == {"a": [1, 2.5, None, True, "ä€"]}
        assert slot.value("nothing") is None

    def test_coroutines(self, slot):
        assert slot.value("coroutine", 1) == 2
        assert slot.value("decorated", 2) == 3

    def test_a_method_and_a_builtin(self, slot):
        assert slot.value("Group.method", 21) == 42
        assert slot.value("builtins:len", [1, 2]) == 2

    def test_strictly_in_order(self, slot):
        jobs = [slot.submit("nothing") for _ in range(500)]
        slot.drain()
        assert slot.sequence == jobs

    def test_what_it_finds(self, slot, tmp_path):
        slot.set(umask=0o027, env={"NODE_VARIABLE": "1", "JOBSCHED_SITE": "x"})
        found = slot.value("identity", env={"MINE": "2", "JOBSCHED_JOB_ID": "fake", "JOBSCHED_SITE": "fake"})
        environ = found["environ"]
        assert (found["cwd"], found["umask"]) == (str(tmp_path), 0o027)
        assert found["path"] == list(slot.settings.python_path)
        assert environ["JOBSCHED_JOB_ID"] == "1" and environ["JOBSCHED_ATTEMPT"] == "1"
        assert (environ["JOBSCHED_NODE"], environ["JOBSCHED_CHANNEL"]) == ("n1", "c1")
        assert (environ["NODE_VARIABLE"], environ["MINE"], environ["JOBSCHED_SITE"]) == ("1", "2", "x")
        assert "JOBSCHED_ARRAY_INDEX" not in environ and "PYTEST_CURRENT_TEST" not in environ

    def test_array_index(self, slot):
        slot.hand_over(replace_job(slot.order("identity"), "12_3"))
        environ = json.loads(slot.end_of("12_3").value)["environ"]
        assert (environ["JOBSCHED_JOB_ID"], environ["JOBSCHED_ARRAY_INDEX"]) == ("12_3", "3")
        assert "JOBSCHED_ARRAY_INDEX" not in slot.value("identity")["environ"]

    def test_signals_are_the_default_ones(self, slot):
        found = slot.value("signals")
        assert int(found["SigBlk"], 16) == 0
        ignored = {n for n in range(1, 65) if int(found["SigIgn"], 16) >> (n - 1) & 1}
        # Python ignores PIPE and XFSZ everywhere; posix_spawn of glibc its own two.
        assert ignored <= {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}

    def test_directory(self, slot, tmp_path):
        (tmp_path / "sub").mkdir()
        assert slot.value("identity", cwd="sub")["cwd"] == str(tmp_path / "sub")
        assert slot.value("identity", cwd="/")["cwd"] == "/"
        assert slot.value("identity")["cwd"] == str(tmp_path)
        result = slot.run("nothing", cwd="absent")
        assert ended(result) == (Outcome.FAILED, Cause.CWD)
        assert str(tmp_path / "absent") in result.error

    def test_nothing_is_imported_from_the_working_directory(self, slot, tmp_path):
        (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')")
        (tmp_path / "mine.py").write_text("def f(): pass")
        assert slot.value("tuples")
        assert slot.run("mine:f").cause == Cause.IMPORT

    def test_impossible_environment(self, slot):
        assert slot.run("nothing", env={"A": "nul\0"}).cause == Cause.ARGV
        assert slot.run("nothing", env={"A=B": ""}).cause == Cause.ARGV
        assert slot.run("nothing", env={"A": "\ud800"}).cause == Cause.ARGV
        assert slot.value("nothing") is None

    def test_huge_arguments_and_values(self, slot):
        sizes = [DATAGRAM - 200, DATAGRAM, DATAGRAM + 1, 5 << 20]
        jobs = [slot.submit("size", "a" * size) for size in sizes]
        slot.drain()
        assert [json.loads(slot.results[job].value) for job in jobs] == sizes
        assert slot.value("big", 900_000) == "b" * 900_000

    def test_no_descriptor_is_lost(self, slot):
        slot.run("segfault")
        slot.value("big", 900_000)
        slot.value("nothing")  # what carried the value is closed by now
        gc.collect()  # nor shall what other tests left behind go meanwhile

        def descriptors() -> tuple[int, int]:
            return open_descriptors(os.getpid()), open_descriptors(slot.runner.pid)

        before = descriptors()
        for _ in range(20):
            slot.submit("size", "a" * 100_000)
            slot.submit("big", 100_000)
        slot.runner.revoke()
        slot.drain()
        slot.value("nothing")
        assert descriptors() == before
        slot.run("segfault")
        slot.value("big", 900_000)
        slot.value("nothing")
        assert descriptors() == before


class TestEnds:
    def test_exception(self, slot):
        result = slot.run("raises", "what it says")
        assert ended(result) == (Outcome.FAILED, Cause.EXCEPTION)
        lines = result.error.splitlines()
        assert lines[0].startswith("Traceback") and lines[-1] == "ValueError: what it says"
        assert "in raises" in result.error and "runner.py" not in result.error

    def test_wrong_arguments(self, slot):
        result = slot.run("raises", 1, 2, 3)
        assert result.cause == Cause.EXCEPTION
        assert result.error.startswith("TypeError: raises() takes")

    def test_exception_in_a_coroutine(self, slot):
        result = slot.run("coroutine_raises")
        assert result.error.endswith("LookupError: in a coroutine")
        assert "asyncio" not in result.error and "runner.py" not in result.error

    def test_a_long_traceback_keeps_its_end(self, slot):
        result = slot.run("raises_deep", 900)
        assert result.error.endswith("x" * 300)
        assert len(result.error) < 20_000
        result = slot.run("raises_long")
        assert result.error.endswith("y" * 100) and len(result.error) < 20_000

    @pytest.mark.parametrize(
        ("function", "text"),
        [
            ("raises_base", "KeyboardInterrupt"),
            ("raises_what_cannot_be_shown", "Odd"),
            ("raises_surrogate", "ValueError: \\udcff"),
        ],
    )
    def test_odd_exceptions(self, slot, function, text):
        result = slot.run(function)
        assert ended(result) == (Outcome.FAILED, Cause.EXCEPTION)
        assert text in result.error

    @pytest.mark.parametrize(
        ("code", "outcome", "exit_code"),
        [
            (4, Outcome.FAILED, 4),
            (0, Outcome.SUCCEEDED, 0),
            (None, Outcome.SUCCEEDED, 0),
            (260, Outcome.FAILED, 4),
            (-1, Outcome.FAILED, 255),
            (True, Outcome.FAILED, 1),
        ],
    )
    def test_sys_exit(self, slot, code, outcome, exit_code):
        result = slot.run("exits", code)
        assert ended(result) == (outcome, Cause.EXIT)
        assert result.exit_code == exit_code
        assert slot.runner.pid == result.pid

    def test_sys_exit_with_a_message(self, slot):
        result = slot.run("exits", "no disk")
        assert (result.outcome, result.exit_code, result.error) == (Outcome.FAILED, 1, "no disk")

    @pytest.mark.parametrize("function", ["nan", "infinity", "not_json", "odd_object", "circular", "surrogate"])
    def test_values_that_are_not_json(self, slot, function):
        result = slot.run(function)
        assert ended(result) == (Outcome.FAILED, Cause.RESULT_TYPE)
        assert "is not JSON" in result.error and result.value == b""

    def test_a_value_that_is_too_large(self, slot):
        result = slot.run("big", 10 << 20)
        assert ended(result) == (Outcome.FAILED, Cause.RESULT_TOO_LARGE)
        assert str((10 << 20) + 2) in result.error and str(1 << 20) in result.error
        assert result.value == b""

    def test_out_of_memory(self, slot):
        result = slot.run("memory_error")
        assert ended(result) == (Outcome.FAILED, Cause.OOM)
        assert "MemoryError" in result.error

    @pytest.mark.parametrize("code", [0, 3])
    def test_os_exit(self, slot, code):
        result = slot.run("ends_process", code)
        assert ended(result) == (Outcome.FAILED, Cause.EXIT)
        assert result.exit_code == code and result.error

    def test_segfault(self, slot):
        result = slot.run("segfault")
        assert ended(result) == (Outcome.FAILED, Cause.SIGNAL)
        assert result.signal == signal.SIGSEGV and "SIGSEGV" in result.error
        assert "in segfault" in whole(result.stderr)  # faulthandler says where

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_signals(self, slot, number):
        result = slot.run("kill_itself", number)
        assert ended(result) == (Outcome.FAILED, Cause.SIGNAL)
        assert result.signal == number and not result.escalated

    def test_killed_for_want_of_memory(self, slot, monkeypatch, tmp_path):
        counter = tmp_path / "memory.events"
        counter.write_text("oom 3\noom_kill 4\n")
        watch = OomWatch(str(counter))
        monkeypatch.setattr(functions, "oom_watch", lambda: watch)
        assert slot.run("kill_itself", signal.SIGKILL).cause == Cause.SIGNAL
        counter.write_text("oom 3\noom_kill 5\n")
        result = slot.run("kill_itself", signal.SIGKILL)
        assert ended(result) == (Outcome.FAILED, Cause.OOM) and result.signal == signal.SIGKILL
        assert slot.run("kill_itself", signal.SIGKILL).cause == Cause.SIGNAL

    def test_only_the_running_job_is_charged(self, slot):
        jobs = [slot.submit("nothing") for _ in range(20)]
        crash = slot.submit("segfault")
        jobs += [slot.submit("nothing") for _ in range(20)]
        slot.drain()
        assert slot.results[crash].cause == Cause.SIGNAL
        assert {slot.results[job].outcome for job in jobs} == {Outcome.SUCCEEDED}
        assert slot.sequence == sorted(slot.sequence, key=int)

    def test_crash_after_crash(self, slot):
        jobs = [slot.submit("ends_process", 3) for _ in range(5)]
        slot.drain()
        assert [slot.results[job].exit_code for job in jobs] == [3] * 5

    def test_the_death_of_an_idle_runner_charges_nobody(self, slot):
        slot.run("nothing")
        dead = slot.runner.pid
        os.kill(dead, signal.SIGKILL)
        assert slot.value("nothing") is None
        assert slot.runner.pid != dead

    def test_times_and_usage(self, slot):
        before = time.time()
        slot.run("nothing")
        result = slot.run("burn", 0.2)
        assert before <= result.started <= result.ended <= time.time()
        assert 0.2 <= result.duration <= 10
        assert result.duration == pytest.approx(result.ended - result.started)
        assert 0.2 <= result.cpu < 0.4
        assert 5 << 20 < result.peak_rss < 1 << 30
        assert 0.2 <= slot.run("burn_in_child", 0.2).cpu < 0.5
        assert slot.run("nothing").cpu < 0.1

    def test_times_and_usage_of_a_crash(self, slot):
        slot.run("burn", 0.3)
        result = slot.run("say_and_die", "last words")
        assert result.cpu < 0.2 and 0 < result.duration < 5 and result.started > 0
        assert whole(result.stdout) == "last words"

    @pytest.mark.parametrize("function", ["garbage_to_the_channel", "shut_socket"])
    def test_a_function_that_breaks_the_line(self, slot, function):
        result = slot.run(function)
        assert ended(result) == (Outcome.FAILED, Cause.SIGNAL)
        assert "runner" in result.error
        assert slot.value("nothing") is None


class TestImports:
    @pytest.fixture
    def lib(self, tmp_path):
        lib = tmp_path / "lib"
        lib.mkdir()
        return lib

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("absent:f", "No module named 'absent'"),
            ("tasks.absent:f", "No module named 'tasks.absent'"),
            ("tasks:absent", "has no attribute 'absent'"),
            ("tasks:NUMBER", "cannot be called"),
            ("tasks", "module:function"),
            (":f", "module:function"),
            ("tasks:", "module:function"),
            ("tasks:nothing.", "has no attribute ''"),
            (".tasks:nothing", "relative import"),
        ],
    )
    def test_what_is_not_there(self, slot, name, text):
        order = slot.order("nothing")
        slot.hand_over(Order(order.job, 1, order.entry, Spec(function=name)))
        result = slot.end_of(order.job)
        assert ended(result) == (Outcome.FAILED, Cause.IMPORT)
        assert text in result.error
        assert "runner.py" not in result.error and "importlib" not in result.error

    def test_broken_modules(self, slot, lib):
        (lib / "unparsable.py").write_text("def f(:\n")
        (lib / "exiting.py").write_text("import sys; print('half way'); sys.exit(3)")
        (lib / "raising.py").write_text("1 / 0")
        result = slot.run("unparsable:f")
        assert result.cause == Cause.IMPORT and "SyntaxError" in result.error and "unparsable.py" in result.error
        result = slot.run("exiting:f")
        assert result.cause == Cause.IMPORT and "SystemExit: 3" in result.error
        assert whole(result.stdout) == "half way\n"
        result = slot.run("raising:f")
        assert result.cause == Cause.IMPORT and "ZeroDivisionError" in result.error

    def test_a_module_that_is_installed_later(self, slot, lib):
        assert slot.run("late:f").cause == Cause.IMPORT
        (lib / "late.py").write_text("def f(): return 1")
        assert slot.value("late:f") == 1

    def test_a_module_that_kills_the_process(self, slot, lib):
        (lib / "deadly.py").write_text("import os; os._exit(9)")
        result = slot.run("deadly:f")
        assert (result.cause, result.exit_code) == (Cause.EXIT, 9)

    def test_arguments_that_are_not_json(self, slot):
        for number, wrong in enumerate(({"args": b"[1"}, {"args": b"{}"}, {"kwargs": b"[]"}, {"args": b"\xff"})):
            slot.hand_over(Order(str(number), 1, "", Spec(function="tasks:echo", **wrong)))
            assert slot.end_of(str(number)).cause == Cause.UNREADABLE

    def test_the_nodes_list_decides(self, slot, tmp_path):
        slot.set(allow_functions=("tasks:no*",))
        mark = tmp_path / "mark"
        denied = slot.submit("wait_for", "/", str(mark))
        assert denied not in slot.results, "on_end was called from within submit"
        assert slot.runner.in_flight == 1
        result = slot.end_of(denied)
        assert ended(result) == (Outcome.FAILED, Cause.DENIED)
        assert "tasks:wait_for" in result.error and not mark.exists()
        assert slot.runner.pid == 0
        assert slot.value("nothing") is None


class TestLeftovers:
    def test_surroundings_are_undone(self, slot):
        before = slot.value("identity")["environ"]
        slot.run("change_surroundings", env={"MINE": "1"})
        result = slot.run("say", "out", "err")
        assert (whole(result.stdout), whole(result.stderr)) == ("out", "err")
        after = slot.value("identity")
        assert after["cwd"] == slot.settings.workdir
        assert after["environ"] == before | {"JOBSCHED_JOB_ID": after["environ"]["JOBSCHED_JOB_ID"]}

    def test_output_sent_elsewhere_comes_back(self, slot, tmp_path):
        slot.run("send_output_elsewhere", str(tmp_path / "file"))
        result = slot.run("say_through_descriptors", "here")
        assert whole(result.stdout) == "herehere\n"

    def test_the_term_handler_is_undone(self, slot):
        slot.run("leave_term_ignored")
        assert slot.value("term_handler") is True

    @pytest.mark.parametrize("function", ["leave_child", "leave_daemon"])
    def test_children_are_killed(self, slot, function, request):
        mark = f"86{abs(hash(request.node.name)) % 10000}"
        result = slot.run(function, mark, *([True] if function == "leave_child" else []))
        assert result.outcome is Outcome.SUCCEEDED
        assert living(mark) == []
        assert slot.value("nothing") is None

    def test_children_die_with_a_crashed_runner(self, slot):
        result = slot.run("leave_child_and_crash", "862")
        assert result.signal == signal.SIGSEGV
        assert living("862") == []

    def test_children_die_with_a_timeout(self, slot, tmp_path):
        result = slot.run("leave_children_and_hang", "863", str(tmp_path / "ready"), timeout=0.8)
        assert result.cause == Cause.TIMEOUT
        assert living("863") == []

    def test_threads_are_tolerated(self, slot, tmp_path):
        slot.run("leave_thread", str(tmp_path / "gate"))
        assert slot.value("nothing") is None
        (tmp_path / "gate").touch()

    @pytest.mark.parametrize("function", ["fork_and_return", "fork_and_raise"])
    def test_a_fork_does_not_answer(self, slot, function):
        jobs = [slot.submit(function) for _ in range(5)]
        silent = [slot.submit("nothing") for _ in range(50)]
        slot.drain()
        assert {slot.results[job].value for job in jobs} == {b'"parent"'}
        errors = [whole(slot.results[job].stderr) for job in jobs]
        assert not any("runner.py" in error for error in errors)
        if function == "fork_and_raise":
            assert all(error.count("ValueError: in the fork") == 1 for error in errors)
        assert {slot.results[job].outcome for job in silent} == {Outcome.SUCCEEDED}


class TestOutput:
    def test_both_streams(self, slot):
        result = slot.run("say", "to out", "to err\n")
        assert (whole(result.stdout), whole(result.stderr)) == ("to out", "to err\n")
        assert not result.output_open

    def test_of_descriptors_and_children(self, slot):
        assert whole(slot.run("say_through_descriptors", "abc").stdout) == "abcabc\n"

    def test_more_than_a_pipe_holds(self, slot):
        result = slot.run("flood", 5_000_001)
        assert result.stdout.size == 5_000_001 and result.stdout.truncated
        assert set(result.stdout.head + result.stdout.tail) == {ord("x")}
        assert len(result.stdout.head) + len(result.stdout.tail) == slot.settings.output_limit

    def test_each_job_gets_exactly_its_own(self, slot):
        dice = random.Random(5)
        expected: dict[str, tuple[str, str]] = {}
        for number in range(6000):
            kind = dice.random()
            if kind < 0.6:
                expected[slot.submit("nothing")] = ("", "")
            elif kind < 0.98:
                out = f"<{number}>" * dice.choice([0, 1, 1, 30, 3000])
                err = f"({number})" * dice.choice([0, 1])
                expected[slot.submit("say", out, err)] = (out, err)
            else:
                text = f"[{number}]"
                expected[slot.submit("say_through_descriptors", text)] = (f"{text}{text}\n", "")
        slot.drain()
        assert {job: (whole(r.stdout), whole(r.stderr)) for job, r in slot.results.items()} == expected

    def test_in_small_steps_too(self, slot):
        """With the channel keeping up with the runner, other interleavings come up than with a full socket."""
        expected = {}
        for number in range(600):
            for _ in range(number % 3):
                expected[slot.submit("nothing")] = ""
            expected[slot.submit("say", f"{number}\n")] = f"{number}\n"
            slot.loop.run_once(0.0)
            if number % 7 == 0:
                slot.drain()
        slot.drain()
        assert {job: whole(result.stdout) for job, result in slot.results.items()} == expected

    def test_live(self, slot, tmp_path):
        heard: list[tuple[int, int, bytes]] = []
        silent = slot.submit("nothing")
        job = slot.submit("say_and_wait", "first", str(tmp_path / "gate"))
        after = slot.submit("say", "of another")
        slot.runner.listen(silent, lambda *_: pytest.fail("it is silent"))
        slot.runner.listen(job, lambda *chunk: heard.append(chunk))
        slot.until(lambda: heard)
        assert heard == [(1, 0, b"first\n")]
        assert slot.runner.current is not None and slot.runner.current.job == job
        late: list[tuple[int, int, bytes]] = []
        slot.runner.listen(job, lambda *chunk: late.append(chunk))
        assert late == heard
        (tmp_path / "gate").touch()
        slot.end_of(after)
        assert late[1:] == [(1, 6, b"after\n")] and len(heard) == 1

    def test_live_output_that_is_seen_before_the_answer_before_it(self, slot, tmp_path):
        slot.run("nothing")
        heard: list[tuple[int, int, bytes]] = []
        silent = slot.submit("nothing")
        job = slot.submit("say_and_wait", "text", str(tmp_path / "gate"))
        slot.runner.listen(silent, lambda *_: pytest.fail("it is silent"))
        slot.runner.listen(job, lambda *chunk: heard.append(chunk))
        assert slot.runner._process is not None
        stdout = slot.runner._process.output.pipes[0].fd
        assert select.select([stdout], [], [], 10)[0]
        slot.loop._readers[stdout]()  # epoll gives no order of events that we could rely on
        assert heard == [(1, 0, b"text\n")]
        (tmp_path / "gate").touch()
        slot.drain()

    def test_live_chunks_are_the_captured_bytes(self, slot):
        heard: dict[str, bytearray] = {}
        jobs = []
        for number in range(300):
            job = slot.submit(*(("say", f"{number}," * (number % 5)) if number % 3 else ("nothing",)))
            heard[job] = bytearray()
            slot.runner.listen(job, appender(heard[job]))
            jobs.append(job)
        slot.drain()
        assert all(bytes(heard[job]).decode() == whole(slot.results[job].stdout) for job in jobs)
        assert sum(map(len, heard.values())) > 500

    def test_a_failing_listener_harms_nobody(self, slot, caplog):
        def fail(*_: object) -> None:
            raise RuntimeError("gone")

        job = slot.submit("say", "text")
        slot.runner.listen(job, fail)
        assert whole(slot.end_of(job).stdout) == "text"
        assert "follower" in caplog.text


class TestStops:
    def test_a_waiting_job_ends_at_once(self, slot, tmp_path):
        running = slot.submit("wait_for", str(tmp_path / "gate"))
        waiting = [slot.submit("nothing") for _ in range(5)]
        slot.until(lambda: slot.runner.current is not None)
        assert slot.runner.stop(waiting[2], Outcome.CANCELLED, Cause.CANCELLED)
        result = slot.results[waiting[2]]
        assert ended(result) == (Outcome.CANCELLED, Cause.CANCELLED) and result.started == 0
        (tmp_path / "gate").touch()
        slot.drain()
        assert slot.sequence == [waiting[2], running, *waiting[:2], *waiting[3:]]

    def test_before_there_is_a_process(self, slot):
        job = slot.submit("nothing")
        assert slot.runner.stop(job, Outcome.CANCELLED, Cause.CANCELLED)
        assert ended(slot.results[job]) == (Outcome.CANCELLED, Cause.CANCELLED)

    def test_a_running_job(self, slot, tmp_path):
        job = slot.submit("wait_for", "/absent", str(tmp_path / "mark"))
        others = [slot.submit("nothing") for _ in range(5)]
        slot.until((tmp_path / "mark").exists)
        assert slot.runner.stop(job, Outcome.CANCELLED, Cause.CANCELLED)
        assert slot.runner.stop(job, Outcome.FAILED, Cause.DRAIN), "still here"
        result = slot.end_of(job)
        assert ended(result) == (Outcome.CANCELLED, Cause.CANCELLED)
        assert result.signal == signal.SIGTERM and not result.escalated
        slot.drain()
        assert {slot.results[other].outcome for other in others} == {Outcome.SUCCEEDED}

    def test_an_unknown_job(self, slot):
        assert not slot.runner.stop("9", Outcome.CANCELLED, Cause.CANCELLED)
        job = slot.submit("nothing")
        slot.end_of(job)
        assert not slot.runner.stop(job, Outcome.CANCELLED, Cause.CANCELLED)

    @pytest.mark.parametrize("function", ["ignore_term", "block_term"])
    def test_timeout_with_term_ignored(self, slot, tmp_path, function):
        slot.run("nothing")
        job = slot.submit(function, str(tmp_path / "mark"), timeout=0.4)
        result = slot.end_of(job)
        assert ended(result) == (Outcome.TIMED_OUT, Cause.TIMEOUT)
        assert result.escalated and result.signal == signal.SIGKILL
        assert 0.7 <= result.duration < 5
        assert "0.4 s" in result.error

    def test_timeout_counts_from_the_jobs_own_start(self, slot, tmp_path):
        gate = tmp_path / "gate"
        first = slot.submit("wait_for", str(gate))
        second = slot.submit("wait_for", str(gate), timeout=0.5)
        third = slot.submit("wait_for", "/absent", timeout=0.3)
        slot.until(lambda: slot.runner.current is not None)
        start = time.monotonic()
        slot.until(lambda: time.monotonic() - start > 0.8)
        assert not slot.results
        gate.touch()
        slot.drain()
        assert slot.results[first].outcome is slot.results[second].outcome is Outcome.SUCCEEDED
        result = slot.results[third]
        assert ended(result) == (Outcome.TIMED_OUT, Cause.TIMEOUT)
        assert 0.3 <= result.duration < 3

    def test_a_timer_set_for_one_job_spares_the_next(self, slot):
        slot.run("nothing")
        slot.submit("time:sleep", 0.05, timeout=0.2)
        after = slot.submit("time:sleep", 0.4, timeout=5)
        result = slot.end_of(after)
        assert result.outcome is Outcome.SUCCEEDED and result.duration >= 0.4

    def test_a_stopped_process_times_out_too(self, slot):
        result = slot.run("stop_itself", timeout=0.3)
        assert result.cause == Cause.TIMEOUT

    def test_a_function_that_catches_term(self, slot, tmp_path):
        job = slot.submit("catch_term", str(tmp_path / "mark"))
        after = slot.submit("nothing")
        slot.until((tmp_path / "mark").exists)
        slot.runner.stop(job, Outcome.CANCELLED, Cause.CANCELLED)
        result = slot.end_of(job)
        assert ended(result) == (Outcome.CANCELLED, Cause.CANCELLED)
        assert result.value == b'"caught"' and not result.escalated
        assert slot.end_of(after).outcome is Outcome.SUCCEEDED

    def test_kill(self, slot, tmp_path):
        job = slot.submit("ignore_term", str(tmp_path / "mark"))
        after = slot.submit("nothing")
        slot.until((tmp_path / "mark").exists)
        slot.runner.kill(Outcome.FAILED, Cause.LEASE)
        result = slot.end_of(job)
        assert ended(result) == (Outcome.FAILED, Cause.LEASE) and result.signal == signal.SIGKILL
        assert slot.end_of(after).outcome is Outcome.SUCCEEDED
        slot.runner.kill(Outcome.FAILED, Cause.LEASE)  # nothing runs: nothing happens
        assert slot.value("nothing") is None

    def test_kill_cuts_a_grace_short(self, slot, tmp_path):
        slot.set(term_grace=60.0)
        job = slot.submit("ignore_term", str(tmp_path / "mark"))
        slot.until((tmp_path / "mark").exists)
        slot.runner.stop(job, Outcome.CANCELLED, Cause.CANCELLED)
        slot.runner.kill(Outcome.FAILED, Cause.DRAIN)
        result = slot.end_of(job)
        assert ended(result) == (Outcome.CANCELLED, Cause.CANCELLED) and result.escalated

    def test_a_stop_hits_nobody_else(self, slot):
        """Cancels around the natural end: one end each, and no neighbour pays for it."""
        dice = random.Random(3)
        jobs = [slot.submit("nothing") for _ in range(400)]
        cancelled = set()
        while len(slot.results) < len(jobs):
            victim = next((job for job in jobs if job not in slot.results), None)
            if victim is not None and dice.random() < 0.3 and slot.runner.pid:
                slot.runner.stop(victim, Outcome.CANCELLED, Cause.CANCELLED)
                cancelled.add(victim)
            slot.loop.run_once(dice.choice([0.0, 0.0, 0.0005]))
        assert cancelled
        for job in jobs:
            expected = {Outcome.SUCCEEDED, Outcome.CANCELLED} if job in cancelled else {Outcome.SUCCEEDED}
            assert slot.results[job].outcome in expected

    def test_close_ends_what_runs(self, slot, tmp_path):
        slot.submit("ignore_term", str(tmp_path / "mark"))
        slot.until((tmp_path / "mark").exists)
        pid = slot.runner.pid
        slot.runner.close()
        assert status_of(pid) is None and not slot.results


class TestRevoke:
    def test_everything_that_is_not_taken(self, slot, tmp_path):
        gate = tmp_path / "gate"
        running = slot.submit("wait_for", str(gate))
        waiting = [slot.submit("nothing") for _ in range(3000)]  # more than the socket holds
        slot.until(lambda: slot.runner.current is not None)
        assert [order.job for order in slot.runner.revoke()] == waiting
        assert slot.runner.in_flight == 1
        gate.touch()
        slot.drain()
        assert slot.sequence == [running]
        assert slot.runner.revoke() == []
        assert slot.value("nothing") is None

    def test_under_load_each_order_ends_once_or_comes_back(self, slot, tmp_path):
        dice = random.Random(11)
        ledger = tmp_path / "ledger"
        submitted, revoked = [], []
        while len(submitted) < 20_000:
            for _ in range(dice.randrange(1, 200)):
                submitted.append(slot.submit("record", str(ledger), len(submitted)))
            slot.loop.run_once(dice.choice([0.0, 0.001, 0.003]))
            if dice.random() < 0.3:
                revoked += [order.job for order in slot.runner.revoke()]
        slot.drain()
        assert revoked and len(slot.results) > 500
        assert sorted([*revoked, *slot.results], key=int) == submitted
        ran = [int(line) + 1 for line in ledger.read_text().split()]
        assert ran == [int(job) for job in slot.sequence]

    def test_revoke_while_runners_die(self, slot, tmp_path):
        dice = random.Random(2)
        submitted, revoked, deadly = [], [], set()
        while len(submitted) < 400:
            for _ in range(dice.randrange(1, 30)):
                dies = dice.random() < 0.03
                job = slot.submit(*(("ends_process", 3) if dies else ("nothing",)))
                submitted.append(job)
                deadly |= {job} if dies else set()
            slot.loop.run_once(0.005)
            if dice.random() < 0.3:
                revoked += [order.job for order in slot.runner.revoke()]
        slot.drain()
        assert sorted([*revoked, *slot.results], key=int) == submitted
        assert {job for job, result in slot.results.items() if result.exit_code == 3} == deadly - set(revoked)


class TestProcess:
    def test_a_signal_that_a_function_handles_does_not_end_it(self, slot):
        slot.run("handles_signals")
        pid = slot.runner.pid
        for _ in range(20):  # most of them while it waits for an order
            os.kill(pid, signal.SIGUSR1)
            slot.loop.run_once(0.005)
        assert slot.value("identity")["pid"] == pid

    def test_recycled_after_so_many_jobs(self, slot):
        slot.set(runner_recycle=7)
        jobs = [slot.submit("identity") for _ in range(30)]
        slot.drain()
        pids = [json.loads(slot.results[job].value)["pid"] for job in jobs]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [7, 7, 7, 7, 2]
        assert {slot.results[job].outcome for job in jobs} == {Outcome.SUCCEEDED}

    def test_recycled_after_growth(self, slot):
        slot.set(runner_memory=64 << 20)
        pids = [slot.value("grow", size << 20) for size in (1, 10, 100, 1, 1)]
        assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]

    def test_an_orderly_end(self, slot, tmp_path):
        slot.set(runner_recycle=1)
        slot.run("write_at_exit", str(tmp_path / "mark"))
        slot.until((tmp_path / "mark").exists)

    def test_a_runner_that_does_not_end(self, slot):
        slot.set(runner_recycle=1)
        slot.run("slow_exit", "/absent")
        assert slot.value("nothing") is None

    def test_starts_are_noted(self, slot):
        jobs = [slot.submit("nothing") for _ in range(3)]
        slot.drain()
        starts = read_starts(slot.register.path)
        assert [start.entry for start in starts] == [f"1700000000000-{job}" for job in jobs]
        assert {start.pid for start in starts} == {0}

    def test_an_order_without_an_entry(self, slot):
        slot.hand_over(Order("7", 1, "", Spec(function="tasks:nothing")))
        assert slot.end_of("7").outcome is Outcome.SUCCEEDED

    def test_a_runner_that_dies_before_the_start(self, slot):
        """Taken, not started: tried once more, then given up; never a runner after another for ever."""
        slot.hand_over(Order("7", 1, "no entry id", Spec(function="tasks:nothing")))
        after = slot.submit("nothing")
        result = slot.end_of("7")
        assert ended(result) == (Outcome.FAILED, Cause.RESOURCE)
        assert "before it started" in result.error and "no entry id" in result.error
        assert slot.end_of(after).outcome is Outcome.SUCCEEDED

    def test_no_interpreter(self, slot, monkeypatch, caplog):
        monkeypatch.setattr(sys, "executable", "/absent/python")
        monkeypatch.setattr(functions, "FIRST_BACKOFF", 0.2)
        first, second = slot.submit("nothing"), slot.submit("nothing")
        start = time.monotonic()
        result = slot.end_of(first)
        assert ended(result) == (Outcome.FAILED, Cause.RESOURCE)
        assert "No such file" in result.error
        slot.end_of(second)
        assert time.monotonic() - start >= 0.2
        assert len(caplog.records) == 2
        monkeypatch.undo()
        assert slot.value("nothing") is None

    def test_an_interpreter_that_ends_at_once(self, slot, monkeypatch, tmp_path):
        broken = tmp_path / "python"
        broken.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(broken))
        first, second = slot.submit("nothing"), slot.submit("nothing")
        result = slot.end_of(first)
        assert ended(result) == (Outcome.FAILED, Cause.RESOURCE)
        assert "exit code 127" in result.error and "no such library" in result.error
        assert [order.job for order in slot.runner.revoke()] == [second]

    def test_the_runner_dies_with_its_channel(self, tmp_path):
        script = tmp_path / "channel.py"
        script.write_text(
            "import sys, pathlib\n"
            f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
            "from test_functions import Slot\n"
            "slot = Slot(pathlib.Path(sys.argv[1]))\n"
            "slot.submit('wait_for', '/absent', sys.argv[1] + '/mark')\n"
            "slot.until((slot.directory / 'mark').exists)\n"
            "print(slot.runner.pid, flush=True)\n"
            "while True: slot.loop.run_once()\n"
        )
        directory = tmp_path / "home"
        directory.mkdir()
        with subprocess.Popen([sys.executable, script, directory], stdout=subprocess.PIPE) as channel:
            assert channel.stdout is not None
            runner = int(channel.stdout.readline())
            channel.kill()
        deadline = time.monotonic() + 5
        while status_of(runner) is not None and time.monotonic() < deadline:
            try:
                os.waitpid(runner, os.WNOHANG)  # where this process is a subreaper
            except ChildProcessError:
                time.sleep(0.005)
        assert status_of(runner) is None

    @pytest.mark.parametrize("point", ["runner.start.registered", "runner.result.before", "runner.result.after"])
    def test_killed_between_two_effects(self, slot, monkeypatch, tmp_path, point):
        monkeypatch.setenv("JOBSCHED_FAILPOINTS", f"{point}:kill:3:{tmp_path / 'marker'}")
        ledger = tmp_path / "ledger"
        jobs = [slot.submit("record", str(ledger), number) for number in range(8)]
        slot.drain()
        outcomes = [slot.results[job].outcome for job in jobs]
        ran = [int(line) for line in ledger.read_text().split()]
        if point == "runner.result.after":
            assert outcomes == [Outcome.SUCCEEDED] * 8
            assert ran == list(range(8))
        else:
            assert outcomes == [Outcome.SUCCEEDED] * 2 + [Outcome.FAILED] + [Outcome.SUCCEEDED] * 5
            assert slot.results[jobs[2]].signal == signal.SIGKILL
            assert ran == [n for n in range(8) if n != 2 or point == "runner.result.before"]

    def test_failpoints_do_not_reach_functions(self, slot, monkeypatch):
        monkeypatch.setenv("JOBSCHED_FAILPOINTS", "runner.result.after:kill:1000")
        assert "JOBSCHED_FAILPOINTS" not in slot.value("identity")["environ"]


def replace_job(order: Order, job: str) -> Order:
    return Order(job, order.attempt, order.entry, order.spec)


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def appender(target: bytearray) -> Callable[[int, int, bytes], None]:
    def listener(number: int, offset: int, data: bytes) -> None:
        assert offset == len(target)
        target.extend(data)

    return listener
