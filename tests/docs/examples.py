"""The worked examples of a page: found by their headings, run as a reader would run them.

The convention, for whoever writes a page:

* Everything fenced under one heading is one test, with a fleet of its own, fresh: a master and a slave on the node
  ``web-07`` with the channels ``1``, ``2`` and ``gpu`` (2 slots, label gpu), time bounds divided by ten, TZ=UTC.
* ``console``: a line that begins with ``$ `` is typed into one bash, ``> `` continues it; the other lines are what
  must appear, standard error too. ``...`` is any text; alone on a line it is any number of lines, none included.
  Variables live until the next heading. The exit code counts only where it is shown: ``$ echo $?``.
* ``python``: a program of its own, that must end well; an output is not looked at.
* ``yaml`` with ``master:`` or ``slave:`` on top: the daemon's configuration has it from the start.
* A block of any other kind whose first line is ``# NAME.EXT`` is a file of that name in the working directory.
* Any other block is prose.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

_HEADING = re.compile(r"#+ (.*)")
_FENCE = re.compile(r"```(\w*)")
_FILE = re.compile(r"# ([\w.-]+\.\w+)\n")
_END = "-- end of what the command said --"
_ANY_LINES, _ANY_TEXT = "(?:.*\n)*", ".*"


class _Loader(yaml.SafeLoader):
    """As the daemon reads it: ``on`` and ``no`` are words."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass
class Block:
    """One fenced block: its kind, its text, the line where it begins."""

    kind: str
    text: str
    line: int


@dataclass
class Section:
    """One heading with its blocks."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def has_examples(self) -> bool:
        """Whether there is anything to run."""
        return any(block.kind in ("console", "python") for block in self.blocks)

    def configuration(self) -> dict[str, Any]:
        """What the daemon is configured with, beyond the usual."""
        found: dict[str, Any] = {}
        for block in self.blocks:
            if block.kind == "yaml" and not _FILE.match(block.text):
                for key, value in yaml.load(block.text, _Loader).items():
                    assert key in ("master", "slave"), f"line {block.line}: only master and slave can be given"
                    found.setdefault(key, {}).update(value)
        return found

    def files(self) -> Iterator[tuple[str, str]]:
        """(name, contents) of the files that must be there."""
        for block in self.blocks:
            if block.kind not in ("console", "python") and (name := _FILE.match(block.text)):
                # A YAML file may keep its comment; JSON has none.
                yield name[1], block.text if block.kind == "yaml" else block.text[name.end() :]


@dataclass
class Step:
    """One command and what must appear."""

    command: str
    expected: str


def sections(page: Path) -> list[Section]:
    """The headings of a page that have examples."""
    found = [Section("")]
    block: Block | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if block is not None:
            if line.strip() == "```":
                block = None
            else:
                block.text += line + "\n"
        elif fence := _FENCE.match(line):
            block = Block(fence[1], "", number)
            found[-1].blocks.append(block)
        elif heading := _HEADING.match(line):
            found.append(Section(heading[1]))
    return [section for section in found if section.has_examples()]


def steps(text: str) -> list[Step]:
    """The commands of a console block."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        elif line.startswith("> ") and found and not found[-1].expected:
            found[-1].command += "\n" + line[2:]
        else:
            assert found, f"output before any command: {line!r}"
            found[-1].expected += line + "\n"
    return found


def matches(expected: str, said: str) -> bool:
    """Whether the output is what the page says; the dots stand for anything."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += _ANY_LINES
        else:
            pattern += _ANY_TEXT.join(re.escape(part) for part in line.split("...")) + "\n"
    return re.fullmatch(pattern, said) is not None


def run_console(text: str, directory: Path, environment: Mapping[str, str], within: float = 100) -> None:
    """Type the commands of a block into one bash. Raises AssertionError that shows the first difference.

    What a block leaves in variables, the next one of the same directory finds.
    """
    todo = steps(text)
    script = "".join(f"{step.command}\nlast=$?; echo; echo '{_END}'; (exit $last)\n" for step in todo)
    begin = "[ -f .variables ] && . ./.variables 2>/dev/null\n"
    end = "declare -p | grep -vE '^declare -[a-z]*[rA-Z]' > .variables\n"
    done = subprocess.run(
        ["bash", "-c", begin + script + end],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within,
        check=False,
    )
    said = done.stdout.split(f"\n{_END}\n")
    for step, output in zip(todo, said, strict=False):
        if output and not output.endswith("\n"):
            output += "\n"
        assert matches(step.expected, output), f"$ {step.command}\n-- said:\n{output}-- the page says:\n{step.expected}"
    assert len(said) == len(todo) + 1, f"only {len(said) - 1} of {len(todo)} commands ran:\n{done.stdout}"


def run_python(text: str, directory: Path, environment: Mapping[str, str], within: float = 100) -> None:
    """Run a program. Raises AssertionError with what it said where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n-- said:\n{done.stdout}"
