"""``jobschedd install-service`` into a staging folder, and what it prints. The real thing: tests/systemd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import program
from jobschedd.cli import service
from jobschedd.cli.service import PROFILES, install_service, quoted
from jobschedd.errors import JobschedError

ROOT = Path(__file__).parents[2]
UNIT_FOLDER = "etc/systemd/system"
DROP_IN = f"{UNIT_FOLDER}/jobschedd.service.d/10-profile.conf"


def install(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("jobschedd"), "install-service", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_print_shows_every_file_and_changes_nothing(tmp_path: Path):
    done = install("--print", "--root", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"ExecStart={program('jobschedd')} run --config /etc/jobschedd/jobsched.yaml" in done.stdout
    for path in ("system/jobschedd.service", "system/jobschedd@.service", "sysusers.d/jobschedd.conf"):
        assert any(line.startswith("# /etc/") and path in line for line in done.stdout.splitlines())
    assert contents(tmp_path) == {}


def test_staging_writes_the_files_with_the_real_command(tmp_path: Path):
    done = install("--root", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    files = contents(tmp_path)
    assert set(files) == {
        f"{UNIT_FOLDER}/jobschedd.service",
        f"{UNIT_FOLDER}/jobschedd@.service",
        "etc/sysusers.d/jobschedd.conf",
        "etc/tmpfiles.d/jobschedd.conf",
        "etc/jobschedd/jobsched.yaml",
    }
    for unit in ("jobschedd.service", "jobschedd@.service"):
        text = files[f"{UNIT_FOLDER}/{unit}"]
        assert text.count(program("jobschedd")) == 2
        assert "/usr/bin/jobschedd" not in text or program("jobschedd") == "/usr/bin/jobschedd"
    assert files["etc/jobschedd/jobsched.yaml"] == (ROOT / "etc/jobsched.yaml").read_text()


def test_it_may_be_repeated_and_keeps_the_configuration(tmp_path: Path):
    install("--root", tmp_path)
    config, unit = tmp_path / "etc/jobschedd/jobsched.yaml", tmp_path / UNIT_FOLDER / "jobschedd.service"
    config.write_text("role: master\n")
    current = unit.read_text()
    unit.write_text("[Unit]\n")

    said = [line.split() for line in install("--root", tmp_path).stdout.splitlines()]

    assert ["kept", str(config)] in said
    assert ["replaced", str(unit)] in said
    assert ["unchanged", str(tmp_path / "etc/sysusers.d/jobschedd.conf")] in said
    assert config.read_text() == "role: master\n"
    assert unit.read_text() == current


def test_files_are_readable_whatever_the_umask(tmp_path: Path):
    before = os.umask(0o077)
    try:
        install("--root", tmp_path / "system")
    finally:
        os.umask(before)

    for path in (tmp_path / "system").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_profiles_come_and_go(tmp_path: Path):
    install("--root", tmp_path, "--profile", "strict")
    assert contents(tmp_path)[DROP_IN] == (ROOT / "systemd/strict.conf").read_text()

    install("--root", tmp_path)
    assert DROP_IN in contents(tmp_path)

    install("--root", tmp_path, "--profile", "standard")
    assert DROP_IN not in contents(tmp_path)


def test_the_command_line_offers_every_profile():
    assert f"[{'|'.join(PROFILES)}]" in install("--help").stdout


def test_a_masked_unit_stays_masked(tmp_path: Path):
    unit = tmp_path / UNIT_FOLDER / "jobschedd.service"
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")

    done = install("--root", tmp_path)

    assert done.returncode == 1
    assert f"{unit} is a link to /dev/null" in done.stderr
    assert contents(tmp_path) == {}


def test_it_needs_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(JobschedError, match=r"needs root: run it with sudo, or look at .* --print"):
        install_service(False)


def test_a_machine_without_systemd_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(JobschedError, match=r"no systemd on this machine: .*--daemonize"):
        install_service(False)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "etc").write_text("a file in the way")

    done = install("--root", tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith(f"jobschedd: cannot write {tmp_path}/etc/systemd/system/jobschedd.service: ")
    assert "Traceback" not in done.stderr


def test_an_installation_that_services_cannot_see_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "prefix", "/tmp/venv")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")

    with pytest.raises(JobschedError, match="lies under /tmp, of which such a service sees nothing: python3 -m venv"):
        service._require_visible("/opt/jobschedd/bin/jobschedd", "standard")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/jobschedd/bin/jobschedd", "/opt/jobschedd/bin/jobschedd"),
        ("/opt/100%/bin/jobschedd", "/opt/100%%/bin/jobschedd"),
        ("/opt/my jobs/jobschedd", '"/opt/my jobs/jobschedd"'),
        ('/opt/a"b\\c/jobschedd', '"/opt/a\\"b\\\\c/jobschedd"'),
    ],
)
def test_odd_paths_are_quoted(path: str, word: str):
    assert quoted(path) == word
