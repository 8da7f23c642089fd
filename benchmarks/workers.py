"""The processes that run jobs for a scheduler under measurement."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.environments import ROOT

sys.path.append(str(ROOT / "tests"))

from redis_server import die_with_parent


class Workers:
    """The processes that run jobs. Whatever ends is started again."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: dict[str, str], directory: Path) -> None:
        self._commands = commands
        self._environment = environment
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def keep_up(self) -> None:
        """Start what does not run."""
        self._running = [each for each in self._running if each.poll() is None]
        missing = self._commands[len(self._running) :]
        with open(self._directory / "workers.log", "ab") as log:
            for command in missing:
                self._running.append(
                    subprocess.Popen(
                        command,
                        env=self._environment,
                        cwd=self._directory,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=die_with_parent,
                    )
                )

    def kill(self) -> None:
        """All of them, with everything below them, at once."""
        victims = []
        for each in self._running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(each.pid)
                victims += [*process.children(recursive=True), process]
        for do in (psutil.Process.suspend, psutil.Process.kill):  # nobody may react to the death of another
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    do(victim)
        for each in self._running:
            each.wait()

    def stop(self, patience: float = 3.0) -> None:
        """SIGTERM first, so that they tidy up; what is left after ``patience`` seconds is killed."""
        for each in self._running:
            each.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for each in self._running:
                each.wait(patience)
        self.kill()
        self._running = []

    def processes(self) -> list[psutil.Process]:
        """All of them, with everything below them."""
        found = []
        for each in self._running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(each.pid)
                found += [process, *process.children(recursive=True)]
        return found
