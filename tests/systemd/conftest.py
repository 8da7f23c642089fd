"""One booted machine for a whole module, and one fresh service on it for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from machine import Machine, why_not

CONFIG = """\
role: [master, slave]
node: box
redis: {url: embedded}
slave:
  channels: ["1"]
  drain_timeout: 60s
timing: {heartbeat: 500ms, lease: 1500ms, leader_lease: 1s, reap_scan: 200ms, block: 100ms, term_grace: 1s}
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With jobschedd under /opt and its service installed, not started."""
    if reason := why_not():
        pytest.skip(reason)
    machine = Machine()
    try:
        machine.boot()
        machine.install()
        machine.run("jobschedd", "install-service")
        yield machine
    finally:
        machine.close()


class Service:
    """jobschedd.service on the machine."""

    unit = "jobschedd.service"
    config = "/etc/jobschedd/jobsched.yaml"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def configure(self, text: str = CONFIG) -> None:
        self.machine.write(self.config, text)

    def override(self, *settings: str) -> None:
        """Other settings of the unit for this test, in a drop-in."""
        self.machine.write(f"/run/systemd/system/{self.unit}.d/50-test.conf", "\n".join(["[Service]", *settings, ""]))
        self.machine.systemctl("daemon-reload")

    def start(self) -> int:
        """Returns when it is ready; the main process."""
        self.machine.systemctl("start", self.unit)
        return self.pid

    def stop(self) -> None:
        self.machine.systemctl("stop", self.unit)

    @property
    def pid(self) -> int:
        return self.machine.main_pid(self.unit)

    @property
    def status(self) -> str:
        return self.machine.show(self.unit, "StatusText")

    @property
    def restarts(self) -> int:
        return int(self.machine.show(self.unit, "NRestarts"))

    @property
    def state(self) -> str:
        return self.machine.show(self.unit, "ActiveState")

    def processes(self) -> dict[int, str]:
        return self.machine.processes(self.unit)

    def titled(self, title: str) -> int:
        """The process of this title."""
        (pid,) = [pid for pid, command in self.processes().items() if command == f"jobschedd: {title}"]
        return pid

    def run(self, *command: str, user: str = "root", environment: dict[str, str] | None = None) -> str:
        """Run a job; its output. Fails the test when the job fails."""
        return self.machine.run("jobsched", "run", "--", *command, user=user, environment=environment)

    def submit(self, *arguments: str) -> str:
        """Hand in a job, by options and command; its id."""
        return self.machine.run("jobsched", "submit", *arguments).strip()

    def await_active_again(self, restarts: int = 1, within: float = 20.0) -> None:
        self.machine.wait_until(
            lambda: self.restarts == restarts and self.state == "active",
            within,
            f"restart {restarts}; the journal:\n" + "\n".join(self.machine.messages(self.unit)[-20:]),
        )


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Installed and configured, not started; whatever it wrote is gone afterwards."""
    service = Service(machine)
    service.configure()
    yield service
    machine.systemctl("kill", "--signal=KILL", service.unit, check=False)
    machine.systemctl("stop", service.unit, check=False)
    drop_ins = f"/run/systemd/system/{service.unit}.d"
    machine.run("rm", "-rf", "/var/lib/jobschedd", drop_ins, f"/etc/systemd/system/{service.unit}.d")
    machine.systemctl("daemon-reload")
    machine.systemctl("reset-failed", service.unit, check=False)
