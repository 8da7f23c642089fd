"""The kinds of value a configuration field takes: each a type plus the function that reads it.

A reader gets what the YAML says and gives the checked value, or raises ValueError with a message that
tells how to mend it. It never repeats a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from jobschedd import amounts, limits
from jobschedd.durations import parse_duration

if TYPE_CHECKING:
    from jobschedd.schedule import Schedule

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
NAME_RULE = "letters, digits, '.', '_' and '-', at most 64, starting with a letter or digit"
LARGEST_SIZE = 2**40

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII)
_BASED = re.compile(r"0(?:o[0-7]{1,20}|x[0-9a-fA-F]{1,16})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]", re.ASCII)
_WORDS: dict[str, bool | None] = {
    word: value
    for value, spellings in (
        (None, ("", "~", "null", "Null", "NULL")),
        (True, ("true", "True", "TRUE")),
        (False, ("false", "False", "FALSE")),
    )
    for word in spellings
}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_URL = re.compile(
    r"(?P<scheme>redis|rediss|unix|sentinel)://(?P<authority>[^/?]*)(?P<path>[^?]*)\??(?P<query>.*)", re.DOTALL
)
_PORT = r"(?:0*[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = re.compile(rf"(?:[^:,\[\]@%]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\])(?::{_PORT})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Secret:
    """Text that shows itself only when asked by name: never in repr, logs or error messages."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: hand it to the connection and to nothing else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class Substituted(str):
    """Unquoted text that came out of ``${...}``: takes whatever type its field wants."""

    __slots__ = ()


class Read(msgspec.Struct, frozen=True):
    """Marks a field's type with the function that reads it."""

    read: Callable[[Any], Any]


class Derived(msgspec.Struct, frozen=True):
    """Marks a field that no file can set."""


class ReadEntries(msgspec.Struct, frozen=True):
    """Marks a mapping with the function that reads one entry, from its key and content."""

    read: Callable[[str, Any], Any]


class CheckItems(msgspec.Struct, frozen=True):
    """Marks a tuple, whose items are read by their own type, with the function that checks it as a whole."""

    check: Callable[[tuple[Any, ...]], tuple[Any, ...]]


class ReadItem(msgspec.Struct, frozen=True):
    """Marks a mapping with the function that reads it whole, and says by InvalidJob which of its fields is wrong."""

    read: Callable[[Any], Any]


class ReadPath(msgspec.Struct, frozen=True):
    """Marks a path: ``~`` is expanded, relative ones start at the folder of the configuration file."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where something known is near, else nothing."""
    from difflib import get_close_matches  # needed only for a mistake

    near = get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def kind(value: object) -> str:
    """What ``value`` is, in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return shown(value)
    return "a list" if isinstance(value, list) else "a mapping"


def shown(text: str) -> str:
    """``text`` quoted, on one line and short."""
    return repr(str(text)) if len(text) <= 60 else repr(str(text[:57])) + "..."


def text(value: object) -> str:
    """Any text that an operating system can take."""
    if not isinstance(value, str):
        hint = "" if value is None or isinstance(value, list | dict) else "; put it in quotes"
        raise ValueError(f"expected text, got {kind(value)}{hint}")
    if "\0" in value:
        raise ValueError("text must not contain a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("text must be valid UTF-8") from None
    return str(value)


def filled(value: object) -> str:
    """Text with something in it."""
    read = text(value)
    if not read:
        raise ValueError("must not be empty")
    return read


def name(value: object) -> str:
    """A name of a node, channel, namespace or label."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'a name is text: write it in quotes, "{_digits(value)}"')
    read = text(value)
    if not NAME.fullmatch(read):
        raise ValueError(f"{shown(read)} is no valid name: {NAME_RULE}")
    return read


def _digits(value: int) -> str:
    return str(value) if abs(value) < 10**18 else "..."


def resolve(content: str) -> Any:
    """The value of unquoted text by the YAML 1.2 core schema; digits with a leading zero stay text."""
    if content in _WORDS:
        return _WORDS[content]
    if _INTEGER.fullmatch(content):
        return int(content)
    if _BASED.fullmatch(content):
        return int(content, 0)
    if _FLOAT.fullmatch(content) and not _LEADING_ZERO.match(content):
        return float(content) if re.search(r"[.eE]", content) else content
    return content


def typed(value: object) -> object:
    """``value``, or what substituted text would have been, had it been written in the file."""
    return resolve(str(value)) if isinstance(value, Substituted) else value


