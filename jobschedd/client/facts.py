"""What there is to say why jobs wait: one look at the fleet for all of them, and what concerns one job alone."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobschedd.job import Header, Spec, State, Target
from jobschedd.limits import Limits, Rate
from jobschedd.store.marks import Loss, Marks
from jobschedd.store.survey import Kept
from jobschedd.store.views import ChannelView, JobView

if TYPE_CHECKING:
    from jobschedd.store.inspect import Inspect


class Fleet:
    """One look at everything that jobs wait for, each part read when it is first asked for."""

    def __init__(self, inspect: Inspect) -> None:
        self.inspect = inspect
        self._admitting: dict[Target, tuple[ChannelView, ...]] = {}
        self._above: dict[tuple[Target, int], int] = {}
        self._holders: dict[str, list[str]] = {}
        self._next_start: dict[tuple[str, Rate], float] = {}
        self._used: dict[str, dict[str, int]] = {}

    @cached_property
    def now(self) -> float:
        """The server's clock, in seconds since the epoch."""
        return self.inspect.time()

    @cached_property
    def loss(self) -> Loss | None:
        """Data that Redis has lost, while nobody has decided what to do."""
        return Marks(self.inspect.client, self.inspect.keys).loss()

    @cached_property
    def led(self) -> bool:
        """Whether a master leads."""
        return self.inspect.leader() is not None

    @cached_property
    def channels(self) -> list[ChannelView]:
        """Every channel that is or was."""
        return self.inspect.channels()

    @cached_property
    def drains(self) -> dict[str, dict[str, Any]]:
        """What takes nothing new, by name; see ``Inspect.drains``."""
        return self.inspect.drains()

    @cached_property
    def kept(self) -> dict[str, Kept]:
        """Channels (incarnations) that are kept for jobs which need much."""
        return {one.incarnation: one for one in self.inspect.kept()}

    @cached_property
    def waiting(self) -> dict[tuple[Target, int], int]:
        """How many wait, by (where they may run, priority)."""
        return self.inspect.pending_by_class()

    @cached_property
    def limits(self) -> Limits:
        """What is set."""
        return self.inspect.limits()

    @cached_property
    def classes(self) -> dict[int, Target]:
        """What each class of jobs asks for."""
        return self.inspect.classes()

    def holders(self, key: str) -> list[str]:
        """The jobs that count against a limit."""
        if key not in self._holders:
            self._holders[key] = self.inspect.holders(key)
        return self._holders[key]

    def next_start(self, key: str, rate: Rate) -> float:
        """Seconds until a rate lets one more start."""
        if (key, rate) not in self._next_start:
            self._next_start[key, rate] = self.inspect.starts(key, rate)[1]
        return self._next_start[key, rate]

    def used(self, channel: str) -> dict[str, int]:
        """What jobs use of the resources of a channel (node/name)."""
        if channel not in self._used:
            self._used[channel] = self.inspect.used(channel)
        return self._used[channel]

    def admitting(self, target: Target) -> tuple[ChannelView, ...]:
        """The channels, present or gone, that a job for ``target`` may run on."""
        if target not in self._admitting:
            self._admitting[target] = tuple(
                channel
                for channel in self.channels
                if target.admits(channel.node, channel.channel, frozenset(channel.labels))
            )
        return self._admitting[target]

    def above(self, target: Target, priority: int) -> int:
        """How many jobs of higher priority wait for a channel that is up and could run a job for ``target``, too."""
        if (target, priority) not in self._above:
            up = {channel.incarnation for channel in self.admitting(target) if channel.state == "up"}
            self._above[target, priority] = sum(
                count
                for (other, theirs), count in self.waiting.items()
                if theirs > priority and any(channel.incarnation in up for channel in self.admitting(other))
            )
        return self._above[target, priority]


class Facts:
    """One job, and the fleet that it waits in."""

    def __init__(self, fleet: Fleet, view: JobView) -> None:
        self.fleet = fleet
        self.view = view

    @property
    def inspect(self) -> Inspect:
        """The read path, for what concerns this job alone."""
        return self.fleet.inspect

    @property
    def header(self) -> Header:
        """Its record's fixed part."""
        return self.view.header

    @property
    def spec(self) -> Spec:
        """What was asked for."""
        return self.view.spec

    @property
    def state(self) -> State:
        """Where it is."""
        return self.view.header.state

    @cached_property
    def target(self) -> Target:
        """Where it may run."""
        return Target.of(self.spec)

    @cached_property
    def candidates(self) -> tuple[ChannelView, ...]:
        """The channels, present or gone, that it may run on."""
        return self.fleet.admitting(self.target)

    @cached_property
    def up(self) -> tuple[ChannelView, ...]:
        """Those that take work."""
        return tuple(channel for channel in self.candidates if channel.state == "up")

    @cached_property
    def free(self) -> tuple[ChannelView, ...]:
        """Those that have room for it."""
        slots = self.target.slots
        return tuple(one for one in self.up if one.entries + slots <= max(one.window, _foreign_slots(one)))

    @cached_property
    def place(self) -> ChannelView | None:
        """The channel that has it now."""
        incarnation = self.header.incarnation
        return next((channel for channel in self.fleet.channels if channel.incarnation == incarnation), None)

    @cached_property
    def place_name(self) -> str:
        """The same as text; of the classic wire, what its record says of it."""
        if self.place is not None:
            return self.place.name
        return self.view.result.channel or "a channel that is gone"


def _foreign_slots(channel: ChannelView) -> int:
    """A subscriber of the classic wire that is none of ours announces no window."""
    return channel.slots if channel.transport == "pubsub" and not channel.window else 0
