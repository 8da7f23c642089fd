"""The service under a real systemd: started, reloaded, killed, hung, stopped, as an operator would see it."""

from __future__ import annotations

import json
import re

import pytest

from machine import PROGRAM, Machine

from .conftest import CONFIG, Service

pytestmark = [pytest.mark.systemd, pytest.mark.slow]

UNIT = Service.unit


def outcome(machine: Machine, job: str) -> str:
    return str(json.loads(machine.run("jobsched", "show", "--json", job))["outcome"])


def running(machine: Machine, pattern: str) -> bool:
    return machine.complete("pgrep", "-f", pattern).returncode == 0


class TestStart:
    def test_it_is_ready_when_systemctl_returns(self, service: Service):
        service.start()

        assert service.state == "active"
        assert service.status.startswith("channel 1, collector, dispatcher and redis running")
        commands = [command for command in service.processes().values() if "redis-server" not in command]
        assert sorted(commands) == [
            "jobschedd: channel 1",
            "jobschedd: collector",
            "jobschedd: dispatcher",
            "jobschedd: supervisor (master, slave)",
        ]

    def test_a_job_runs_as_the_service_user_without_any_privilege(self, service: Service):
        service.start()

        said = service.run("sh", "-c", "id -un; pwd; umask; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status; env")

        user, folder, umask, *rest = said.splitlines()
        assert (user, folder, umask) == ("jobschedd", "/var/lib/jobschedd/jobs", "0022")
        facts = dict(re.split(r":\s+|=", line, maxsplit=1) for line in rest)
        assert (facts["NoNewPrivs"], int(facts["CapEff"], 16), int(facts["CapBnd"], 16)) == ("1", 0, 0)
        # What belongs to the daemon alone: with these a job could speak to systemd in its name.
        private = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "INVOCATION_ID", "STATE_DIRECTORY")
        assert not facts.keys() & set(private)

    def test_a_mistake_in_the_file_is_told_once_and_not_retried(self, service: Service, machine: Machine):
        service.configure("role: slaev\nredis: {url: embedded}\n")
        before = len(machine.messages(UNIT))

        assert machine.complete("systemctl", "start", UNIT).returncode == 1

        assert (service.state, service.restarts) == ("failed", 0)
        assert machine.show(UNIT, "ExecMainStatus") == "78"
        told = [line for line in machine.messages(UNIT)[before:] if line.startswith(service.config)]
        assert [line.split(": ")[:2] for line in told] == [[f"{service.config}:1", "role"]]

    def test_members_of_the_group_may_submit_and_nobody_else(self, service: Service, machine: Machine):
        machine.run("useradd", "--groups", "jobschedd", "alice")
        machine.run("useradd", "mallory")
        service.start()

        assert service.run("echo", "hello", user="alice") == "hello\n"
        refused = machine.complete("jobsched", "list", user="mallory")
        assert refused.returncode == 69
        assert b"ermission denied" in refused.stdout
        assert b"Traceback" not in refused.stdout


class TestReload:
    def test_a_changed_file_is_applied_and_what_did_not_change_goes_on(self, service: Service, machine: Machine):
        main = service.start()
        before = service.titled("channel 1")
        service.configure(CONFIG.replace('["1"]', '["1", gpu]'))

        machine.systemctl("reload", UNIT)

        machine.wait_until(lambda: service.status.startswith("2 channels"), 5, "a second channel in the status")
        assert (service.pid, service.titled("channel 1"), service.restarts) == (main, before, 0)
        assert machine.run("jobsched", "run", "--channel", "gpu", "--", "echo", "here") == "here\n"

    def test_a_file_with_a_mistake_changes_nothing_and_says_so(self, service: Service, machine: Machine):
        main = service.start()
        before = service.titled("channel 1")
        service.configure(CONFIG.replace("drain_timeout: 60s", "drain_timeout: soon"))

        assert machine.complete("systemctl", "reload", UNIT).returncode == 1

        problem = f"reload failed: {service.config}:6: slave.drain_timeout: "
        machine.wait_until(lambda: problem in service.status, 5, "the mistake in the status")
        assert (service.state, service.pid, service.titled("channel 1")) == ("active", main, before)
        # The command line would refuse the file, too.
        found = {"JOBSCHED_REDIS_URL": "unix:///var/lib/jobschedd/redis.sock"}
        assert service.run("echo", "still here", environment=found) == "still here\n"
        (entry,) = [entry for entry in machine.journal(UNIT) if "reload refused" in entry["MESSAGE"]]
        assert f"{service.config}:6" in entry["MESSAGE"]
        assert entry["PRIORITY"] == "3"

        service.configure()
        machine.wait_until(lambda: machine.complete("systemctl", "reload", UNIT).returncode == 0, 5, "a good reload")
        machine.wait_until(lambda: "reload failed" not in service.status, 5, "the status is clean again")

    def test_a_new_build_takes_over_under_the_same_pid(self, service: Service, machine: Machine):
        main = service.start()
        before = service.titled("channel 1")
        job = service.submit("--", "sh", "-c", "sleep 1; echo done")
        machine.wait_until(lambda: running(machine, "sleep 1"), 5, "the job runs")
        machine.run("sh", "-c", f"touch {PROGRAM}/lib/python*/site-packages/jobschedd/clock.py")

        machine.systemctl("reload", UNIT)

        machine.wait_until(
            lambda: any("took over from the former build" in line for line in machine.messages(UNIT)), 10, "a successor"
        )
        machine.wait_until(lambda: before not in service.processes(), 20, "the old channel has drained")
        assert (service.pid, service.restarts, service.state) == (main, 0, "active")
        machine.wait_until(lambda: outcome(machine, job) == "succeeded", 10, "its result is collected")
        assert service.run("echo", "new") == "new\n"


