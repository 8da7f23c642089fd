"""Runs node_script.py as a real process and reads what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

SCRIPT = Path(__file__).with_name("node_script.py")
T = TypeVar("T")


def wait_until(what: Callable[[], T], timeout: float = 10.0, hint: Callable[[], object] = lambda: "") -> T:
    """The first true answer of ``what``; fails after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < end, f"not within {timeout} s: {hint()}"
        time.sleep(0.01)
    return answer


def child(name: str, behaviour: str = "steady", **settings: Any) -> dict[str, Any]:
    return {"name": name, "behaviour": behaviour, **settings}


def alive(process: psutil.Process | int) -> bool:
    """Whether it runs. It may end at any moment, between two looks at it as well; a zombie has ended."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


#: Processes of this worker that were there before the test, such as a Redis that other tests share.
STRANGERS: set[int] = set()


def descendants() -> list[psutil.Process]:
    """All living processes below this one that the test started. The fixture makes it a subreaper: nothing escapes."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.pid not in STRANGERS and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


class Node:
    """One supervisor process under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "node.json"
        self.log_path = directory / "log"
        self.settings: dict[str, Any] = {"children": [], "log": str(self.log_path)}
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr_path = directory / "stderr"

    def configure(self, children: Sequence[dict[str, Any]] | None = None, **settings: Any) -> None:
        if children is not None:
            self.settings["children"] = list(children)
        self.settings.update(settings)
        fresh = self.config.with_suffix(".new")
        fresh.write_text(json.dumps(self.settings))
        fresh.rename(self.config)

    def start(self, *arguments: str, prefix: Sequence[str] = (), **popen: Any) -> Node:
        command = [*prefix, sys.executable, str(SCRIPT), str(self.config), *arguments]
        with open(self.stderr_path, "ab") as stderr:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stderr, "stderr": stderr, **popen}
            self.process = subprocess.Popen(command, start_new_session=True, **options)
        return self

    def run(self, children: Sequence[dict[str, Any]], *arguments: str, **settings: Any) -> Node:
        """Configure, start and wait until the node is ready."""
        self.configure(children, **settings)
        self.start(*arguments)
        self.wait_log("ready", process="supervisor", status=...)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def wait(self, timeout: float = 10.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor does not end:\n{self.text()}") from None

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.send(signum)
        return self.wait()

    def text(self) -> str:
        log = self.log_path.read_text() if self.log_path.exists() else ""
        return f"{log}\n{self.stderr_path.read_text() if self.stderr_path.exists() else ''}"

    def log(self, message: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Log records with this message and these fields (``...``: any value), oldest first."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [
            record
            for record in records
            if (message is None or record["message"] == message)
            and all(key in record and want in (..., record[key]) for key, want in fields.items())
        ]

    def wait_log(self, message: str, timeout: float = 10.0, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]]:
            found = self.log(message, **fields)
            return found if len(found) >= count else []

        return wait_until(enough, timeout, lambda: f"{message} {fields} x{count} in\n{self.text()}")

    def ready_pid(self, name: str, other_than: int = 0, timeout: float = 10.0) -> int:
        """The pid of the child's living, ready process."""

        def find() -> int:
            pids = [int(each["pid"]) for each in self.log("ready", process="supervisor", child=name)]
            return next((pid for pid in reversed(pids) if pid != other_than and alive(pid)), 0)

        return wait_until(find, timeout, lambda: f"{name} ready in\n{self.text()}")


class NotifySocket:
    """Stands in for systemd's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.address = address
        self._messages: list[str] = []

    def messages(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._messages.append(self._socket.recv(4096).decode())
        return self._messages

    def wait_for(self, text: str, timeout: float = 10.0, after: int = 0) -> str:
        return wait_until(
            lambda: next((each for each in self.messages()[after:] if text in each), ""),
            timeout,
            lambda: f"{text!r} in {self.messages()}",
        )

    def close(self) -> None:
        self._socket.close()