def number(value: object) -> int | float:
    """A number that is not a boolean."""
    value = typed(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {kind(value)}")
    return value


def whole(value: object, least: int, most: int) -> int:
    """A whole number within bounds."""
    value = typed(value)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        raise ValueError(f"expected a whole number, got the text {shown(value)}: no quotes, no leading zero")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {kind(value)}")
    if not least <= value <= most:
        raise ValueError(f"must be between {least} and {most}")
    return value


def boolean(value: object) -> bool:
    """``true`` or ``false`` and nothing else."""
    value = typed(value)
    if isinstance(value, bool):
        return value
    meant = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
    if isinstance(value, str) and value.lower() in meant:
        raise ValueError(f"expected true or false, got {shown(value)}: write {meant[value.lower()]}")
    raise ValueError(f"expected true or false, got {kind(value)}")


def duration(value: object) -> float:
    """Seconds, zero allowed."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"expected a duration such as 90s, 5m, 2h or 1d, got {kind(value)}")
    if isinstance(value, int) and abs(value) > 10**18:
        raise ValueError("out of range: a duration is between 0 and 100 years")
    if isinstance(value, str) and len(value) > 60:
        raise ValueError(f"{shown(value)} is no duration; write 90 or 90s, 500ms, 5m, 2h or 1d")
    return parse_duration(value)


def positive_duration(value: object) -> float:
    """Seconds, more than zero."""
    seconds = duration(value)
    if seconds < 0.001:
        raise ValueError("must be at least 1ms")
    return seconds


def size(value: object) -> int:
    """Bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].lower() not in _SIZE_UNITS:
            raise ValueError(f"{shown(value)} is no size; write bytes, or 64KiB, 1MiB, 2GiB")
        amount = float(match[1]) * _SIZE_UNITS[match[2].lower()]
    else:
        try:
            amount = number(value)
        except ValueError:
            raise ValueError(f"expected a size such as 64KiB or 1MiB, got {kind(value)}") from None
    if not 1024 <= amount <= LARGEST_SIZE or amount != int(amount):
        raise ValueError("must be a whole number of bytes between 1KiB and 1024GiB")
    return int(amount)


def budget(value: object) -> float:
    """Bytes, or (up to 1) a share of what Redis may use at most."""
    if not isinstance(value, str) or not value.strip().endswith("%"):
        return float(size(value))
    try:
        share = float(value.strip()[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{shown(value)} is no share; write 0% to 100% (of maxmemory), or a size such as 2GiB")
    return share


def umask(value: object) -> int:
    """A file mode mask, written as octal text."""
    if not isinstance(value, str):
        raise ValueError(f'expected octal text such as "022", got {kind(value)}')
    if not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'{shown(value)} is no umask; write three octal digits such as "022"')
    return int(value, 8)


def command(items: tuple[str, ...]) -> tuple[str, ...]:
    """A command as a list of arguments: no shell splits anything here."""
    if items and not items[0]:
        raise ValueError("the first item, the command, must not be empty")
    return items


def distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    """A list without repetitions."""
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"{shown(item)} is listed more than once")
    return items


def roles(value: object) -> tuple[str, ...]:
    """``master``, ``slave`` or a list of both."""
    given = value if isinstance(value, list) else [value]
    if not given:
        raise ValueError("expected master, slave or [master, slave], got an empty list")
    for item in given:
        if item not in ("master", "slave"):
            hint = suggestion(item, ("master", "slave")) if isinstance(item, str) else ""
            raise ValueError(f"expected master, slave or [master, slave], got {kind(item)}{hint}")
    if len(set(given)) < len(given):
        raise ValueError("a role is listed more than once")
    return tuple(role for role in ("master", "slave") if role in given)


