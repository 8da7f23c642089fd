"""One grammar of durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.durations import LONGEST, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("500ms", 0.5),
        ("1.5m", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1w", 604800),
        (" 3 s ", 3),
        ("0", 0),
        (7, 7),
        (0.25, 0.25),
        (LONGEST, LONGEST),
    ],
)
def test_what_is_a_duration(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1",
        "1 2",
        "5 minutes",
        "1h30m",
        "1e3",
        "٣s",
        "nan",
        "inf",
        "1.s",
        ".5s",
        "200y",
        -1,
        -0.1,
        float("nan"),
        float("inf"),
        10**5000,
        -(10**5000),
        LONGEST * 1.01,
        "9" * 400,
        True,
        False,
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:10] if not isinstance(value, int) else ''}",
)
def test_what_is_none(text):
    with pytest.raises(ValueError) as error:
        parse_duration(text)
    assert 10 < len(str(error.value)) < 200


@given(st.text() | st.floats() | st.integers())
def test_nothing_but_a_value_error(value):
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.35, "350ms"),
        (4.2, "4.2s"),
        (10, "10s"),
        (59.97, "60s"),
        (60, "1m"),
        (310, "5m 10s"),
        (7380, "2h 3m"),
        (100800, "1d 4h"),
        (86400, "1d"),
        (-5, "-5s"),
    ],
)
def test_how_it_is_shown(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, LONGEST))
def test_every_duration_can_be_shown(seconds):
    assert format_duration(seconds)[-1] in "smhd"
