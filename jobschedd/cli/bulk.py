"""Jobs chosen by what they are instead of by their ids: the options of ``cancel``, ``retry``, ``hold`` and others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobschedd.cli.context import note
from jobschedd.errors import UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client

Command = TypeVar("Command", bound=Callable[..., Any])
Ends = list[tuple[str, int]]

_OPTIONS = (
    click.option("--name", metavar="PATTERN", help="Jobs whose name matches, such as 'etl-*'."),
    click.option("--state", "words", metavar="WORD", multiple=True, help="In this state or with this outcome; or a,b."),
    click.option("--channel", metavar="[NODE/]CHANNEL", help="That asked for this channel, or that are or were on it."),
    click.option("--node", metavar="NODE", help="That asked for this node, or that are or were on it."),
    click.option("--label", "labels", metavar="LABEL", multiple=True, help="That asked for this label; repeatable."),
    click.option("--group", metavar="GROUP", help="Of this group."),
    click.option("--all", "everything", is_flag=True, help="All there are, in the states that make sense."),
    click.option("--dry-run", is_flag=True, help="Change nothing; print how many there are."),
    click.option("--yes", is_flag=True, help="Do not ask, on a terminal."),
)
_NAMES = ("name", "words", "channel", "node", "labels", "group", "everything", "dry_run", "yes")


def filter_options(command: Command) -> Command:
    """Adds the options that choose jobs, as keyword arguments for ``chosen``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Choice:
    """What the options say. ``usual``: the statuses that are meant where none is given; ``held``: only what is."""

    def __init__(
        self, ids: tuple[str, ...], options: dict[str, Any], usual: tuple[str, ...], *, held: bool = False
    ) -> None:
        given = {name: options.pop(name) for name in _NAMES}
        self.dry_run: bool = given.pop("dry_run")
        self._yes: bool = given.pop("yes")
        self._usual = usual
        self._held = held
        self._given = given
        self.by_filter = any(given.values())
        if ids and self.by_filter:
            raise UsageError("give ids, or options that choose jobs, not both")
        if not ids and not self.by_filter:
            raise UsageError("give ids, or choose jobs: --name, --state, --channel, --node, --label, --group or --all")
        if ids and self.dry_run:
            raise UsageError("--dry-run goes with options that choose jobs, not with ids")

    def chunks(self, client: Client) -> Iterator[Ends]:
        """The jobs, as they are found. On a terminal it asks first. Raises UsageError, click.Abort."""
        if self.dry_run:
            click.echo(str(sum(len(chunk) for chunk in self._find(client))))
            sys.exit(0)
        if not self._yes and sys.stdin.isatty():
            count = sum(len(chunk) for chunk in self._find(client))
            command = click.get_current_context().info_name
            click.confirm(f"{command} {count} job{'' if count == 1 else 's'}?", abort=True, err=True)
        return self._find(client)

    def _find(self, client: Client) -> Iterator[Ends]:
        words = [word for text in self._given["words"] for word in text.split(",")] or self._usual
        node, channel = self._given["node"] or "", self._given["channel"] or ""
        owner, slash, name = channel.partition("/")
        if slash:
            if node and node != owner:
                raise UsageError(f"--channel names node {owner!r}, but --node says {node!r}")
            node, channel = owner, name
        given = {name: self._given[name] or "" for name in ("name", "group")}
        found = client.matching(*words, node=node, channel=channel, labels=self._given["labels"], **given)
        return _among(set(client.inspect.held_ids()), found) if self._held else found


def _among(ids: set[str], chunks: Iterator[Ends]) -> Iterator[Ends]:
    for chunk in chunks:
        yield [one for one in chunk if one[0] in ids]


def tell(counts: dict[str, int]) -> None:
    """What a bulk command did, in a line."""
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if said:
        click.echo(said)
    else:
        note("no job matches")
