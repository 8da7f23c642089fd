"""docs/faults.md tells the truth: every fault of the catalogue has its row, every test that is named exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\w+) \| (.+?) \| (.+) \|$", (TESTS.parent / "docs" / "faults.md").read_text(), re.M)
#: How many there are of each kind.
CATALOGUE = {"J": 27, "C": 12, "S": 16, "M": 16, "R": 25, "N": 6, "H": 9, "I": 11}


def test_every_fault_has_one_row_in_order():
    expected = [f"{kind}{number + 1}" for kind, count in CATALOGUE.items() for number in range(count)]
    assert [name for name, _, _ in ROWS] == expected


def test_every_named_test_exists():
    for name, _, cell in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert named or cell.startswith("not covered: "), name
        for file, test in named:
            text = (TESTS / file).read_text()
            assert re.search(rf"^ *def {test}\(", text, re.M), f"{name}: {file} has no {test}"
