"""``workflow`` and ``tree``: jobs that depend on each other, seen and handled as one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json, print_json_lines
from jobschedd.cli.render import coloured, moment, print_table, safe
from jobschedd.errors import InvalidJob, NoParent, NoSuchJob, UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import JobView, WorkflowView

#: Jobs of a tree upwards.
_MOST_UPSTREAM = 1000

_id = click.argument("job_id", metavar="ID")


@click.group("workflow", short_help="Submit and handle jobs that depend on each other.")
def workflow_command() -> None:
    """Jobs that depend on each other, submitted and handled as one.

    A workflow's id is that of its first job. Where one is asked for, any of its jobs will do.
    """


@workflow_command.command("submit", short_help="Submit a workflow from a file; print its id.")
@click.argument("file", metavar="FILE")
@click.option("--name", metavar="NAME", help="A name for people. [default: the file's]")
@click.option("--wait", "wait", is_flag=True, help="Wait until all jobs have ended, and exit as they did.")
@connection_options
def submit_command(file: str, name: str | None, wait: bool) -> None:
    """Submit all jobs of FILE in one step, or none; print the workflow's id.

    \b
    name: nightly
    defaults: {retries: 2}
    jobs:
      extract: {command: [./extract]}
      clean:   {command: [./clean], after: extract}
      report:  {command: [./report], after: [clean, "extract:any"]}
    after_all: {command: [./cleanup]}

    A job's keys are those of a line of 'submit --file'. "after" names jobs of the file, or ids of others, each with
    :ok (it succeeded, the default), :any (it ended) or :fail (it ended without success). "after_all" runs when all
    others have ended, however they did. A file of JSON lines (*.jsonl) will do, too, its jobs named by "ref".
    """
    from jobschedd.cli.draft import read_draft
    from jobschedd.links import BadItem, ordered, targets
    from jobschedd.submission import submission

    draft = read_draft(file)
    checked = []
    for number, item in enumerate(draft.items):
        try:
            checked.append(submission(item))
        except InvalidJob as error:
            raise draft.mistake(number, error.field, error.problem) from None
    try:
        order = ordered(checked)
    except BadItem as error:
        raise draft.mistake(error.number, error.field, error.problem) from None
    client = connect()
    try:
        ids = client.session.submit([checked[number] for number in order], workflow=name or draft.name)
    except NoParent as error:
        number = next(number for number, job in enumerate(checked) if error.parent in targets(job))
        raise draft.mistake(number, error.field, error.problem) from None
    click.echo(ids[0])
    note(f"{len(ids)} jobs, {ids[0]} to {ids[-1]}; see: jobsched workflow show {ids[0]}")
    if wait:
        sys.exit(_wait(client, ids, None))


@workflow_command.command("list", short_help="List workflows, newest first.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="At most so many; 0 for all.")
@json_option
@connection_options
def list_command(limit: int, as_json: bool) -> None:
    """List workflows, newest first, with how many of their jobs are where."""
    views = connect().inspect.workflows(limit)
    if as_json:
        print_json_lines(view.json() for view in views)
    else:
        print_table(("ID", "JOBS", "STATUS", "NAME"), (_row(view) for view in views))


def _row(view: WorkflowView) -> tuple[str, ...]:
    return view.id, str(view.jobs), _counted(view), view.name


def _counted(view: WorkflowView) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(view.statuses.items()))


@workflow_command.command("show", short_help="Show a workflow as a tree.")
@_id
@json_option
@connection_options
def show_command(job_id: str, as_json: bool) -> None:
    """Show a workflow as a tree: beneath each job those that wait for it."""
    client = connect()
    view = _workflow_of(client, job_id)
    members = _members(client.inspect, view.ids)
    if as_json:
        print_json(view.json() | {"members": [job.json() for job in members]})
        return
    name = f" {safe(view.name)}" if view.name else ""
    click.echo(f"workflow {view.id}{name}: {view.jobs} jobs, {_counted(view)}")
    for line in _tree(list(members)):
        click.echo(line)


@workflow_command.command("wait", short_help="Wait for all jobs of a workflow.")
@_id
@click.option("--timeout", metavar="DURATION", help="Give up waiting after so long; the jobs go on.")
@connection_options
def wait_command(job_id: str, timeout: str | None) -> None:
    """Wait until all jobs of a workflow have ended, and exit as they did, as 'jobsched wait' does."""
    from jobschedd.cli.endings import seconds_of

    seconds = seconds_of(timeout)
    client = connect()
    sys.exit(_wait(client, _workflow_of(client, job_id).ids, seconds))


def _wait(client: Client, ids: Sequence[str], timeout: float | None) -> int:
    from jobschedd.cli.endings import wait_for
    from jobschedd.cli.exits import ours
    from jobschedd.client import Job

    with ours():
        return wait_for(client, [Job(client, job_id) for job_id in ids], timeout)


@workflow_command.command("cancel", short_help="Cancel all jobs of a workflow.")
@_id
@connection_options
def cancel_command(job_id: str) -> None:
    """Cancel all jobs of a workflow that have not ended."""
    client = connect()
    # The last first: nothing begins meanwhile because of what was cancelled before it.
    answers = client.cancel(reversed(_workflow_of(client, job_id).ids))
    words = [answer.answer for answer in answers]
    click.echo(f"{words.count('cancelled')} cancelled, {words.count('requested')} asked to end")


@workflow_command.command("retry", short_help="Run again what did not succeed.")
@_id
@connection_options
def retry_command(job_id: str) -> None:
    """Run those jobs of a workflow again that ended without success; print their ids.

    What was skipped because of them waits for them again. What succeeded stays as it is.
    """
    from jobschedd.job import Outcome

    client = connect()
    views = _members(client.inspect, _workflow_of(client, job_id).ids)
    again = [view.id for view in views if view.ended and view.outcome != Outcome.SUCCEEDED]
    if not again:
        note("no job of it has ended without success: there is nothing to retry")
    for one in again:
        try:
            click.echo(f"{one} {client.retried(one)}")
        except (NoSuchJob, UsageError) as error:
            note(str(error))


@click.command("tree", short_help="Show a job with those that it depends on.")
@_id
@connection_options
def tree_command(job_id: str) -> None:
    """Show a job of a workflow in its whole tree; any other beneath those that it waits for."""
    client = connect()
    view = client.job(job_id).view
    workflow = client.inspect.workflow(view.spec.workflow) if view.spec.workflow else None
    views = _members(client.inspect, workflow.ids) if workflow is not None else _upstream(client.inspect, view)
    for line in _tree(list(views), marked=view.id):
        click.echo(line)


def _workflow_of(client: Client, job_id: str) -> WorkflowView:
    view = client.inspect.workflow(job_id) if job_id.isdigit() else None
    if view is None:
        workflow = client.job(job_id).view.spec.workflow
        view = client.inspect.workflow(workflow) if workflow else None
    if view is None:
        raise UsageError(f"job {job_id} belongs to no workflow")
    return view


def _members(inspect: Inspect, ids: Sequence[str]) -> Iterator[JobView]:
    from jobschedd.store.views import JobView

    for start in range(0, len(ids), 100):
        some = ids[start : start + 100]
        for job_id, data in zip(some, inspect.records(some), strict=True):
            if data is not None:
                yield JobView(job_id, data)


def _upstream(inspect: Inspect, view: JobView) -> list[JobView]:
    found, new = {view.id: view}, [view]
    while new and len(found) < _MOST_UPSTREAM:
        parents = {parent for one in new for parent, _ in _conditions(one)} - set(found)
        new = list(_members(inspect, sorted(parents)[: _MOST_UPSTREAM - len(found)]))
        found |= {one.id: one for one in new}
    return list(found.values())


def _conditions(view: JobView) -> list[tuple[str, str]]:
    parts = (condition.rpartition(":") for condition in view.spec.after)
    return [(parent, condition) for parent, _, condition in parts]


def _tree(views: Sequence[JobView], marked: str = "") -> Iterator[str]:
    """Beneath each job those that wait for it. What waits for several stands in full beneath the first of them."""
    known = {view.id: view for view in sorted(views, key=lambda view: int(view.id.partition("_")[0]))}
    children: dict[str, list[tuple[str, str]]] = {job_id: [] for job_id in known}
    roots = []
    for view in known.values():
        inside = [(parent, condition) for parent, condition in _conditions(view) if parent in known]
        for parent, condition in inside:
            children[parent].append((view.id, condition))
        if not inside:
            roots.append(view.id)
    shown: set[str] = set()
    # A chain may be thousands deep: no recursion.
    stack = [(root, "", "", "") for root in reversed(roots)]
    while stack:
        job_id, condition, first, rest = stack.pop()
        again = job_id in shown
        yield first + _line(known[job_id], condition, again and bool(children[job_id]), job_id == marked)
        if again:
            continue
        shown.add(job_id)
        below = children[job_id]
        for number, (child, wish) in reversed(list(enumerate(below))):
            branch, trunk = ("└─ ", "   ") if number == len(below) - 1 else ("├─ ", "│  ")
            stack.append((child, wish, rest + branch, rest + trunk))


def _line(view: JobView, condition: str, again: bool, marked: bool) -> str:
    wish = f"{condition}: " if condition not in ("", "ok") else ""
    name = view.spec.name or view.spec.what[:60]
    others = len(view.spec.after) - 1
    also = f", waits for {others} more" if others > 0 and not view.ended else ""
    when = f", {moment(view.ended_at)}" if view.ended else ""
    tail = " (in full above)" if again else " <--" if marked else ""
    return f"{safe(wish + view.id + ' ' + name)}: {coloured(view.status)}{when}{also}{tail}"
