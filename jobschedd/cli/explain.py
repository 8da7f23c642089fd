"""``explain``: why a job is where it is, in a sentence. The reasons are in jobschedd/client/why.py."""

from __future__ import annotations

import sys

import click

from jobschedd.cli.context import connect, connection_options, json_option, print_json
from jobschedd.cli.render import safe


@click.command("explain", short_help="Say why a job is where it is.")
@click.argument("job_id", metavar="ID")
@json_option
@connection_options
def explain_command(job_id: str, as_json: bool) -> None:
    """Say in a sentence why a job is where it is, and what would let it go on.

    The exit code is 1 where there is no record of such a job.
    """
    explanation = connect().explain(job_id)
    if as_json:
        print_json(explanation.json())
    else:
        click.echo(safe(explanation.sentence))
    sys.exit(0 if explanation.state else 1)
