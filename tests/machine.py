"""A machine of our own with a real systemd: this machine's root below a throw-away overlay, booted by systemd-nspawn.

Nothing of it outlives the test run, not even a killed one: it lives in a mount and a pid namespace of its own, and the
first process of that one dies with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import psutil
import pytest

from redis_server import die_with_parent
from wheel import build_wheel

PROGRAM = "/opt/jobschedd"
_PYTHON = "/opt/python"
_CGROUPS = [Path("/sys/fs/cgroup", each) for each in (".", "systemd", "unified")]
_ALONE = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")

# Cgroups of our own, because nspawn's have fixed names.
_BOOT = """
set -eu
folder=$1 name=$2
shift 2
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -w "$tree/cgroup.procs" ] || continue
    mkdir "$tree/$name"
    echo $$ > "$tree/$name/cgroup.procs"
done
mount -t tmpfs -o size=1g,mode=755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
: > "$folder/root/etc/machine-id"
# basic.target: without the services that happen to be enabled on this machine.
exec systemd-nspawn --quiet --directory="$folder/root" --boot --machine="$name" --register=no --keep-unit \\
    --console=pipe "$@" systemd.unit=basic.target
"""


def why_not() -> str:
    """The reason why no machine can be booted here; empty when one can."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    for command, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")):
        if shutil.which(command) is None:
            return f"{command} is not installed (apt-get install {package})"
    trial = [*_ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"no namespaces and mounts allowed here: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """A booted machine on which jobschedd is installed from a wheel, under /opt."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="jobsched-machine-"))
        self._name = f"jobsched-{os.getpid()}"
        self._log = self._folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self, within: float = 30.0) -> None:
        """Returns when systemd is up."""
        libraries = Path(pytest.__file__).parents[1]
        # Elsewhere, because the service user may not be allowed where they are.
        binds = [f"--bind-ro={libraries}:/opt/libraries", f"--bind-ro={sys.base_prefix}:{_PYTHON}"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*_ALONE, "bash", "-c", _BOOT, "boot", str(self._folder), self._name, *binds],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self.wait_until(self._is_up, within, "systemd is up")

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"systemd-nspawn ended with {self._process.returncode}:\n{self._log.read_text()}")
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            self._leader = psutil.Process(self._process.pid).children()[0].children()[0].pid
            return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")
        return False

    def install(self) -> None:
        """What pip would do with our wheel; the libraries are those of the environment that runs the tests."""
        self.write("/etc/ld.so.conf.d/000-python.conf", f"{_PYTHON}/lib\n")
        self.run("ldconfig")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.run(f"{_PYTHON}/bin/{version}", "-m", "venv", "--without-pip", PROGRAM)
        packages = f"{PROGRAM}/lib/{version}/site-packages"
        with tempfile.TemporaryDirectory(prefix="jobsched-wheel-") as folder:
            wheel = build_wheel(Path(folder))
            with zipfile.ZipFile(wheel) as archive:
                (entries,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
                scripts = _scripts(archive.read(entries).decode())
            self.write(f"/root/{wheel.name}", wheel.read_bytes())
        self.run(f"{PROGRAM}/bin/python", "-m", "zipfile", "-e", f"/root/{wheel.name}", packages)
        self.write(f"{packages}/libraries.pth", "/opt/libraries\n")
        for name, text in scripts.items():
            self.write(f"{PROGRAM}/bin/{name}", text, mode="755")

    def close(self) -> None:
        """The kernel ends the whole pid namespace with its first process, and the mounts with the last one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.wait_until(self._is_gone, 10, "the machine's processes and cgroups are gone")
        self._folder.rmdir()
        self._log.unlink()

    def _is_gone(self) -> bool:
        try:
            for tree in _CGROUPS:
                for folder, _, _ in os.walk(tree / self._name, topdown=False):
                    Path(folder).rmdir()
        except OSError:  # a process is still ending
            return False
        return True

    # Inside

    def run(
        self,
        *command: str,
        check: bool = True,
        input: bytes = b"",
        user: str = "root",
        timeout: float = 60,
        environment: dict[str, str] | None = None,
    ) -> str:
        """What ``command`` prints, on both streams. Fails the test when it fails, unless ``check`` is false."""
        done = self.complete(*command, input=input, user=user, timeout=timeout, environment=environment)
        output = done.stdout.decode()
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
        return output

    def complete(
        self,
        *command: str,
        input: bytes = b"",
        user: str = "root",
        timeout: float = 60,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """The ended process of ``command``, both streams in its ``stdout``."""
        enter = ["nsenter", "--target", str(self._leader), "--all", "--"]
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        path = f"{PROGRAM}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            [*enter, *become, *command],
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})},
            cwd="/",
            timeout=timeout,
            check=False,
        )

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """The unit's entries, oldest first, systemd's own about it included."""
        text = self.run("sh", "-c", f"journalctl --sync; journalctl --unit={unit} --output=json --no-pager")
        return [json.loads(line) for line in text.splitlines()]

    def messages(self, unit: str) -> list[str]:
        return [str(entry["MESSAGE"]) for entry in self.journal(unit)]

    def processes(self, unit: str) -> dict[int, str]:
        """All processes of a unit with their command lines."""
        listed = self.run("ps", "-eo", "pid=,unit=,args=")
        rows = [line.split(None, 2) for line in listed.splitlines()]
        return {int(pid): command for pid, its_unit, command in rows if its_unit == unit}

    def write(self, path: str, content: str | bytes, mode: str = "644") -> None:
        data = content.encode() if isinstance(content, str) else content
        self.run("install", "-D", f"--mode={mode}", "/dev/stdin", path, input=data)

    def exists(self, path: str) -> bool:
        return self.complete("test", "-e", path).returncode == 0

    def wait_until(self, condition: Callable[[], object], within: float, what: str) -> None:
        """Like redis_server.wait_until, at a pace for conditions that start a process each."""
        end = time.monotonic() + within
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"not within {within:g} s: {what}")
            time.sleep(0.05)


def _scripts(entry_points: str) -> dict[str, str]:
    parser = ConfigParser()
    parser.read_string(entry_points)
    found = {}
    for name, target in parser["console_scripts"].items():
        match = re.fullmatch(r"([\w.]+):(\w+)", target)
        assert match is not None, target
        found[name] = f"#!{PROGRAM}/bin/python\nfrom {match[1]} import {match[2]}\n{match[2]}()\n"
    return found
