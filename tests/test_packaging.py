"""What a wheel carries, and that what it carries works away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wheel import ROOT, build_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def shipped(folder: str) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*") if file.is_file()}


def test_it_carries_every_file(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sample = archive.read("jobschedd/resources/etc/jobsched.yaml")

    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "jobschedd").rglob("*.py")}
    assert modules <= names
    assert shipped("jobschedd/store/lua") <= names
    assert "jobschedd/py.typed" in names
    for folder in ("etc", "systemd"):
        assert {f"jobschedd/resources/{name}" for name in shipped(folder)} <= names
    assert sample == (ROOT / "etc/jobsched.yaml").read_bytes()
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "etc", "systemd"))]


def test_it_works_without_the_checkout(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    resource = tmp_path / "installed/jobschedd/resources/etc/jobsched.yaml"

    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobschedd.cli.daemon", "check", "--config", str(resource)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{resource}: ok")
