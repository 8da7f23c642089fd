"""Why a pending job waits although channels are up: a function for each reason, each yields sentences or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobschedd.durations import format_duration
from jobschedd.job import Target
from jobschedd.limits import DEFAULT, JOB, Rate, Setting
from jobschedd.resources import show

if TYPE_CHECKING:
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import ChannelView, JobView

#: Holders that are named.
MOST_NAMED = 5


def held_back(inspect: Inspect, view: JobView, channels: list[ChannelView]) -> Iterator[str]:
    """Every reason that a limit or a wish gives. ``channels``: those that could run it."""
    target = Target.of(view.spec)
    yield from elsewhere(inspect, view, channels)
    yield from by_limits(inspect, target)
    yield from by_rates(inspect, target)
    yield from by_places(inspect, channels)
    yield from by_resources(inspect, target, channels)
    yield from by_turn(inspect, view)


def elsewhere(inspect: Inspect, view: JobView, channels: list[ChannelView]) -> Iterator[str]:
    """Which node a retry keeps away from, and whether there is another."""
    target = inspect.class_of(view.header.job_class)
    if target is None or not target.avoid:
        return
    others = sorted({one.node for one in channels if one.state == "up"} - {target.avoid})
    if others:
        shown = ", ".join(others[:MOST_NAMED]) + (", ..." if len(others) > MOST_NAMED else "")
        yield f"It failed on {target.avoid} and waits for another node ({shown}): --avoid-failed."
    else:
        yield f"It failed on {target.avoid}, and no other node could take it: it may go there again."


def by_limits(inspect: Inspect, target: Target) -> Iterator[str]:
    """Which limit is full, by whom, and what would make room."""
    numbers, _ = inspect.limits().of_job(target)
    for key, setting in numbers:
        if setting is None or not isinstance(setting.limit, int):
            continue
        holders = inspect.holders(key)
        if len(holders) < setting.limit:
            continue
        if setting.limit == 0:
            yield f"The limit {key} is 0 ({_source(setting)}): nothing of it starts until that is changed."
            continue
        named = ", ".join(holders[:MOST_NAMED]) + (", ..." if len(holders) > MOST_NAMED else "")
        jobs = "job" if len(holders) == 1 else "jobs"
        yield (
            f"The limit {key} is reached: {setting.limit} at a time ({_source(setting)}), held by {jobs} {named}. "
            "The end of one of them lets the next one start."
        )


def by_rates(inspect: Inspect, target: Target) -> Iterator[str]:
    """Which rate is used up, and when the next start is due."""
    _, rates = inspect.limits().of_job(target)
    for key, setting in rates:
        if isinstance(setting.limit, Rate):
            _, left = inspect.starts(key, setting.limit)
            if left:
                after = format_duration(left)
                yield f"The rate {key} is used up: {setting.limit} ({_source(setting)}); the next may start in {after}."


def by_resources(inspect: Inspect, target: Target, channels: list[ChannelView]) -> Iterator[str]:
    """What no channel has at all, or has left now."""
    if not target.resources or not channels:
        return
    asked = dict(target.resources)
    able = [view for view in channels if target.fits(view.resources)]
    if not able:
        most = {name: max(view.resources.get(name, 0) for view in channels) for name in asked}
        yield f"It asks for {show(asked)}, and no channel that is known has so much (the most is {show(most)})."
        yield "It waits for a channel that has: ask for less, or start one."
        return
    lacking: dict[str, int] = {}
    for view in (view for view in able if view.state == "up"):
        used = inspect.used(view.name)
        short = [name for name in asked if view.resources.get(name, 0) - used.get(name, 0) < asked[name]]
        if not short:
            return
        for name in short:
            lacking[name] = lacking.get(name, 0) + 1
    if lacking:
        where = ", ".join(f"{name} on {number}" for name, number in sorted(lacking.items()))
        yield (
            f"It asks for {show(asked)}, which other jobs use now (too little {where} of {len(able)} channels that "
            "have as much). The end of one of them makes room."
        )


def by_turn(inspect: Inspect, view: JobView) -> Iterator[str]:
    """Which groups it takes turns with, where several wait at its priority."""
    own = view.spec.group
    others: dict[str, int] = {}
    for (target, priority), count in inspect.pending_by_class().items():
        if priority == view.header.priority and target.group != own:
            others[target.group] = others.get(target.group, 0) + count
    if others:
        shown = ", ".join(
            f"{group or 'jobs without one'} ({count})" for group, count in sorted(others.items())[:MOST_NAMED]
        )
        yield f"Its group{f' {own}' if own else ''} takes turns by weight with other groups that wait: {shown}."


def by_places(inspect: Inspect, channels: list[ChannelView]) -> Iterator[str]:
    """Which nodes and channels are closed by a limit of their own."""
    limits = inspect.limits().numbers
    if not any(key.startswith(("node:", "channel:")) for key in limits):
        return
    everywhere = inspect.channels()
    full: dict[str, int] = {}
    for view in channels:
        for key, beside in (
            (f"node:{view.node}", [one for one in everywhere if one.node == view.node]),
            (f"channel:{view.channel}", [one for one in everywhere if one.name == view.name]),
            (f"channel:{view.name}", [one for one in everywhere if one.name == view.name]),
        ):
            setting = limits.get(key)
            if setting and isinstance(setting.limit, int) and sum(one.entries for one in beside) >= setting.limit:
                full[key] = setting.limit
    for key, number in sorted(full.items()):
        yield f"The limit {key} is reached: {number} at a time."


def _source(setting: Setting) -> str:
    if setting.source == JOB:
        return "asked for by the job"
    return "nobody gave a number" if setting.source == DEFAULT else f"set by {setting.source}"
