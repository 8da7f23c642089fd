"""``wait``, ``cancel`` and ``retry``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.bulk import Choice, filter_options, tell
from jobschedd.cli.context import connect, connection_options, json_option, note, print_json
from jobschedd.durations import parse_duration
from jobschedd.errors import NoSuchJob, UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client, Job

_some_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_NOT_ENDED = ("pending", "scheduled", "waiting", "dispatched", "running")
_WENT_WRONG = ("failed", "timed_out", "lost")


@click.command("wait", short_help="Wait for jobs, and exit as they did.")
@_some_ids
@click.option("--group", metavar="NAME", help="Wait until no job of this group waits or runs.")
@click.option("--timeout", metavar="DURATION", help="Give up waiting after so long; the jobs go on.")
@json_option
@connection_options
def wait_command(ids: tuple[str, ...], group: str | None, timeout: str | None, as_json: bool) -> None:
    """Wait until the jobs have ended, and exit as they did: the first code that is not 0.

    A job's own exit code; 128+N for a signal; 124 timed out; 126 and 127 not executable, not found; 125 for anything
    of ours (cancelled, lost, expired, Redis away). The reason is on standard error.

    With --group: for all jobs of the group that have not ended, those included that are submitted meanwhile.
    """
    from jobschedd.cli.exits import ours

    if bool(ids) == bool(group):
        raise click.UsageError("give the ids of jobs, or --group")
    seconds = seconds_of(timeout)
    client = connect()
    with ours():
        jobs = client.wait_group(group, seconds) if group else [client.job(job_id) for job_id in dict.fromkeys(ids)]
        code = wait_for(client, jobs, seconds)
        if as_json:
            print_json([view.json() for view in client.inspect.count([job.view for job in jobs])])
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
@_some_ids
@filter_options
@connection_options
def cancel_command(ids: tuple[str, ...], **options: Any) -> None:
    """Cancel jobs: those that wait at once, those that run by TERM, and KILL after the node's grace.

    A job that ended first stays as it ended; the exit code is then 1. Without ids, everything is cancelled that has not
    ended and matches all the options given; on a terminal, it asks before.
    """
    choice, client = Choice(ids, options, _NOT_ENDED), connect()
    if choice.by_filter:
        _cancel_all(client, choice)
        return
    code = 0
    for answer in client.cancel(ids):
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


def _cancel_all(client: Client, choice: Choice) -> None:
    counts = {"cancelled": 0, "requested": 0, "ended": 0, "unknown": 0}
    for chunk in choice.chunks(client):
        for answer in client.cancel(job_id for job_id, _ in chunk):
            counts[answer.answer] += 1
    ended = counts["ended"] + counts["unknown"]
    tell({"cancelled": counts["cancelled"], "cancel requested": counts["requested"], "had ended": ended})


@click.command("retry", short_help="Run ended jobs once more.")
@_some_ids
@click.option("--failed", is_flag=True, help="Of an array: only the tasks that did not succeed, so far.")
@filter_options
@connection_options
def retry_command(ids: tuple[str, ...], failed: bool, **options: Any) -> None:
    """Run jobs that have ended once more, under the same ids and with fresh retry budgets.

    Without ids, all that match the options given; where no --state is among them, those that failed, timed out, or were
    lost. On a terminal, it asks before.

    An array runs all its tasks again; with --failed those that failed, timed out, were lost, expired or cancelled.

    A job that never started (skipped, cancelled or expired before) is subject to its --after again: it waits where that
    has not come, and is skipped again where it never will. So retry the job that failed first.
    """
    if failed and not ids:
        raise click.UsageError("--failed is for arrays: name them")
    choice, client, code = Choice(ids, options, _WENT_WRONG), connect(), 0
    if choice.by_filter:
        tell({"pending": sum(len(client.retry_many(chunk)) for chunk in choice.chunks(client))})
        return
    for job_id in ids:
        try:
            if failed:
                count = client.retry_failed(job_id)
                tasks = f"{count} task{'' if count == 1 else 's'}"
                click.echo(f"{job_id} pending: {tasks}" if count else f"{job_id}: no task has failed")
                continue
            click.echo(f"{job_id} {client.retried(job_id)}")
        except (NoSuchJob, UsageError) as error:
            note(str(error))
            code = 1
    sys.exit(code)


def seconds_of(timeout: str | None) -> float | None:
    """What --timeout says. Raises UsageError."""
    try:
        return None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
