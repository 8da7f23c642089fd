"""hold, release, priority, and whatever is done to many jobs at once, as a user does it."""

from __future__ import annotations

import json

import pexpect
import pytest

from cluster import Cluster, program
from jobschedd.client import Client
from redis_server import wait_until


@pytest.fixture
def client(fleet: Cluster):
    with fleet.client() as client:
        yield client
        client.cancel(job_id for chunk in client.matching("pending", "scheduled", "running") for job_id, _ in chunk)


def lines(fleet: Cluster, *arguments: str, code: int = 0, stderr: str = "") -> list[str]:
    done = fleet.run(*arguments)
    assert (done.returncode, done.stderr) == (code, stderr)
    return done.stdout.splitlines()


def status_of(fleet: Cluster, *arguments: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in json.loads(fleet.run("list", *arguments, "--limit", "0", "--json").stdout):
        word = job["outcome"] or job["state"]
        found[word] = found.get(word, 0) + 1
    return found


def test_hold_and_release(fleet: Cluster, client: Client):
    job = client.submit(["true"], hold=True)
    told = client.explain(job)
    assert (told.state, told.reason) == ("pending", "held")
    assert f"'jobsched release {job.id}' lets it go on" in told.sentence
    assert lines(fleet, "hold", job.id, "--reason", "wait for the backup") == [f"{job.id} held"]
    assert "(wait for the backup, by " in lines(fleet, "explain", job.id)[0]
    assert lines(fleet, "release", job.id) == [f"{job.id} released"]
    client.wait([job], 15)
    assert lines(fleet, "hold", job.id, code=1, stderr=f"jobsched: job {job.id} has ended\n") == []
    lines(fleet, "release", job.id, code=1, stderr=f"jobsched: job {job.id} is not held\n")


def test_hold_of_an_array(fleet: Cluster, client: Client):
    go = fleet.directory / "go-on"
    array = client.shell(f"until [ -e {go} ]; do sleep 0.1; done", array="1-3%1")
    wait_until(lambda: array.refresh().state == "running", 15, "it has begun")
    lines(
        fleet,
        "hold",
        f"{array.id}_3",
        code=1,
        stderr=f"jobsched: job {array.id}_3 has not started: it waits in its array; name that one: {array.id}\n",
    )
    assert lines(fleet, "hold", array.id, "--reason", "disk full") == [f"{array.id} held"]
    go.touch()
    wait_until(lambda: array.refresh().counts.active == 0, 15, "what runs has ended")
    assert "what has not started is held since" in lines(fleet, "explain", array.id)[0]
    assert f"Its array, {array.id}, is held since" in lines(fleet, "explain", f"{array.id}_3")[0]
    assert lines(fleet, "release", "--name", "x", stderr="jobsched: no job matches\n") == []
    assert lines(fleet, "release", "--all") == ["1 released"]
    assert array.wait(20).outcome == "succeeded"


def test_priority(fleet: Cluster, client: Client):
    jobs = client.submit_many([{"command": ["true"], "channel": "nowhere"}] * 2)
    assert lines(fleet, "priority", jobs[1].id, "-7") == [f"{jobs[1].id} priority -7"]
    assert jobs[1].view.header.priority == -7
    assert fleet.run("priority", jobs[1].id, "101").returncode == 2
    assert fleet.run("priority", jobs[1].id).returncode == 2


def test_many_at_once(fleet: Cluster, client: Client):
    client.submit_many([{"command": ["true"], "channel": "nowhere", "name": f"etl-{n}"} for n in range(700)])
    client.submit_many([{"command": ["true"], "channel": "nowhere", "name": f"other-{n}"} for n in range(5)])
    etl = ("--name", "etl-*", "--state", "pending")
    assert lines(fleet, "cancel", *etl, "--dry-run") == ["700"]
    assert lines(fleet, "hold", "--name", "etl-1?") == ["10 held"]
    assert lines(fleet, "priority", "--name", "etl-*", "5") == ["700 priority 5"]
    assert lines(fleet, "release", "--all") == ["10 released"]
    assert lines(fleet, "cancel", *etl) == ["700 cancelled"]
    assert status_of(fleet, "--name", "etl-*") == {"cancelled": 700}
    assert lines(fleet, "cancel", *etl, stderr="jobsched: no job matches\n") == []
    assert lines(fleet, "cancel", "--channel", "nowhere") == ["5 cancelled"]
    refused = "jobsched: give ids, or options that choose jobs, not both\n"
    lines(fleet, "cancel", "--name", "x", "1", code=2, stderr=refused)


def test_retry_of_those_that_went_wrong(fleet: Cluster, client: Client):
    jobs = client.submit_many([{"shell": "exit 3", "name": f"bad-{n}", "channel": "gpu"} for n in range(20)])
    good = client.submit(["true"], name="bad-not", channel="gpu")
    client.wait([*jobs, good], 30)
    before = {job: client.job(job).attempt for job in (*jobs, good)}
    assert lines(fleet, "retry", "--name", "bad-*", "--node", "n2", stderr="jobsched: no job matches\n") == []
    assert lines(fleet, "retry", "--name", "bad-*", "--node", "n1") == ["20 pending"]
    client.wait(jobs, 30)
    # An attempt is a dispatch: one that was handed back unstarted counts as well.
    assert all(client.job(job).attempt > before[job] for job in jobs)
    assert client.job(good).attempt == before[good]


def test_running_jobs_by_where_they_are(fleet: Cluster, client: Client):
    job = client.submit(["sleep", "60"], name="long")
    wait_until(lambda: client.job(job).state == "running", 10, "it runs")
    place = client.inspect.places([client.job(job).view])[client.job(job).view.header.incarnation]
    assert lines(fleet, "cancel", "--channel", "/".join(place)) == ["1 cancel requested"]
    client.wait([job], 15)
    assert client.job(job).outcome == "cancelled"


@pytest.fixture
def drained_again(fleet: Cluster):
    yield
    for name in ("n1", "gpu", "n1/1"):
        fleet.run("resume", name)


class TestDrain:
    def test_it_says_when_it_is_empty(self, fleet: Cluster, client: Client, drained_again):
        job = client.submit(["sleep", "1"], channel="1")
        wait_until(lambda: client.job(job).state == "running", 10, "it runs")
        assert lines(fleet, "drain", "n1/1", "--wait") == []
        assert client.job(job).outcome == "succeeded"
        client.submit(["true"], channel="1")
        assert lines(fleet, "drain", "n1/1", "--wait", "--deadline", "5s") == []

    def test_it_says_when_it_is_not(self, fleet: Cluster, client: Client, drained_again):
        job = client.submit(["sleep", "60"], channel="1")
        wait_until(lambda: client.job(job).state == "running", 10, "it runs")
        told = "jobsched: n1/1 is not empty: it has 1 job\n"
        lines(fleet, "drain", "n1/1", "--wait", "--deadline", "0.3s", code=75, stderr=told)
        assert client.job(job).state == "running"
        explained = client.explain(client.submit(["true"], channel="1"))
        assert explained.reason == "drained"
        assert "n1/1 is drained until " in explained.sentence

    def test_its_jobs_run_elsewhere(self, fleet: Cluster, client: Client, drained_again):
        job = client.submit(["sh", "-c", "[ $JOBSCHED_ATTEMPT = 2 ] || sleep 60"])
        wait_until(lambda: client.job(job).state == "running", 10, "it runs")
        ((node, channel),) = client.inspect.places([client.job(job).view]).values()
        assert lines(fleet, "drain", f"{node}/{channel}", "--wait", "--deadline", "0", "--then", "requeue") == []
        client.wait([job], 15)
        assert (client.job(job).outcome, client.job(job).attempt) == ("succeeded", 2)
        assert client.job(job).view.header.tries == 0
        assert client.job(job).channel != channel
        fleet.run("resume", f"{node}/{channel}")

    def test_its_jobs_are_cancelled(self, fleet: Cluster, client: Client, drained_again):
        job = client.submit(["sleep", "60"], channel="1")
        wait_until(lambda: client.job(job).state == "running", 10, "it runs")
        assert lines(fleet, "drain", "n1/1", "--wait", "--deadline", "0", "--then", "kill") == []
        assert client.job(job).outcome == "cancelled"

    def test_pause(self, fleet: Cluster, client: Client, drained_again):
        assert lines(fleet, "pause", "gpu", "--reason", "quiet please") == []
        job = client.submit(["true"], channel="gpu")
        told = client.explain(job)
        assert (told.reason, told.sentence.split(", by")[0]) == ("paused", "It waits: gpu is paused (quiet please")
        assert {one.state for one in client.channels()} == {"up", "paused"}
        lines(fleet, "resume", "gpu")
        client.wait([job], 15)

    def test_usage(self, fleet: Cluster):
        assert fleet.run("drain", "n1", "--then", "kill").returncode == 2
        assert fleet.run("drain", "n1", "--deadline", "soon").returncode == 2
        assert fleet.run("resume", "n1").returncode == 2


def test_a_terminal_is_asked(fleet: Cluster, client: Client):
    client.submit_many([{"command": ["true"], "channel": "nowhere"}] * 3)
    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    for answer, left in (("n", 3), ("y", 0)):
        terminal = pexpect.spawn(program("jobsched"), ["cancel", "--all"], env=environment, timeout=20)
        terminal.expect(r"cancel 3 jobs\?")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        assert sum(len(chunk) for chunk in client.matching("pending")) == left


def test_a_group_as_a_filter(fleet: Cluster, client: Client):
    items = [{"command": ["true"], "channel": "nowhere", "group": group} for group in ("etl", "etl", "web")]
    client.submit_many(items)
    assert lines(fleet, "cancel", "--group", "etl", "--dry-run") == ["2"]
    assert lines(fleet, "hold", "--group", "etl") == ["2 held"]
    assert lines(fleet, "priority", "--group", "etl", "9") == ["2 priority 9"]
    assert lines(fleet, "release", "--group", "etl", "--name", "x", stderr="jobsched: no job matches\n") == []
    assert lines(fleet, "release", "--group", "etl") == ["2 released"]
    assert status_of(fleet, "--group", "web", "--state", "pending") == {"pending": 1}
    assert lines(fleet, "cancel", "--group", "etl") == ["2 cancelled"]
    assert lines(fleet, "retry", "--group", "etl", "--state", "cancelled") == ["2 pending"]
    assert status_of(fleet, "--group", "etl") == {"pending": 2}
    assert [job.view.spec.group for job in client.jobs("pending", group="web")] == ["web"]


def test_pause_of_a_group(fleet: Cluster, client: Client):
    assert lines(fleet, "pause", "--group", "science", "--reason", "audit") == []
    wait_until(lambda: client.inspect.drains()["group:science"].get("heard"), 10, "the leader knows")
    job, other = client.submit(["true"], group="science"), client.submit(["true"], group="web")
    client.wait([other], 15)
    assert job.state == "pending"
    assert "its group science is paused (audit, by " in lines(fleet, "explain", job.id)[0]
    assert any(
        row.split() == ["group:science", "paused", "0", "jobsched", "pause"] for row in lines(fleet, "limit", "list")
    )
    (row,) = [json.loads(text) for text in lines(fleet, "limit", "list", "--json") if "group:science" in text]
    assert row == {"key": "group:science", "limit": None, "in_use": 0, "source": None, "paused": True}
    assert lines(fleet, "resume", "--group", "science") == []
    client.wait([job], 15)


def test_pause_of_a_group_and_bad_words(fleet: Cluster):
    both = "jobsched: give a NAME or a --group, not both\n"
    for command in ("pause", "resume"):
        lines(fleet, command, "n1", "--group", "g", code=2, stderr=both)
        given = "jobsched: give the NAME of a node or channel, or a --group\n"
        lines(fleet, command, code=2, stderr=given)
        lines(fleet, command, "--group", "a b", code=2, stderr="jobsched: 'a b' is no name of a group\n")
    refused = "jobsched: the group calm is not paused (drained or paused: nothing)\n"
    lines(fleet, "resume", "--group", "calm", code=2, stderr=refused)


def test_a_group(fleet: Cluster, client: Client):
    jobs = client.submit_many([{"shell": f"sleep 4; exit {code}", "group": "night"} for code in (0, 3, 0)])
    other = client.submit(["sleep", "60"], group="day", channel="nowhere")
    waited = fleet.run("wait", "--group", "night", "--json")
    assert waited.returncode == 3
    assert {job["id"] for job in json.loads(waited.stdout)} <= {job.id for job in jobs}
    assert all(job.refresh().ended for job in jobs)
    assert lines(fleet, "wait", "--group", "night") == [], "nothing is left to wait for"
    assert fleet.run("wait", "--group", "day", "--timeout", "0.2").returncode == 125
    assert lines(fleet, "cancel", "--group", "day") == ["1 cancelled"]
    assert other.refresh().outcome == "cancelled"
    for arguments in ((), ("1", "--group", "day")):
        refused = fleet.run("wait", *arguments)
        assert refused.returncode == 2 and "give the ids of jobs, or --group" in refused.stderr
