"""docs/scheduling.md: every worked example does what the page says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cluster import Cluster
from docs.examples import Section, matches, run_console, run_python, sections, steps
from redis_server import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
CHANNELS = ["1", "2", {"name": "gpu", "slots": 2, "labels": ["gpu"]}]


@pytest.mark.timeout(300)  # each command of a block starts a Python of its own
@pytest.mark.parametrize("section", sections(PAGE), ids=lambda section: section.title)
def test_the_page_tells_the_truth(cluster: Cluster, section: Section):
    directory = cluster.directory / "reader"
    directory.mkdir()
    for name, contents in section.files():
        (directory / name).write_text(contents)
    configuration = section.configuration()
    slave = {"python_path": [str(directory)]} | configuration.get("slave", {})
    daemon = cluster.daemon(
        ["master", "slave"], node="web-07", channels=CHANNELS, slave=slave, master=configuration.get("master")
    )
    daemon.start(within=60)
    schedules = configuration.get("master", {}).get("schedules", ())
    with cluster.client() as client:  # the daemon is ready before it has begun to lead
        wait_until(lambda: client.inspect.leader(), 60, "it leads")
        wait_until(lambda: len(client.schedules.all()) == len(schedules), 60, "it has read its schedules")
        named = {hook["name"] for hook in configuration.get("master", {}).get("hooks", ()) if "named" in hook["on"]}
        wait_until(lambda: client.inspect.nameable_hooks() == named, 60, "it has said which hooks may be named")
    environment = cluster.environment(
        JOBSCHED_REDIS_URL=cluster.redis_url,
        JOBSCHED_NAMESPACE=cluster.namespace,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        TZ="UTC",
    )
    for block in section.blocks:
        if block.kind == "console":
            run_console(block.text, directory, environment)
        elif block.kind == "python":
            run_python(block.text, directory, environment)


class TestHarness:
    """It must be able to fail."""

    def test_commands_and_their_output(self):
        (first, second) = steps("$ a \\\n> b\nout\n$ c\n")
        assert (first.command, first.expected) == ("a \\\nb", "out\n")
        assert (second.command, second.expected) == ("c", "")

    @pytest.mark.parametrize(
        ("expected", "said", "same"),
        [
            ("a\n", "a\n", True),
            ("a\n", "b\n", False),
            ("a\n", "a\nb\n", False),
            ("", "a\n", False),
            ("a ... c\n", "a b c\n", True),
            ("a ... c\n", "a b\n", False),
            ("...\nc\n", "a\nb\nc\n", True),
            ("...\nc\n", "c\n", True),
            ("...\nc\n", "a\n", False),
        ],
    )
    def test_the_dots(self, expected: str, said: str, same: bool):
        assert matches(expected, said) == same

    def test_a_wrong_page_is_found_out(self, tmp_path: Path):
        run_console("$ x=1; echo $x\n1\n", tmp_path, os.environ)
        run_console("$ echo $x; (exit 3)\n1\n$ echo $?\n3\n", tmp_path, os.environ)
        with pytest.raises(AssertionError, match="the page says"):
            run_console("$ echo 1\n2\n", tmp_path, os.environ)
        with pytest.raises(AssertionError, match="only 0 of 1"):
            run_console("$ exit 0\n", tmp_path, os.environ)
        with pytest.raises(AssertionError, match="ZeroDivision"):
            run_python("1 / 0", tmp_path, os.environ)
