"""``explain``: why a job is where it is, in a sentence. The reasons are in jobschedd/client/why.py."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, print_json
from jobschedd.cli.render import safe

if TYPE_CHECKING:
    from jobschedd.client import Client


@click.command("explain", short_help="Say why a job is where it is.")
@click.argument("job_id", metavar="ID|SCHEDULE")
@json_option
@connection_options
def explain_command(job_id: str, as_json: bool) -> None:
    """Say in a sentence why a job is where it is, and what would let it go on; or why a schedule does not fire.

    The exit code is 1 where there is no record of such a job.
    """
    client = connect()
    if job_id[:1].isalpha():
        _explain_schedule(client, job_id, as_json)
        return
    explanation = client.explain(job_id)
    if as_json:
        print_json(explanation.json())
    else:
        click.echo(safe(explanation.sentence))
    sys.exit(0 if explanation.state else 1)


def _explain_schedule(client: Client, name: str, as_json: bool) -> None:
    from jobschedd.cli.schedule import why

    sentences = list(why(client, client.schedules.get(name)))
    if as_json:
        print_json({"schedule": name, "explanation": sentences})
        return
    for sentence in sentences:
        click.echo(safe(sentence))
