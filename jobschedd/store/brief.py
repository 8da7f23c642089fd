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
        except (OSError, ValueError) as error:
            raise Unusual(str(error)) from error
        try:
            self._introduce(config, name)
        except BaseException:
            self._socket.close()
            raise

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
        introduction = [*_login(config), *_database(config.url), ("CLIENT", "SETNAME", client_name(name))]
        questions = [("INFO", "server"), ("INFO", "cluster"), ("CONFIG", "GET", "maxmemory-policy")]
        answers = self._ask_all([*introduction, *questions])
        if any(answer != b"OK" for answer in answers[: -len(questions)]):
            raise Unusual("it does not let us in")
        server, cluster, policy = answers[-len(questions) :]
        version = re.search(rb"redis_version:(\d+)\.(\d+)", server) if isinstance(server, bytes) else None
        if version is None or (int(version[1]), int(version[2])) < OLDEST_SERVER:
            raise Unusual("it does not say that it is new enough")
        if not isinstance(cluster, bytes) or b"cluster_enabled:0" not in cluster:
            raise Unusual("it does not say that it is no cluster")
        if policy != [b"maxmemory-policy", b"noeviction"]:
            raise Unusual("it does not say that it throws nothing away")

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


def _login(config: RedisConfig) -> list[tuple[Any, ...]]:
    try:
        password = config.secret()
    except (OSError, UnicodeError) as error:
        raise Unusual(f"password file: {error}") from error
    if password is None and config.username is None:
        return []
    return [("AUTH", config.username or "default", password or "")]


def _database(url: str) -> list[tuple[Any, ...]]:
    parts = urlsplit(url)
    number = "" if parts.scheme == "unix" else parts.path.strip("/")
    return [("SELECT", number)] if number else []


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.query or parts.scheme not in ("redis", "unix"):
        raise Unusual(f"the long way for {parts.scheme}")
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT_TIMEOUT)
        try:
            connection.connect(unquote(parts.path))
        except OSError:
            connection.close()
            raise
    else:
        connection = socket.create_connection((parts.hostname, parts.port or _DEFAULT_PORT), CONNECT_TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(COMMAND_TIMEOUT)
    return connection
