"""``hold``, ``release`` and ``priority``: jobs that wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.bulk import Choice, filter_options, tell
from jobschedd.cli.context import connect, connection_options, note
from jobschedd.cli.options import user
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.client import Changed, Client

_WAITING = ("pending", "scheduled", "waiting")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.command("hold", short_help="Keep waiting jobs from being dispatched.")
@_ids
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it held.")
@filter_options
@connection_options
def hold_command(ids: tuple[str, ...], reason: str, **options: Any) -> None:
    """Keep jobs that wait from being dispatched, until 'jobsched release'. They can still expire or be cancelled.

    Of an array that has begun, what has not started is held.
    """
    choice, client = Choice(ids, options, _WAITING), connect()
    _do(client, ids, choice, "held", lambda some: client.hold(some, reason, user()))


@click.command("release", short_help="Let held jobs go on.")
@_ids
@filter_options
@connection_options
def release_command(ids: tuple[str, ...], **options: Any) -> None:
    """Let held jobs go on. One whose turn came while it was held is the next of its line."""
    # What is held of an array that has begun is released with it.
    choice, client = Choice(ids, options, (*_WAITING, "running"), held=True), connect()
    _do(client, ids, choice, "released", client.release)


@click.command(
    "priority", short_help="Give waiting jobs another priority.", context_settings={"ignore_unknown_options": True}
)
@click.argument("ids_and_priority", nargs=-1, metavar="[ID]... N")
@filter_options
@connection_options
def priority_command(ids_and_priority: tuple[str, ...], **options: Any) -> None:
    """Give jobs that wait the priority N, -100 to 100: higher goes first. They go to the end of that line."""
    *ids, last = ids_and_priority or ("",)
    try:
        priority = int(last)
    except ValueError:
        raise UsageError("the last argument is the priority, a number from -100 to 100") from None
    choice, client = Choice(tuple(ids), options, _WAITING), connect()
    _do(client, ids, choice, f"priority {priority}", lambda some: client.prioritise(some, priority))


def _do(
    client: Client, ids: Sequence[str], choice: Choice, word: str, change: Callable[[list[str]], list[Changed]]
) -> None:
    if not choice.by_filter:
        sys.exit(_one_by_one(change(list(ids)), word))
    done = other = 0
    for chunk in choice.chunks(client):
        answers = [changed.answer for changed in change([job_id for job_id, _ in chunk])]
        done += answers.count("done")
        other += len(answers) - answers.count("done")
    tell({word: done, "unchanged": other})


def _one_by_one(answers: Sequence[Changed], word: str) -> int:
    code = 0
    for changed in answers:
        if changed.answer == "done":
            click.echo(f"{changed.id} {word}")
            continue
        code = 1
        if changed.answer == "unknown":
            note(f"no job {changed.id}: it never was, or it ended and its record has expired")
        elif changed.answer == "in_array":
            array = changed.id.partition("_")[0]
            note(f"job {changed.id} has not started: it waits in its array; name that one: {array}")
        elif changed.answer == "by_tasks":
            note(f"job {changed.id} waits place by place; name its tasks: 'jobsched list --tasks {changed.id}'")
        elif changed.answer == "ended":
            note(f"job {changed.id} has ended")
        elif word == "released":
            note(f"job {changed.id} is not held")
        else:
            note(f"job {changed.id} does not wait any more: a channel has it")
    return code
