"""What the tests of the command lines share."""

from __future__ import annotations

from fleet import fleet

__all__ = ["fleet"]
