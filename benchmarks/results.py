"""What was measured, one JSON file a unit: so a run that was broken off goes on, and the page can be written again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from benchmarks.environments import BUILD, ROOT, first_line
from jobschedd.store import embedded
from jobschedd.version import VERSION

Figures = dict[str, Any]
#: How the file of a unit ends that could not be measured; it says why.
FAILED = ".failed"


class Results:
    """The files of one run in one directory."""

    def __init__(self, directory: Path = BUILD / "results") -> None:
        self.directory = directory

    def begin(self, afresh: bool, settings: Figures) -> None:
        """Go on with what is there, unless it is complete, of other settings or of another state of the code."""
        about = self.about()
        same = about.get("commit") == _commit() and about.get("settings") == settings
        if afresh or not same or about.get("complete"):
            shutil.rmtree(self.directory, ignore_errors=True)
            self._write("about", _about() | {"settings": settings})

    def note(self, settings: Figures) -> None:
        """That single units are measured now, beside what is there."""
        if not self.about():
            self._write("about", _about() | {"settings": settings})

    def complete(self) -> None:
        """Everything was measured: the next run begins anew."""
        self._write("about", self.about() | {"complete": True, "ended": _now()})

    def about(self) -> Figures:
        """Machine, versions, settings, times."""
        return self.get("about") or {}

    def has(self, unit: str) -> bool:
        """Whether it was measured."""
        return self._path(unit).exists()

    def get(self, unit: str) -> Figures | None:
        """What was measured."""
        path = self._path(unit)
        return json.loads(path.read_text()) if path.exists() else None

    def matching(self, prefix: str) -> Iterator[tuple[str, Figures]]:
        """(rest of the name, figures) of each unit with this beginning."""
        for path in sorted(self.directory.glob(f"{prefix}*.json"), key=lambda path: path.stat().st_mtime):
            yield path.stem.removeprefix(prefix), json.loads(path.read_text())

    def put(self, unit: str, figures: Figures) -> None:
        """Keep what was measured."""
        self._path(unit + FAILED).unlink(missing_ok=True)
        self._write(unit, figures | {"taken": _now(), "commit": _commit()})

    def put_failure(self, unit: str, error: str) -> None:
        """Keep why it could not be measured; it counts as missing."""
        self._write(unit + FAILED, {"error": error, "taken": _now()})

    def _path(self, unit: str) -> Path:
        return self.directory / f"{unit}.json"

    def _write(self, unit: str, figures: Figures) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        new = self.directory / f".{unit}.new"
        new.write_text(json.dumps(figures, indent=1))
        new.replace(self._path(unit))


def _about() -> Figures:
    return {
        "begun": _now(),
        "commit": _commit(),
        "jobschedd": VERSION,
        "Python": platform.python_version(),
        "redis-py": redis.__version__,
        "server": first_line(embedded.server(), "--version").partition(" sha=")[0],
        "kernel": platform.release(),
        "processors": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The state of the code; a page that was written anew does not count."""
    commit = _git("rev-parse", "--short", "HEAD") or "no checkout"
    return commit + "-dirty" * bool(_git("status", "--porcelain", "--", "jobschedd", "benchmarks"))


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, text=True, capture_output=True, check=False)
    return done.stdout.strip()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
