"""One version apart: old masters with new slaves and the reverse, what is stored is read, and an upgrade in mid-load.

The former version is taken from the repository's history. What it wrote is also kept as bytes, for checkouts
without one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import psutil
import pytest

import jobschedd
from faults.scene import let_pass
from jobschedd.job import Outcome, State, decode_record, decode_report, decode_result, decode_spec
from ledger import judge
from redis_server import wait_until

ROOT = Path(__file__).parents[2]
#: The version before this one: the last commit whose formats a fleet may still speak.
FORMER = "43fb7f1"
#: As the former version packed them.
CORPUS = json.loads((Path(__file__).parent / "wire_of_the_former_version.json").read_text())


@pytest.fixture
def former(tmp_path: Path) -> dict[str, str]:
    """What to add to the environment of a daemon so that it is one of the former version."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", FORMER, "jobschedd"], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"no history here: the former version {FORMER} cannot be had: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path, filter="data")
    return {"PYTHONPATH": str(tmp_path)}


class TestFormats:
    @pytest.mark.parametrize("name", CORPUS["records"])
    def test_records(self, name):
        kept = CORPUS["records"][name]
        record = decode_record(bytes.fromhex(kept["bytes"]))
        header, spec = record.header, decode_spec(record.spec)
        assert [State(header.state).name, header.attempt, header.priority, header.tries] == kept["header"]
        assert [list(spec.command or []), spec.name, spec.timeout, dict(spec.env or {})] == kept["spec"]
        if kept["result"]:
            result = decode_result(record.result)
            assert [Outcome(result.outcome).name, result.cause, result.exit_code] == kept["result"]

    @pytest.mark.parametrize("name", CORPUS["reports"])
    def test_reports(self, name):
        kept = CORPUS["reports"][name]
        report = decode_report(bytes.fromhex(kept["bytes"]))
        assert [report.kind.name, report.job, report.attempt, report.entry, report.cause] == kept["report"]


@pytest.mark.parametrize(
    ("old_master", "old_slave"),
    [(True, False), pytest.param(False, True, marks=pytest.mark.faults)],
    ids=["old master", "old slave"],
)
def test_a_mixed_fleet_works(cluster, ledger, redis_server, former, old_master, old_slave):
    """Every kind of job, under a kill of the channel."""
    cluster.start("master", environment=former if old_master else {})
    path = {"python_path": [ledger.python_path]}
    slave = cluster.start("slave", channels=2, slave=path, environment=former if old_slave else {})
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=0.05, max_crashes=20) for _ in range(20)])
        ledger.submit(client, [ledger.function(max_crashes=20) for _ in range(20)])
        ledger.submit(client, [ledger.item(delay=0.5, priority=5, max_crashes=20) for _ in range(3)])
        wait_until(lambda: len(ledger.events()[0]) > 20, 20, f"some have begun\n{cluster.logs()}")
        slave.successor("channel 1", of=slave.kill("channel 1"))
        cancelled = client.submit(["sleep", "300"])
        wait_until(lambda: cancelled.state == "running", 20, f"it runs\n{cluster.logs()}")
        client.cancel([cancelled])
        assert cancelled.wait(15).outcome == "cancelled"
        judge(cluster, ledger, admin, within=30, apart={cancelled.id})
    assert "Traceback" not in cluster.logs()


@pytest.mark.faults
@pytest.mark.parametrize("back", [False, True], ids=["to the new version", "and back"])
def test_a_rolling_upgrade_under_load(cluster, ledger, redis_server, former, back):
    """Daemon by daemon, masters first; what was stored by the one is read by the other. And back again.

    The former version cannot write to the history of this one: as the CHANGELOG says, it is moved aside before.
    """
    versions = (former, {}) if not back else ({}, former)
    fleet = [cluster.start(role, environment=versions[0]) for role in ("master", "slave")]
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=0.1) for _ in range(60)])
        ledger.submit(client, [ledger.item(delay=6) for _ in range(5)])
        wait_until(lambda: len(ledger.events()[0]) > 10, 20, f"some have begun\n{cluster.logs()}")
        for daemon in fleet:
            assert daemon.stop() == 0
            if back and daemon is fleet[0]:
                _move_aside(cluster.directory / daemon.name)
            daemon._environment.pop("PYTHONPATH", None)
            daemon._environment |= versions[1]
            daemon.start()
            ledger.submit(client, [ledger.item(seconds=0.05) for _ in range(10)])
        account = judge(cluster, ledger, admin, within=40)
    starts = [event.job for event in account.events if event.kind == "start"]
    assert sorted(starts, key=int) == sorted(ledger.jobs(), key=int), "a rolling upgrade runs nothing twice"


