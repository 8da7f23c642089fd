"""``limit``: how many jobs of a key may run at a time, and how many may start within a period."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json_lines
from jobschedd.cli.render import print_table
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client


@click.group("limit", short_help="Set, remove and list limits.")
def limit_command() -> None:
    """Set, remove and list limits: on keys that jobs name, on groups, nodes and channels.

    \b
    jobsched limit set db 3                  at most 3 jobs with --limit-key db at a time
    jobsched limit set api 10/m              at most 10 starts of jobs with that key within a minute
    jobsched limit set group:science 20      the same for a --group; 0 stops it
    jobsched limit set node:web-07 4         and for a node, or a channel (channel:gpu, channel:web-07/gpu)

    What is set here wins over master.limits in the configuration, and that over what a job brings. A key for which
    nobody gives a number is one job at a time.
    """


@limit_command.command("set", short_help="Set a limit.")
@click.argument("key", metavar="KEY")
@click.argument("limit", metavar="N|STARTS/PERIOD")
@connection_options
def limit_set(key: str, limit: str) -> None:
    """Set how many jobs of KEY may be with channels at a time (N), or how many may start within a period (10/m).

    It holds from the next dispatch on, until it is removed. What runs goes on, even where it is more than N.
    """
    connect().set_limit(key, limit)


@limit_command.command("remove", short_help="Remove a limit that was set.")
@click.argument("key", metavar="KEY")
@connection_options
def limit_remove(key: str) -> None:
    """Take back what was set for KEY. What the configuration or a job says counts again."""
    client = connect()
    if not client.remove_limit(key):
        raise UsageError(f"nothing was set for {key}: see 'jobsched limit list'")


@limit_command.command("list", short_help="List limits and what counts against them.")
@json_option
@connection_options
def limit_list(as_json: bool) -> None:
    """List the limits that are set, those that jobs count against now, and the groups that are paused."""
    rows = limit_rows(connect())
    if as_json:
        print_json_lines(rows)
        return
    if not rows:
        note("no limits are set, and no job counts against one")
        return
    print_table(("KEY", "LIMIT", "IN USE", "SET BY"), map(_cells, rows))


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["paused"]:
        return row["key"], "paused", str(row["in_use"]), "jobsched pause"
    return row["key"], str(row["limit"] or "-"), str(row["in_use"]), row["source"] or "-"


def limit_rows(client: Client) -> list[dict[str, Any]]:
    """As in docs/json.md."""
    from jobschedd.limits import Rate, group_key
    from jobschedd.store.survey import groups_among

    limits, held = client.inspect.limits(), client.inspect.held_limits()
    paused = {group_key(group) for group in groups_among(client.inspect.drains())}
    rows: list[dict[str, Any]] = []
    for key in sorted({*limits.numbers, *held, *paused}):
        setting = limits.numbers.get(key)
        used = held.get(key, 0) if not key.startswith(("node:", "channel:")) else _at(client, key)
        said = {"limit": setting and str(setting.limit), "in_use": used, "source": setting and setting.source}
        rows.append({"key": key, **said, "paused": key in paused})
    for key, setting in sorted(limits.rates.items()):
        assert isinstance(setting.limit, Rate)
        used, _ = client.inspect.starts(key, setting.limit)
        said = {"limit": str(setting.limit), "in_use": used, "source": setting.source}
        rows.append({"key": key, **said, "paused": False})
    return rows


def _at(client: Client, key: str) -> int:
    kind, _, name = key.partition(":")
    views = client.channels()
    if kind == "node":
        return sum(view.entries for view in views if view.node == name)
    # On each node by itself: the fullest counts.
    by_node: dict[str, int] = {}
    for view in views:
        if name in (view.channel, view.name):
            by_node[view.node] = by_node.get(view.node, 0) + view.entries
    return max(by_node.values(), default=0)
