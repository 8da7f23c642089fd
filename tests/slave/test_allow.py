"""The node's lists, and the ways around them that must be closed."""

from __future__ import annotations

import pytest

from jobschedd.job import Cause
from jobschedd.slave.allow import allows_command, allows_function, allows_shell
from jobschedd.slave.process import StartFailed
from jobschedd.slave.settings import ExecutionSettings


def node(*commands: str, functions: tuple[str, ...] = (), shell: bool = False) -> ExecutionSettings:
    return ExecutionSettings(
        node="n", channel="c", workdir="/", allow_commands=commands, allow_functions=functions, allow_shell=shell
    )


@pytest.mark.parametrize(
    ("patterns", "name", "path", "by_job", "allowed"),
    [
        (("*",), "anything", "/x/anything", True, True),
        ((), "true", "/bin/true", False, False),
        (("true",), "true", "/usr/bin/true", False, True),
        (("true",), "/usr/bin/true", "/usr/bin/true", False, False),
        (("tru?",), "true", "/usr/bin/true", False, True),
        (("TRUE",), "true", "/usr/bin/true", False, False),
        (("/opt/jobs/*",), "/opt/jobs/a", "/opt/jobs/a", False, True),
        (("/opt/jobs/*",), "a", "/opt/jobs/a", True, True),
        # A bare name that the job looks up in directories of its own choice is anybody's program.
        (("backup",), "backup", "/tmp/evil/backup", True, False),
        (("/opt/jobs/*",), "/opt/jobs/../../bin/true", "/opt/jobs/../../bin/true", False, False),
        (("/opt/jobs/*",), "/opt/jobs//a", "/opt/jobs//a", False, True),
        (("./a",), "./a", "./a", False, False),
        (("bin/*",), "bin/a", "bin/a", False, False),
    ],
)
def test_commands(patterns, name, path, by_job, allowed):
    assert allows_command(node(*patterns), name, path, by_job=by_job) is allowed


def test_a_link_is_known_by_both_of_its_names(tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    link = str(tmp_path / "link")
    assert allows_command(node(str(tmp_path / "real")), link, link, by_job=False)
    assert allows_command(node(link), link, link, by_job=False)
    assert not allows_command(node(str(tmp_path / "other")), link, link, by_job=False)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("myapp.tasks:send", True), ("myapp.tasks.deep:f", False), ("os:system", False), ("myapp.tasks", False)],
)
def test_functions(name, allowed):
    assert allows_function(node(functions=("myapp.tasks:*",)), name) is allowed


def test_shell():
    assert allows_shell(node(shell=True))
    assert not allows_shell(node("*"))


def test_real_starts(station, tmp_path):
    evil = tmp_path / "backup"
    evil.write_text("#!/bin/sh\necho evil\n")
    evil.chmod(0o755)
    station.set(allow_commands=("backup", "true", str(tmp_path / "allowed*")))
    assert station.run("true").exit_code == 0
    for attempt in (
        {"command": ("backup",), "env": {"PATH": str(tmp_path)}},
        {"command": ("./backup",)},
        {"command": (str(evil),)},
        {"command": (f"{tmp_path}/allowed/../backup",)},
    ):
        (tmp_path / "allowed").mkdir(exist_ok=True)
        with pytest.raises(StartFailed) as refused:
            station.start(**attempt)
        assert refused.value.cause is Cause.DENIED
        assert "allow" in refused.value.message
