"""``wait``, ``cancel`` and ``retry``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json
from jobschedd.durations import parse_duration
from jobschedd.errors import NoSuchJob, UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client, Job

_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")


@click.command("wait", short_help="Wait for jobs, and exit as they did.")
@_ids
@click.option("--timeout", metavar="DURATION", help="Give up waiting after so long; the jobs go on.")
@json_option
@connection_options
def wait_command(ids: tuple[str, ...], timeout: str | None, as_json: bool) -> None:
    """Wait until the jobs have ended, and exit as they did: the first code that is not 0.

    A job's own exit code; 128+N for a signal; 124 timed out; 126 and 127 not executable, not found; 125 for anything
    of ours (cancelled, lost, expired, Redis away). The reason is on standard error.
    """
    from jobschedd.cli.exits import ours

    seconds = _seconds(timeout)
    client = connect()
    with ours():
        jobs = [client.job(job_id) for job_id in dict.fromkeys(ids)]
        code = wait_for(client, jobs, seconds)
        if as_json:
            print_json([job.view.json() for job in jobs])
    sys.exit(code)


def wait_for(client: Client, jobs: Sequence[Job], timeout: float | None) -> int:
    """Wait for jobs; say on standard error why one did not succeed. The first exit code that is not 0.

    Raises WaitTimeout, StoreUnavailable, StoreRefused.
    """
    from jobschedd.cli.exits import exit_code, reason

    client.wait(jobs, timeout)
    codes = []
    for job in jobs:
        try:
            view = job.view
        except NoSuchJob:
            view = None
        why = reason(view, job.id)
        if why:
            note(why)
        codes.append(exit_code(view))
    return next((code for code in codes if code), 0)


@click.command("cancel", short_help="Cancel jobs.")
@_ids
@connection_options
def cancel_command(ids: tuple[str, ...]) -> None:
    """Cancel jobs: those that wait at once, those that run by TERM, and KILL after the node's grace.

    A job that ended first stays as it ended; the exit code is then 1.
    """
    code = 0
    for answer in connect().cancel(ids):
        if answer.answer == "unknown":
            note(f"no job {answer.id}: it never was, or it ended and its record has expired")
        elif answer.answer == "ended":
            note(f"job {answer.id} had ended before: {answer.outcome}")
        else:
            ending = "cancelled" if answer.answer == "cancelled" else "cancel requested"
            click.echo(f"{answer.id} {ending}")
            continue
        code = 1
    sys.exit(code)


@click.command("retry", short_help="Run ended jobs once more.")
@_ids
@connection_options
def retry_command(ids: tuple[str, ...]) -> None:
    """Run jobs that have ended once more, under the same ids and with fresh retry budgets."""
    client, code = connect(), 0
    for job_id in ids:
        try:
            client.retry(job_id)
            click.echo(f"{job_id} pending")
        except (NoSuchJob, UsageError) as error:
            note(str(error))
            code = 1
    sys.exit(code)


def _seconds(timeout: str | None) -> float | None:
    try:
        return None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
