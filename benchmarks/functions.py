"""What the benchmarks call."""

from __future__ import annotations


def nothing() -> None:
    """The shortest job there is."""