def _move_aside(state: Path) -> None:
    """Out of the master's way, and still where the oracle looks for histories."""
    aside = state.with_name(f"{state.name}-before")
    aside.mkdir()
    for file in state.glob("history.db*"):
        file.rename(aside / file.name)


HUNDRED = 100


@pytest.mark.slow
@pytest.mark.parametrize("what", ["configuration", pytest.param("build", marks=pytest.mark.faults)])
def test_reload_during_a_hundred_running_jobs(cluster, ledger, redis_server, tmp_path, what):
    """A hundred results, and nothing is run again: old channel processes end what they have beside their successors."""
    package = Path(jobschedd.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    cluster.start("master")
    channels = [{"name": str(number), "slots": 25} for number in range(4)]
    slave = cluster.start(
        "slave", channels=channels, slave={"drain_timeout": 60}, environment={"PYTHONPATH": str(tmp_path)}
    )
    with cluster.client() as client, redis_server.client() as admin:
        ledger.submit(client, [ledger.item(seconds=8) for _ in range(HUNDRED)])
        wait_until(lambda: len(ledger.events()[0]) == HUNDRED, 30, f"a hundred run\n{cluster.logs()}")
        before = {role: child.pid for role, child in slave.children().items()}
        if what == "configuration":
            slave.config.write_text(slave.config.read_text().replace("slots: 25", "slots: 26"))
        else:
            version = tmp_path / package.name / "version.py"
            version.write_text(version.read_text() + "# another build\n")
        slave.signal("supervisor", signal.SIGHUP)
        ledger.submit(client, [ledger.item() for _ in range(10)])
        wait_until(lambda: _successors(slave, before), 30, f"all are replaced\n{slave.log()}")
        assert sum(event.kind == "stop" for event in ledger.events()[0]) < HUNDRED, "void: they had ended before"
        account = judge(cluster, ledger, admin, within=60)
    assert len(account.ends) == HUNDRED + 10
    assert {event.attempt for event in account.events} == {1}
    assert ("re-executing" in slave.log()) == (what == "build")


def _successors(slave, before) -> bool:
    """Whether every channel has a process that was not there before. Old and new ones have the same title."""
    titles = []
    for child in slave.supervisor.children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in before.values():
                titles.append(" ".join(child.cmdline()).removeprefix("jobschedd: ").strip("\0 "))
    return set(before) <= set(titles)


def test_the_next_version_s_records_are_refused_readably_and_nobody_suffers(cluster, ledger, redis_server):
    """A record whose layout this version does not know is left alone; other jobs run."""
    from jobschedd.store.keys import Keys

    cluster.start("master")
    with cluster.client() as client, redis_server.client() as admin:
        stranger = client.submit(["true"])
        key = Keys(cluster.namespace).job(stranger.id)
        admin.setrange(key, 0, b"\x02")
        cluster.start("slave", channels=1)
        ledger.submit(client, [ledger.item() for _ in range(5)])
        let_pass(0.5)
        shown = cluster.run("show", stranger.id)
        assert shown.returncode == 1 and "version 2" in shown.stderr and shown.stderr.count("\n") == 1, shown
        judge(cluster, ledger, admin, within=20)
        assert admin.getrange(key, 0, 0) == b"\x02"
    assert os.path.exists(cluster.directory) and "Traceback" not in cluster.logs()
