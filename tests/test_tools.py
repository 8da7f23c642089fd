"""The scripts that a newcomer runs first."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment, as far as the scripts care."""
    for name in ("setup.cfg", "setup.py", "tools"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    return tmp_path


def fake_python(folder: Path, refuses: str) -> Path:
    """An interpreter that fails on programs with ``refuses`` in them, and succeeds at everything else."""
    python = folder / "fake-python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"{refuses}"*) exit 1;; *platform*) echo 3.9.1;; esac\n')
    python.chmod(0o755)
    return python


def prepare(checkout: Path, python: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "tools/venv.sh", "embedded"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_old_python_is_named(checkout: Path, tmp_path: Path):
    python = fake_python(tmp_path, refuses="version_info")
    done = prepare(checkout, python)

    assert done.returncode == 1
    assert f"needs Python 3.11 or newer (not 3.12.0); {python} is 3.9.1." in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all(checkout: Path):
    done = prepare(checkout, "/nonexistent/python")
    assert done.returncode == 1
    assert "/nonexistent/python is missing." in done.stderr


def test_a_python_that_cannot_make_environments(checkout: Path, tmp_path: Path):
    done = prepare(checkout, fake_python(tmp_path, refuses="venv"))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


def test_help_lists_every_target():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, timeout=60, check=True)
    assert all(f"make {target} " in done.stdout for target in ("help", "demo", "test", "check", "bench", "clean"))
