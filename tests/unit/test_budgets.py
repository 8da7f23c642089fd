"""Budgets: what counts as full, and how sizes and shares are written."""

from __future__ import annotations

import pytest

from jobschedd.config.values import budget
from jobschedd.master.budgets import fullness

MIB = 1 << 20
BUDGETS = {"pending": 50 * MIB, "finished": 0, "output": 0, "reserve": 10 * MIB}


@pytest.mark.parametrize(
    ("pending", "used", "maxmemory", "named"),
    [
        (0, 0, 100 * MIB, ""),
        (50 * MIB - 1, 60 * MIB, 100 * MIB, ""),
        (50 * MIB, 60 * MIB, 100 * MIB, "budgets.pending"),
        (0, 90 * MIB - 1, 100 * MIB, ""),
        (0, 90 * MIB, 100 * MIB, "budgets.reserve"),
        (0, 900 * MIB, 0, ""),
    ],
)
def test_what_is_full(pending: int, used: int, maxmemory: int, named: str):
    told = fullness(BUDGETS, pending, used, maxmemory)
    assert (named in told) if named else told == ""


def test_no_budget_is_never_full():
    assert fullness(dict.fromkeys(BUDGETS, 0), 1 << 50, 0, 0) == ""


@pytest.mark.parametrize(("text", "value"), [("50%", 0.5), ("0%", 0.0), ("100%", 1.0), ("2GiB", 2.0 * 1024 * MIB)])
def test_how_it_is_written(text: str, value: float):
    assert budget(text) == value


@pytest.mark.parametrize("text", ["101%", "-1%", "x%", "half", "%"])
def test_what_is_no_budget(text: str):
    with pytest.raises(ValueError, match=r"no (share|size)|size"):
        budget(text)
