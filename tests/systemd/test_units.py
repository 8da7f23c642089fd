"""The unit files by what systemd itself says about them, without starting anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import program
from jobschedd.config import load

ROOT = Path(__file__).parents[2]
UNITS = ("jobschedd.service", "jobschedd@.service")

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt-get install systemd)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units as they are installed: with a command that exists."""
    for unit in UNITS:
        text = (ROOT / "systemd" / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/bin/jobschedd", program("jobschedd")))
    return tmp_path


def add_profile(folder: Path, unit: str, profile: str) -> None:
    drop_in = folder / f"{unit}.d/10-profile.conf"
    drop_in.parent.mkdir()
    shutil.copy(ROOT / f"systemd/{profile}.conf", drop_in)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("profile", ["", "privileged", "strict"])
def test_systemd_has_nothing_to_complain_of(folder: Path, unit: str, profile: str):
    if profile:
        add_profile(folder, unit, profile)

    done = analyze("verify", "--man=no", folder / unit)

    # The exit code is 0 even for unknown keys: only an empty stderr means anything.
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_itself_sees_mistakes(folder: Path):
    unit = folder / "jobschedd.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchDogSecs="))

    assert "WatchDogSecs" in analyze("verify", "--man=no", unit).stderr


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("profile", "threshold"), [("", 52), ("strict", 15)])
def test_exposure(folder: Path, unit: str, profile: str, threshold: int):
    if profile:
        add_profile(folder, unit, profile)

    done = analyze("security", "--offline=yes", f"--threshold={threshold}", folder / unit)

    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_template_differs_only_in_names():
    plain, template = (settings(ROOT / "systemd" / unit) for unit in UNITS)

    names = {
        "Description=jobschedd job scheduler": "Description=jobschedd job scheduler (%i)",
        "EnvironmentFile=-/etc/default/jobschedd": "EnvironmentFile=-/etc/default/jobschedd-%i",
        "SyslogIdentifier=jobschedd": "SyslogIdentifier=jobschedd@%i",
        "StateDirectory=jobschedd": "StateDirectory=jobschedd-%i",
        "LogsDirectory=jobschedd": "LogsDirectory=jobschedd-%i",
    }
    assert template == [names.get(line, line).replace("jobsched.yaml", "%i.yaml") for line in plain]


def settings(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def test_a_drain_of_the_default_configuration_fits_into_the_stop():
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)min$", (ROOT / "systemd/jobschedd.service").read_text(), re.MULTILINE)
    config = load(str(ROOT / "etc/jobsched.yaml"))

    assert int(stop) * 60 > config.slave.drain_timeout + config.timing.term_grace + 60
