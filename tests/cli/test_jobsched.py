"""The ``jobsched`` command against real daemons: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pexpect
import pytest

from cluster import Cluster, program
from jobschedd.cli.client import main
from redis_server import RedisServer, wait_until


def jobsched(fleet: Cluster, *arguments: str | Path, text: bool = True, **options: object):
    """One run of the command: the finished process."""
    return fleet.run(*map(str, arguments), **options)


def submitted(fleet: Cluster, *arguments: str) -> str:
    done = jobsched(fleet, "submit", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[1-9]\d*\n", done.stdout), "the id and nothing else"
    return done.stdout.strip()


def ended(fleet: Cluster, *arguments: str) -> str:
    job = submitted(fleet, *arguments)
    with fleet.client() as client:
        client.wait([job], 15)
    return job


def documents(fleet: Cluster, *arguments: str):
    done = jobsched(fleet, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# -- run and its exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--", "true"], 0, ""),
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["--", "sh", "-c", "kill -9 $$"], 137, r"failed \(signal SIGKILL\)"),
        (["--timeout", "0.2", "--", "sleep", "9"], 124, r"timed_out"),
        (["--", "/etc/hostname"], 126, r"not_executable"),
        (["--", "/no/such/thing"], 127, r"not_found"),
        (["--cwd", "/no/such/place", "--", "true"], 125, r"cwd"),
        (["--channel", "1", "--expires", "1ms", "--in", "1s", "--", "true"], 125, "expired"),
    ],
)
def test_run_ends_as_the_job_did(fleet: Cluster, arguments: list[str], code: int, reason: str):
    done = jobsched(fleet, "run", *arguments)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    if reason:
        assert re.fullmatch(rf"jobsched: job \d+ .*{reason}.*\n", done.stderr)
    else:
        assert done.stderr == ""


def test_run_passes_both_streams_through(fleet: Cluster):
    done = jobsched(fleet, "run", "--", "sh", "-c", "echo hi; echo oops >&2; printf end; exit 7")

    assert (done.returncode, done.stdout, done.stderr) == (7, "hi\nend", "oops\n")


def test_run_passes_bytes_through(fleet: Cluster):
    done = subprocess.run(
        [program("jobsched"), "run", "--shell", r"printf '\377\000\033[2J\r'"],
        env=fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace),
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xff\x00\x1b[2J\r", b"")


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process: for what is refused before anything else happens."""

    def run(url: str, *arguments: str) -> Done:
        monkeypatch.setenv("JOBSCHED_REDIS_URL", url)
        monkeypatch.setattr("sys.argv", ["jobsched", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


def started(fleet: Cluster, *arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program("jobsched"), *arguments],
        env=fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cancels_its_job(fleet: Cluster, signum: signal.Signals):
    running = started(fleet, "run", "--name", f"victim-{signum}", "--", "sh", "-c", "echo up; exec sleep 60")
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    running.send_signal(signum)
    _, errors = running.communicate(timeout=15)

    assert running.returncode == 128 + signum
    assert re.search(r"job \d+ cancelled", errors)
    assert "Traceback" not in errors
    assert documents(fleet, "list", "--name", f"victim-{signum}")[0]["outcome"] == "cancelled"


def test_a_run_whose_reader_has_gone_cancels_its_job(fleet: Cluster):
    running = started(fleet, "run", "--name", "spout", "--", "sh", "-c", "while :; do echo y; sleep 0.1; done")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(15) == 141
    assert running.stderr is not None
    assert "Traceback" not in running.stderr.read()
    with fleet.client() as client:
        wait_until(lambda: next(client.jobs(name="spout")).ended, 10, "the job is cancelled")


# -- submit ---------------------------------------------------------------------------------------------------


def test_submit_and_wait(fleet: Cluster):
    good, bad = submitted(fleet, "--", "true"), submitted(fleet, "--", "sh", "-c", "exit 4")

    assert jobsched(fleet, "wait", good).returncode == 0
    done = jobsched(fleet, "wait", good, bad, good)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "")
    assert [one["exit_code"] for one in json.loads(jobsched(fleet, "wait", good, bad, "--json").stdout)] == [0, 4]
    done = jobsched(fleet, "submit", "--wait", "--", "sh", "-c", "exit 5")
    assert done.returncode == 5 and re.fullmatch(r"\d+\n", done.stdout)


def test_submit_takes_every_option(fleet: Cluster, tmp_path: Path):
    (tmp_path / "input").write_text("fed")
    options = (
        "--channel n1/gpu --node n1 --label gpu --priority 5 --retries 2 --retry-delay 2s --retry-on exit --timeout 1m "
        "--expires 1h --lost-after 5m --overlap forbid --no-retry-on-loss --max-crashes 3 --key all-options "
        f"--env A=1 --env B=x=y --cwd /tmp --name full --stdin {tmp_path}/input"
    )
    job = submitted(fleet, *options.split(), "--", "sh", "-c", 'echo "$A $B $PWD $(cat)"')
    with fleet.client() as client:
        spec = client.wait([job], 15)[0].view.spec

    assert jobsched(fleet, "logs", job).stdout == "1 x=y /tmp fed\n"
    assert (spec.channel, spec.node, spec.labels, spec.priority, spec.retries) == ("gpu", "n1", ("gpu",), 5, 2)
    assert (spec.retry_delay, spec.retry_on, spec.timeout, spec.lost_after) == (2.0, ("exit",), 60.0, 300.0)
    assert (spec.overlap, spec.retry_on_loss, spec.max_crashes, spec.key) == ("forbid", False, 3, "all-options")
    assert submitted(fleet, "--key", "all-options", "--", "true") == job


def test_options_of_the_command_are_its_own(fleet: Cluster):
    assert jobsched(fleet, "run", "echo", "--name", "-n", "--", "x").stdout == "--name -n -- x\n"


def test_a_time_is_told_with_its_zone(fleet: Cluster):
    done = jobsched(fleet, "submit", "--at", "2199-03-01T04:00+02:00", "--", "true")

    assert re.fullmatch(r"\d+\n", done.stdout)
    assert re.search(r"job \d+ is due at 2199-0[23]-\d\d \d\d:00:00.000[+-]\d\d:\d\d \(in ", done.stderr)
    assert jobsched(fleet, "cancel", done.stdout.strip()).stdout == f"{done.stdout.strip()} cancelled\n"


def test_a_channel_that_nobody_ever_served_is_warned_of(calm_fleet: Cluster):
    fleet = calm_fleet
    done = jobsched(fleet, "submit", "--channel", "web-07/gpu", "--label", "big", "--", "true")
    job = done.stdout.strip()

    assert done.returncode == 0
    assert done.stderr == (
        f"jobsched: warning: job {job} waits: no channel has ever been seen that is web-07/gpu and has the label big\n"
    )
    assert "no channel has ever been seen that is web-07/gpu;" in jobsched(fleet, "explain", job).stdout
    sick = jobsched(fleet, "doctor")
    assert sick.returncode == 1
    assert "1 job waits for a channel that is web-07/gpu and has the label big, and none such is up" in sick.stdout
    jobsched(fleet, "cancel", job)
    assert jobsched(fleet, "doctor").returncode == 0


def test_call(fleet: Cluster):
    assert jobsched(fleet, "call", "--wait", "math:fabs", "--", "-1").stdout.endswith("\n1.0\n")
    done = jobsched(fleet, "call", "--wait", "--kwargs", '{"sep": "-"}', "builtins:print", '"a"', "1")
    assert done.returncode == 0, done.stderr
    job, value = done.stdout.splitlines()
    assert value == "null"
    assert jobsched(fleet, "logs", job).stdout == "a-1\n"

    done = jobsched(fleet, "call", "--wait", "os.path:join", '"a"', '"b"')
    assert done.stdout.splitlines()[1] == '"a/b"'
    done = jobsched(fleet, "call", "--wait", "json:loads", '"{"')
    assert done.returncode == 1
    assert "failed (exception): json.decoder.JSONDecodeError" in done.stderr
    assert jobsched(fleet, "call", "--wait", "no.such:thing").returncode == 127


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "Missing the command"),
        (["submit", "--in", "5x", "--", "true"], "jobsched: --in: '5x' is no duration"),
        (["submit", "--at", "noon", "--", "true"], "jobsched: --at: 'noon' is no ISO 8601 time"),
        (["submit", "--priority", "101", "--", "true"], "jobsched: --priority: 101 must be a whole number"),
        (["submit", "--node", "../x", "--", "true"], "jobsched: --node: '../x' is no name"),
        (["submit", "--env", "1A=2", "--", "true"], "jobsched: --env: '1A' is no name"),
        (["submit", "--cwd", "here", "--", "true"], "jobsched: --cwd: 'here' must be an absolute path"),
        (["submit", "--stdin", "/no/such", "--", "true"], "jobsched: --stdin: cannot read /no/such"),
        (["submit", "--file", "/no/such"], "jobsched: --file: cannot read /no/such"),
        (["submit", "--file", "-", "--", "true"], "give no COMMAND beside it"),
        (["submit", "--shell", "x", "--", "true"], "exclude each other"),
        (["submit", "--", "a\udcff"], "command[0]: holds a lone surrogate"),
        (["call", "nothing"], "is no function: write package.module:function"),
        (["call", "a:b", "text"], "argument 1: 'text' is no JSON; text needs its quotes: '\"text\"'"),
        (["show", "../x"], "'../x' is no job id"),
        (["wait", "abc"], "'abc' is no job id"),
        (["cancel", "1", "x"], "'x' is no job id"),
        (["list", "--state", "runing"], "'runing' is neither a state nor an outcome"),
        (["drain", "a/b/c"], "'a/b/c' is no name of a node or channel"),
        (["resume", "nothing"], "nothing is not drained"),
        (["lst"], "Did you mean 'list'?"),
        (["--redis", "http://x", "list"], "--redis: is no URL"),
        (["list", "--namespace", "a b"], "--namespace: 'a b' is no valid name"),
    ],
)
def test_what_cannot_be_is_refused_with_code_2(
    redis_server: RedisServer, here: Callable[..., Done], arguments: list[str], message: str
):
    done = here(redis_server.url, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# -- submit --file --------------------------------------------------------------------------------------------


def test_a_file_of_jobs(fleet: Cluster, tmp_path: Path):
    lines = [{"shell": f"exit {number}", "name": f"line-{number}"} for number in range(3)]
    lines.append({"function": "os.path:join", "args": ["a"], "kwargs": {}, "name": "line-3"})
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))  # blank lines, and none at the end
    done = jobsched(fleet, "submit", "--file", file, "--channel", "gpu", "--wait")

    ids = done.stdout.split()
    assert (done.returncode, done.stderr, len(ids)) == (1, "", 4)
    shown = [documents(fleet, "show", job) for job in ids]
    assert [one["name"] for one in shown] == [f"line-{number}" for number in range(4)]
    assert [one["exit_code"] for one in shown] == [0, 1, 2, 0]
    assert {one["channel"] for one in shown} == {"gpu"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "standard input:3: no JSON: "),
        ("[1]", "standard input:3: must be a JSON object"),
        ('{"command": ["true"], "priorty": 1}', "standard input:3: priorty: unknown field"),
        ('{"command": ["true"], "timeout": "soon"}', "standard input:3: timeout: 'soon' is no duration"),
        ('{"command": "true"}', "standard input:3: command: must be a list"),
        ('{"command": ["\\u0000"]}', "standard input:3: command[0]: holds a NUL"),
        ("[" * 100_000, "standard input:3: no JSON"),
    ],
)
def test_a_bad_line_stops_the_file(fleet: Cluster, bad: str, message: str):
    good = '{"command": ["true"]}\n'
    done = jobsched(fleet, "submit", "--file", "-", input=f"{good}\n{bad}\n{good}")

    assert done.returncode == 2
    assert len(done.stdout.split()) == 1, "what came before it is submitted, nothing after it"
    assert "1 job was submitted before this" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_lines_are_submitted_as_they_come(fleet: Cluster):
    feeding = subprocess.Popen(
        [program("jobsched"), "submit", "--file", "-"],
        env=fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert feeding.stdin is not None and feeding.stdout is not None
    for _ in range(3):
        feeding.stdin.write('{"command": ["true"]}\n')
        feeding.stdin.flush()
        assert feeding.stdout.readline().strip().isdigit()
    feeding.stdin.close()
    assert feeding.wait(10) == 0


def test_a_big_file_needs_no_memory(redis_server: RedisServer, tmp_path: Path):
    file = tmp_path / "many.jsonl"
    with open(file, "w") as lines:
        for number in range(60_000):
            lines.write(json.dumps({"command": ["echo", str(number), "x" * 100]}) + "\n")
    script = (
        "import atexit, resource, sys; sys.argv = ['jobsched', 'submit', '--file', sys.argv[1]]\n"
        "from jobschedd.cli.client import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))\n"
        "main()"
    )
    done = subprocess.run(
        [str(Path(program("jobsched")).with_name("python")), "-c", script, str(file)],
        env=os.environ | {"JOBSCHED_REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    *ids, grown = map(int, done.stdout.split())
    assert ids == list(range(1, 60_001))
    assert grown < 40_000, f"{grown} KiB more for a file of 8 MB"


# -- reading --------------------------------------------------------------------------------------------------


def test_show_and_its_json(fleet: Cluster):
    job = ended(fleet, "--name", "shown", "--retries", "1", "--retry-delay", "0", "--", "sh", "-c", "echo é; exit 3")
    text = jobsched(fleet, "show", job).stdout
    shown = documents(fleet, "show", job)

    for line in (f"job:         {job}  shown", "status:      failed (exit)", "exit code:   3", "where:       n1/"):
        assert line in text
    assert "attempt:     2, 1 of 1 retries used" in text
    expected = {
        "id": job,
        "name": "shown",
        "state": "done",
        "outcome": "failed",
        "cause": "exit",
        "exit_code": 3,
        "signal": None,
        "kind": "command",
        "command": ["sh", "-c", "echo é; exit 3"],
        "function": None,
        "node": "n1",
        "attempt": 2,
        "tries": 1,
        "retries": 1,
        "value": None,
        "stdout": {"size": 3, "truncated": False, "encoding": "utf-8", "head": "é\n", "tail": ""},
    }
    assert {name: shown[name] for name in expected} == expected
    assert shown["submitted"] < shown["started"] <= shown["ended"]


def test_the_json_is_as_documented(calm_fleet: Cluster):
    """Every field in docs/json.md, and nothing beside them."""
    fleet = calm_fleet
    document = (Path(__file__).parents[2] / "docs" / "json.md").read_text()

    def described(section: str) -> set[str]:
        text = document.split(f"\n## {section}\n")[1].split("\n## ")[0]
        return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))

    job = ended(fleet, "--", "true")
    assert set(documents(fleet, "show", job)) == described("A job")
    assert set(documents(fleet, "list", "--limit", "1")[0]) == described("A job") - {"stdout", "stderr", "places"}
    assert set(documents(fleet, "nodes")[0]) == described("A node")
    assert set(documents(fleet, "channels")[0]) == described("A channel")
    wait_until(lambda: documents(fleet, "history", "--job", job), 10, "its attempt is in the history")
    assert set(documents(fleet, "history", "--limit", "1")[0]) == described("An attempt")
    top = documents(fleet, "top")
    assert set(top) == described("An overview")
    assert set(top["counts"]) == described("Counts")
    assert set(documents(fleet, "explain", job)) == described("An explanation")
    assert set(documents(fleet, "usage")) == described("What uses how much")
    doctor = documents(fleet, "doctor")
    assert set(doctor) == described("A diagnosis")
    assert set(doctor["findings"][0]) == described("A finding")


def test_list(fleet: Cluster):
    good = ended(fleet, "--name", "listed-good", "--", "true")
    bad = ended(fleet, "--name", "listed-bad", "--", "false")
    running = submitted(fleet, "--name", "listed-running", "--", "sleep", "60")
    with fleet.client() as client:
        wait_until(lambda: client.job(running).state == "running", 5, "it runs")

    def ids(*arguments: str) -> list[str]:
        return [one["id"] for one in documents(fleet, "list", "--name", "listed-*", *arguments)]

    assert ids() == [running, bad, good]
    assert ids("--state", "failed") == [bad]
    assert ids("--state", "failed,succeeded") == ids("--state", "failed", "--state", "succeeded") == [bad, good]
    assert ids("--state", "running") == [running]
    assert ids("--limit", "1") == [running]
    assert documents(fleet, "list", "--state", "running", "--name", "listed-*")[0]["node"] == "n1"

    lines = jobsched(fleet, "list", "--name", "listed-*").stdout.splitlines()
    assert lines[0].split("\t")[:4] == ["ID", "STATUS", "REASON", "EXIT"]
    assert [line.split("\t")[:4] for line in lines[1:]] == [
        [running, "running", "", ""],
        [bad, "failed", "exit", "1"],
        [good, "succeeded", "", "0"],
    ]
    assert jobsched(fleet, "explain", running).stdout.startswith("It runs on n1/")
    done = jobsched(fleet, "cancel", running, good, "999999999")
    assert (done.returncode, done.stdout) == (1, f"{running} cancel requested\n")
    assert f"job {good} had ended before: succeeded" in done.stderr
    assert "no job 999999999" in done.stderr
    done = jobsched(fleet, "wait", running)
    assert (done.returncode, done.stderr) == (125, f"jobsched: job {running} cancelled\n")


def test_retry(fleet: Cluster):
    job = ended(fleet, "--", "sh", "-c", "exit $JOBSCHED_ATTEMPT")

    assert jobsched(fleet, "retry", job).stdout == f"{job} pending\n"
    assert jobsched(fleet, "wait", job).returncode == 2
    assert jobsched(fleet, "retry", "999999999").returncode == 1


def test_names_cannot_control_the_terminal(fleet: Cluster):
    job = ended(fleet, "--name", "evil\x1b]52;c;x\x07\u202e", "--", "echo", "a\nb")
    lines = jobsched(fleet, "list", "--limit", "1").stdout + jobsched(fleet, "show", job).stdout

    assert "\x1b" not in lines and "\x07" not in lines and "\u202e" not in lines
    assert "evil\\x1b]52;c;x\\x07\\u202e" in lines
    assert "echo a\\nb" in lines


def on_a_terminal(fleet: Cluster, *arguments: str) -> bytes:
    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    child = pexpect.spawn(program("jobsched"), list(arguments), env=environment, timeout=20, dimensions=(40, 160))
    child.expect(pexpect.EOF)
    shown: bytes = child.before
    child.close()
    assert child.exitstatus == 0, shown
    return shown


def test_logs_on_a_terminal_show_control_sequences(fleet: Cluster):
    job = ended(fleet, "--shell", r"printf 'a\033]52;c;eA==\007\033[2Jb\rc\377\n'")

    assert b"a\\x1b]52;c;eA==\\x07\\x1b[2Jb\\x0dc\\xff\r\n" in on_a_terminal(fleet, "logs", job)
    assert b"a\x1b]52;c;eA==\x07\x1b[2Jb\rc\xff" in on_a_terminal(fleet, "logs", "--raw", job)
    piped = subprocess.run(
        [program("jobsched"), "logs", job],
        env=fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace),
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert piped.stdout == b"a\x1b]52;c;eA==\x07\x1b[2Jb\rc\xff\n"


def test_tables_on_a_terminal(fleet: Cluster):
    ended(fleet, "--name", "seen [bold]", "--", "true")

    assert b"seen [bold]" in on_a_terminal(fleet, "list", "--limit", "3")
    assert b"n1/gpu" in on_a_terminal(fleet, "channels")


def test_logs_of_a_running_job(fleet: Cluster):
    job = submitted(fleet, "--shell", "for i in 1 2 3 4 5; do echo $i; sleep 0.4; done")
    followed = jobsched(fleet, "logs", "-f", job)
    assert (followed.stdout, followed.stderr) == ("1\n2\n3\n4\n5\n", "")

    job = submitted(fleet, "--shell", "echo first; sleep 60")
    with fleet.client() as client:
        wait_until(lambda: client.job(job).state == "running", 5, "it runs")
    looked = jobsched(fleet, "logs", job)
    assert looked.stdout == "first\n"
    assert f"'jobsched logs -f {job}' goes on" in looked.stderr
    jobsched(fleet, "cancel", job)

    job = submitted(fleet, "--in", "1h", "--", "true")
    assert "has written nothing yet" in jobsched(fleet, "logs", job).stderr
    jobsched(fleet, "cancel", job)


# -- the fleet ------------------------------------------------------------------------------------------------


def test_drain_and_resume(fleet: Cluster):
    assert jobsched(fleet, "drain", "n1", "--reason", "new kernel").returncode == 0
    assert {one["state"] for one in documents(fleet, "channels")} == {"drained"}
    assert "new kernel" in jobsched(fleet, "channels").stdout
    job = submitted(fleet, "--", "true")
    explained = jobsched(fleet, "explain", job).stdout
    assert "n1 is drained (new kernel, by " in explained
    assert "'jobsched resume n1' lets it go on" in explained
    assert documents(fleet, "explain", job)["reason"] == "drained"
    assert documents(fleet, "list", "--state", "pending")[0]["reason"] == "drained"

    assert jobsched(fleet, "resume", "n1").returncode == 0
    assert jobsched(fleet, "wait", "--timeout", "10", job).returncode == 0
    assert documents(fleet, "nodes")[0]["state"] == "up"


def test_nothing_of_that_name(fleet: Cluster):
    done = jobsched(fleet, "drain", "mars")
    assert done.returncode == 0
    assert "no node or channel named mars has been seen" in done.stderr
    assert jobsched(fleet, "resume", "mars").returncode == 0


def test_top_in_a_pipe_and_on_a_terminal(fleet: Cluster):
    text = jobsched(fleet, "top").stdout
    assert "n1/gpu\tup\t2" in text

    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    child = pexpect.spawn(program("jobsched"), ["top"], env=environment, timeout=20, dimensions=(40, 160))
    child.expect("n1/gpu")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_a_healthy_fleet(calm_fleet: Cluster):
    done = jobsched(calm_fleet, "doctor")

    assert (done.returncode, done.stderr) == (0, "")
    assert "ok      master: " in done.stdout
    assert "2 of 2 up, 3 slots" in done.stdout


# -- when things are not as they should be --------------------------------------------------------------------

COMMANDS = [["submit", "--", "true"], ["list"], ["show", "1"], ["cancel", "1"], ["nodes"], ["top"]]


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("jobsched"), *arguments],
        env=os.environ | {"JOBSCHED_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_redis_it_is_one_line_and_69(tmp_path: Path, here: Callable[..., Done], command: list[str]):
    done = here(f"unix://{tmp_path}/none.sock", *command)

    assert (done.returncode, done.stdout) == (69, "")
    assert re.fullmatch(r"jobsched: Redis cannot be reached: .*\n", done.stderr)


def test_without_redis_the_doctor_says_what_to_do(tmp_path: Path, here: Callable[..., Done]):
    url = f"unix://{tmp_path}/none.sock"
    done = here(url, "doctor")
    assert done.returncode == 69
    assert re.fullmatch(r"error   redis: Redis cannot be reached: .*\n        -> start the server .*\n", done.stdout)

    done = here(url, "doctor", "--json")
    assert done.returncode == 69
    document = json.loads(done.stdout)
    assert not document["ok"]
    assert document["findings"][0]["mend"]


@pytest.mark.parametrize("command", [["run", "--", "true"], ["wait", "1"]], ids=lambda command: command[0])
def test_without_redis_run_and_wait_end_with_125(tmp_path: Path, here: Callable[..., Done], command: list[str]):
    done = here(f"unix://{tmp_path}/none.sock", *command)

    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(r"jobsched: Redis cannot be reached: .*\n", done.stderr)


def test_a_password_is_needed_or_wrong(start_redis):
    server = start_redis(tcp=True)
    with server.client() as admin:
        admin.config_set("requirepass", "right")

    for url in (server.tcp_url, server.tcp_url.replace("redis://", "redis://:wrong@")):
        done = run(url, "submit", "--", "true")
        assert (done.returncode, done.stdout) == (69, "")
        assert re.fullmatch(r"jobsched: Redis refused us: .*\n", done.stderr)
        assert "wrong@" not in done.stderr
        done = run(url, "doctor")
        assert done.returncode == 69
        assert "-> check redis.username and redis.password_file" in done.stdout
        assert "wrong@" not in done.stdout
    assert run(server.tcp_url.replace("redis://", "redis://:right@"), "submit", "--", "true").stdout == "1\n"


def test_what_is_not_redis(tmp_path: Path):
    import http.server

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = run(f"redis://127.0.0.1:{server.server_port}", "submit", "--", "true")
    doctor = run(f"redis://127.0.0.1:{server.server_port}", "doctor")
    server.shutdown()
    server.server_close()

    assert doctor.returncode == 69
    assert "-> something else listens there: correct redis.url" in doctor.stdout
    assert (done.returncode, done.stdout) == (69, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_full_redis_is_75(redis_server: RedisServer):
    with redis_server.client() as admin:
        admin.config_set("maxmemory", 1)
    done = run(redis_server.url, "submit", "--", "true")

    assert (done.returncode, done.stdout) == (75, "")
    assert re.fullmatch(r"jobsched: Redis is at its memory limit.*\n", done.stderr)


def test_an_evicting_redis_is_refused_and_diagnosed(redis_server: RedisServer):
    with redis_server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    done = run(redis_server.url, "submit", "--", "true")
    assert done.returncode == 69
    assert "maxmemory-policy is allkeys-lru" in done.stderr

    done = run(redis_server.url, "doctor")
    assert done.returncode == 1
    assert "error   eviction: maxmemory-policy allkeys-lru" in done.stdout
    assert "-> CONFIG SET maxmemory-policy noeviction" in done.stdout
    assert "error   master: no master leads namespace main" in done.stdout
    assert "error   channels: none has ever been seen" in done.stdout


def test_a_configuration_with_a_mistake_is_78(tmp_path: Path):
    (tmp_path / "jobsched.yaml").write_text("role: slave\nredis: {url: nonsense}\n")
    done = subprocess.run(
        [program("jobsched"), "list"],
        env=os.environ | {"JOBSCHED_CONFIG": str(tmp_path / "jobsched.yaml")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert done.returncode == 78
    assert f"{tmp_path}/jobsched.yaml:2: redis.url: " in done.stderr


def test_a_closed_pipe_is_no_traceback(fleet: Cluster):
    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    jobsched(fleet, "submit", "--file", "-", input='{"command": ["true"]}\n' * 3000)
    command = f"{program('jobsched')} list --limit 0 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 141
    assert done.stdout.startswith("ID\t")
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["run -- echo hi", "list", "submit -- true"])
def test_closed_streams_lead_nowhere(fleet: Cluster, command: str):
    """Not into the connection to Redis, which would have got the number of standard output."""
    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    line = f"{program('jobsched')} {command} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], env=environment, timeout=20, check=False)

    assert done.returncode == 0


def test_a_full_disk_is_one_line(fleet: Cluster):
    environment = fleet.environment(JOBSCHED_REDIS_URL=fleet.redis_url, JOBSCHED_NAMESPACE=fleet.namespace)
    line = f"{program('jobsched')} list > /dev/full"
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=20, check=False
    )

    assert (done.returncode, done.stderr) == (1, "jobsched: [Errno 28] No space left on device\n")


def test_a_run_that_waits_says_for_what(redis_server: RedisServer):
    running = subprocess.Popen(
        [program("jobsched"), "run", "--channel", "9", "--", "true"],
        env=os.environ | {"JOBSCHED_REDIS_URL": redis_server.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    assert "warning: job 1 waits: no channel has ever been seen that is */9" in running.stderr.readline()
    assert "It waits: no master leads;" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130


def test_help_of_every_command():
    done = run("redis://nowhere", "--help")
    commands = re.findall(r"^  (\w+)  ", done.stdout.split("Commands:")[1], re.MULTILINE)

    assert done.returncode == 0 and len(commands) >= 17
    for command in ("submit", "run", "demo"):
        assert run("redis://nowhere", command, "--help").returncode == 0
