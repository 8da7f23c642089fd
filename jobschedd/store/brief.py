"""For a process that has one thing to say to Redis, and ends: a connection without the library.

To import the library takes longer than all else that ``jobsched submit`` does. This knows the good way only. Whatever
is not as usual (TLS, sentinels, a server that will not do, that refuses, or does not answer) is Unusual: then go the
long way, which copes or says what is wrong. So what is asked here must be safe to ask again.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from jobschedd.config import RedisConfig
from jobschedd.job import Submission
from jobschedd.store.keys import Keys
from jobschedd.store.manners import COMMAND_TIMEOUT, CONNECT_TIMEOUT, OLDEST_SERVER, client_name
from jobschedd.store.moves import OperationSlot, submit
from jobschedd.store.scripts import script

_READ_SIZE = 64 * 1024
_DEFAULT_PORT = 6379


class Unusual(Exception):
    """Go the long way. It is unknown whether what was asked was done."""


class Brief:
    """One connection to a server that will do. Any method raises Unusual, and then the connection is of no use."""

    def __init__(self, config: RedisConfig, name: str) -> None:
        self._reader = hiredis.Reader()
        try:
            self._socket = _connected(config.url)
            self._introduce(config, name)
        except (OSError, UnicodeError, ValueError, hiredis.HiredisError) as error:
            raise Unusual(str(error)) from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, *command: Any) -> Any:
        """The answer to a command."""
        (answer,) = self._ask_all([command])
        if isinstance(answer, hiredis.ReplyError):
            raise Unusual(str(answer))
        return answer

    def submit(self, keys: Keys, submissions: Sequence[Submission], slot: OperationSlot) -> list[str]:
        """As ``Moves.submit``; with the same slot it may be repeated on another connection."""

        def call(name: str, *arguments: Any, **fixed: str) -> Any:
            move = script(name)
            return self.ask("FCALL", move.function, *move.arguments(keys, arguments, fixed))

        return submit(call, keys, submissions, slot)

    def _introduce(self, config: RedisConfig, name: str) -> None:
        """Log in, and look whether this is a server that holds jobs safely."""
        commands: list[tuple[Any, ...]] = []
        if (password := config.secret()) is not None or config.username is not None:
            commands.append(("AUTH", config.username or "default", password or ""))
        if database := urlsplit(config.url).path.strip("/") if not config.url.startswith("unix:") else "":
            commands.append(("SELECT", int(database)))
        introduced = len(commands)
        commands += ("CLIENT", "SETNAME", client_name(name)), ("INFO", "server"), ("INFO", "cluster")
        answers = self._ask_all([*commands, ("CONFIG", "GET", "maxmemory-policy")])
        if any(answer != b"OK" for answer in answers[: introduced + 1]):
            raise Unusual(f"{answers[: introduced + 1]}")
        server, cluster, policy = answers[introduced + 1 :]
        version = re.search(rb"redis_version:(\d+)\.(\d+)", server) if isinstance(server, bytes) else None
        if version is None or (int(version[1]), int(version[2])) < OLDEST_SERVER or b"cluster_enabled:0" not in cluster:
            raise Unusual("not a server that we know to do")
        if policy != [b"maxmemory-policy", b"noeviction"]:
            raise Unusual("it may throw jobs away")

    def _ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = []
        try:
            self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
            while len(answers) < len(commands):
                if (answer := self._reader.gets()) is not False:
                    answers.append(answer)
                elif data := self._socket.recv(_READ_SIZE):
                    self._reader.feed(data)
                else:
                    raise Unusual("it hung up")
        except (OSError, hiredis.HiredisError) as error:
            raise Unusual(str(error)) from error
        return answers


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.query or parts.scheme not in ("redis", "unix"):
        raise Unusual(f"the long way for {parts.scheme}")
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT_TIMEOUT)
        connection.connect(unquote(parts.path))
    else:
        connection = socket.create_connection((parts.hostname, parts.port or _DEFAULT_PORT), CONNECT_TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(COMMAND_TIMEOUT)
    return connection