class TestFailures:
    def test_a_killed_supervisor_is_replaced_and_leaves_no_orphan(self, service: Service, machine: Machine):
        main = service.start()
        job = service.submit("--no-retry-on-loss", "--", "sh", "-c", "setsid sleep 1001 & sleep 1002")
        machine.wait_until(lambda: running(machine, "sleep 1001") and running(machine, "sleep 1002"), 10, "a job")
        before = set(service.processes())

        machine.run("kill", "-KILL", str(main))

        service.await_active_again()
        assert not before & set(service.processes())
        assert service.pid != main
        assert service.run("echo", "back") == "back\n"
        assert outcome(machine, job) == "lost"

    def test_a_hung_supervisor_is_replaced(self, service: Service, machine: Machine):
        service.override("WatchdogSec=1s", "TimeoutAbortSec=1s", "RestartSec=100ms")
        main = service.start()

        machine.run("kill", "-STOP", str(main))

        service.await_active_again()
        assert service.pid != main
        assert any("Watchdog timeout" in line for line in machine.messages(UNIT))
        assert service.run("echo", "back") == "back\n"

    def test_the_watchdog_is_content_with_a_daemon_that_works(self, service: Service, machine: Machine):
        service.override("WatchdogSec=1s")
        service.start()

        assert service.run("sleep", "2.5") == ""

        assert service.restarts == 0


class TestStop:
    @pytest.mark.parametrize("patience", ["3min", "1s"])
    def test_a_running_job_ends_in_peace(self, service: Service, machine: Machine, patience: str):
        # Longer than TimeoutStopSec, too: the daemon asks for more time as long as it drains.
        service.override(f"TimeoutStopSec={patience}")
        service.start()
        job = service.submit("--", "sh", "-c", "sleep 2.5; echo finished")
        machine.wait_until(lambda: running(machine, "sleep 2.5"), 10, "the job runs")

        service.stop()

        assert (service.state, machine.show(UNIT, "Result")) == ("inactive", "success")
        assert machine.show(UNIT, "ExecMainStatus") == "0"
        assert service.processes() == {}
        service.start()
        assert outcome(machine, job) == "succeeded"
        assert machine.run("jobsched", "logs", job) == "finished\n"

    def test_what_does_not_end_in_time_is_ended(self, service: Service, machine: Machine):
        service.configure(CONFIG.replace("60s", "1s"))
        service.start()
        service.submit("--", "sh", "-c", "trap '' TERM; sleep 1003")
        machine.wait_until(lambda: running(machine, "sleep 1003"), 10, "the job runs")

        service.stop()

        assert (service.state, machine.show(UNIT, "Result")) == ("inactive", "success")
        assert not running(machine, "sleep 1003")


def test_the_journal_reads_well(service: Service, machine: Machine):
    service.start()
    pids = {str(pid) for pid, command in service.processes().items() if command.startswith("jobschedd: ")}

    entries = [entry for entry in machine.journal(UNIT) if entry["_PID"] in pids]

    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"jobschedd"}
    assert {"5", "6"} <= {entry["PRIORITY"] for entry in entries}
    (ready,) = [entry for entry in entries if entry["MESSAGE"].startswith("supervisor: ready status=")]
    assert ready["PRIORITY"] == "5"
    for entry in entries:
        # The name of the process first; the priority has been taken off, and the journal has times of its own.
        assert re.match(r"(supervisor|dispatcher|collector|channel 1): [a-z]", entry["MESSAGE"]), entry["MESSAGE"]


