"""The ``jobschedd`` command as a user meets it: a process of its own, its output and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobschedd import __version__

GOOD = "role: slave\nredis: {url: 'redis://:hunter2@h'}\nslave: {channels: ['1', {name: gpu, slots: 3}]}\n"

FIVE_MISTAKES = """\
role: slave
redis:
  url: redis//127.0.0.1
slave:
  channels:
    - name: 1
    - {name: gpu, slots: 0}
  drain_timout: 60s
timing:
  heartbeat: 10:30
"""


def jobschedd(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobschedd.cli.daemon", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "jobsched.yaml"
    file.write_text(GOOD)
    file.chmod(0o600)
    return file


def test_check_says_what_would_run(file: Path):
    done = jobschedd("check", "--config", file)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{file}: ok\n")
    assert "slave: 2 channels, 4 jobs at once: 1, gpu (3 slots)" in done.stdout
    assert "redis redis://h," in done.stdout
    assert "hunter2" not in done.stdout


def test_five_mistakes_are_five_lines(file: Path):
    file.write_text(FIVE_MISTAKES)

    done = jobschedd("check", "--config", file)

    assert (done.returncode, done.stderr) == (78, "")
    assert [line.split(": ")[:2] for line in done.stdout.splitlines()] == [
        [f"{file}:3", "redis.url"],
        [f"{file}:6", "slave.channels[0].name"],
        [f"{file}:7", "slave.channels[1].slots"],
        [f"{file}:8", "slave.drain_timout"],
        [f"{file}:10", "timing.heartbeat"],
    ]
    assert "did you mean 'drain_timeout'?" in done.stdout


def test_warnings_do_not_stop_unless_asked(file: Path):
    file.chmod(0o644)

    done = jobschedd("check", "-c", file)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{file}:2: redis.url: the file holds a password and everybody may read it")
    assert jobschedd("check", "--strict", "-c", file).returncode == 78


def test_the_file_is_found_where_a_checkout_has_it(file: Path, tmp_path: Path):
    (tmp_path / "etc").mkdir()
    file.rename(tmp_path / "etc/jobsched.yaml")

    done = jobschedd("check", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("etc/jobsched.yaml: ok\n")


@pytest.mark.parametrize("command", [["check"], ["run"], []])
def test_a_missing_file_is_one_line(command: list[str], tmp_path: Path):
    done = jobschedd(*command, "--config", tmp_path / "none.yaml")

    assert done.returncode == 78
    assert f"{done.stdout}{done.stderr}" == f"{tmp_path}/none.yaml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("command", [["run"], []])
def test_run_refuses_a_file_with_mistakes(command: list[str], file: Path):
    file.write_text(FIVE_MISTAKES)

    done = jobschedd(*command, "--config", file)

    assert (done.returncode, done.stdout) == (78, "")
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == [
        f"{file}:{line}:" for line in (3, 6, 7, 8, 10)
    ]


def test_version_and_help():
    assert jobschedd("--version").stdout == f"jobschedd {__version__}\n"
    shown = jobschedd("--help").stdout
    assert all(command in shown for command in ("run", "check", "install-service"))


@pytest.mark.parametrize("arguments", [["chek"], ["check", "--conf"], ["run", "extra"], ["--frobnicate"]])
def test_wrong_usage(arguments: list[str]):
    done = jobschedd(*arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Usage: jobschedd")


def test_check_loads_neither_redis_nor_the_roles(file: Path):
    # It runs before every start and reload: about 0.1 s, most of it Python's own start.
    code = (
        "import sys, jobschedd.cli.daemon as d\n"
        f"sys.argv = ['jobschedd', 'check', '-c', {str(file)!r}]\n"
        "try: d.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sorted({'redis', 'rich', 'asyncio', 'psutil', 'jobschedd.roles'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_check_imports_nothing_that_only_a_running_daemon_needs(file: Path):
    """What it takes is mostly what it imports."""
    code = (
        "import sys\n"
        "from jobschedd.cli.daemon import main\n"
        "sys.argv = ['jobschedd', 'check', '-c', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "unneeded = {'redis', 'rich', 'psutil', 'sqlite3', 'asyncio', 'multiprocessing', 'ssl', 'zoneinfo'}\n"
        "print(*sorted(unneeded & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == ""
