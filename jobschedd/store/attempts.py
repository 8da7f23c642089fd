"""Questions about ended attempts, put to every live master through Redis, and their answers.

Each master keeps a history of its own (SQLite, on its disk), so whoever wants to know asks them all. One question is
one page: it says after which row to go on, so that no master keeps anything for an asker, and no answer is large.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import redis

from jobschedd.errors import ProtocolError
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import script

#: Rows that one answer holds at most: about half a megabyte.
PAGE = 500
#: Seconds after which a question, and an answer that nobody fetched, go away.
LIFETIME = 60.0

#: A row's place in the order of the answers: (ended, identity, job, attempt, final), the newest first.
Place = tuple[float, str, str, int, int]


class Query(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which attempts; empty means any. Times are seconds since the epoch."""

    job: str = ""
    node: str = ""
    channel: str = ""
    name: str = ""  # a shell-style pattern
    label: str = ""
    cause: str = ""
    schedule: str = ""
    outcomes: tuple[str, ...] = ()
    since: float | None = None  # ended at this time or later
    until: float | None = None  # ended before
    final: bool = False  # only accepted ends, not the tries that another one followed
    limit: int = PAGE
    after: Place | None = None


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One attempt that ended, as a row of a history. New fields come at the end, with a default."""

    identity: str  # of the data in Redis that it belongs to: ids begin anew in another
    job: str
    attempt: int
    final: int  # 1: the job's accepted end; 0: something followed
    name: str
    what: str
    node: str
    channel: str
    outcome: str
    cause: str
    exit_code: int | None
    signal: int | None
    submitted: float
    dispatched: float
    started: float
    ended: float
    label_text: str = ""  # ",gpu,large,"
    schedule: str = ""
    error: str = ""

    @property
    def place(self) -> Place:
        """Where it stands in the order."""
        return (self.ended, self.identity, self.job, self.attempt, self.final)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the job asked of its channel."""
        return tuple(filter(None, self.label_text.split(",")))

    @property
    def duration(self) -> float | None:
        """Seconds from start to end by the node's clock; None where it never started."""
        return max(0.0, self.ended - self.started) if self.started else None

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return {
            "job": self.job,
            "attempt": self.attempt,
            "final": bool(self.final),
            "name": self.name or None,
            "what": self.what,
            "outcome": self.outcome,
            "cause": self.cause or None,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "error": self.error or None,
            "node": self.node or None,
            "channel": self.channel or None,
            "labels": list(self.labels),
            "schedule": self.schedule or None,
            "submitted": self.submitted or None,
            "dispatched": self.dispatched or None,
            "started": self.started or None,
            "ended": self.ended or None,
            "duration": self.duration,
            "identity": self.identity,
        }


#: What a row holds, in the order of ``Attempt``: names of columns.
COLUMNS = tuple(
    {"identity": "incarnation", "label_text": "labels"}.get(name, name) for name in Attempt.__struct_fields__
)


#: The fields of an attempt's JSON, in the order of a CSV export.
CSV_COLUMNS = tuple(Attempt("", "", 0, 0, "", "", "", "", "", "", None, None, 0.0, 0.0, 0.0, 0.0).json())


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one master says to one question. ``error``: why it cannot; ``more``: the page is full."""

    master: str
    rows: list[Attempt] = []
    more: bool = False
    error: str = ""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A query, and under which id its answers are waited for."""

    id: str
    query: Query


_encode = msgspec.json.Encoder().encode
_decode_question = msgspec.json.Decoder(Question).decode
_decode_answer = msgspec.json.Decoder(Answer).decode


class AnsweringMachine:
    """A master's end. ``client`` blocks for ``block`` seconds, on a connection of its own.

    ``predecessor``: an instance on this node that is known to be dead.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, instance: str, node: str, block: float, predecessor: str = ""
    ) -> None:
        self._client: Any = client
        self._keys = keys
        self._instance = instance
        self._name = f"{instance} {node}"
        self._predecessor = f"{predecessor} {node}" if predecessor else ""
        self._block = block

    def attend(self, seconds: float) -> None:
        """Be asked for so long from now on; 0: no more."""
        milliseconds = round(seconds * 1000)
        with translated():
            script("attend").call(self._client, self._keys, self._name, milliseconds, self._predecessor)

    def take(self, patience: float) -> Question | None:
        """The oldest question, within ``patience`` seconds (the block time at most). Raises ProtocolError."""
        timeout = max(0.01, min(patience, self._block))
        with translated():
            found = self._client.blpop([self._keys.questions(self._instance)], timeout=timeout)
        if not found:
            return None
        try:
            return _decode_question(found[1])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"unreadable question: {error}") from error

    def answer(self, question: Question, rows: Iterable[Any], more: bool, error: str = "") -> None:
        """``rows``: tuples in the order of COLUMNS."""
        said = {"master": self._name, "rows": list(rows), "more": more, "error": error}
        key = self._keys.answers(question.id)
        with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.rpush(key, _encode(said))
            pipe.pexpire(key, round(LIFETIME * 1000))
            pipe.execute()


class Archives:
    """An asker's end. ``waiting`` blocks for a second at most, on a connection of its own."""

    def __init__(self, client: redis.Redis, waiting: redis.Redis, keys: Keys) -> None:
        self._client: Any = client
        self._waiting: Any = waiting
        self._keys = keys

    def ask(self, query: Query) -> tuple[str, set[str]]:
        """(id of the question, the masters that are asked)."""
        question = Question(id=secrets.token_hex(8), query=query)
        with translated():
            asked = script("ask").call(self._client, self._keys, _encode(question), round(LIFETIME * 1000))
        return question.id, {name.decode() for name in asked}

    def hear(self, question: str, count: int, patience: float) -> list[Answer]:
        """Up to ``count`` answers, fewer when ``patience`` (in seconds) is over."""
        deadline = time.monotonic() + patience
        answers: list[Answer] = []
        while len(answers) < count and (left := deadline - time.monotonic()) > 0:
            with translated():
                found = self._waiting.blpop([self._keys.answers(question)], timeout=max(0.01, min(left, 1.0)))
            if found:
                answers.append(_answer(found[1]))
        return answers

    def close(self) -> None:
        """Give the connection up that waits."""
        self._waiting.close()


def _answer(data: bytes) -> Answer:
    try:
        return _decode_answer(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable answer of a master: {error}") from error


def master_name(asked: str) -> str:
    """The node of a master, for people."""
    return asked.partition(" ")[2] or asked
