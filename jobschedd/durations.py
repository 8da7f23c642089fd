"""One grammar for durations, everywhere: ``90`` or ``90s``, ``500ms``, ``5m``, ``2h``, ``1d``."""

from __future__ import annotations

import re

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*", re.ASCII)
LONGEST = 100 * 365 * 86400.0


def parse_duration(text: str | float | int) -> float:
    """Seconds in ``text`` (a number is taken as seconds). Raises ValueError with a mendable message."""
    if isinstance(text, bool):
        raise ValueError("expected a duration such as 90s, 5m, 2h or 1d, not a boolean")
    if isinstance(text, int | float):
        seconds = float(text) if -LONGEST <= text <= LONGEST else -1.0  # float() of a huge int overflows
    else:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:50]!r} is no duration; write 90 or 90s, 500ms, 5m, 2h or 1d")
        seconds = float(match[1]) * _UNITS[match[2] or ""]
    if not 0 <= seconds <= LONGEST:
        shown = f"{text[:50]!r}" if isinstance(text, str) else "this number"
        raise ValueError(f"{shown} is out of range: a duration is between 0 and 100 years")
    return seconds


def format_duration(seconds: float) -> str:
    """``seconds`` for people, two units at most: ``350ms``, ``4.2s``, ``5m 10s``, ``2h 3m``, ``1d 4h``."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            big, rest = divmod(int(seconds), size)
            return f"{big}{unit} {rest // small}{smaller}" if rest >= small else f"{big}{unit}"
    raise AssertionError("unreachable")