class TestInstallation:
    def test_what_is_there_afterwards(self, service: Service, machine: Machine):
        assert machine.run("getent", "passwd", "jobschedd").split(":")[5:] == [
            "/var/lib/jobschedd",
            "/usr/sbin/nologin\n",
        ]
        service.start()
        facts = machine.run("stat", "--format=%n %U %a", "/etc/jobschedd", "/var/lib/jobschedd", "/var/log/jobschedd")
        assert facts.splitlines() == [
            "/etc/jobschedd root 755",
            "/var/lib/jobschedd jobschedd 750",
            "/var/log/jobschedd jobschedd 750",
        ]
        machine.run("systemctl", "enable", UNIT)
        assert machine.systemctl("is-enabled", UNIT) == "enabled\n"
        assert machine.show(UNIT, "NeedDaemonReload") == "no"

    def test_it_may_be_repeated_while_the_service_runs(self, service: Service, machine: Machine):
        main = service.start()

        said = machine.run("jobschedd", "install-service")

        assert "kept       /etc/jobschedd/jobsched.yaml" in said
        assert "written" not in said
        assert "  systemctl restart jobschedd\n" in said
        assert service.pid == main

    def test_the_default_configuration_works_at_once(self, service: Service, machine: Machine):
        machine.run("rm", service.config)

        assert f"written    {service.config}" in machine.run("jobschedd", "install-service")

        service.start()
        assert service.run("echo", "hello") == "hello\n"

    def test_mistakes_in_the_present_configuration_are_told(self, service: Service, machine: Machine):
        service.configure("role: nobody\n")

        done = machine.complete("jobschedd", "install-service")

        assert done.returncode == 78
        assert f"{service.config}:1: role: ".encode() in done.stdout
        assert done.stdout.endswith(f"Mend {service.config} first; the mistakes are above.\n".encode())

    def test_an_installation_that_the_service_user_cannot_reach_is_told(self, service: Service, machine: Machine):
        machine.run("chmod", "700", PROGRAM)
        try:
            done = machine.complete("jobschedd", "install-service")
        finally:
            machine.run("chmod", "755", PROGRAM)

        assert done.returncode == 1
        assert f"the user jobschedd cannot run {PROGRAM}/bin/jobschedd (".encode() in done.stdout
        assert b"Traceback" not in done.stdout


class TestProfiles:
    def test_privileged_jobs_are_root(self, service: Service, machine: Machine):
        machine.run("jobschedd", "install-service", "--profile", "privileged")
        service.start()

        said = service.run("sh", "-c", "id -u; grep -E 'NoNewPrivs|CapEff' /proc/self/status; touch /usr/by-a-job")

        assert said.splitlines()[0] == "0"
        assert re.search(r"NoNewPrivs:\s+0$", said, re.MULTILINE)
        everything = machine.run("grep", "CapEff", "/proc/1/status").strip()
        assert everything in said
        assert machine.exists("/usr/by-a-job")

    def test_strict_needs_an_installation_outside_of_home_directories(self, service: Service, machine: Machine):
        machine.run(
            "sh", "-c", f"cp -a {PROGRAM} /home/jobschedd; sed -i s,{PROGRAM},/home/jobschedd, /home/jobschedd/bin/*"
        )
        install = ("/home/jobschedd/bin/jobschedd", "install-service")

        done = machine.complete(*install, "--profile", "strict")

        assert done.returncode == 1
        assert b"lies under /home, of which such a service sees nothing" in done.stdout
        assert machine.complete(*install).returncode == 0
        machine.run("jobschedd", "install-service")

    def test_strict_works_and_shuts_the_rest_out(self, service: Service, machine: Machine):
        machine.run("jobschedd", "install-service", "--profile", "strict")
        service.start()

        machine.write("/home/for-everybody", "seen")

        tries = "touch /srv/file; cat /home/for-everybody; unshare --user true; ls /dev; echo ends"
        said = service.run("sh", "-c", tries)

        assert "touch: cannot touch '/srv/file': Read-only file system\n" in said
        assert "seen" not in said
        assert "unshare failed: Operation not permitted\n" in said
        assert "kmsg" not in said
        assert said.endswith("ends\n")
        called = machine.run("jobsched", "call", "--wait", "math:sqrt", "16")
        assert called.splitlines()[-1] == "4.0"

    def test_back_to_standard_the_state_is_the_service_user_s_again(self, service: Service, machine: Machine):
        machine.run("jobschedd", "install-service", "--profile", "privileged")
        service.start()
        job = service.submit("--", "echo", "as root")
        machine.run("jobsched", "wait", job)
        service.stop()
        machine.run("jobschedd", "install-service", "--profile", "standard")

        service.start()

        assert service.run("id", "-un") == "jobschedd\n"
        assert machine.run("jobsched", "logs", job) == "as root\n"


def test_an_instance_of_the_template(service: Service, machine: Machine):
    machine.write("/etc/jobschedd/gpu.yaml", CONFIG.replace("box", "box-gpu"))
    service.start()
    unit = "jobschedd@gpu.service"
    try:
        machine.systemctl("start", unit)
        assert machine.exists("/var/lib/jobschedd-gpu/redis.sock")
        found = {"JOBSCHED_CONFIG": "/etc/jobschedd/gpu.yaml"}
        said = machine.run("jobsched", "run", "--", "sh", "-c", "echo $JOBSCHED_NODE", environment=found)
        assert said == "box-gpu\n"
        assert {entry["SYSLOG_IDENTIFIER"] for entry in machine.journal(unit)} == {"jobschedd@gpu", "systemd"}
    finally:
        machine.systemctl("stop", unit)
