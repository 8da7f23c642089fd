"""``workflow``, ``tree``, ``--after``; what explain, show and list say of jobs that wait; files and their mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster import Cluster
from jobschedd.cli.client import client as jobsched
from jobschedd.errors import UsageError
from redis_server import RedisServer

DAG = """\
name: nightly
defaults: {timeout: 1h}
jobs:
  extract: {command: ["true"]}
  clean:
    shell: exit ${STATUS:-3}
    after: extract
  report: {command: ["true"], after: [clean, "extract:any"]}
  alarm: {command: [echo, alarm], after: "clean:fail"}
after_all: {command: [echo, done]}
"""


@pytest.fixture
def idle(redis_server: RedisServer):
    """A namespace in which nothing runs: no daemon is there."""
    cluster = Cluster(redis_server.url)
    yield cluster
    cluster.close()


def say(cluster: Cluster, *arguments: str, code: int = 0, **options) -> str:
    done = cluster.run(*arguments, **options)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def written(cluster: Cluster, text: str, name: str = "dag.yaml") -> str:
    path = cluster.directory / name
    path.write_text(text)
    return str(path)


# -- while nothing runs ---------------------------------------------------------------------------------------


def test_what_people_read_of_a_job_that_waits(idle):
    say(idle, "submit", "--name", "first", "--", "true")
    say(idle, "submit", "--", "true")
    say(idle, "submit", "--after", "1,2:any", "--in", "1h", "--", "true")
    assert say(idle, "explain", "3") == "It waits: no master leads; it goes on once a daemon with role master runs.\n"
    shown = say(idle, "show", "3")
    assert re.search(r"^after: +1:ok, 2:any$", shown, re.M) and re.search(r"^due: ", shown, re.M)
    assert say(idle, "list", "--state", "waiting").splitlines()[1].startswith("3\twaiting")
    assert say(idle, "tree", "3").splitlines() == [
        "1 first: pending",
        "└─ 3 true: waiting, waits for 1 more <--",
        "2 true: pending",
        "└─ any: 3 true: waiting, waits for 1 more <--",
    ]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("99", "--after: job 99 has no record: it never was, or it ended and its record has expired"),
        ("build", "--after: 'build' is no job id, and no job before it has that ref"),
        ("1:maybe", "--after: 'maybe' is no condition: ok (it succeeded), any (it ended), fail (it did not)"),
        ("1,1:any", "--after: names 1 twice, with ok and with any"),
        ("", "--after: '' is no job: write an id, such as 12, or the ref of another job"),
    ],
)
def test_what_after_refuses(idle, after, message):
    say(idle, "submit", "--", "true")
    assert say(idle, "submit", "--after", after, "--", "true", code=2) == f"jobsched: {message}\n"
    assert len(say(idle, "list").splitlines()) == 2


def test_lines_that_refer_to_each_other(idle):
    lines = [{"ref": "a"}, {"after": "a:any"}, {"after": "b"}]
    text = "".join(json.dumps({"command": ["true"]} | line) + "\n" for line in lines)
    errors = say(idle, "submit", "--file", "-", code=2, input=text)
    assert "standard input:3: after: 'b' is no job id, and no job before it has that ref" in errors
    assert json.loads(say(idle, "show", "2", "--json"))["after"] == ["1:any"]
    errors = say(
        idle, "submit", "--file", "-", code=2, input='{"command": ["true"]}\n{"command": ["true"], "after": 77}\n'
    )
    assert "standard input:2: after: job 77 has no record" in errors


class TestFiles:
    def test_a_workflow_that_waits(self, idle):
        done = idle.run("workflow", "submit", written(idle, DAG), "--name", "mine")
        assert (done.returncode, done.stdout) == (0, "1\n")
        assert done.stderr == "jobsched: 5 jobs, 1 to 5; see: jobsched workflow show 1\n"
        assert say(idle, "workflow", "list").splitlines()[1] == "1\t5\t1 pending, 4 waiting\tmine"
        (listed,) = json.loads(say(idle, "workflow", "list", "--json"))
        assert listed == {"id": "1", "name": "mine", "jobs": 5, "statuses": {"pending": 1, "waiting": 4}}
        shown = json.loads(say(idle, "workflow", "show", "4", "--json"))
        assert [job["id"] for job in shown["members"]] == ["1", "2", "3", "4", "5"]
        assert {job["name"] for job in shown["members"]} == {"extract", "clean", "report", "alarm", "after_all"}
        (clean,) = (job for job in shown["members"] if job["name"] == "clean")
        assert clean["shell"] == "exit ${STATUS:-3}", "what looks like a variable is left to the shell"
        assert {job["workflow"] for job in shown["members"]} == {"1"}

    def test_cancelled(self, idle):
        say(idle, "workflow", "submit", written(idle, DAG))
        assert say(idle, "workflow", "cancel", "3") == "5 cancelled, 0 asked to end\n"
        assert say(idle, "workflow", "retry", "1").splitlines()[0] == "1 pending"

    def test_json_lines(self, idle):
        path = written(idle, '{"command": ["a"], "after": "b"}\n\n{"command": ["b"], "ref": "b"}\n', "dag.jsonl")
        say(idle, "workflow", "submit", path)
        assert say(idle, "workflow", "show", "1").splitlines()[1:] == ["1 b: pending", "└─ 2 a: waiting"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("jobs: {a: {command: [x], after: b}}", "1: a.after: no job of the workflow has the ref 'b'"),
            (
                "jobs:\n  a: {command: [x], after: b}\n  b:\n    after: a\n    command: [x]\n",
                "2: a.after: these jobs wait",
            ),
            ("jobs:\n  a:\n    command: [x]\n    timeout: soon\n", "4: a.timeout: 'soon' is no duration"),
            ("jobs:\n  a: {command: [x], after: 99}\n", "2: a.after: job 99 has no record"),
            ("jobs:\n  - {command: [x]}\n  - {shell: [x]}\n", "3: job.2.shell: must be text"),
            ("jobs:\n  a: {command: [x]}\n  a: {command: [x]}\n", "3: jobs.a: is given twice"),
            ("jobs:\n  a: {command: [x]}\n  12: {command: [x]}\n", "3: 12.ref: '12' is no name for a job"),
            ("jobs:\n  a: [x]\n", "2: jobs.a: must be a mapping"),
            ("jobs: 3\n", "1: jobs: must map names to jobs"),
            ("name: x\nwork: {}\n", "2: work: unknown; known are name, defaults, jobs, after_all"),
            ("jobs: {a: {command: [x]}}\nafter_all: x\n", "2: after_all: must be a job"),
            ("jobs: {a: {command: [x]}}\ndefaults: x\n", "2: defaults: must be a mapping"),
            ("- a\n", "1: must be a mapping with the key jobs"),
            ("jobs: {}\n", " holds no jobs"),
            ("jobs: {a: [\n", "not valid YAML"),
            ("", "1: is empty"),
        ],
    )
    def test_a_mistake_is_shown_with_its_line(self, idle, text, message):
        path = written(idle, text)
        with pytest.raises(UsageError) as error:
            jobsched.main(["--redis", idle.redis_url, "workflow", "submit", path], standalone_mode=False)
        assert str(error.value).startswith(f"{path}:{message}") or message in str(error.value)
        with idle.client() as client:
            assert list(client.jobs()) == [], "nothing is submitted"

    def test_no_such_file(self, idle):
        said = say(idle, "workflow", "submit", "nothing.yaml", code=2)
        assert said == "jobsched: cannot read nothing.yaml: No such file or directory\n"

    def test_a_job_of_no_workflow(self, idle):
        say(idle, "submit", "--", "true")
        assert "job 1 belongs to no workflow" in say(idle, "workflow", "show", "1", code=2)
        assert "no job 44" in say(idle, "workflow", "wait", "44", code=1)


# -- with a fleet ---------------------------------------------------------------------------------------------


def test_a_workflow_from_a_file_to_its_end(fleet: Cluster, tmp_path: Path):
    path = tmp_path / "dag.yaml"
    path.write_text(DAG)
    done = fleet.run("workflow", "submit", str(path), "--wait")
    assert done.returncode == 3, "the first code that is not 0"
    first = done.stdout.strip()
    assert "failed; this job waited for its success" in done.stderr
    ids = [str(int(first) + number) for number in range(5)]
    statuses = {
        job["name"]: job["outcome"] for job in json.loads(say(fleet, "workflow", "show", first, "--json"))["members"]
    }
    assert statuses == {
        "extract": "succeeded",
        "clean": "failed",
        "report": "skipped",
        "alarm": "succeeded",
        "after_all": "succeeded",
    }
    assert fleet.run("workflow", "wait", ids[2]).returncode == 3
    again = dict(line.split() for line in say(fleet, "workflow", "retry", first).splitlines())
    assert sorted(again.values()) == ["pending", "waiting"]
    assert fleet.run("workflow", "wait", first, "--timeout", "20").returncode == 3
