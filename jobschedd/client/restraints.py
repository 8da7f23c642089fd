"""Why a pending job waits although channels are up: limits, rates, resources, and the node that it keeps away from.

Each is a function of the facts, as in ``why``, and of what was read once for the whole fleet.
"""

from __future__ import annotations

from functools import partial

from jobschedd.amounts import SLOTS, show
from jobschedd.client.facts import Facts
from jobschedd.client.reason import Reason
from jobschedd.durations import format_duration
from jobschedd.limits import DEFAULT, JOB, Rate, Setting
from jobschedd.store.survey import Kept
from jobschedd.store.views import ChannelView

#: Holders that a sentence names.
_NAMED = 3


def too_large(facts: Facts) -> Reason | None:
    """It asks for more than any channel has, even an idle one."""
    target = facts.target
    if not target.resources or any(target.fits(one.resources, one.most_slots) for one in facts.candidates):
        return None
    asked = dict(target.resources)
    most = {name: max((_amount(one, name) for one in facts.candidates), default=0) for name in asked}
    return Reason(
        "too_large",
        lambda: (
            f"It waits: it asks for {show(asked)}, and no channel that is known has so much "
            f"(the most is {show(most)}); it goes on once one has."
        ),
    )


def _amount(channel: ChannelView, name: str) -> int:
    return channel.most_slots if name == SLOTS else channel.resources.get(name, 0)


def limit(facts: Facts) -> Reason | None:
    """A limit that it counts against is reached."""
    numbers, _ = facts.fleet.limits.of_job(facts.target)
    for key, setting in numbers:
        number = setting.limit if setting is not None else None
        if setting is not None and isinstance(number, int) and len(facts.fleet.holders(key)) >= number:
            return Reason("limit", partial(_limit, facts, key, setting))
    return None


def _limit(facts: Facts, key: str, setting: Setting) -> str:
    if setting.limit == 0:
        return f"It waits: the limit {key} is 0 ({_source(setting)}); it goes on when that is raised."
    holders = facts.fleet.holders(key)
    return (
        f"It waits: the limit {key} is reached, {setting.limit} at a time ({_source(setting)}), held by "
        f"{'job' if len(holders) == 1 else 'jobs'} {_some(holders)}; it goes on when one of them has ended."
    )


def rate(facts: Facts) -> Reason | None:
    """As many have started as a rate allows."""
    _, rates = facts.fleet.limits.of_job(facts.target)
    for key, setting in rates:
        if isinstance(setting.limit, Rate):
            left = facts.fleet.next_start(key, setting.limit)
            if left > 0:
                return Reason("rate", partial(_rate, key, setting, left))
    return None


def _rate(key: str, setting: Setting, left: float) -> str:
    said = f"the rate {key} is used up, {setting.limit} ({_source(setting)})"
    return f"It waits: {said}; the next may start in {format_duration(left)}."


def place_limit(facts: Facts) -> Reason | None:
    """Every channel that could run it is closed by a limit of its node or name."""
    closing = [_closing(facts, channel) for channel in facts.up]
    if not closing or not all(closing):
        return None
    names = sorted({key for key in closing if key})
    said = ", ".join(f"{key} ({facts.fleet.limits.numbers[key].limit} at a time)" for key in names[:_NAMED])
    return Reason(
        "limit",
        lambda: f"It waits: the limit {said} is reached wherever it could run; it goes on when a job there ends.",
    )


def _closing(facts: Facts, channel: ChannelView) -> str | None:
    beside = [one for one in facts.fleet.channels if one.node == channel.node]
    same = [one for one in beside if one.channel == channel.channel]
    for key, covered in (
        (f"node:{channel.node}", beside),
        (f"channel:{channel.channel}", same),
        (f"channel:{channel.name}", same),
    ):
        setting = facts.fleet.limits.numbers.get(key)
        if setting and isinstance(setting.limit, int) and sum(one.entries for one in covered) >= setting.limit:
            return key
    return None


