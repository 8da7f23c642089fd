"""``demo``: a whole scheduler in a temporary directory, jobs on it, a summary, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.context import note
from jobschedd.cli.render import on_terminal, safe
from jobschedd.durations import format_duration
from jobschedd.errors import JobschedError, WaitTimeout

if TYPE_CHECKING:
    from jobschedd.client import Client, Job
    from jobschedd.store.views import ChannelView

_UP_WITHIN, _STOP_WITHIN = 30.0, 15.0
#: Deaths of its processes that a daemon may log while it starts.
_MOST_DEATHS = 3
#: Seconds without any job ending after which the demo gives up.
_STUCK = 60.0


@click.command("demo", short_help="See it work, with nothing set up.")
@click.option("--jobs", type=click.IntRange(1, 100_000), default=99, show_default=True, help="How many jobs to run.")
@click.option("--channels", type=click.IntRange(1, 64), default=3, show_default=True, help="On how many channels.")
def demo_command(jobs: int, channels: int) -> None:
    """See it work: starts a Redis, a master and a slave in a temporary directory, runs jobs, sums up, cleans up.

    Needs no configuration, no server and no root; leaves nothing behind. Exit code 0 if every job succeeded.
    """
    with _ended_by_signals():
        code = _demo(jobs, channels)
    sys.exit(code)


def _demo(count: int, channels: int) -> int:
    # Not $TMPDIR where that is long: the address of a Unix socket holds 107 bytes.
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="jobsched-demo-", dir=base if len(base) < 60 else "/tmp"))  # noqa: S108
    try:
        with _Fleet(folder, channels) as fleet:
            client = fleet.client()
            click.echo(f"A master, a slave with {channels} channels and a Redis run in {folder}.")
            progress = _Progress(client, count)
            _submit(client, count, progress)
            _watch(client, progress)
        _print_summary(progress)
        return 0 if progress.succeeded == count else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Fleet:
    """``jobschedd run`` in ``folder``, as anybody would start it."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._channels = channels
        self._log = folder / "daemon.log"
        self._config = folder / "jobsched.yaml"
        self._url = f"unix://{folder}/redis.sock"
        settings: dict[str, Any] = {
            "role": ["master", "slave"],
            "node": "demo",
            "redis": {"url": "embedded"},
            "state_dir": str(folder),
            "master": {"placement": "random"},
            "slave": {"channels": [{"name": str(number)} for number in range(1, channels + 1)]},
        }
        # JSON is YAML, and quoted as it must be.
        self._config.write_text(json.dumps(settings, indent=2))

    def __enter__(self) -> _Fleet:
        command = [sys.executable, "-m", "jobschedd.cli.daemon", "run", "--config", str(self._config)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSCHED_")}
        with open(self._log, "wb") as log:
            # A session of its own: Ctrl-C is ours to handle, in order. The daemon dies with us in any case.
            self._daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            self._await_channels()
        except BaseException:
            self._stop(signal.SIGINT)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop(signal.SIGTERM if kind is None else signal.SIGINT)

    def client(self) -> Client:
        """A client of this fleet."""
        from jobschedd.client import Client

        return Client(self._url, "main")

    def _await_channels(self) -> None:
        client = self.client()
        deadline = time.monotonic() + _UP_WITHIN
        while time.monotonic() < deadline:
            if self._daemon.poll() is not None:
                raise JobschedError(f"the daemon ended with exit code {self._daemon.returncode}:\n{self._last_words()}")
            if self._log.read_text(errors="replace").count(" died ") > _MOST_DEATHS:
                raise JobschedError(f"a process of the daemon keeps dying:\n{self._last_words()}")
            try:
                channels = client.channels()
                if sum(one.state == "up" for one in channels) == self._channels and client.inspect.leader():
                    return
            except JobschedError:
                pass  # its Redis is not up yet
            time.sleep(0.03)
        raise JobschedError(f"not all channels came up within {_UP_WITHIN:g} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(f"    {safe(line)}" for line in self._log.read_text(errors="replace").splitlines()[-20:])

    def _stop(self, first: signal.Signals) -> None:
        self._daemon.send_signal(first)
        try:
            self._daemon.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            note("the daemon did not stop in time: it is killed, and its children with it")
            self._daemon.kill()
            self._daemon.wait()


def _die_with_parent() -> None:
    from jobschedd.node.prctl import set_parent_death_signal

    set_parent_death_signal(signal.SIGTERM)


# -- the jobs -------------------------------------------------------------------------------------------------


def _items(count: int) -> Iterator[dict[str, Any]]:
    where = 'echo "job $JOBSCHED_JOB_ID on $JOBSCHED_NODE/$JOBSCHED_CHANNEL"; sleep 0.05'
    functions = "jobschedd.cli.demo_functions"
    kinds: list[dict[str, Any]] = [
        {"command": ["echo", "hello"], "name": "echo"},
        {"command": ["sleep", "0.1"], "name": "sleep"},
        {"command": ["sh", "-c", where], "name": "where"},
        {"command": ["head", "-c", "100000", "/dev/urandom"], "name": "bytes"},
        {"function": f"{functions}:primes", "args": [50_000], "name": "primes"},
        {"function": f"{functions}:greet", "args": ["demo"], "kwargs": {"pause": 0.05}, "name": "greet"},
        {"function": f"{functions}:statistics", "args": [[3, 1, 4, 1, 5, 9, 2, 6]], "name": "statistics"},
    ]
    for _ in range(count):
        yield random.choice(kinds)


def _submit(client: Client, count: int, progress: _Progress) -> None:
    begin = time.perf_counter()
    progress.jobs = client.submit_many(_items(count))
    took = time.perf_counter() - begin
    click.echo(f"{count} jobs submitted in {format_duration(took)}: commands and Python functions, placed at random.")


@dataclass
class _Progress:
    client: Client
    total: int
    jobs: list[Job] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)
    ended: int = 0
    succeeded: int = 0
    by_channel: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    first_failure: Job | None = None
    elapsed: float = 0.0

    def count(self, job: Job) -> None:
        """One more job has ended."""
        header = job.view.header
        self.ended += 1
        self.elapsed = time.monotonic() - self.begin
        self.by_channel[f"{job.node}/{job.channel}"] += 1
        self.latencies.append((header.since - header.submitted) / 1000)
        if job.succeeded:
            self.succeeded += 1
        else:
            self.causes[f"{job.outcome} ({job.cause})"] += 1
            self.first_failure = self.first_failure or job


def _watch(client: Client, progress: _Progress) -> None:
    with _display(progress):
        waiting = {job.id: job for job in progress.jobs}
        last = time.monotonic()
        while waiting:
            try:
                for job in client.as_completed(waiting.values(), 1.0):
                    progress.count(job)
                    del waiting[job.id]
                    last = time.monotonic()
            except WaitTimeout:
                pass
            if time.monotonic() - last > _STUCK:
                raise JobschedError(f"no job ended for {_STUCK:g} s; {len(waiting)} have not")


@contextmanager
def _display(progress: _Progress) -> Iterator[None]:
    """Live on a terminal; a line now and then in a pipe."""
    if not on_terminal():
        with _plain(progress):
            yield
        return
    from rich.live import Live

    with Live(get_renderable=lambda: _picture(progress), refresh_per_second=12, transient=True):
        yield


@contextmanager
def _plain(progress: _Progress) -> Iterator[None]:
    import threading

    over = threading.Event()

    def report() -> None:
        while not over.wait(1.0):
            click.echo(f"{progress.ended} of {progress.total} jobs done")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()


def _picture(progress: _Progress) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("CHANNEL", "STATE", "NOW", "DONE"):
        table.add_column(header, no_wrap=True)
    for channel in _channels(progress.client):
        jobs = "1 job" if channel.entries == 1 else f"{channel.entries} jobs"
        now = Text(jobs, style="cyan") if channel.entries else Text("idle", style="dim")
        table.add_row(channel.name, channel.state, now, str(progress.by_channel[channel.name]))
    bar = ProgressBar(total=progress.total, completed=progress.ended, width=50)
    failed = progress.ended - progress.succeeded
    line = Text(f"{progress.ended} of {progress.total} done" + (f", {failed} failed" if failed else ""))
    return Group(Text(), table, Text(), bar, line)


def _channels(client: Client) -> list[ChannelView]:
    try:
        return client.channels()
    except JobschedError:
        return []  # the picture of a moment; the waiting beside it tells of real trouble


# -- the summary ----------------------------------------------------------------------------------------------


def _print_summary(progress: _Progress) -> None:
    times = sorted(progress.latencies)
    failed = progress.ended - progress.succeeded
    rate = progress.ended / max(progress.elapsed, 1e-9)
    percentiles = ", ".join(f"p{at} {format_duration(_percentile(times, at))}" for at in (50, 95, 99))
    rows = (
        ("jobs", f"{progress.succeeded} of {progress.total} ok, {failed} failed"),
        ("time", f"{format_duration(progress.elapsed)}, {rate:.0f} jobs/s"),
        ("latency", f"{percentiles} from submit to result (the queue's wait included)"),
        ("channels", ", ".join(f"{name}: {count}" for name, count in sorted(progress.by_channel.items()))),
    )
    click.echo()
    for name, value in rows:
        click.echo(f"{name:<10}{value}")
    for cause, count in progress.causes.most_common():
        click.echo(f"{'':<10}{count} {cause}")
    if progress.first_failure is not None:
        last = progress.first_failure.error.strip().splitlines()[-1:]
        click.echo(f"{'':<10}the first: job {progress.first_failure.id}: {safe(''.join(last))}")
    click.echo("\nEverything is stopped and cleaned up. Try next, with the daemon in a terminal of its own:\n")
    for command in _next_commands():
        click.echo(f"    {command}")


def _percentile(times: list[float], at: int) -> float:
    return times[min(len(times) - 1, len(times) * at // 100)] if times else 0.0


def _next_commands() -> tuple[str, str, str]:
    from importlib import resources

    from jobschedd.config import find
    from jobschedd.errors import ConfigError

    prefix = ""
    try:
        find()
    except ConfigError:
        shipped = resources.files("jobschedd").joinpath("resources", "etc", "jobsched.yaml")
        prefix = f"JOBSCHED_CONFIG={shlex.quote(str(shipped))} "
    return (
        f"{prefix}jobschedd",
        f"{prefix}jobsched run -- sh -c 'echo hello from $JOBSCHED_NODE; exit 7'",
        f"{prefix}jobsched top",
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does: with everything stopped and removed."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
