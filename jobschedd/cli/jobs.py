"""``list`` and ``show``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json, print_json_lines
from jobschedd.cli.exits import SAME_WORD
from jobschedd.cli.render import (
    coloured,
    full_moment,
    moment,
    on_terminal,
    print_table,
    safe,
    safe_lines,
    size,
)
from jobschedd.durations import format_duration
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import JobView

Place = tuple[str, str]
_BATCH = 100


@click.command("list", short_help="List jobs, newest first.")
@click.option("--state", "words", metavar="WORD", multiple=True, help="Only this state or outcome; repeatable, or a,b.")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="At most so many; 0 for all.")
@click.option("--name", metavar="PATTERN", default="", help="Only names that match, such as 'backup-*'.")
@click.option("--group", metavar="GROUP", default="", help="Only jobs of this group.")
@click.option("--tasks", "array", metavar="ID", help="List the tasks of this array, by index, instead of jobs.")
@json_option
@connection_options
def list_command(words: tuple[str, ...], limit: int, name: str, group: str, array: str | None, as_json: bool) -> None:
    """List jobs, newest first. The reason is what a job waits for (see 'jobsched explain'), or why it ended so.

    An array is one line; --tasks ID lists its tasks.

    \b
    States:   pending, scheduled, waiting, dispatched, running, done.
    Outcomes: succeeded, failed, timed_out, cancelled, lost, expired, skipped.
    """
    from jobschedd.client.api import statuses_of

    client = connect()
    states, outcomes = statuses_of(word for text in words for word in text.split(","))
    if array is None:
        views = client.inspect.jobs(states, outcomes, limit, name, group)
    else:
        if not client.job(array).is_array:
            raise UsageError(f"job {array} is no array: it has no tasks")
        views = client.inspect.tasks(array, states, outcomes, limit)
    placed = _placed(client.inspect, views)
    if as_json:
        print_json_lines(view.json(place, reason=reason) for view, place, reason in placed)
    else:
        headers = ("ID", "STATUS", "REASON", "EXIT", "WHERE", "TRY", "SUBMITTED", "TOOK", "NAME", "WHAT")
        print_table(headers, (_row(view, place, reason) for view, place, reason in placed))


def _placed(inspect: Inspect, views: Iterable[JobView]) -> Iterator[tuple[JobView, Place | None, str]]:
    """With where each one is, and the code of what it waits for."""
    from jobschedd.client.facts import Fleet
    from jobschedd.client.why import waiting_code

    source, fleet = iter(views), Fleet(inspect)
    while batch := list(islice(source, _BATCH)):
        places = inspect.places(batch)
        for view in batch:
            yield view, places.get(view.header.incarnation), waiting_code(fleet, view)


def _row(view: JobView, place: Place | None, reason: str) -> tuple[str, ...]:
    result = view.result
    node, channel = place or (result.node, result.channel)
    cause = "" if result.cause in SAME_WORD.get(view.outcome, ()) else result.cause
    return (
        view.id,
        view.status,
        reason or cause,
        _exit(view),
        "/".join(filter(None, (node, channel))),
        str(view.header.attempt),
        moment(view.header.submitted / 1000),
        format_duration(result.duration) if view.ended and result.started else "",
        view.spec.name,
        (f"[{view.counts}] " if view.counts else "")
        + (view.spec.what if len(view.spec.what) <= 200 else view.spec.what[:199] + "…"),
    )


def _exit(view: JobView) -> str:
    if view.result.signal:
        return f"sig {view.result.signal}"
    return "" if view.result.exit_code is None else str(view.result.exit_code)


@click.command("show", short_help="Show everything about one job.")
@click.argument("job_id", metavar="ID")
@json_option
@connection_options
def show_command(job_id: str, as_json: bool) -> None:
    """Show everything about one job."""
    client = connect()
    job = client.job(job_id)
    ((view, place, reason),) = _placed(client.inspect, [job.view])
    matrix = list(_matrix(client.inspect, view)) if view.is_array and view.spec.all_nodes else None
    if as_json:
        said = view.json(place, output=True, reason=reason)
        print_json(said | {"places": matrix})
        return
    for name, value in _details(view, place, reason):
        click.echo(f"{name + ':':<13}{value}")
    _print_error(view)
    _print_error(job.view)
    if matrix is not None:
        headers = {"place": "PLACE", "status": "STATUS", "exit_code": "EXIT", "cause": "CAUSE", "task": "TASK"}
        print_table(
            list(headers.values()),
            (["" if row[name] is None else str(row[name]) for name in headers] for row in matrix),
        )


def _matrix(inspect: Inspect, view: JobView) -> Iterator[dict[str, str | int | None]]:
    """What came of each place. ``missing``: nobody was there in time."""
    tasks = {task.id: task for task in inspect.tasks(view.id)}
    for index, place in enumerate(inspect.place_names(view.id), 1):
        task = tasks.get(f"{view.id}_{index}")
        status = "succeeded" if task is None else "missing" if task.status == "expired" else task.status
        result = task.result if task is not None else None
        yield {
            "place": place,
            "task": f"{view.id}_{index}",
            "status": status,
            "exit_code": result.exit_code if result is not None else None,
            "cause": (result.cause or None) if result is not None else None,
        }


def _details(view: JobView, place: Place | None, reason: str) -> Iterator[tuple[str, str]]:
    header, spec, result = view.header, view.spec, view.result
    node, channel = place or (result.node, result.channel)
    yield "job", view.id + (f"  {safe(spec.name)}" if spec.name else "")
    yield "what", safe(spec.what)
    says_more = result.cause and result.cause not in SAME_WORD.get(view.outcome, ())
    cause = f" ({result.cause})" if says_more else ""
    yield "status", coloured(view.status) + safe(cause)
    if reason:
        yield "reason", f"{reason}; see: jobsched explain {view.id}"
    if view.counts:
        limit = f", {view.counts.limit} at once" if view.counts.limit else ""
        yield "array", safe(f"{spec.array or 'all nodes'}: {view.counts.total} tasks{limit}")
        yield "tasks", f"{view.counts}; see: jobsched list --tasks {view.id}"
    if result.exit_code is not None:
        yield "exit code", str(result.exit_code)
    if result.signal is not None:
        yield "signal", str(result.signal)
    if view.ended and result.value:
        yield "value", safe(result.value.decode(errors="backslashreplace"))
    if node or channel:
        where = "/".join(filter(None, (node, channel)))
        yield "where", safe(where + (f", pid {result.pid}" if result.pid else ""))
    asked = [spec.node and f"node {spec.node}", spec.channel and f"channel {spec.channel}"]
    asked += [f"label {label}" for label in spec.labels]
    if any(asked):
        yield "only on", safe(", ".join(filter(None, asked)))
    budgets = f", {header.tries} of {spec.retries} retries used" if spec.retries else ""
    crashes = f", {header.crashes} crashes of its channel" if header.crashes else ""
    if not view.is_array:
        yield "attempt", f"{header.attempt}{budgets}{crashes}"
    if header.priority:
        yield "priority", str(header.priority)
    yield "submitted", full_moment(header.submitted / 1000) + (f" by {safe(spec.submitter)}" if spec.submitter else "")
    if spec.schedule:
        yield "schedule", safe(f"{spec.schedule}, its time {full_moment(spec.scheduled_for / 1000)}")
    if spec.after:
        yield (
            "after",
            ", ".join(spec.after[:20]) + (f" and {len(spec.after) - 20} more" if len(spec.after) > 20 else ""),
        )
    if spec.workflow:
        yield "workflow", f"{spec.workflow}; see: jobsched workflow show {spec.workflow}"
    if view.due_ms:
        yield "due", full_moment(view.due_ms / 1000)
    if header.expires:
        yield "expires", full_moment(header.expires / 1000)
    if result.started:
        yield "started", full_moment(result.started)
    if view.ended:
        yield "ended", full_moment(view.ended_at)
    if result.started:
        used = f", {format_duration(result.cpu)} of CPU"
        memory = f", {size(result.peak_rss)} of memory at most" if result.peak_rss else ""
        yield "took", format_duration(result.duration) + used + memory
    for name, captured in (("stdout", result.stdout), ("stderr", result.stderr)):
        if captured.size:
            kept = ", not all of it kept" if captured.truncated else ""
            yield name, f"{size(captured.size)}{kept}; see: jobsched logs {view.id}"


def _print_error(view: JobView) -> None:
    if view.result.error:
        click.echo("error:")
        for line in safe_lines(view.result.error).rstrip().splitlines():
            click.echo(f"    {line}")
    if view.result.escalated:
        note("it ignored TERM and was killed")
    if view.result.output_open and on_terminal():
        note("something it had started still held its output when it ended")
