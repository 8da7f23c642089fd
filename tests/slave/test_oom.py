"""Killed for want of memory: told apart from a plain SIGKILL by the kernel's own count."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jobschedd.slave.oom import OomWatch, counter_file

MEMORY = Path("/sys/fs/cgroup/memory")


def test_only_a_change_counts(tmp_path):
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 7\noom_kill 3\noom_group_kill 9\n")
    watch = OomWatch(str(counter))
    assert not watch.moved()
    counter.write_text("oom_kill 4\n")
    assert watch.moved()
    assert not watch.moved()
    counter.unlink()
    assert not watch.moved()


def test_this_machine_has_a_counter():
    assert OomWatch(counter_file())._count() >= 0
    assert "oom_kill " in Path(counter_file()).read_text()


@pytest.mark.skipif(
    not os.access(MEMORY / "cgroup.procs", os.W_OK), reason="needs a writable memory cgroup (v1) to set a limit"
)
def test_a_job_that_takes_all_memory(tmp_path):
    group = MEMORY / f"jobschedd-test-{os.getpid()}"
    group.mkdir()
    code = f"""
        import os
        from pathlib import Path
        group = Path({str(group)!r})
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        from jobschedd.slave.processtree import household
        from station import Station
        station = Station(Path({str(tmp_path)!r}), household)
        killed = station.shell("kill -KILL $$")
        hungry = station.run({sys.executable!r}, "-c", "x = bytearray(1 << 30)")
        shell = station.shell({sys.executable + " -c 'x = bytearray(1 << 30)'; exit $?"!r})
        for result in (killed, hungry, shell):
            print(result.cause, result.signal, result.exit_code, "memory" in result.error)
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=60,
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        group.rmdir()
    assert done.stdout.splitlines() == [
        "signal 9 None False",
        "oom 9 None True",
        "exit None 137 True",
    ]
