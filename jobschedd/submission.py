"""From what a user wrote (a dict, a JSONL line, options) to a checked Submission. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from jobschedd.amounts import MOST_SLOTS, SLOTS, parse_amount
from jobschedd.durations import parse_duration
from jobschedd.errors import InvalidJob
from jobschedd.indices import Indices, count, parse_indices
from jobschedd.job import (
    CHANNELS,
    HIGHEST_PRIORITY,
    MAX_PAYLOAD,
    NODES,
    RETRYABLE,
    Array,
    Cause,
    Flag,
    Overlap,
    Spec,
    Submission,
    Target,
    encode,
    flags_of,
)
from jobschedd.labels import normal
from jobschedd.limits import MOST_AT_A_TIME, MOST_KEYS, parse_rate

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: execve takes no single string beyond this (with its final NUL: 128 KiB; a variable is one string, name and all),
#: and no more than about this altogether, each with its pointer.
LONGEST_ARGUMENT = 128 * 1024 - 1
LARGEST_ARGV = 1024 * 1024
_POINTER = 8
#: What other jobs of the same call, file or workflow name a job by: nothing that looks like an id.
REF = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
JOB_ID = re.compile(r"[1-9][0-9]{0,15}(_[0-9]{1,9})?", re.ASCII)
CONDITIONS = ("ok", "any", "fail")
#: Jobs that one job may wait for.
MOST_CONDITIONS = 10_000
#: Labels that one job may ask for: each combination is a class of its own, kept for ever.
MOST_LABELS = 16
#: Hooks that one job may name for one kind of end.
MOST_HOOKS = 8
#: How long nodes that are away may catch up with a job for all nodes, unless it says when it expires.
CATCH_UP_MS = 86_400_000
#: Of a longer text of indices, the record keeps the beginning: every task carries it.
LONGEST_INDICES = 100
#: Longest retries and crash budgets that the record can count.
MOST_TRIES = 250

# As plain numbers: to join two flags of an enumeration takes as long as to check a whole field.
_NO_RETRY_ON_LOSS, _FOLLOWED = int(Flag.NO_RETRY_ON_LOSS), int(Flag.FOLLOWED)
_KEYED, _HELD, _ARRAY, _HOOKED = int(Flag.KEYED), int(Flag.HELD), int(Flag.ARRAY), int(Flag.HOOKED)

#: How long an idempotency key is taken.
KEY_SCOPES = ("record", "running", "pending")

_json = msgspec.json.Encoder()


def submission(item: Mapping[str, Any], max_payload: int = MAX_PAYLOAD) -> Submission:
    """Check every field of ``item`` (keys as in a JSONL line) and pack it. Raises InvalidJob naming the field."""
    if not isinstance(item, Mapping):
        raise InvalidJob("job", f"must be an object with fields such as command, not {type(item).__name__}")
    if _RUN.issuperset(item):  # nearly all of many
        spec = Spec(**{name: _FIELDS[name](name, value) for name, value in item.items() if value is not None})
        return Submission(spec=_checked(spec, max_payload), priority=spec.priority)
    unknown = [name for name in item if name not in _FIELDS and name not in _TIMES]
    if unknown:
        raise InvalidJob(str(unknown[0])[:100], "unknown field; known are " + ", ".join(sorted((*_FIELDS, *_TIMES))))
    values = {name: _FIELDS[name](name, item[name]) for name in item if name in _FIELDS and item[name] is not None}
    values["limits"] = values.pop("limit_keys", {})
    values["resources"] = _resources(values)
    node, channel = values.get("node", ""), values.get("channel", "")
    if "/" in channel:
        owner, _, channel = channel.partition("/")
        if node and node != owner:
            raise InvalidJob("channel", f"names node {owner!r}, but node says {node!r}")
        values["node"], values["channel"] = node, channel = owner, channel
    follow, hold, ref = values.pop("follow", False), values.pop("hold", False), values.pop("ref", "")
    if ref and values.get("key"):
        raise InvalidJob("ref", "and key exclude each other: with a key the job may be there already, under another id")
    indices, most_failures = values.pop("array", None), values.pop("max_failures", 0)
    values["array"] = _indices_text(item["array"]) if indices is not None else ""
    all_channels = values.pop("all_channels", False)
    values["all_nodes"] = all_channels or values.pop("all", False)
    spec = Spec(**values)
    packed = _checked(spec, max_payload)
    if spec.key_scope and not spec.key:
        raise InvalidJob("key_scope", "says how long a key is taken: give a key, too")
    everywhere = CHANNELS if all_channels else NODES if spec.all_nodes else ""
    array = _array(indices, everywhere, most_failures, follow)
    times = _times(item)
    if everywhere:
        times.setdefault("expires_ms", CATCH_UP_MS)
        if hold or spec.after:
            raise InvalidJob("hold" if hold else "after", "is not for jobs for all nodes")
    flags = 0 if spec.retry_on_loss else _NO_RETRY_ON_LOSS
    flags |= (_FOLLOWED if follow else 0) | (_KEYED if spec.key else 0)
    flags |= _HELD if hold else 0
    flags |= 0 if array is None else _ARRAY
    flags |= _HOOKED if spec.on_success or spec.on_failure else 0
    return Submission(
        spec=packed,
        target=Target.of(spec),
        priority=spec.priority,
        flags=flags_of(flags),
        key=spec.key,
        after=spec.after,
        ref=ref,
        array=array,
        everywhere=everywhere,
        **times,
    )


def _checked(spec: Spec, max_payload: int) -> bytes:
    """The spec, packed, if its parts go together."""
    _check_what(spec)
    packed = encode(spec)
    if len(packed) > max_payload:
        raise InvalidJob("job", f"is {len(packed)} bytes packed; the limit is {max_payload}")
    return packed


def _check_what(spec: Spec) -> None:
    if (spec.command is None) + (spec.shell is None) + (spec.function is None) != 2:
        given = [name for name in ("command", "shell", "function") if getattr(spec, name) is not None]
        problem = "give one of command, shell, function" if not given else f"{' and '.join(given)} exclude each other"
        raise InvalidJob(given[1] if given else "command", problem)
    if spec.function is None and (spec.args or spec.kwargs):
        raise InvalidJob("args" if spec.args else "kwargs", "only a function takes them; a command has its argv")
    if spec.function is not None and spec.stdin:
        raise InvalidJob("stdin", "only a command has a standard input")
    if not (spec.command or spec.env):
        return
    strings = (*(spec.command or ()), *(f"{name}={value}" for name, value in spec.env.items()))
    size = sum(len(part.encode()) + 1 + _POINTER for part in strings)
    if size > LARGEST_ARGV:
        raise InvalidJob("command", f"arguments and environment are {size} bytes; no process takes over {LARGEST_ARGV}")


def _array(indices: Indices | None, everywhere: str, most_failures: int, follow: bool) -> Array | None:
    if indices is None and not everywhere:
        if most_failures:
            raise InvalidJob("max_failures", "is for arrays and for all nodes: so many failed tasks stop the rest")
        return None
    if indices is not None and everywhere:
        raise InvalidJob("array", "and all exclude each other: all nodes are an array by themselves")
    if follow:
        raise InvalidJob("follow", "is for one job; of an array, follow a task once it runs")
    if indices is None:
        return Array(total=0, most_failures=most_failures)
    todo = indices.bitmap()
    return Array(total=count(todo), todo=todo, limit=indices.limit, most_failures=most_failures)


def _indices_text(value: Any) -> str:
    text = str(value).replace(" ", "")
    if len(text) <= LONGEST_INDICES:
        return text
    listed, percent, limit = text.partition("%")
    return f"{listed[:LONGEST_INDICES].rpartition(',')[0]},...{percent}{limit}"


def _times(item: Mapping[str, Any]) -> dict[str, int]:
    delay, at, expires = item.get("delay"), item.get("at"), item.get("expires")
    if delay is not None and at is not None:
        raise InvalidJob("at", "delay and at exclude each other")
    times = {}
    if delay is not None:
        times["delay_ms"] = round(_duration("delay", delay) * 1000)
    if at is not None:
        times["at_ms"] = round(point_in_time(at).timestamp() * 1000)
    if expires is not None:
        times["expires_ms"] = max(1, round(_duration("expires", expires) * 1000))
    return times


def point_in_time(value: Any) -> datetime:
    """An ISO 8601 time (local where it names no zone), an aware datetime, or seconds since the epoch."""
    try:
        if isinstance(value, datetime):
            return value.astimezone()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value).astimezone()
        return datetime.fromisoformat(value).astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        problem = f"{_shown(value)} is no ISO 8601 time, such as 2027-03-01T04:00 or ...T04:00+02:00"
        raise InvalidJob("at", problem) from None


def _duration(field: str, value: Any) -> float:
    if not isinstance(value, str | int | float):
        raise InvalidJob(field, f"must be a duration such as 90s, 5m, 2h or 1d, not {type(value).__name__}")
    try:
        return parse_duration(value)
    except (ValueError, OverflowError) as error:
        raise InvalidJob(field, str(error)[:200]) from None


def _shown(value: Any) -> str:
    """What a user wrote, as short as a message can hold it; it may be of any type and size."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - whatever a foreign __repr__ does; an int of 5000 digits refuses, too
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "..."


