"""``top``: the fleet at a glance, again and again on a terminal, once in a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.context import connect, connection_options, json_option, print_json
from jobschedd.cli.render import on_terminal, print_table, safe
from jobschedd.durations import format_duration, parse_duration
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client
    from jobschedd.store.views import ChannelView, Counts, JobView

_HEADERS = ("CHANNEL", "STATE", "SLOTS", "BUSY", "JOBS", "LABELS")
_MOST_RUNNING = 15


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment."""

    at: float
    counts: Counts
    channels: list[ChannelView]
    leader: str | None
    running: list[JobView]

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return {
            "counts": self.counts.json(),
            "leader": self.leader,
            "channels": [channel.json() for channel in self.channels],
            "running": [view.json() for view in self.running],
        }


@click.command("top", short_help="Watch channels, queues and running jobs.")
@click.option("--interval", default="1s", show_default=True, metavar="DURATION", help="Time between looks.")
@json_option
@connection_options
def top_command(interval: str, as_json: bool) -> None:
    """Show channels, queues and running jobs, live on a terminal until Ctrl-C; once in a pipe."""
    try:
        pause = max(0.1, parse_duration(interval))
    except ValueError as error:
        raise UsageError(f"--interval: {error}") from None
    client = connect()
    if as_json:
        print_json(snapshot(client).json())
    elif on_terminal():
        _watch(client, pause)
    else:
        now = snapshot(client)
        click.echo(_headline(now, None))
        print_table(_HEADERS, (_row(channel) for channel in now.channels))


def snapshot(client: Client) -> Snapshot:
    """One look."""
    from jobschedd.job import State

    inspect = client.inspect
    leader = inspect.leader()
    running = list(inspect.jobs({State.RUNNING}, limit=_MOST_RUNNING))
    return Snapshot(time.time(), inspect.counts(), inspect.channels(), leader and leader[0], running)


def _watch(client: Client, pause: float) -> None:
    from rich.live import Live

    before = None
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            now = client.session.patiently(lambda: snapshot(client))
            live.update(_screen(now, before), refresh=True)
            before = now
            time.sleep(pause)


def _screen(now: Snapshot, before: Snapshot | None) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    channels = Table(box=None, pad_edge=False, header_style="bold")
    for header in _HEADERS:
        channels.add_column(header, no_wrap=True)
    for channel in now.channels:
        channels.add_row(*(Text(safe(cell)) for cell in _row(channel)))
    running = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("RUNNING", "FOR", "WHAT"):
        running.add_column(header, no_wrap=True, overflow="ellipsis")
    for view in now.running:
        since = format_duration(max(0.0, now.at - view.header.since / 1000))
        running.add_row(Text(view.id), Text(since), Text(safe(view.spec.what)))
    return Group(Text(_headline(now, before), style="bold"), Text(), channels, Text(), running)


def _headline(now: Snapshot, before: Snapshot | None) -> str:
    counts = now.counts
    parts = [
        f"{counts.pending} pending",
        f"{counts.scheduled} scheduled",
        f"{counts.waiting} waiting for others",
        f"{counts.active} active",
        f"{counts.submitted} submitted so far",
    ]
    if before is not None:
        elapsed = now.at - before.at
        submitted = counts.submitted - before.counts.submitted
        ended = submitted - (_open(now) - _open(before))
        parts.append(f"{submitted / elapsed:.0f}/s in, {max(0, ended) / elapsed:.0f}/s done")
    return ", ".join(parts) + ("" if now.leader else "; NO MASTER LEADS")


def _open(snapshot: Snapshot) -> int:
    counts = snapshot.counts
    return counts.pending + counts.scheduled + counts.waiting + counts.active


def _row(channel: ChannelView) -> tuple[str, ...]:
    return (
        channel.name,
        channel.state,
        str(channel.slots),
        str(channel.busy),
        str(channel.entries),
        ",".join(channel.labels),
    )
