"""What the benchmarks call."""

from __future__ import annotations


def nothing() -> None:
    """The shortest job there is."""


def take(_text: str) -> None:
    """The same, with something to carry."""