def _text(field: str, value: Any, longest: int = LONGEST_ARGUMENT) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidJob(field, "holds a NUL character, which no process can be given")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidJob(field, "holds a lone surrogate, which is not text") from None
    if size > longest:
        raise InvalidJob(field, f"is {size} bytes long; the limit is {longest}")
    return value


def _argv(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidJob(field, 'must be a list of texts, such as ["echo", "hi"]; for a shell line use shell')
    argv = tuple(_text(f"{field}[{number}]", part) for number, part in enumerate(value))
    if not argv or not argv[0]:
        raise InvalidJob(field, "names no program")
    return argv


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise InvalidJob(
            field,
            f"{_shown(value)} is no name: letters, digits, '.', '_', '-', at most 64, not starting with a sign",
        )
    return value


def _channel(field: str, value: Any) -> str:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    text = str(value) if number else value
    if not isinstance(text, str) or not 1 <= len(text.split("/")) <= 2:
        raise InvalidJob(field, f"{_shown(value)} is no channel: write CHANNEL or NODE/CHANNEL")
    for part in text.split("/"):
        _name(field, part)
    return text


def _indices(field: str, value: Any) -> Indices:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidJob(field, 'must be text such as "1-100", "0-98:2", "1,3,7-9" or "1-100%5"')
    try:
        return parse_indices(str(value))
    except ValueError as error:
        raise InvalidJob(field, str(error)) from None


def _labels(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        raise InvalidJob(field, "must be a label or a list of labels")
    labels = {_expression(field, label) for label in value}
    if len(labels) > MOST_LABELS:
        raise InvalidJob(field, f"are {len(labels)} labels; at most {MOST_LABELS} are taken")
    return tuple(sorted(labels))


def _expression(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"{_shown(value)} is no label: write a name, or an expression such as 'gpu && !spot'")
    try:
        return normal(value)
    except ValueError as error:
        raise InvalidJob(field, str(error)) from None


def _function(field: str, value: Any) -> str:
    return _function_name(field, str(value)) if isinstance(value, str) else _text(field, value)


@lru_cache(maxsize=1024)
def _function_name(field: str, value: str) -> str:
    text = _text(field, value, 512)
    if FUNCTION.fullmatch(text) is None:
        raise InvalidJob(field, f"{_shown(text)} is no function: write package.module:function")
    return text


def _whole(lowest: int, highest: int) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise InvalidJob(field, f"{_shown(value)} must be a whole number from {lowest} to {highest}")
        return value

    return check


def _boolean(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidJob(field, f"{_shown(value)} must be true or false")
    return value


def _overlap(field: str, value: Any) -> Overlap:
    try:
        return Overlap(value)
    except ValueError:
        raise InvalidJob(field, f"{_shown(value)} must be allow or forbid") from None


def _key_scope(field: str, value: Any) -> str:
    if value not in KEY_SCOPES:
        raise InvalidJob(field, f"{_shown(value)} must be one of {', '.join(KEY_SCOPES)}")
    return "" if value == "record" else str(value)


def _hooks(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        raise InvalidJob(field, "must be the name of a hook that the masters have, or a list of names")
    names = tuple(dict.fromkeys(_name(field, name) for name in value))
    if len(names) > MOST_HOOKS:
        raise InvalidJob(field, f"names {len(names)} hooks; at most {MOST_HOOKS} are taken")
    return names


def _causes(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidJob(field, "must be a list of causes, such as [exit, timeout]")
    known = {str(cause) for cause in Cause}
    for cause in value:
        if not isinstance(cause, str) or cause not in known:
            problem = f"{_shown(cause)} is no cause; retried by default are {', '.join(sorted(RETRYABLE))}"
            raise InvalidJob(field, problem)
    return tuple(str(cause) for cause in value)


def _environment(field: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidJob(field, "must map names to texts")
    for name, text in value.items():
        if not isinstance(name, str) or _ENV_NAME.fullmatch(name) is None:
            raise InvalidJob(field, f"{_shown(name)} is no name of an environment variable")
        if name.startswith("JOBSCHED_"):
            raise InvalidJob(field, f"{_shown(name)} is set by the scheduler")
        _text(f"{field}.{name[:100]}", text, LONGEST_ARGUMENT - len(name) - 1)
    return dict(value)


def _limit_keys(field: str, value: Any) -> dict[str, int]:
    """``db``, ``db=3``, a list of those, or a mapping such as {db: 3}. 0 stands for "no number given"."""
    found: dict[str, int] = {}
    for key, text in _pairs(field, value):
        number = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10 else text
        if number is not None:
            number = _whole(1, MOST_AT_A_TIME)(field, number)
        found[_limit_key(field, key)] = number or 0
    return found


def _resources(values: dict[str, Any]) -> dict[str, int]:
    """``slots``, ``cpus``, ``memory``, ``gpus`` and what else ``resources`` names, taken out of ``values``.

    One slot is what every job takes: it is not mentioned.
    """
    asked: dict[str, int] = values.pop("resources", {})
    for name in _OWN_RESOURCES:
        if name in values:
            if name in asked:
                raise InvalidJob(name, "is asked for twice: here and in resources")
            asked[name] = values.pop(name)
    if asked.get(SLOTS) == 1:
        del asked[SLOTS]
    return asked


def _amount(field: str, value: Any) -> int:
    try:
        return parse_amount(field, value)
    except ValueError as error:
        raise InvalidJob(field, str(error).removeprefix(f"{field}: ")) from None


def _named_resources(field: str, value: Any) -> dict[str, int]:
    """``license=1``, a list of those, or a mapping such as {license: 1}."""
    found: dict[str, int] = {}
    for name, amount in _pairs(field, value):
        try:
            found[str(name)] = parse_amount(str(name), 1 if amount is None else amount)
        except ValueError as error:
            raise InvalidJob(field, str(error)) from None
    return found


def _rates(field: str, value: Any) -> dict[str, tuple[int, int]]:
    """``api=10/m``, a list of those, or a mapping such as {api: 10/m}."""
    found: dict[str, tuple[int, int]] = {}
    for key, text in _pairs(field, value):
        if not isinstance(text, str):
            raise InvalidJob(
                field, f"{_shown(key)} must be KEY=STARTS/PERIOD, such as api=10/m: who shares a rate shares its key"
            )
        try:
            rate = parse_rate(text)
        except ValueError as error:
            raise InvalidJob(field, str(error)) from None
        found[_limit_key(field, key)] = (rate.count, rate.ms)
    return found


def _pairs(field: str, value: Any) -> list[tuple[Any, Any]]:
    """What comes as texts ``KEY`` or ``KEY=X``, one or several, or as a mapping: pairs, None where nothing is said."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, str | Sequence) and all(isinstance(part, str) for part in value):
        texts = [value] if isinstance(value, str) else list(value)
        pairs = [(key, rest if separator else None) for key, separator, rest in (text.partition("=") for text in texts)]
    else:
        raise InvalidJob(field, "must be KEY=VALUE, a list of those, or a mapping")
    if len({str(key) for key, _ in pairs}) < len(pairs):
        raise InvalidJob(field, "names a key twice")
    if len(pairs) > MOST_KEYS:
        raise InvalidJob(field, f"are {len(pairs)} keys; at most {MOST_KEYS} are taken")
    return pairs


def _limit_key(field: str, key: Any) -> str:
    if isinstance(key, str) and (kind := key.partition(":"))[1]:
        raise InvalidJob(field, f"{_shown(key)}: a limit of a {kind[0][:20]} is set by an operator, not by a job")
    return _name(field, key)


def _cwd(field: str, value: Any) -> str:
    path = _text(field, value, 4096)
    if not path.startswith("/"):
        problem = f"{_shown(path)} must be an absolute path: it is a directory of the node that runs the job"
        raise InvalidJob(field, problem)
    return path


def _stdin(field: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str):
        raise InvalidJob(field, "must be text")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidJob(field, "holds a lone surrogate, which is not text") from None


def _arguments(kind: type, word: str) -> Callable[[str, Any], bytes]:
    def check(field: str, value: Any) -> bytes:
        if kind is list and isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, kind):
            raise InvalidJob(field, f"must be a JSON {word}")
        try:
            text = _json.encode(value) if value else b""
            if b"null" in text:
                # The encoder writes NaN and the infinities as null: other data than the caller's.
                json.dumps(value, allow_nan=False, default=str)
            return text
        except (TypeError, ValueError, UnicodeEncodeError, RecursionError, OverflowError) as error:
            raise InvalidJob(field, f"cannot be written as JSON: {str(error)[:200]}") from None

    return check


def _seconds(field: str, value: Any) -> float:
    return _duration(field, value)


def _ref(field: str, value: Any) -> str:
    if not isinstance(value, str) or REF.fullmatch(value) is None:
        raise InvalidJob(field, f"{_shown(value)} is no name for a job: letters, digits, '.', '_', '-', a letter first")
    return value


def _after(field: str, value: Any) -> tuple[str, ...]:
    """``12``, ``"12:any"``, ``"build,12:any"``, a job, (job, "any"), or a list of these."""
    conditions: dict[str, str] = {}
    for target, condition in _conditions(field, value):
        if conditions.setdefault(target, condition) != condition:
            raise InvalidJob(field, f"names {target} twice, with {conditions[target]} and with {condition}")
    if len(conditions) > MOST_CONDITIONS:
        raise InvalidJob(field, f"names {len(conditions)} jobs; a job waits for {MOST_CONDITIONS} at most")
    return tuple(f"{target}:{condition}" for target, condition in conditions.items())


def _conditions(field: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        for part in value.split(","):
            target, _, condition = part.strip().partition(":")
            yield _condition(field, target, condition or "ok")
    elif _is_job(value):
        yield _condition(field, str(getattr(value, "id", value)), "ok")
    elif isinstance(value, Sequence) and len(value) == 2 and _is_job(value[0]) and value[1] in CONDITIONS:
        yield _condition(field, str(getattr(value[0], "id", value[0])), value[1])
    elif isinstance(value, Sequence):
        for one in value:
            yield from _conditions(field, one)
    else:
        raise InvalidJob(field, f"{_shown(value)} is no job: write ID or ID:any, or a list of these")


def _is_job(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or isinstance(getattr(value, "id", None), str)


def _condition(field: str, target: str, condition: str) -> tuple[str, str]:
    if JOB_ID.fullmatch(target) is None and REF.fullmatch(target) is None:
        raise InvalidJob(field, f"{_shown(target)} is no job: write an id, such as 12, or the ref of another job")
    if condition not in CONDITIONS:
        raise InvalidJob(
            field, f"{_shown(condition)} is no condition: ok (it succeeded), any (it ended), fail (it did not)"
        )
    return target, condition


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "command": _argv,
    "shell": _text,
    "function": _function,
    "args": _arguments(list, "array"),
    "kwargs": _arguments(dict, "object"),
    "name": lambda field, value: _text(field, value, 200),
    "channel": _channel,
    "node": _name,
    "labels": _labels,
    "priority": _whole(-HIGHEST_PRIORITY, HIGHEST_PRIORITY),
    "retries": _whole(0, MOST_TRIES),
    "retry_delay": _seconds,
    "retry_max_delay": _seconds,
    "retry_on": _causes,
    "timeout": _seconds,
    "lost_after": _seconds,
    "overlap": _overlap,
    "retry_on_loss": _boolean,
    "max_crashes": _whole(1, MOST_TRIES),
    "env": _environment,
    "cwd": _cwd,
    "stdin": _stdin,
    "submitter": lambda field, value: _text(field, value, 200),
    "key": lambda field, value: _text(field, value, 200),
    "key_scope": _key_scope,
    "follow": _boolean,
    "group": _name,
    "avoid_failed": _boolean,
    "slots": _whole(1, MOST_SLOTS),
    "cpus": _amount,
    "memory": _amount,
    "gpus": _amount,
    "resources": _named_resources,
    "limit_keys": _limit_keys,
    "rates": _rates,
    "hold": _boolean,
    "after": _after,
    "ref": _ref,
    "array": _indices,
    "all": _boolean,
    "all_channels": _boolean,
    "max_failures": _whole(1, 10_000_000),
    "on_success": _hooks,
    "on_failure": _hooks,
}
#: Those that say only what to run and how: neither where nor when, nor what it counts against.
_RUN = frozenset(
    "command shell function args kwargs name priority retries retry_delay retry_max_delay retry_on timeout lost_after "
    "overlap max_crashes env cwd stdin submitter".split()
)
_OWN_RESOURCES = (SLOTS, "cpus", "memory", "gpus")
_TIMES = ("delay", "at", "expires")
