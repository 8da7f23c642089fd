"""``jobsched schedule`` against real daemons."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cluster import Cluster
from redis_server import RedisServer, wait_until


def jobsched(fleet: Cluster, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = fleet.run(*arguments)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def document(fleet: Cluster, *arguments: str):
    return json.loads(jobsched(fleet, *arguments, "--json")[0])


@pytest.fixture
def added(fleet: Cluster):
    """Adds schedules, and removes them again."""
    names = []

    def add(name: str, *arguments: str) -> str:
        names.append(name)
        return jobsched(fleet, "schedule", "add", name, *arguments)[1]

    yield add
    for name in names:
        fleet.run("schedule", "remove", name)


def fires(fleet: Cluster, name: str, count: int, what: str = "fired") -> list[dict]:
    def enough():
        return [one for one in document(fleet, "schedule", "show", name)["fires"] if one["what"] == what]

    wait_until(lambda: len(enough()) >= count, 30, f"{name} {what} {count} times")
    return enough()


def test_it_fires_at_its_times(fleet: Cluster, added):
    said = added("tick", "--every", "1s", "--", "sh", "-c", 'echo "$JOBSCHED_SCHEDULE $JOBSCHED_SCHEDULED_FOR"')
    assert "schedule tick runs first at " in said
    fires(fleet, "tick", 2)
    jobsched(fleet, "schedule", "pause", "tick")
    found = fires(fleet, "tick", 2)
    assert len({one["time"] for one in found}) == len(found)
    assert all(one["time"] % 1 == 0 and one["at"] >= one["time"] for one in found)
    job = found[-1]["job"]
    with fleet.client() as client:
        client.wait([job], 15)
    shown = document(fleet, "show", job)
    assert (shown["name"], shown["schedule"], shown["scheduled_for"]) == ("tick", "tick", found[-1]["time"])
    nominal = datetime.fromtimestamp(found[-1]["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert shown["stdout"]["head"] == f"tick {nominal}\n"
    text, _ = jobsched(fleet, "schedule", "show", "tick")
    assert "schedule:    tick (paused)" in text and f"\tfired\t{job}\tsucceeded\t" in text
    assert f"schedule:    tick, its time {nominal[:10]}" in jobsched(fleet, "show", job)[0]


def test_paused_and_resumed(calm_fleet: Cluster, added):
    fleet = calm_fleet
    added("tick", "--every", "1s", "--", "true")
    fires(fleet, "tick", 1)
    jobsched(fleet, "schedule", "pause", "tick", "--reason", "the db is down")
    assert "paused already" in jobsched(fleet, "schedule", "pause", "tick")[1]
    for command in (("explain", "tick"), ("schedule", "show", "tick")):
        said, _ = jobsched(fleet, *command)
        assert "It is paused by" in said and "the db is down" in said and "schedule resume tick" in said
    assert document(fleet, "explain", "tick")["schedule"] == "tick"
    before = document(fleet, "schedule", "show", "tick")
    assert (before["state"], before["next"], before["paused"]["reason"]) == ("paused", None, "the db is down")
    assert "paused: tick" in jobsched(fleet, "doctor")[0]
    jobsched(fleet, "schedule", "resume", "tick")
    jobsched(fleet, "schedule", "resume", "tick", code=2)
    wait_until(
        lambda: document(fleet, "schedule", "show", "tick")["fired"] > before["fired"], 15, "it fires again", every=0.1
    )


def test_while_the_last_runs(fleet: Cluster, added):
    # Ten fires are shown: on a busy machine the first of every second is gone before it is looked for.
    added("long", "--every", "3s", "--if-running", "skip", "--", "sleep", "600")
    skipped = fires(fleet, "long", 2, "skipped")
    (fired,) = fires(fleet, "long", 1)
    assert {one["job"] for one in skipped} == {fired["job"]}
    jobsched(fleet, "schedule", "remove", "long")
    jobsched(fleet, "cancel", fired["job"])


def test_a_function_with_arguments(fleet: Cluster, added):
    added("root", "--every", "1s", "--function", "math:sqrt", "--args", "[16]", "--channel", "gpu")
    job = fires(fleet, "root", 1)[-1]["job"]
    with fleet.client() as client:
        assert client.wait([job], 15)[0].result == 4.0


def test_listed(fleet: Cluster, added):
    added("backup", "--cron", "0  3 * * *", "--timezone", "Europe/Berlin", "--retries", "3", "--", "true", "--verbose")
    (one,) = [one for one in document(fleet, "schedule", "list") if one["name"] == "backup"]
    assert (one["cron"], one["every"], one["timezone"], one["dst"]) == ("0 3 * * *", None, "Europe/Berlin", "run_once")
    assert one["job"]["command"] == ["true", "--verbose"] and one["job"]["retries"] == 3
    assert one["next"] > datetime.now(UTC).timestamp()
    assert "backup\tactive\t0 3 * * *\tEurope/Berlin\t" in jobsched(fleet, "schedule", "list")[0]


def test_adding_again(fleet: Cluster, added):
    added("once", "--cron", "@yearly", "--", "true")
    added("once", "--cron", "@yearly", "--", "true")
    assert "another schedule once" in jobsched(fleet, "schedule", "add", "once", "--every", "1h", "--", "x", code=2)[1]
    added("once", "--replace", "--every", "1h", "--", "true")
    assert document(fleet, "schedule", "show", "once")["every"] == 3600


def test_a_steady_interval_by_cron_is_warned_of(added):
    said = added("often", "--cron", "*/5 * * * *", "--timezone", "Europe/Berlin", "--", "true")
    assert "when clocks in Europe/Berlin go back, nothing runs for that hour the second time" in said
    assert "go back" not in added("steady", "--cron", "*/5 * * * *", "--timezone", "Asia/Kolkata", "--", "true")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "x", "--", "true"], "--cron: give one of cron and every"),
        (["add", "x", "--every", "1s"], "what shall it run?"),
        (["add", "3x", "--every", "1s", "--", "true"], "NAME: '3x' is no name of a schedule"),
        (["add", "x", "--cron", "61 * * * *", "--", "true"], "--cron: minute: '61' is not within 0-59"),
        (["add", "x", "--cron", "@daily", "--timezone", "Mars", "--", "true"], "--timezone: 'Mars' is no time zone"),
        (["add", "x", "--every", "1s", "--in", "5s", "--", "true"], "--in: cannot be given for a schedule"),
        (["add", "x", "--every", "1s", "--name", "y", "--", "true"], "--name: "),
        (["add", "x", "--every", "1s", "--function", "m:f", "--args", "[", "--", ""], "--args: '[' is no JSON"),
        (["next"], "give either the NAME of a schedule, or --cron or --every"),
        (["next", "x", "--every", "1s"], "give either the NAME"),
        (["next", "--every", "1s", "--after", "soon"], "--after: 'soon' is no ISO 8601 time"),
    ],
)
def test_mistakes(fleet: Cluster, arguments: list[str], said: str):
    assert said in jobsched(fleet, "schedule", *arguments, code=2)[1]


@pytest.mark.parametrize("command", [["show"], ["next"], ["pause"], ["resume"], ["remove"]])
def test_one_that_does_not_exist(fleet: Cluster, command: list[str]):
    assert "jobsched: no schedule nix" in jobsched(fleet, "schedule", *command, "nix", code=1)[1]
    assert "no schedule nix" in jobsched(fleet, "explain", "nix", code=1)[1]


def test_the_next_times_of_an_expression(fleet: Cluster):
    berlin = ("schedule", "next", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--after", "2027-03-27T12:00Z")
    said, _ = jobsched(fleet, *berlin, "-n", "2")
    assert said == (
        "Sun 2027-03-28 03:00:00+02:00 CEST"
        "  02:30:00 does not exist: clocks go from 02:00 to 03:00; it runs at the change\n"
        "Mon 2027-03-29 02:30:00+02:00 CEST\n"
    )
    (skipped, *_) = document(fleet, *berlin, "--dst", "skip")
    assert (skipped["runs"], skipped["local"]) == (False, "2027-03-28T03:00:00+02:00")
    assert len(document(fleet, "schedule", "next", "--every", "1h")) == 10
    assert jobsched(fleet, "schedule", "next", "--every", "1h", "--end", "2020-01-01")[1].endswith("is left\n")


class TestConfigured:
    """The schedules of a master's file."""

    SCHEDULES = ({"name": "own", "every": "1h", "command": ["true"]},)

    def test_they_come_change_and_go_with_the_file(self, cluster: Cluster):
        daemon = cluster.start(["master", "slave"], channels=1, master={"schedules": list(self.SCHEDULES)})
        wait_until(lambda: document(cluster, "schedule", "list"), 15, "the file is read")
        (one,) = document(cluster, "schedule", "list")
        assert (one["name"], one["origin"]) == ("own", "config")
        for command in (["remove", "own"], ["add", "own", "--every", "2h", "--replace", "--", "x"]):
            said = jobsched(cluster, "schedule", *command, code=2)[1]
            assert "comes from the master's configuration: change it there (master.schedules) and reload" in said
        daemon.config.write_text(daemon.config.read_text().replace("1h", "2h"))
        daemon.supervisor.send_signal(1)
        wait_until(lambda: document(cluster, "schedule", "show", "own")["every"] == 7200, 15, "the new file holds")
        daemon.config.write_text(daemon.config.read_text().replace("name: own", "name: other"))
        daemon.supervisor.send_signal(1)
        wait_until(
            lambda: [one["name"] for one in document(cluster, "schedule", "list")] == ["other"],
            15,
            "the new file holds",
        )

    def test_the_doctor_says_when_masters_differ(self, cluster: Cluster, redis_server: RedisServer):
        cluster.start("master", master={"schedules": list(self.SCHEDULES)})
        assert "differ" not in cluster.run("doctor").stdout
        cluster.start("master")
        said = "schedules: the configurations of the masters node1, node2 differ in own: which holds"
        wait_until(lambda: said in cluster.run("doctor").stdout, 30, "the doctor says so", every=0.2)
