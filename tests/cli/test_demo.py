"""``jobsched demo``: everything at once, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from cluster import TOKEN, describe, processes_with, program
from redis_server import die_with_parent, wait_until


class Stage:
    """Where a demo runs: a temporary directory of its own, and a token to find its processes by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex

    def environment(self) -> dict[str, str]:
        return os.environ | {TOKEN: self.token, "SPT_NOENV": "1", "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [program("jobsched"), "demo", *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            preexec_fn=die_with_parent,
        )

    def assert_no_process_is_left(self, within: float = 10.0) -> None:
        def left() -> str:
            return describe(processes_with(self.token, self.folder))

        wait_until(lambda: not left(), within, f"no process is left: {left()}", every=0.05)


@pytest.fixture
def stage() -> Iterator[Stage]:
    # Not tmp_path: the address of a Unix socket holds 107 bytes.
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
    stage = Stage(folder)
    yield stage
    for process in processes_with(stage.token, folder):
        process.kill()
    shutil.rmtree(folder)


def test_it_runs_jobs_and_sums_up(stage: Stage):
    demo = stage.start("--jobs", "21", "--channels", "2")
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0, output
    assert "jobs      21 of 21 ok, 0 failed" in output
    assert re.search(r"latency   p50 \S+, p95 \S+, p99 \S+ from submit to result", output)
    assert re.search(r"channels  demo/1: \d+, demo/2: \d+", output)
    assert output.split("\n\n")[-1].count("jobsched") >= 3, "three commands to try next"
    stage.assert_no_process_is_left()
    assert list(stage.folder.iterdir()) == []


def test_a_demo_of_several_seconds_counts_every_job(stage: Stage):
    """It looks at the jobs again each second; what ends between two looks was once left out."""
    demo = stage.start("--jobs", "400")
    said, _ = demo.communicate(timeout=90)

    assert "400 of 400 ok, 0 failed" in said
    assert len(re.findall(r"jobs done", said)) >= 2, said
    assert demo.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(stage: Stage, signum: signal.Signals):
    demo = stage.start("--jobs", "2000")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "jobs submitted" in line:
            break
    demo.send_signal(signum)
    rest = demo.stdout.read()

    assert demo.wait(20) == 130, rest
    assert "Traceback" not in rest
    stage.assert_no_process_is_left()
    assert list(stage.folder.iterdir()) == []


def test_killed_it_leaves_no_process(stage: Stage):
    demo = stage.start("--jobs", "50")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "jobs submitted" in line:
            break
    demo.kill()
    demo.wait(10)
    demo.stdout.close()
    stage.assert_no_process_is_left(within=20)


def test_it_shows_itself_on_a_terminal(stage: Stage):
    demo = pexpect.spawn(
        program("jobsched"),
        ["demo", "--jobs", "30"],
        env=stage.environment(),
        timeout=60,
        dimensions=(40, 120),
        cwd=str(stage.folder),
    )
    demo.expect("CHANNEL.*STATE.*NOW.*DONE")
    demo.expect("demo/3")
    demo.expect("of 30 done")
    demo.expect("30 of 30 ok, 0 failed")
    demo.expect(pexpect.EOF)
    demo.close()
    assert demo.exitstatus == 0
    stage.assert_no_process_is_left()


SERVER_THAT_DIES = """\
#!/bin/sh
[ "$1" = --version ] && echo "Valkey server v=9.0.0 sha=0 malloc=libc bits=64 build=0" && exit 0
echo no server here >&2
exit 1
"""


def test_a_server_that_cannot_start_is_told_with_its_log(stage: Stage):
    programs = stage.folder / "bin"
    programs.mkdir()
    server = programs / "valkey-server"
    server.write_text(SERVER_THAT_DIES)
    server.chmod(0o755)
    environment = stage.environment() | {"PATH": f"{programs}:{os.environ['PATH']}"}
    demo = subprocess.run(
        [program("jobsched"), "demo"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert demo.returncode == 1
    assert demo.stderr.startswith("jobsched: a process of the daemon keeps dying:\n")
    assert "no server here" in demo.stderr
    assert "Traceback" not in demo.stderr
    stage.assert_no_process_is_left()
    assert list(stage.folder.iterdir()) == [programs]
