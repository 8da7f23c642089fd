"""Whether anybody could run a job: what a submit from a shell looks up, and so light to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobschedd.job import Target
from jobschedd.store.keys import Keys

if TYPE_CHECKING:
    from jobschedd.store.views import ChannelView


def served(client: Any, keys: Keys, target: Target, channels: Callable[[], list[ChannelView]]) -> bool:
    """Whether a channel has ever been seen that a job for ``target`` could run on.

    ``client``: ``ask`` is all that is asked of it. ``channels``: reads them all, where only that tells. Raises what
    these raise.
    """
    plain = not target.labels and not target.resources
    if not target.node and plain and _is_published_to(client, keys, target.channel):
        return True
    if not plain:
        return any(
            target.admits(view.node, view.channel, frozenset(view.labels))
            and target.fits(view.resources, view.most_slots)
            for view in channels()
        )
    if target.node and target.channel:
        return bool(client.ask("HEXISTS", keys.owners, f"{target.node}/{target.channel}"))
    pattern, cursor = f"{target.node or '*'}/{target.channel or '*'}", b"0"
    while True:
        cursor, found = client.ask("HSCAN", keys.owners, cursor, "MATCH", pattern, "COUNT", 5000)
        if found or cursor == b"0":
            return bool(found)


def _is_published_to(client: Any, keys: Keys, channel: str) -> bool:
    """Whether a pubsub master publishes to this channel (to any, if empty): who listens there, nobody knows."""
    return bool(client.ask("SISMEMBER", keys.wires, channel) if channel else client.ask("EXISTS", keys.wires))
