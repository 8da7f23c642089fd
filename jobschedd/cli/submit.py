"""``submit`` and ``call``: hand jobs in, print their ids and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from jobschedd.amounts import show
from jobschedd.cli.context import connect, connection_options, note
from jobschedd.cli.options import command_options, durable_from, durable_options, item_from, job_options, option_of
from jobschedd.errors import InvalidJob, NotDurable, UsageError
from jobschedd.labels import LABEL

if TYPE_CHECKING:
    from jobschedd.client import Client, Job
    from jobschedd.client.session import Durable
    from jobschedd.job import Submission, Target
    from jobschedd.links import Refs


@click.command(
    "submit", short_help="Submit a command; print its id.", context_settings={"allow_interspersed_args": False}
)
@command_options
@click.option("--file", "file", metavar="FILE", help="Submit one job a line of this JSONL file ('-': standard input).")
@click.option("--wait", "wait", is_flag=True, help="Wait for the end, and exit as the job did.")
@durable_options
@connection_options
def submit_command(command: tuple[str, ...], file: str | None, wait: bool, **options: Any) -> None:
    """Submit a command; print the job's id.

    \b
    jobsched submit -- rsync -a /data backup:/data
    jobsched submit --channel web-07/gpu --retries 3 --timeout 2h -- ./train.sh
    generate | jobsched submit --file -

    With --file, the other options are defaults for its lines. A line's keys are the option names with underscores
    ("--in" is "delay") plus "command" or "shell" or "function", "args", "kwargs", and "ref": a name by which the
    "after" of later lines can mean this one. At a bad line it stops: what came before it is submitted, nothing after
    it, and the exit code is 2.
    """
    durable = durable_from(options)
    if file is not None:
        if command or options["shell"]:
            raise UsageError("--file takes its commands from the file: give no COMMAND beside it")
        from jobschedd.cli.feed import submit_file

        sys.exit(submit_file(connect(), file, item_from(options), wait, durable))
    if not command and not options["shell"]:
        raise click.UsageError("Missing the command: jobsched submit [OPTIONS] -- COMMAND...")
    client = connect()
    client.session.brief = not wait
    job = submitted(client, item_from(options | {"command": command}), durable)
    click.echo(job.id)
    if wait:
        sys.exit(_wait(client, job))


@click.command(
    "call", short_help="Submit a call of a Python function.", context_settings={"allow_interspersed_args": False}
)
@job_options
@click.option("--kwargs", metavar="JSON", help="Keyword arguments, as a JSON object.")
@click.option("--wait", "wait", is_flag=True, help="Wait for the end, print the value returned, exit as the job did.")
@durable_options
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[JSON-ARG]...")
@connection_options
def call_command(function: str, arguments: tuple[str, ...], kwargs: str | None, wait: bool, **options: Any) -> None:
    """Submit a call of a Python function; print the job's id.

    \b
    jobsched call myapp.tasks:resize '"photo.jpg"' 800
    jobsched call --wait --kwargs '{"deep": true}' myapp.tasks:scan
    """
    durable = durable_from(options)
    item = item_from(options) | {"function": function}
    if arguments[:1] == ("--",):  # no JSON, and a habit of those who write options before it
        arguments = arguments[1:]
    item["args"] = [_json(f"argument {number}", text) for number, text in enumerate(arguments, 1)]
    if kwargs is not None:
        item["kwargs"] = _json("--kwargs", kwargs)
    client = connect()
    client.session.brief = not wait
    job = submitted(client, item, durable)
    click.echo(job.id)
    if wait:
        code = _wait(client, job)
        if job.succeeded:
            import msgspec

            click.echo(msgspec.json.encode(job.result))
        sys.exit(code)


def submitted(client: Client, item: dict[str, Any], durable: Durable | None = None) -> Job:
    """Submit one job; say what its submitter should know. Raises InvalidJob, QueueFull, NotDurable."""
    from jobschedd.links import Refs
    from jobschedd.submission import submission

    try:
        checked = Refs().check(submission(item))
        (job_id,) = submit_all(client, [checked], durable)
    except InvalidJob as error:
        raise InvalidJob(option_of(error.field), error.problem) from None
    if durable is not None:
        note(f"durable: {durable.confirmed}")
    if checked.at_ms:
        from jobschedd.cli.render import full_moment

        note(f"job {job_id} is due at {full_moment(checked.at_ms / 1000)}")
    if not client.session.served(checked.target):
        note(f"warning: job {job_id} waits: no channel has ever been seen that {could_run(checked.target)}")
    warn_of_hooks(client, item)
    from jobschedd.client import Job

    return Job(client, job_id)


def submit_all(client: Client, jobs: list[Submission], durable: Durable | None, refs: Refs | None = None) -> list[str]:
    """One call of the submit script. Raises NoParent; NotDurable, the ids printed already: the jobs are accepted."""
    try:
        return client.session.submit(jobs, durable, refs)
    except NotDurable as error:
        click.echo("\n".join(error.ids))
        raise


def warn_of_hooks(client: Client, item: Mapping[str, Any]) -> None:
    """Where these options of jobs name hooks that no job may name."""
    named = [name for field in ("on_success", "on_failure") for name in item.get(field) or ()]
    if named and (unknown := sorted(set(named) - client.inspect.nameable_hooks())):
        names = " or ".join(unknown)
        note(f"warning: the leading master has no hook {names} that jobs may name (master.hooks, on: [named])")


def could_run(target: Target) -> str:
    """What a channel must be to run jobs for ``target``."""
    wishes = []
    if target.channel or target.node:
        wishes.append(f"is {target.node or '*'}/{target.channel or '*'}")
    wishes += [
        f"has the label {label}" if LABEL.fullmatch(label) else f"meets the labels '{label}'" for label in target.labels
    ]
    if target.resources:
        wishes.append(f"has {show(dict(target.resources))}")
    return " and ".join(wishes) or "could run it"


def _json(where: str, text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        raise InvalidJob(where, f"{text!r} is no JSON; text needs its quotes: '\"{text}\"'") from None


def _wait(client: Client, job: Job) -> int:
    from jobschedd.cli.endings import wait_for
    from jobschedd.cli.exits import ours

    with ours():
        return wait_for(client, [job], None)