def variable(name: str, content: object) -> str:
    """The content of an environment variable."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of an environment variable")
    if name.startswith("JOBSCHED_"):
        raise ValueError("JOBSCHED_* variables are set by jobschedd itself")
    return text(content)


def limit(key: str, content: object) -> str:
    """What a limit is, as text: jobs at a time, or a rate."""
    limits.check_key(key)
    content = typed(content)
    if not isinstance(content, int | str) or isinstance(content, bool):
        raise ValueError(f"expected a number of jobs at a time, or a rate such as 10/m, got {kind(content)}")
    return str(limits.parse_limit(content))


def weight(key: str, content: object) -> int:
    """How much of the fleet a group gets, in comparison."""
    name(key)
    return whole(content, 1, 1000)


def resource(key: str, content: object) -> int | tuple[str, ...]:
    """How much a channel has; of GPUs, how many (numbered from 0) or which: a list of numbers or names."""
    if key == amounts.SLOTS:
        raise ValueError("every channel has its slots to give without saying so here: set slots of the channel itself")
    if key == "gpus" and isinstance(content, list):
        devices = tuple(str(typed(device)) for device in content)
        for device in devices:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}", device, re.ASCII):
                raise ValueError(f"{shown(device)} is no number or name of a GPU")
        if not 0 < len(distinct(devices)) <= amounts.MOST_GPUS:
            raise ValueError(f"expected 1 to {amounts.MOST_GPUS} GPUs")
        return devices
    amount = amounts.parse_amount(key, typed(content))
    if key == "gpus" and amount > amounts.MOST_GPUS:
        raise ValueError(f"expected 1 to {amounts.MOST_GPUS} GPUs")
    return amount


def scheduled(item: Any) -> Schedule:
    """One entry of the timetable."""
    from jobschedd.schedule import schedule  # what cron and time zones take to import is needed only here

    return schedule(item)


def secret(value: object) -> Secret:
    """A password. Its content appears in no message."""
    if not isinstance(value, str):
        raise ValueError("expected text in quotes")
    if not value:
        raise ValueError("must not be empty; leave the line out for a Redis without password")
    return Secret(text(value))


def path(value: object, folder: str) -> str:
    """An absolute path; relative ones start at ``folder``."""
    read = filled(value)
    if read.startswith("~"):
        read = os.path.expanduser(read)
        if read.startswith("~"):
            raise ValueError(f"{shown(read)}: no such user")
    return os.path.normpath(os.path.join(folder, read))


def redis_url(value: object) -> str:
    """A URL of one of the known forms, or ``embedded``. The user part is still in it: see ``split_login``."""
    read = filled(value)
    if read == "embedded":
        return read
    # Not urlsplit: whether it takes the host list of a sentinel URL depends on the version of Python.
    url = _URL.fullmatch(read)
    if url is None:
        forms = "redis://HOST:PORT/DB, rediss://..., unix:///PATH, sentinel://HOST:PORT,.../SERVICE, or embedded"
        raise ValueError(f"is no URL that jobschedd knows; write {forms}")
    if re.search(r"[\s#]", read):
        raise ValueError("contains a space or '#': percent-encode them (%20, %23)")
    hosts, path = url["authority"].rpartition("@")[2], url["path"]
    if url["scheme"] == "unix":
        _check_unix(hosts, path)
    elif url["scheme"] == "sentinel":
        _check_sentinel(hosts, path)
    else:
        _check_tcp(hosts, path)
    for option in filter(None, url["query"].split("&")):
        if not re.fullmatch(r"db=[0-9]{1,5}", option):
            raise ValueError("has an option that is not known; only ?db=NUMBER is")
    return read


def _check_tcp(host: str, path: str) -> None:
    if not _HOST.fullmatch(host):
        raise ValueError("names no valid host and port; write redis://HOST:PORT/DB")
    if not re.fullmatch(r"/?[0-9]{0,5}", path):
        raise ValueError("has no valid database number; write redis://HOST:PORT/0")


def _check_unix(host: str, path: str) -> None:
    if host:
        raise ValueError("a socket's path is absolute: write unix:///PATH, with three slashes")
    if path in ("", "/"):
        raise ValueError("names no socket; write unix:///run/redis/redis.sock")


def _check_sentinel(hosts: str, path: str) -> None:
    if not all(map(_HOST.fullmatch, hosts.split(","))):
        raise ValueError("names no valid sentinels; write sentinel://HOST:PORT,HOST:PORT/SERVICE")
    if not re.fullmatch(r"/[^/]+(?:/[0-9]{0,5})?", path):
        raise ValueError("names no service; write sentinel://HOST:PORT,HOST:PORT/SERVICE")


if TYPE_CHECKING:
    Schedules = tuple[Schedule, ...]
else:
    Schedules = tuple[Annotated[Any, ReadItem(scheduled)], ...]
Text = Annotated[str, Read(text)]
Name = Annotated[str, Read(name)]
Names = Annotated[tuple[Name, ...], CheckItems(distinct)]
Roles = Annotated[tuple[str, ...], Read(roles)]
Patterns = tuple[Annotated[str, Read(filled)], ...]
Argv = Annotated[tuple[Text, ...], CheckItems(command)]
Environment = Annotated[dict[str, str], ReadEntries(variable)]
Weights = Annotated[dict[str, int], ReadEntries(weight)]
Resources = Annotated[dict[str, int | tuple[str, ...]], ReadEntries(resource)]
LimitTable = Annotated[dict[str, str], ReadEntries(limit)]
Duration = Annotated[float, Read(duration)]
PositiveDuration = Annotated[float, Read(positive_duration)]
Size = Annotated[int, Read(size)]
Budget = Annotated[float, Read(budget)]
Slots = Annotated[int, Read(lambda value: whole(value, 1, amounts.MOST_SLOTS))]
Retries = Annotated[int, Read(lambda value: whole(value, 0, 100))]
Count = Annotated[int, Read(lambda value: whole(value, 1, 10**9))]
Umask = Annotated[int, Read(umask)]
RedisUrl = Annotated[str, Read(redis_url)]
FilePath = Annotated[str, ReadPath()]
Password = Annotated[Secret, Read(secret)]
