"""A workflow's file: YAML, or JSON lines; every mistake with its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.options import user
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.config.document import Document

_LARGEST_FILE = 64 << 20
#: What the job that runs after all others is called, in the file and as a ref.
_AFTER_ALL = "after_all"
_KEYS = ("name", "defaults", "jobs", _AFTER_ALL)

Place = tuple[str | int, ...]


@dataclass
class Draft:
    """What a file asks for: items with the keys of a JSONL line, and where each of them stands."""

    path: str
    name: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, int]] = field(default_factory=list)  # by field; "" is the item's own

    def mistake(self, number: int, field: str, problem: str) -> UsageError:
        """What is wrong with an item, as compilers say it."""
        if number >= len(self.items):
            return UsageError(f"{self.path}: {field} {problem}")
        lines, ref = self.lines[number], self.items[number].get("ref")
        line = lines.get(field.partition(".")[0].partition("[")[0], lines[""])
        return UsageError(f"{self.path}:{line}: {f'{ref}.' if isinstance(ref, str) else ''}{field}: {problem}")


def read_draft(path: str) -> Draft:
    """The workflow that a file describes. Raises UsageError, every message with its line."""
    try:
        with click.open_file(path, "rb") as file:
            data: bytes = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    draft = _from_lines(path, data) if path.endswith((".jsonl", ".ndjson")) else _from_yaml(path, data)
    if not draft.items:
        raise UsageError(f"{path}: holds no jobs")
    for item in draft.items:
        item.setdefault("submitter", user())
    return draft


def _from_lines(path: str, data: bytes) -> Draft:
    import msgspec

    draft = Draft(path)
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(item, dict):
            raise UsageError(f'{path}:{number}: must be a JSON object, such as {{"command": ["true"]}}')
        draft.items.append(item)
        draft.lines.append({"": number})
    return draft


def _from_yaml(path: str, data: bytes) -> Draft:
    document = _parsed(path, data)
    value = document.value
    if not isinstance(value, dict):
        raise UsageError(_complaint(path, 1, (), "must be a mapping with the key jobs"))
    for key in value:
        if key not in _KEYS:
            raise _wrong(path, document, (key,), f"unknown; known are {', '.join(_KEYS)}")
    defaults = value.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise _wrong(path, document, ("defaults",), "must be a mapping")
    draft = Draft(path, str(value.get("name") or ""))
    for place, item in _jobs(path, document, value.get("jobs")):
        if not isinstance(item, dict):
            raise _wrong(path, document, place, "must be a mapping, such as {command: [./extract]}")
        ref = place[-1] if isinstance(place[-1], str) else f"job.{len(draft.items) + 1}"
        _add(draft, document, place, {"ref": ref} | defaults | item)
    if _AFTER_ALL in value:
        _add_after_all(draft, document, value[_AFTER_ALL], defaults)
    return draft


def _parsed(path: str, data: bytes) -> Document:
    from jobschedd.config.document import decode, parse

    text, mistake = decode(data, _LARGEST_FILE)
    document = parse(text, "", None)
    mistakes = [mistake] if mistake else document.mistakes
    if mistakes:
        raise UsageError("\n".join(_complaint(path, one.line, one.path, one.message) for one in mistakes))
    return document


def _jobs(path: str, document: Document, jobs: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(jobs, dict):
        yield from ((("jobs", name), item) for name, item in jobs.items())
    elif isinstance(jobs, list):
        yield from ((("jobs", number), item) for number, item in enumerate(jobs))
    else:
        raise _wrong(path, document, ("jobs",), "must map names to jobs, or list them")


def _add(draft: Draft, document: Document, place: Place, item: dict[str, Any]) -> None:
    own = document.line(place) or 1
    draft.items.append(item)
    draft.lines.append({"": own} | {name: document.line((*place, name)) or own for name in item})


def _add_after_all(draft: Draft, document: Document, item: Any, defaults: dict[str, Any]) -> None:
    if not isinstance(item, dict) or "after" in item:
        problem = 'must be a job, such as {command: [./cleanup]}, without "after": it runs after all others'
        raise _wrong(draft.path, document, (_AFTER_ALL,), problem)
    after = [f"{other['ref']}:any" for other in draft.items]
    _add(draft, document, (_AFTER_ALL,), {"ref": _AFTER_ALL} | defaults | item | {"after": after})


def _wrong(path: str, document: Document, place: Place, message: str) -> UsageError:
    return UsageError(_complaint(path, document.line(place), place, message))


def _complaint(path: str, line: int | None, place: Place, message: str) -> str:
    where = path if line is None else f"{path}:{line}"
    dotted = ".".join(str(part) for part in place)
    return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"
