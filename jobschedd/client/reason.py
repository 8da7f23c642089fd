"""A reason: a stable code, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """``code``: one stable word; ``tell`` makes the sentence, and may ask the store for details."""

    code: str
    tell: Callable[[], str]
