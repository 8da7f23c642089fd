"""A Redis client whose commands go straight to the socket.

Between a command and its answer the library passes a dozen layers (pool, retries, health checks, metrics): more work
than the command itself, on the path of every job. Here a command is packed, sent and read, and that is all. The
library still opens the connections (address, TLS, password, name, sentinels) and shapes the answers.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from typing import Any

import hiredis
import redis
from redis.client import Pipeline
from redis.exceptions import DataError, InvalidResponse, MasterDownError, ReadOnlyError, RedisError, ResponseError

_READ_SIZE = 256 * 1024


class Direct(redis.Redis):
    """For threads, and for a fork: a connection serves one command at a time and only the process that opened it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._idle: list[_Line] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the library's: the answer in the shape that it gives to the answers of this command."""
        return self._shaped(args, options, self.ask(*args))

    def ask(self, *command: Any) -> Any:
        """Send a command, once; its answer as it came. Raises the library's errors."""
        (answer,) = self.ask_all([command])
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands at one go; their answers as they came, errors of the server among them."""
        line = self._take()
        try:
            line.send(b"".join(map(_packed, commands)))
            answers = line.receive(len(commands))
        except BaseException:
            line.close()  # an answer that nobody took would be taken for that to the next command
            raise
        self._give_back(line, answers)
        return answers

    def begin(self, *command: Any) -> Asked:
        """Send a command and go on: its answer is fetched later. Raises the library's errors."""
        line = self._take()
        try:
            line.send(_packed(command))
        except BaseException:
            line.close()
            raise
        return Asked(self, line)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As the library's; without a transaction it takes the short way, too."""
        if transaction:
            return super().pipeline(transaction, shard_hint)
        return _Batch(self)

    def close(self) -> None:
        """Give all connections up."""
        while self._idle:
            self._idle.pop().close()
        super().close()

    def _shaped(self, command: tuple[Any, ...], options: dict[str, Any], answer: Any) -> Any:
        options.pop("keys", None)
        shapes: dict[str, Any] = self.response_callbacks
        shape = shapes.get(command[0])
        return answer if shape is None else shape(answer, **options)

    def _give_back(self, line: _Line, answers: Sequence[Any]) -> None:
        if any(_is_of_no_use_after(answer) for answer in answers):
            line.close()
        else:
            self._idle.append(line)

    def _take(self) -> _Line:
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if line.is_usable():
                return line
            line.close()
        return _Line(new_connection(self))


class Asked:
    """A command that was sent. Until it is answered or dropped it has a connection of its own."""

    def __init__(self, client: Direct, line: _Line) -> None:
        self._client = client
        self._line: _Line | None = line  # until the answer is here
        self._received: list[Any] = []

    def receive(self) -> None:
        """Have the answer here: a server that is busy with something else sends no more of it than the line holds."""
        self._received.append(self.answer())

    def answer(self) -> Any:
        """Wait for the answer: call it once. Raises the library's errors."""
        if self._received:
            return self._received.pop()
        line, self._line = self._line, None
        assert line is not None, "it was answered before"
        try:
            (answer,) = line.receive(1)
        except BaseException:
            line.close()
            raise
        self._client._give_back(line, [answer])
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        if self._line is not None:
            self._line.close()


class _Batch(Pipeline):
    """Commands that are sent together."""

    def __init__(self, client: Direct) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, False, None)
        self._client = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands: list[Any] = self.command_stack
        self.command_stack = []
        answers = self._client.ask_all([args for args, _ in commands]) if commands else []
        for answer in answers:
            if isinstance(answer, RedisError) and (raise_on_error or not isinstance(answer, ResponseError)):
                raise answer
        return [
            answer if isinstance(answer, RedisError) else self._client._shaped(args, options, answer)
            for (args, options), answer in zip(commands, answers, strict=True)
        ]


def new_connection(client: redis.Redis) -> Any:
    """A connection of its own with the client's settings, not opened yet.

    Not by the pool's ``make_connection``: the pool counts those until it has given a hundred, and never gets ours back.
    """
    pool: Any = client.connection_pool
    return pool.connection_class(**pool.connection_kwargs)


class _Line:
    """One connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.connect()
        self._socket: socket.socket = connection._sock
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=connection._parser.parse_error)
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def is_usable(self) -> bool:
        """Ours, and silent: what can be read before we asked is the server's goodbye."""
        return self._pid == os.getpid() and not self._poll.poll(0)

    def send(self, request: bytes) -> None:
        """All of it."""
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise _as_the_library_says(error) from error

    def receive(self, count: int) -> list[Any]:
        """So many answers."""
        answers: list[Any] = []
        try:
            while len(answers) < count:
                if (answer := self._reader.gets()) is not False:
                    answers.append(answer)
                    continue
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise redis.ConnectionError("Connection closed by server.")
                self._reader.feed(data)
        except OSError as error:
            raise _as_the_library_says(error) from error
        return answers

    def close(self) -> None:
        self._connection.disconnect()


def _as_the_library_says(error: OSError) -> RedisError:
    if isinstance(error, TimeoutError):
        return redis.TimeoutError("no answer in time")
    return redis.ConnectionError(f"the connection broke: {error}")


def _is_of_no_use_after(answer: Any) -> bool:
    """A server that is no master (any more) may have a successor elsewhere: look for it the next time."""
    return isinstance(answer, redis.ConnectionError | ReadOnlyError | MasterDownError) or (
        isinstance(answer, ResponseError) and str(answer).startswith(("NOREPLICAS", "MASTERDOWN"))
    )


def _packed(command: tuple[Any, ...]) -> bytes:
    name = command[0]
    if isinstance(name, str) and " " in name:  # CONFIG GET
        command = (*name.split(), *command[1:])
    try:
        packed: bytes = hiredis.pack_command(command)
    except TypeError as error:
        raise DataError(str(error)) from error
    return packed
