"""Real daemons for tests: ``jobschedd run --config FILE`` as its users start it, with time bounds divided by ten."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from redis_server import RedisServer, die_with_parent, hold, wait_until

#: In the environment of every process that a test started, however indirectly.
TOKEN = "JOBSCHED_TEST_TOKEN"
_JOB_TOKEN = "TEST_TOKEN"  # jobs get only what the node gives them, and never a name of our own
_TITLE = "jobschedd: "

TIMING = {
    "heartbeat": 0.5,
    "lease": 1.5,
    "leader_lease": 1.0,
    "reap_scan": 0.2,
    "block": 0.1,
    "term_grace": 1.0,
}


def program(name: str) -> str:
    """One of our commands, of the environment that runs the tests."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.fail(f"the command {name} is not installed beside {sys.executable}")


def processes_with(token: str, *paths: Path) -> list[psutil.Process]:
    """Every process that carries ``token`` in its environment, or names one of ``paths``; no zombies."""
    return [process for process in psutil.process_iter() if _belongs(process, token.encode(), paths)]


def _belongs(process: psutil.Process, token: bytes, paths: Sequence[Path]) -> bool:
    if process.pid == os.getpid():
        return False
    # The raw file: a process title may have taken the place of the first variables.
    with contextlib.suppress(OSError, psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if b"=" + token in Path(f"/proc/{process.pid}/environ").read_bytes():
            return True
        shown = [*process.cmdline(), process.cwd()]
        return any(str(path) in text for text in shown for path in paths)
    return False


def describe(processes: Sequence[psutil.Process]) -> str:
    """One line a process, for messages."""
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())[:120]
            lines.append(f"  {process.pid} (of {process.ppid()}, {process.status()}) {command}")
    return "\n".join(lines)


