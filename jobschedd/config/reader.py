"""A document read into structs, field by field, so that every mistake is found in one pass."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from jobschedd.config import values
from jobschedd.config.document import Broken, Document, Mistake, Path
from jobschedd.config.model import Config, Struct
from jobschedd.config.values import CheckItems, Derived, Read, ReadEntries, ReadItem, ReadPath
from jobschedd.errors import InvalidJob

Section = TypeVar("Section", bound=Struct)


class Reader:
    """Reads one document. ``mistakes`` collects what is wrong; a field with a mistake gets its default."""

    def __init__(
        self,
        document: Document,
        folder: str,
        defaults: Mapping[Path, Any],
        stand_ins: Mapping[Path, Any],
    ) -> None:
        """Relative paths start at ``folder``. ``defaults`` serve fields that may be left out; ``stand_ins``
        let reading and checking go on past required fields that are missing or wrong."""
        self.mistakes = list(document.mistakes)
        self._document = document
        self._folder = folder
        self._defaults = defaults
        self._stand_ins = stand_ins

    def mistake(self, path: Path, message: str, at: Path | None = None) -> None:
        """Note a mistake at ``path``, or at the line of ``at`` where the path itself is not in the file."""
        place = path if at is None or path in self._document.lines else at
        self.mistakes.append(Mistake(self._document.line(place), path, message))

    def sound(self, *path: str | int) -> bool:
        """Whether nothing wrong was noted at, inside or around ``path``: only then it means something."""
        return not any(
            mistake.path[: len(path)] == path or mistake.path == path[: len(mistake.path)] for mistake in self.mistakes
        )

    def struct(self, kind: type[Section], value: object, path: Path) -> Section | None:
        """``value`` as a ``kind``; None where a required field is missing or wrong."""
        if isinstance(value, Broken):
            return None
        if value is None:
            value = {}
        if kind.SHORTHAND and isinstance(value, str | int | float):
            value = {kind.SHORTHAND: value}
        if not isinstance(value, dict):
            self.mistake(path, f"expected a mapping of settings, got {values.kind(value)}")
            return None
        hints = typing.get_type_hints(kind, include_extras=True)
        known = _keys(kind, hints)
        self._refuse_unknown(value, known, path)
        read: dict[str, Any] = {}
        for key, field in known.items():
            content = self._field(field, hints[field.name], value, (*path, key))
            if content is not _UNREAD:
                read[field.name] = content
        if any(field.required and field.name not in read for field in known.values()):
            return None
        return kind(**read)

    def _refuse_unknown(self, value: dict[str, Any], known: Mapping[str, Any], path: Path) -> None:
        for key in value:
            if key not in known:
                homes = " or ".join(".".join(home) for home in _homes(Config, key))
                near = f" here; it belongs to {homes}" if homes else values.suggestion(key, known)
                offer = near or f"; known here: {', '.join(sorted(known))}"
                self.mistake((*path, key), f"unknown key{offer}")

    def _field(self, field: msgspec.structs.FieldInfo, hint: Any, value: dict[str, Any], path: Path) -> Any:
        key = field.encode_name
        fallback = self._defaults.get(path, self._stand_ins.get(path, _UNREAD))
        if key not in value:
            if field.required and path not in self._defaults:
                self.mistake(path, "is missing", at=path[:-1])
            return fallback
        content = self._typed(hint, value[key], path)
        return fallback if content is _UNREAD else content

    def _typed(self, hint: Any, value: Any, path: Path) -> Any:
        if isinstance(value, Broken):
            return _UNREAD
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            return self._marked(arguments[0], arguments[1], value, path)
        if origin in (types.UnionType, typing.Union):
            return None if value is None else self._typed(arguments[0], value, path)
        if origin is Literal:
            return self._read(lambda given: _choice(given, arguments), value, path)
        if origin is tuple:
            return self._items(arguments[0], value, path)
        if hint is bool:
            return self._read(values.boolean, value, path)
        section = self.struct(hint, value, path)
        return _UNREAD if section is None else section

    def _marked(self, hint: Any, mark: object, value: Any, path: Path) -> Any:
        match mark:
            case Read(read):
                return self._read(read, value, path)
            case ReadPath():
                return self._read(lambda given: values.path(given, self._folder), value, path)
            case ReadItem(read_item):
                return self._item(read_item, value, path)
            case ReadEntries(read_entry):
                return self._entries(read_entry, value, path)
            case CheckItems(check):
                items = self._items(typing.get_args(hint)[0], value, path)
                return items if items is _UNREAD else self._read(check, items, path)
        raise TypeError(f"no reader for {mark!r}")

    def _items(self, hint: Any, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            self.mistake(path, f"expected a list, such as [a, b], got {values.kind(value)}")
            return _UNREAD
        read = [self._typed(hint, item, (*path, index)) for index, item in enumerate(value)]
        return tuple(item for item in read if item is not _UNREAD)

    def _item(self, read: Callable[[Any], Any], value: Any, path: Path) -> Any:
        if _holds_broken(value):
            return _UNREAD
        if not isinstance(value, dict):
            self.mistake(path, f"expected a mapping of settings, got {values.kind(value)}")
            return _UNREAD
        try:
            return read(_resolved(value))
        except InvalidJob as error:
            field, _, rest = error.field.partition("[")
            index = (int(rest.removesuffix("]")),) if rest.removesuffix("]").isdigit() else ()
            self.mistake((*path, field, *index), error.problem, at=(*path, field) if field in value else path)
            return _UNREAD

    def _entries(self, read: Callable[[str, Any], str], value: Any, path: Path) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.mistake(path, f"expected a mapping of names to text, got {values.kind(value)}")
            return _UNREAD
        entries = {
            key: self._read(partial(read, key), content, (*path, key))
            for key, content in value.items()
            if not isinstance(content, Broken)
        }
        return {key: content for key, content in entries.items() if content is not _UNREAD}

    def _read(self, read: Callable[[Any], Any], value: Any, path: Path) -> Any:
        try:
            return read(value)
        except ValueError as error:
            self.mistake(path, str(error))
            return _UNREAD


def _keys(kind: type[Struct], hints: Mapping[str, Any]) -> dict[str, msgspec.structs.FieldInfo]:
    """What may be written in a section, by the name that it has there."""
    return {
        field.encode_name: field
        for field in msgspec.structs.fields(kind)
        if Derived() not in getattr(hints[field.name], "__metadata__", ())
    }


def _homes(kind: type[Struct], key: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where below ``kind`` there is such a key; lists are not looked into."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for name, field in _keys(kind, hints).items():
        if name == key:
            yield (*path, name)
        section = hints[field.name]
        if isinstance(section, type) and issubclass(section, Struct):
            yield from _homes(section, key, (*path, name))


def _holds_broken(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_broken, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Broken)


def _resolved(value: Any) -> Any:
    """Plain values: what ``${...}`` stood for has the type that it looks like."""
    if isinstance(value, dict):
        return {str(key): _resolved(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_resolved(content) for content in value]
    return values.typed(value)


class _Unread:
    pass


_UNREAD = _Unread()


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if value in choices:
        return str(value)
    near = values.suggestion(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"expected {' or '.join(choices)}, got {values.kind(value)}{near}")