def elsewhere(facts: Facts) -> Reason | None:
    """It keeps away from the node where it failed, and the others are busy."""
    job_class = facts.fleet.classes.get(facts.header.job_class) if facts.spec.avoid_failed else None
    if job_class is None or not job_class.avoid:
        return None
    others = [channel for channel in facts.up if channel.node != job_class.avoid]
    if not others or any(channel in facts.free for channel in others):
        return None
    names = sorted({channel.node for channel in others})
    return Reason(
        "avoids_node",
        lambda: (
            f"It waits for {_some(names)}: it failed on {job_class.avoid} and is to go to another node; "
            "it goes on when a slot is free there."
        ),
    )


def resources(facts: Facts) -> Reason | None:
    """Whoever has as much is using it."""
    target = facts.target
    if not target.amounts:
        return None
    able = [channel for channel in facts.up if target.fits(channel.resources, channel.most_slots)]
    short = {channel.name: _short(facts, channel) for channel in able}
    if not able or not all(short.values()):
        return None
    names = ", ".join(sorted({name for some in short.values() for name in some}))
    return Reason(
        "resources",
        lambda: (
            f"It waits: it asks for {show(target.amounts)}, and other jobs use the {names} of "
            f"{_some(sorted(short))}; it goes on when enough of them have ended{_kept_for(facts)}."
        ),
    )


def _short(facts: Facts, channel: ChannelView) -> list[str]:
    used = facts.fleet.used(channel.name)
    return [name for name, n in facts.target.amounts.items() if channel.resources.get(name, 0) - used.get(name, 0) < n]


def slots(facts: Facts) -> Reason | None:
    """It takes several slots at once, and no channel has so many free."""
    target = facts.target
    able = [channel for channel in facts.up if target.fits(channel.resources, channel.most_slots)]
    if target.slots == 1 or not able or any(channel in facts.free for channel in able):
        return None
    best = max(able, key=lambda channel: channel.free_slots)
    return Reason(
        "slots",
        lambda: (
            f"It waits: it takes {target.slots} slots of one channel at once, and nowhere are so many free (the most "
            f"is {best.free_slots} of {best.slots}, on {best.name}); it goes on when enough jobs there have ended"
            f"{_kept_for(facts)}."
        ),
    )


def _kept_for(facts: Facts) -> str:
    """Where a channel is kept for it, or for the one before it."""
    for channel in facts.up:
        kept = facts.fleet.kept.get(channel.incarnation)
        if kept is not None and _is_for(kept, facts):
            who = "it" if kept.job == facts.view.id else f"job {kept.job}, the first of those like it,"
            return f"; {channel.name} has been kept for {who} for {_duration(facts, kept)}"
    return ""


def kept(facts: Facts) -> Reason | None:
    """Whoever has room is kept for others, which need much and have waited for long."""
    keeping = [facts.fleet.kept.get(channel.incarnation) for channel in facts.free]
    others = [one for one in keeping if one and not _is_for(one, facts) and facts.header.priority <= one.priority]
    if not others or len(others) < len(keeping):
        return None
    first, place = others[0], facts.free[0].name
    return Reason(
        "kept",
        lambda: (
            f"It waits: {place} has room, but has been kept for {_duration(facts, first)} for job {first.job}, which "
            "needs much and had waited for long; it goes on when that one has started, or elsewhere."
        ),
    )


def _is_for(kept: Kept, facts: Facts) -> bool:
    return (kept.job_class, kept.priority) == (facts.header.job_class, facts.header.priority)


def _duration(facts: Facts, kept: Kept) -> str:
    return format_duration(max(0.0, facts.fleet.now - kept.since))


def turn(facts: Facts) -> Reason | None:
    """No slot is free, and other groups wait at the same priority: they share by weight."""
    own = facts.target.group
    others: dict[str, int] = {}
    for (target, priority), count in facts.fleet.waiting.items():
        if priority == facts.header.priority and target.group != own:
            others[target.group] = others.get(target.group, 0) + count
    if facts.free or not others:
        return None
    shown = _some([f"{group or 'jobs without one'} ({count})" for group, count in sorted(others.items())])
    group = f"its group {own}" if own else "jobs without a group"
    return Reason(
        "groups", lambda: f"It waits for a free slot: {group} and others share them by weight; there wait {shown}."
    )


def _source(setting: Setting) -> str:
    if setting.source == JOB:
        return "as the job asked"
    return "nobody gave a number" if setting.source == DEFAULT else f"by {setting.source}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
