"""Tables on a terminal, tab-separated lines in a pipe; nothing that a job brought along controls the terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

import click

from jobschedd.durations import format_duration

#: C0, DEL, C1; line and paragraph separators; what changes the direction of the text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}

_COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "timed_out": "red",
    "lost": "red",
    "expired": "yellow",
    "missing": "yellow",
    "cancelled": "yellow",
    "skipped": "yellow",
    "running": "cyan",
    "dispatched": "cyan",
    "up": "green",
    "draining": "yellow",
    "drained": "yellow",
    "paused": "yellow",
    "degraded": "yellow",
    "down": "red",
}


def safe(text: str) -> str:
    """``text`` on one line, with everything that controls a terminal escaped."""
    return _CONTROL.sub(lambda match: _NAMED.get(match[0]) or _escaped(match[0]), text)


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def safe_lines(text: str) -> str:
    """The same, but line ends and tabs stay."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match[0]), text)


def on_terminal() -> bool:
    """Whether people look at standard output right now."""
    return sys.stdout.isatty()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for whoever reads: people, or ``cut`` and ``awk``. Cells need not be safe."""
    if not on_terminal():
        click.echo("\t".join(headers))
        for row in rows:
            click.echo("\t".join(safe(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(safe(cell), style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def coloured(word: str) -> str:
    """A status word in its colour, on a terminal."""
    return click.style(word, fg=_COLOURS.get(word)) if on_terminal() else word


def moment(seconds: float | None) -> str:
    """A time for people: today without the date; in a pipe always whole, with its zone."""
    if not seconds:
        return "-"
    local = datetime.fromtimestamp(seconds).astimezone()
    if not on_terminal():
        return local.isoformat(timespec="milliseconds")
    today = datetime.now().astimezone().date() == local.date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def full_moment(seconds: float | None) -> str:
    """A time in full, with its zone, and how far away it is."""
    if not seconds:
        return "-"
    away = seconds - time.time()
    distance = f"in {format_duration(away)}" if away > 0 else f"{format_duration(-away)} ago"
    return f"{datetime.fromtimestamp(seconds).astimezone().isoformat(sep=' ', timespec='milliseconds')} ({distance})"


def size(number: int) -> str:
    """A number of bytes for people."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
