"""Where the peers live: an environment for each, from the package registries, kept under ``build/``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
#: What each peer on the Python registry asks for, with the faster parser of Redis' answers where it can use it.
REQUIREMENTS = {
    "celery": ("celery[redis]", "hiredis"),
    "rq": ("rq", "hiredis"),
    "dramatiq": ("dramatiq[redis]", "hiredis"),
    "huey": ("huey", "redis", "hiredis"),
    "arq": ("arq", "hiredis"),
    "saq": ("saq[redis]", "hiredis", "typing_extensions"),  # which it imports and does not ask for
    "taskiq": ("taskiq", "taskiq-redis", "hiredis"),
    "hyperqueue": ("hyperqueue",),
}
#: Seconds that an installation may take.
PATIENCE = 300


class NotHere(Exception):
    """This peer cannot be had on this machine; the message says why."""


def python_environment(name: str, requirements: Sequence[str]) -> Path:
    """The ``bin`` of a virtual environment with ``requirements`` in it."""
    home = BUILD / "environments" / name
    ready = home / "ready"
    if not (ready.exists() and ready.read_text() == " ".join(requirements)):
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *requirements])
        ready.write_text(" ".join(requirements))
    return home / "bin"


def python_versions(binaries: Path, packages: Sequence[str]) -> dict[str, str]:
    """Which versions of ``packages`` that environment has."""
    (site,) = binaries.parent.glob("lib/python*/site-packages")
    found = {}
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        if distribution.metadata["Name"] in packages:
            found[distribution.metadata["Name"]] = distribution.version
    return {package: found.get(package, "?") for package in packages}


def node_environment(packages: Sequence[str]) -> Path:
    """A directory with ``packages`` in its node_modules."""
    if not (shutil.which("node") and shutil.which("npm")):
        raise NotHere("node and npm are not installed")
    home = BUILD / "npm"
    ready = home / "ready"
    if not (ready.exists() and ready.read_text() == " ".join(packages)):
        home.mkdir(parents=True, exist_ok=True)
        _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), *packages])
        ready.write_text(" ".join(packages))
    return home


def debian_files(*packages: str) -> Path:
    """The files of Debian packages, unpacked beside each other; nothing is installed into the system."""
    home = BUILD / "debian"
    for package in packages:
        if (home / f"{package}.ready").exists():
            continue
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise NotHere(f"neither is it installed, nor is this a Debian that could fetch the package {package}")
        download = home / "download"
        download.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", package], directory=download)
        for archive in download.glob(f"{package}_*.deb"):
            _run(["dpkg-deb", "--extract", str(archive), str(home)])
        (home / f"{package}.ready").touch()
    return home


def first_line(*command: str) -> str:
    """What a program says first when asked for its version."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return (answer.stdout or answer.stderr).strip().splitlines()[0]
    return "?"


def _run(command: Sequence[str], directory: Path | None = None) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise NotHere(f"{' '.join(command[:3])} ... failed: {words[-1][:200]}")
