"""``jobsched history``: what it lists, exports and says when not all masters answer."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat

import pytest

from cluster import Cluster
from redis_server import RedisServer, wait_until


@pytest.fixture(scope="module")
def ended(fleet: Cluster) -> dict[str, str]:
    """A success and a failure of two attempts, both in the history."""
    with fleet.client() as client:
        good = client.submit(["true"], name="hist-good", labels=["gpu"]).wait(15)
        bad = client.shell("exit 3", name="hist-bad", retries=1, retry_delay=0.01, channel="1").wait(15)
        wait_until(lambda: len(list(client.history(name="hist-*"))) == 3, 10, "all are in the history")
    return {"good": good.id, "bad": bad.id}


def rows(fleet: Cluster, *arguments: str) -> list[dict[str, object]]:
    done = fleet.run("history", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_for_people(fleet: Cluster, ended: dict[str, str]):
    done = fleet.run("history", "--name", "hist-*")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0][:6] == ["JOB", "TRY", "OUTCOME", "CAUSE", "EXIT", "WHERE"]
    assert [line[:6] for line in lines[1:]] == [
        [ended["bad"], "2", "failed", "exit", "3", "n1/1"],
        [ended["bad"], "1 (retried)", "failed", "exit", "3", "n1/1"],
        [ended["good"], "1", "succeeded", "", "0", "n1/gpu"],
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "failed"], ["bad", "bad"]),
        (["--state", "failed", "--final"], ["bad"]),
        (["--outcome", "succeeded,failed", "--limit", "1"], ["bad"]),
        (["--label", "gpu"], ["good"]),
        (["--channel", "n1/gpu"], ["good"]),
        (["--node", "n1", "--channel", "1", "--cause", "exit"], ["bad", "bad"]),
        (["--since", "1h"], ["bad", "bad", "good"]),
        (["--until", "1h"], []),
        (["--since", "2020-01-01T00:00:00+01:00", "--until", "2100-01-01"], ["bad", "bad", "good"]),
        (["--schedule", "nightly"], []),
    ],
)
def test_filters(fleet: Cluster, ended: dict[str, str], arguments: list[str], expected: list[str]):
    assert [row["job"] for row in rows(fleet, "--name", "hist-*", *arguments)] == [ended[name] for name in expected]


def test_one_job(fleet: Cluster, ended: dict[str, str]):
    found = rows(fleet, "--job", ended["bad"])
    assert [(row["attempt"], row["final"], row["exit_code"]) for row in found] == [(2, True, 3), (1, False, 3)]


def test_exports(fleet: Cluster, ended: dict[str, str]):
    lines = fleet.run("history", "--name", "hist-*", "--export", "jsonl").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["job"] for row in found] == [ended["bad"], ended["bad"], ended["good"]]
    file = fleet.directory / "export.csv"
    done = fleet.run("history", "--name", "hist-*", "--export", "csv", "--output", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    table = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["job"] for row in table] == [row["job"] for row in found]
    assert [row["final"] for row in table] == ["true", "false", "true"]
    assert list(table[0]) == list(found[0]) and table[2]["labels"] == "gpu"
    assert not list(fleet.directory.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is neither a duration"),
        (["--state", "pending"], "ask for outcomes"),
        (["--state", "fine"], "'fine' is neither a state nor an outcome"),
        (["--job", "x"], "is no job id"),
        (["--output", "x"], "--output needs --export"),
    ],
)
def test_wrong_usage(fleet: Cluster, arguments: list[str], message: str):
    done = fleet.run("history", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_no_master_answers(redis_server: RedisServer, cluster: Cluster):
    done = cluster.run("history", "--name", "x")
    assert done.returncode == 69
    assert re.fullmatch(r"jobsched: 0 of 0 masters answered: no master runs\n", done.stderr)
