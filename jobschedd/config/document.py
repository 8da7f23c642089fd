"""Strict YAML: text -> plain values with the line of each, or every reason why not.

YAML 1.1 as PyYAML loads it turns ``no`` into False, ``10:30`` into 630 and ``010`` into 8, keeps the last of
two equal keys and lets nine lines expand to gigabytes. So the values are built here from PyYAML's events:
types by the YAML 1.2 core schema (and digits with a leading zero stay text), no tags, anchors or aliases,
no duplicate keys, bounded size and depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobschedd.config.values import Substituted, resolve

if TYPE_CHECKING:
    import yaml

Path = tuple[str | int, ...]

LARGEST_FILE = 1024 * 1024
DEEPEST = 20

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_VARIABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_SPECIAL_START = re.compile(r"(?::\s+|-\s+|^\s*|[\[{,]\s*)([*&!%@`][^#\n]*)")


class Broken:
    """Stands where a value would be that a mistake has already been noted for: readers pass it over."""


BROKEN = Broken()


@dataclass(frozen=True)
class Mistake:
    """Something wrong at a line (None: the file as a whole) and, where known, at a path."""

    line: int | None
    path: Path
    message: str


@dataclass
class Document:
    """What a file says: plain values, the line of each path, and what is wrong with it."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    substituted: set[Path] = field(default_factory=set)  # where the content came from outside the file

    def line(self, path: Path) -> int | None:
        """The line of ``path``, or of the nearest thing around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def decode(data: bytes, largest: int = LARGEST_FILE) -> tuple[str, Mistake | None]:
    """The text of a file, or why it has none."""
    if len(data) > largest:
        return "", Mistake(None, (), f"is larger than {largest // 1024} KiB: not a configuration file")
    if data.startswith(b"\xef\xbb\xbf"):
        return "", Mistake(1, (), "starts with a byte order mark: save it as UTF-8 without BOM")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "", Mistake(1, (), "is UTF-16: save it as UTF-8")
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return "", Mistake(line, (), f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8")
    control = _CONTROL.search(content)
    if control is not None:
        line = content.count("\n", 0, control.start()) + 1
        return "", Mistake(line, (), f"control character U+{ord(control[0]):04X} is not allowed")
    return content, None


def parse(content: str, hostname: str, environ: Mapping[str, str] | None) -> Document:
    """Build the document from ``content``; the arguments fill in ``${hostname}`` and ``${NAME}``.

    With None for ``environ`` nothing is filled in: such text is the file's own.
    """
    import yaml  # a client with a URL never needs it

    document = Document()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder(yaml.parse(content, Loader=loader), document, hostname, environ)
    try:
        builder.build()
    except _TooDeep as error:
        document.mistakes.append(Mistake(error.line, (), f"nested deeper than {DEEPEST} levels"))
    except yaml.MarkedYAMLError as error:
        document.mistakes.append(_syntax_mistake(error, content))
    except yaml.YAMLError:
        document.mistakes.append(Mistake(None, (), "is not valid YAML"))
    return document


class _TooDeep(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


class _Builder:
    """Walks PyYAML's events once; every mistake that leaves the walk possible is noted and passed over."""

    def __init__(
        self, events: Iterator[yaml.Event], document: Document, hostname: str, environ: Mapping[str, str] | None
    ) -> None:
        self._events = events
        self._document = document
        self._hostname = hostname
        self._environ = environ

    def build(self) -> None:
        import yaml

        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._mistake(event, (), "a second document starts here ('---'): keep one document a file")
                    return
                self._document.value = self._node(next(self._events), ())
        if documents == 0:
            self._document.mistakes.append(Mistake(1, (), "is empty"))

    def _node(self, event: yaml.Event, path: Path) -> Any:
        import yaml

        if len(path) > DEEPEST:
            raise _TooDeep(_line(event))
        self._document.lines.setdefault(path, _line(event))
        if isinstance(event, yaml.AliasEvent):
            self._mistake(event, path, f'aliases are not allowed; if it is text, quote it: "*{event.anchor}"')
            return BROKEN
        refused = self._refuses_anchor_or_tag(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return BROKEN if refused else self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        return self._mapping(path)

    def _refuses_anchor_or_tag(self, event: yaml.Event, path: Path) -> bool:
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            self._mistake(event, path, "anchors ('&...') are not allowed; if it is text, quote it")
        if tag is not None:
            self._mistake(event, path, "tags ('!...') are not allowed; if it is text, quote it")
        return anchor is not None or tag is not None

    def _list(self, path: Path) -> list[Any]:
        import yaml

        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        import yaml

        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._mistake(event, path, "a key must be plain text")
                self._node(event, (*path, "?"))
                self._node(next(self._events), (*path, "?"))
                continue
            self._refuses_anchor_or_tag(event, path)
            key = event.value
            place: Path = (*path, key)
            first = self._document.lines.get(place)
            if key in values:
                self._mistake(event, place, f"is given twice; the first is in line {first}")
                self._node(next(self._events), place)
                continue
            self._document.lines[place] = _line(event)
            values[key] = self._node(next(self._events), place)
        return values

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> Any:
        plain = event.implicit[0] and event.style in (None, "")
        if self._environ is None or "${" not in event.value:
            return resolve(event.value) if plain else event.value
        content = self._substituted(event, path)
        if content is None:
            return BROKEN
        return Substituted(content) if path in self._document.substituted else content

    def _substituted(self, event: yaml.ScalarEvent, path: Path) -> str | None:
        pieces: list[str] = []
        end = 0
        for match in _VARIABLE.finditer(event.value):
            piece = "${" if match[0] == "$${" else self._variable(event, path, match[1])
            if piece is None:
                return None
            pieces += (event.value[end : match.start()], piece)
            end = match.end()
        return "".join(pieces) + event.value[end:]

    def _variable(self, event: yaml.ScalarEvent, path: Path, inside: str | None) -> str | None:
        match = None if inside is None else _VARIABLE_NAME.fullmatch(inside)
        if match is None:
            self._mistake(event, path, "'${' starts a variable, ${NAME} or ${NAME:-default}; the text itself is '$${'")
            return None
        self._document.substituted.add(path)
        name, default = match[1], match[2]
        if name == "hostname":
            return self._hostname
        # As in the shell: ${NAME:-default} stands in for an empty variable too.
        content = (self._environ or {}).get(name)
        if default is not None:
            return content or default
        if content is None:
            self._mistake(event, path, f"environment variable {name} is not set (${{{name}:-default}} sets a default)")
        return content

    def _mistake(self, event: yaml.Event, path: Path, message: str) -> None:
        self._document.mistakes.append(Mistake(_line(event), path, message))


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else int(event.start_mark.line) + 1


def _syntax_mistake(error: yaml.MarkedYAMLError, content: str) -> Mistake:
    mark = error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    what = (error.problem or error.context or "cannot be read").replace("\n", " ")
    hint = ""
    if line is not None:
        # An unclosed bracket or quote is noticed at the end: where it was opened helps more.
        if error.context_mark is not None and "flow" in str(error.context):
            line = error.context_mark.line + 1
        lines = content.split("\n")
        hint = _syntax_hint(lines[line - 1] if line <= len(lines) else "", what, str(error.context))
    return Mistake(line, (), f"not valid YAML: {what}{hint}")


def _syntax_hint(line: str, what: str, context: str) -> str:
    special = _SPECIAL_START.search(line)
    if line.startswith("\t") or " \t" in line[: len(line) - len(line.lstrip())] or " tab " in f" {what} ":
        return "; indent with spaces, not tabs"
    if special is not None:
        return f'; a value that starts with {special[1][0]!r} must be quoted: "{special[1].strip()[:40]}"'
    if "${" in line and "flow" in context:
        return "; inside [ ] and { } a ${...} must be quoted"
    if "mapping values" in what:
        return "; text that contains ': ' must be quoted"
    return ""