class Daemon:
    """One running ``jobschedd``, with its children."""

    def __init__(self, name: str, config: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.config = config
        self._log = log
        self._environment = dict(environment)
        self._notifications: socket.socket | None = None
        self._heard: list[str] = []
        self.popen: subprocess.Popen[bytes] | None = None

    @property
    def supervisor(self) -> psutil.Process:
        """The process that was started."""
        assert self.popen is not None
        return psutil.Process(self.popen.pid)

    def start(self, within: float = 15.0) -> Daemon:
        """Start it and wait until it says READY=1, as a service manager would."""
        self.launch()
        wait_until(self.is_ready, within, f"{self.name} is ready; its log:\n{self.log()}")
        return self

    def launch(self) -> Daemon:
        """Start it and do not wait."""
        self._stop_hearing()
        directory = self._log.parent
        address = directory / f"notify-{uuid.uuid4().hex[:8]}"
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.bind(str(address))
        # Read all the time, as a service manager does: the kernel keeps only ten messages.
        threading.Thread(target=_hear, args=(self._notifications, self._heard), daemon=True).start()
        with open(self._log, "ab") as log:
            self.popen = subprocess.Popen(
                [program("jobschedd"), "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=self._environment | {"NOTIFY_SOCKET": str(address)},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return self

    def notifications(self) -> list[str]:
        """What it told the service manager since the last call, line by line."""
        count = len(self._heard)
        lines, self._heard[:count] = self._heard[:count], []
        return lines

    def is_ready(self) -> bool:
        """Whether it has just said READY=1. Fails the test when it has ended instead."""
        assert self.popen is not None
        if self.popen.poll() is not None:
            pytest.fail(f"{self.name} ended with {self.popen.returncode}; its log:\n{self.log()}")
        return "READY=1" in self.notifications()

    def children(self) -> dict[str, psutil.Process]:
        """Direct children by role: dispatcher, collector, "channel 1", redis.

        Zombies are left out, and who was forked just now: it has its parent's title, or none, until it sets its own.
        """
        found: dict[str, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = _role(self.supervisor)
            for child in self.supervisor.children():
                with contextlib.suppress(psutil.Error):
                    role = _role(child)
                    if role in ("", parent):
                        continue
                    assert role not in found, f"two children are called {role}:\n{describe([found[role], child])}"
                    found[role] = child
        return found

    def child(self, role: str, within: float = 5.0) -> psutil.Process:
        """The child of this role, waiting until there is one."""
        return self._await_child(role, lambda child: True, within, f"{self.name} has a child {role!r}")

    def _await_child(
        self, role: str, is_it: Callable[[psutil.Process], bool], within: float, what: str
    ) -> psutil.Process:
        found: list[psutil.Process] = []

        def is_there() -> bool:
            child = self.children().get(role)
            if child is not None and is_it(child):
                found.append(child)
            return bool(found)

        wait_until(is_there, within, f"{what}; log:\n{self.log()}")
        return found[0]

    def signal(self, role: str, signum: signal.Signals) -> psutil.Process:
        """Send a signal to the child of this role, or to the "supervisor"; the process that got it."""
        target = self._process(role)
        target.send_signal(signum)
        return target

    def _process(self, role: str) -> psutil.Process:
        return self.supervisor if role == "supervisor" else self.child(role)

    def kill(self, role: str = "supervisor") -> psutil.Process:
        """SIGKILL."""
        return self.signal(role, signal.SIGKILL)

    def pause(self, role: str) -> psutil.Process:
        """SIGSTOP, until all of it stands still."""
        target = self._process(role)
        hold(target.pid)
        return target

    def resume(self, role: str) -> psutil.Process:
        """SIGCONT."""
        return self.signal(role, signal.SIGCONT)

    def successor(self, role: str, of: psutil.Process, within: float = 2.0) -> psutil.Process:
        """The new child of the role of ``of``, which was killed."""

        def is_new(child: psutil.Process) -> bool:
            # What a killed channel was just spawning bears its title, too, until the supervisor finds and kills it.
            return child.pid != of.pid and re.search(rf"started child=.* pid={child.pid}\b", self.log()) is not None

        return self._await_child(role, is_new, within, f"a new {role!r} after {of.pid}")

    def running(self) -> bool:
        """Whether the supervisor lives."""
        return self.popen is not None and self.popen.poll() is None

    def stop(self, within: float = 15.0) -> int:
        """SIGTERM and wait; the exit code."""
        assert self.popen is not None
        if self.running():
            self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(within)
        pytest.fail(f"{self.name} did not end within {within:g} s of SIGTERM; its log:\n{self.log()}")

    def log(self) -> str:
        """Everything it wrote so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        """Whatever its state: SIGKILL to the supervisor, whose children must end by themselves."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        self._stop_hearing()

    def _stop_hearing(self) -> None:
        if self._notifications is not None:
            self._notifications.shutdown(socket.SHUT_RD)  # ends the thread that waits for more
            self._notifications.close()
            self._notifications = None


def _hear(notifications: socket.socket, heard: list[str]) -> None:
    with contextlib.suppress(OSError):  # closed
        while data := notifications.recv(65536):
            heard.extend(data.decode().splitlines())


def _role(child: psutil.Process) -> str:
    if child.status() == psutil.STATUS_ZOMBIE:
        raise psutil.ZombieProcess(child.pid)
    title = " ".join(child.cmdline()).strip("\0 ")
    if title.startswith(_TITLE):
        return title.removeprefix(_TITLE)
    name = Path(title.split(" ")[0]).name
    return "redis" if name in ("redis-server", "valkey-server") else name


class Cluster:
    """Daemons over one Redis, in one directory, found again by one token."""

    def __init__(self, redis_url: str, namespace: str = "test") -> None:
        # Short, and readable for jobs that run as another user.
        self.directory = Path(tempfile.mkdtemp(prefix="jobsched-"))
        self.directory.chmod(0o755)
        self.redis_url = redis_url
        self.namespace = namespace
        self.token = uuid.uuid4().hex
        self.daemons: list[Daemon] = []

    def environment(self, **more: str) -> dict[str, str]:
        """For every process of ours: the token, and nothing of the developer's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBSCHED_")}
        # SPT_NOENV: the process title must not be written over the environment, where the token is looked for.
        return kept | {TOKEN: self.token, "SPT_NOENV": "1", "PYTHONUNBUFFERED": "1"} | more

    def configure(
        self,
        role: str | list[str] = "slave",
        *,
        node: str = "",
        channels: int | Sequence[Any] = 3,
        timing: Mapping[str, float] | None = None,
        slave: Mapping[str, Any] | None = None,
        master: Mapping[str, Any] | None = None,
        **top: Any,
    ) -> Path:
        """Write a configuration file. ``channels``: a number, or items as in the YAML."""
        roles = [role] if isinstance(role, str) else role
        node = node or f"node{len(self.daemons) + 1}"
        state = self.directory / node
        config: dict[str, Any] = {
            "role": role,
            "node": node,
            "namespace": self.namespace,
            "redis": {"url": self.redis_url},
            "state_dir": str(state),
            "timing": TIMING | dict(timing or {}),
            "log": {"level": "debug", "format": "plain"},
        }
        if "slave" in roles:
            names = [{"name": str(number + 1)} for number in range(channels)] if isinstance(channels, int) else channels
            config["slave"] = {
                "channels": list(names),
                "env": {_JOB_TOKEN: self.token},
                "drain_timeout": 5,
            } | dict(slave or {})
        if "master" in roles and master:
            config["master"] = dict(master)
        path = self.directory / f"{node}.yaml"
        path.write_text(yaml.safe_dump(config | top, sort_keys=False))
        return path

    def daemon(
        self, role: str | list[str] = "slave", *, environment: Mapping[str, str] | None = None, **how: Any
    ) -> Daemon:
        """A configured daemon that is not started yet."""
        config = self.configure(role, **how)
        log = config.with_suffix(".log")
        daemon = Daemon(config.stem, config, log, self.environment(**dict(environment or {})))
        self.daemons.append(daemon)
        return daemon

    def start(self, role: str | list[str] = "slave", **how: Any) -> Daemon:
        """A daemon that is ready. ``environment`` adds variables, such as JOBSCHED_FAILPOINTS."""
        return self.daemon(role, **how).start()

    def client(self) -> Any:
        """The Python client of this namespace."""
        from jobschedd import Client

        return Client(self.redis_url, namespace=self.namespace)

    def run(self, *command: str, timeout: float = 30, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``jobsched COMMAND...`` against this namespace."""
        settings = {"JOBSCHED_REDIS_URL": self.redis_url, "JOBSCHED_NAMESPACE": self.namespace}
        return subprocess.run(
            [program("jobsched"), *command],
            env=self.environment(**settings),
            cwd=self.directory,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )

    def history(self) -> list[Path]:
        """The history databases of the masters so far."""
        return sorted(self.directory.glob("*/history.db"))

    def processes(self) -> list[psutil.Process]:
        """Everything that still belongs to this cluster."""
        return processes_with(self.token, self.directory)

    def assert_nothing_left(self, within: float = 5.0) -> None:
        """Every process has ended. What has not is killed, so that it cannot spoil other tests."""
        try:
            wait_until(lambda: not self.processes(), within, "no process is left", every=0.05)
        except pytest.fail.Exception:
            left = self.processes()
            text = describe(left)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            pytest.fail(f"processes are left after {within:g} s:\n{text}\n{self.logs()}")

    def logs(self) -> str:
        """The logs of all daemons."""
        return "\n".join(f"--- {daemon.name}\n{daemon.log()}" for daemon in self.daemons)

    def close(self) -> None:
        """Kill what runs, insist that nothing is left, remove the directory."""
        for daemon in self.daemons:
            daemon.close()
        try:
            self.assert_nothing_left()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def cluster(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """No daemon yet: ``cluster.start("master")``, ``cluster.start("slave", channels=4)``."""
    cluster = Cluster(redis_server.url)
    yield cluster
    if redis_server.alive():
        redis_server.resume()
    logs = cluster.logs()
    if logs:
        print(logs)  # shown by pytest only for a test that failed
    cluster.close()
