"""``run``: submit, show the output as it comes, end as the job did."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.context import connect, connection_options, note
from jobschedd.cli.logs import write_all
from jobschedd.cli.options import command_options, item_from
from jobschedd.errors import JobschedError

if TYPE_CHECKING:
    from jobschedd.client import Client, Job

#: Seconds without output after which somebody who waits is told why.
_WONDER = 2.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    "run", short_help="Run a command on a node as if it ran here.", context_settings={"allow_interspersed_args": False}
)
@command_options
@connection_options
def run_command(command: tuple[str, ...], **options: Any) -> None:
    """Run a command on a node as if it ran here: its output as it comes, its exit code as ours.

    \b
    jobsched run --node web-07 -- df -h

    Ctrl-C cancels the job; a second Ctrl-C does not wait for that. Exit codes as of 'jobsched wait'.
    """
    if not command and not options["shell"]:
        raise click.UsageError("Missing the command: jobsched run [OPTIONS] -- COMMAND...")
    if options["array"] or options["all"] or options["all_channels"]:
        raise click.UsageError("'run' shows one job's output: for an array use 'jobsched submit --wait'")
    from jobschedd.cli.exits import ours
    from jobschedd.cli.submit import submitted

    client = connect()
    with ours(), _Interrupt(client) as interrupt:
        job = submitted(client, item_from(options | {"command": command}) | {"follow": True})
        interrupt.job = job
        code = _follow(client, job)
    sys.exit(128 + interrupt.received if interrupt.received else code)


def _follow(client: Client, job: Job) -> int:
    from jobschedd.cli.exits import exit_code, reason

    follower = client.follower(job)
    attempt, begin, told = 0, time.monotonic(), False
    try:
        for piece in follower.pieces():
            if piece is None:
                if not attempt and not told and time.monotonic() - begin > _WONDER:
                    told = True
                    _say_what_it_waits_for(client, job)
                continue
            if attempt and piece.attempt > attempt:
                note(f"--- attempt {piece.attempt} ---")
            attempt = piece.attempt
            if piece.missing:
                note(f"... {piece.missing} bytes of {'stdout' if piece.stream == 1 else 'stderr'} not kept ...")
            write_all(piece.stream, piece.data)
    except OSError:
        # Nobody reads on, or the disk is full: a local command would have ended of it, too.
        client.cancel(job)
        raise
    except JobschedError:
        note(f"job {job.id} goes on without us")
        raise
    why = reason(follower.view, job.id)
    if why:
        note(why)
    return exit_code(follower.view)


def _say_what_it_waits_for(client: Client, job: Job) -> None:
    if job.view.status == "pending":
        note(f"job {job.id}: {client.explain(job).sentence}")


class _Interrupt:
    """While a job runs for us, our end is its end."""

    def __init__(self, client: Client) -> None:
        self.job: Job | None = None
        self.received = 0
        self._client = client

    def __enter__(self) -> _Interrupt:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received or self.job is None:
            os._exit(128 + number)
        self.received = number
        # Not here: the signal may have come in the middle of a conversation with Redis.
        threading.Thread(target=self._cancel, args=(self.job,), daemon=True).start()

    def _cancel(self, job: Job) -> None:
        try:
            self._client.cancel(job)
        except JobschedError as error:
            note(f"job {job.id} could not be cancelled: {error}")
            os._exit(128 + self.received)
