"""Amounts of resources: how they are written, and what is refused."""

from __future__ import annotations

import pytest

from jobschedd.amounts import parse_amount, show
from jobschedd.errors import InvalidJob
from jobschedd.job import Target
from jobschedd.submission import submission


@pytest.mark.parametrize(
    ("name", "text", "amount"),
    [
        ("cpus", "2", 2000),
        ("cpus", 0.5, 500),
        ("cpus", 8, 8000),
        ("memory", "16G", 16 << 30),
        ("memory", "16GiB", 16 << 30),
        ("memory", "16GB", 16_000_000_000),
        ("memory", "1.5M", 3 << 19),
        ("memory", 1024, 1024),
        ("gpus", "2", 2),
        ("license", 1, 1),
    ],
)
def test_an_amount(name, text, amount):
    assert parse_amount(name, text) == amount


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cpus", "0"),
        ("cpus", "two"),
        ("cpus", "0.0001"),
        ("cpus", True),
        ("memory", "16X"),
        ("memory", "-1"),
        ("gpus", 0.5),
        ("gpus", "1.0"),
        ("license", "x"),
        ("license", "٣"),
        ("Big", 1),
        ("a b", 1),
        ("a=b", 1),
        ("memory", "9" * 50),
    ],
)
def test_no_amount(name, text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_amount(name, text)


def test_for_people():
    assert show({"cpus": 500, "memory": 3 << 29, "gpus": 2}) == "cpus 0.5, gpus 2, memory 1.5G"


def test_of_a_job():
    target = submission(
        {"command": ["true"], "cpus": 2, "memory": "4G", "gpus": 1, "resources": ["license=2", "x"]}
    ).target
    assert dict(target.resources) == {"cpus": 2000, "memory": 4 << 30, "gpus": 1, "license": 2, "x": 1}
    assert Target.from_key(target.key()) == target


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"cpus": "many"}, "cpus"),
        ({"memory": "x"}, "memory"),
        ({"gpus": -1}, "gpus"),
        ({"resources": ["license=0"]}, "resources"),
        ({"resources": {"cpus": 1}, "cpus": 2}, "cpus"),
    ],
)
def test_what_is_refused_names_its_field(item, field):
    with pytest.raises(InvalidJob) as refused:
        submission({"command": ["true"], **item})
    assert refused.value.field == field
