"""``nodes``, ``channels``, ``drain``, ``pause`` and ``resume``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json_lines
from jobschedd.cli.options import user
from jobschedd.cli.render import moment, print_table
from jobschedd.durations import parse_duration
from jobschedd.errors import QueueFull, UsageError
from jobschedd.submission import NAME

if TYPE_CHECKING:
    from jobschedd.client import Client

NOT_NOW = QueueFull.exit_code
#: Seconds after a deadline that interrupted jobs have: TERM, the node's grace, KILL, the report.
GRACE = 60.0


@click.group("nodes", short_help="List the nodes; forget one.", invoke_without_command=True)
@json_option
@connection_options
@click.pass_context
def nodes_command(ctx: click.Context, as_json: bool) -> None:
    """List the nodes: what they are, how busy, since when.

    Nodes that are down stay in the list, and jobs for all nodes count them in, until they are forgotten:
    jobsched nodes forget NAME.
    """
    if ctx.invoked_subcommand is not None:
        return
    client = connect()
    nodes = client.nodes()
    _tell_loss(client)
    if as_json:
        print_json_lines(node.json() for node in nodes)
        return
    headers = ("NODE", "STATE", "CHANNELS", "SLOTS", "BUSY", "JOBS", "LABELS", "VERSION", "SINCE")
    rows = (
        (
            node.node,
            node.state,
            f"{node.channels_up}/{len(node.channels)}",
            str(node.slots),
            str(node.busy),
            str(node.entries),
            ",".join(node.labels),
            ",".join(node.versions),
            moment(node.started),
        )
        for node in nodes
    )
    print_table(headers, rows)


@nodes_command.command("forget", short_help="Forget a node, or a channel of it, that is down.")
@click.argument("name", metavar="NODE[/CHANNEL]")
@connection_options
def forget_command(name: str) -> None:
    """Forget a node, or one channel of it, that is down and does not come back."""
    client = connect()
    meant = [view for view in client.channels() if name in (view.node, view.name) and view.node]
    if not meant:
        raise UsageError(f"no node or channel named {name} is known")
    if living := sorted({view.name for view in meant if view.state != "down"}):
        raise UsageError(f"{', '.join(living)} is not down: stop it first")
    client.session.patiently(lambda: client.session.moves.forget([view.name for view in meant]))


@click.command("channels", short_help="List the dispatch channels.")
@json_option
@connection_options
def channels_command(as_json: bool) -> None:
    """List the dispatch channels: one process each.

    \b
    States: up; draining, drained, paused (see 'jobsched drain'); lost (silent, its jobs are being taken back);
    down (it left, or was given up).
    """
    client = connect()
    channels = client.channels()
    _tell_loss(client)
    if as_json:
        print_json_lines(channel.json() for channel in channels)
        return
    headers = ("CHANNEL", "STATE", "SLOTS", "BUSY", "JOBS", "LABELS", "PID", "TRANSPORT", "SINCE", "REASON")
    rows = (
        (
            channel.name,
            channel.state,
            str(channel.slots),
            str(channel.busy),
            str(channel.entries),
            ",".join(channel.labels),
            str(channel.pid or ""),
            channel.transport,
            moment(channel.started),
            channel.drain_reason or (f"kept for job {channel.kept_for}" if channel.kept_for else ""),
        )
        for channel in channels
    )
    print_table(headers, rows)


@click.command("drain", short_help="Send nothing new to a node or channel.")
@click.argument("name", metavar="NAME")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it drained.")
@click.option("--deadline", metavar="DURATION", help="How long what runs there may go on; see --then.")
@click.option(
    "--then",
    type=click.Choice(["wait", "requeue", "kill"]),
    default="wait",
    show_default=True,
    help="After the deadline: let it go on, run it elsewhere (interrupted, charged nothing), or cancel it.",
)
@click.option("--wait", "wait", is_flag=True, help="Return once nothing is left there; 75 if not by the deadline.")
@connection_options
def drain_command(name: str, reason: str, deadline: str | None, then: str, wait: bool) -> None:
    """Send nothing new to a node, a channel (on every node) or NODE/CHANNEL. What runs there goes on.

    With --wait the exit code says when it is empty: 0 then, 75 when something was still there at the deadline (with
    --then requeue or kill: a minute later).
    """
    _check(name)
    if then != "wait" and deadline is None:
        raise UsageError(f"--then {then} needs a --deadline")
    seconds = _duration("--deadline", deadline)
    client = connect()
    client.drain(name, reason, user(), seconds, then)
    _warn_of_unknown(client, name, "drain")
    if wait and not client.drained(name, _patience(seconds, then)):
        left = sum(view.entries for view in client.channels() if name in (view.node, view.channel, view.name))
        note(f"{name} is not empty: it has {left} job{'' if left == 1 else 's'}")
        sys.exit(NOT_NOW)


def _patience(deadline: float | None, then: str) -> float | None:
    if deadline is None:
        return None
    return deadline if then == "wait" else deadline + GRACE


@click.command("pause", short_help="Send nothing new to a node or channel, or of a group, for a while.")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--group", metavar="GROUP", help="Nothing of this group, wherever it would run; instead of NAME.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it paused.")
@connection_options
def pause_command(name: str | None, group: str | None, reason: str) -> None:
    """Send nothing new to a node, a channel (on every node) or NODE/CHANNEL, until 'jobsched resume NAME'.

    With --group, dispatch nothing of a group, until 'jobsched resume --group GROUP'. What runs goes on.
    """
    if group is not None:
        _check_alone(name)
        connect().pause_group(group, reason, user())
        return
    name = _check_given(name)
    client = connect()
    client.pause(name, reason, user())
    _warn_of_unknown(client, name, "pause")


@click.command("resume", short_help="Take a drain or a pause back.")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--group", metavar="GROUP", help="The pause of this group, instead of NAME.")
@connection_options
def resume_command(name: str | None, group: str | None) -> None:
    """Take back a drain or a pause of a node, a channel or NODE/CHANNEL, or of a group."""
    if group is not None:
        _check_alone(name)
        client = connect()
        if not client.resume_group(group):
            raise UsageError(f"the group {group} is not paused{_what_is(client)}")
        return
    name = _check_given(name)
    client = connect()
    if not client.resume(name):
        raise UsageError(f"{name} is not drained or paused{_what_is(client)}")


def _what_is(client: Client) -> str:
    return f" (drained or paused: {', '.join(sorted(client.inspect.drains())) or 'nothing'})"


def _warn_of_unknown(client: Client, name: str, what: str) -> None:
    if not any(name in (view.node, view.channel, view.name) for view in client.channels()):
        note(f"warning: no node or channel named {name} has been seen; the {what} holds once there is one")


def _duration(option: str, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _tell_loss(client: Client) -> None:
    from jobschedd.store.marks import Marks

    loss = Marks(client.inspect.client, client.session.keys).loss()
    if loss is not None:
        note(f"{loss.story}: nothing is accepted or dispatched; see 'jobsched doctor'")


def _check_alone(name: str | None) -> None:
    if name is not None:
        raise UsageError("give a NAME or a --group, not both")


def _check_given(name: str | None) -> str:
    if name is None:
        raise UsageError("give the NAME of a node or channel, or a --group")
    _check(name)
    return name


def _check(name: str) -> None:
    parts = name.split("/")
    if len(parts) > 2 or not all(NAME.fullmatch(part) for part in parts):
        raise UsageError(f"{name!r} is no name of a node or channel: write NODE, CHANNEL or NODE/CHANNEL")
