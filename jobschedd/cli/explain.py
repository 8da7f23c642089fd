"""``explain``: why a job is where it is, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, json_option, print_json
from jobschedd.cli.render import full_moment, safe
from jobschedd.durations import format_duration

if TYPE_CHECKING:
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import ChannelView, JobView


@click.command("explain", short_help="Say why a job is where it is.")
@click.argument("job_id", metavar="ID")
@json_option
@connection_options
def explain_command(job_id: str, as_json: bool) -> None:
    """Say in words why a job is where it is, and what it waits for."""
    client = connect()
    view = client.job(job_id).view
    sentences = list(explanation(client.inspect, view))
    if as_json:
        print_json({"id": view.id, "state": view.header.state.word, "explanation": sentences})
        return
    for sentence in sentences:
        click.echo(safe(sentence))


def explanation(inspect: Inspect, view: JobView) -> Iterator[str]:
    """Sentences about where the job is and why."""
    yield from {
        "pending": _pending,
        "scheduled": _scheduled,
        "dispatched": _dispatched,
        "running": _running,
        "done": _done,
    }.get(view.header.state.word, _other)(inspect, view)


def _pending(inspect: Inspect, view: JobView) -> Iterator[str]:
    from jobschedd.cli.reasons import held_back
    from jobschedd.job import Target

    spec = view.spec
    target = Target.of(spec)
    yield f"It waits for a free channel, since {full_moment(view.header.since / 1000)}."
    if view.header.attempt:
        yield f"It was dispatched before: {_times(view.header.attempt)}."
    if inspect.leader() is None:
        yield "No master leads: nothing is dispatched. Start a daemon with role master."
    channels = [
        channel
        for channel in inspect.channels()
        if target.admits(channel.node, channel.channel, frozenset(channel.labels))
    ]
    yield from _about_channels(channels)
    yield from held_back(inspect, view, channels)
    waiting = inspect.pending_by_class()
    ahead = sum(
        count
        for (other, priority), count in waiting.items()
        if priority > view.header.priority and _meet(other, target)
    )
    beside = sum(
        count
        for (other, priority), count in waiting.items()
        if priority == view.header.priority and _meet(other, target)
    )
    if ahead:
        yield f"{ahead} jobs of higher priority wait for the same channels."
    if beside > 1:
        yield f"{beside - 1} other jobs of its priority wait for the same channels."


def _meet(one: object, other: object) -> bool:
    from jobschedd.job import Target

    assert isinstance(one, Target) and isinstance(other, Target)
    pairs = ((one.node, other.node), (one.channel, other.channel))
    return all(not a or not b or a == b for a, b in pairs)


def _about_channels(channels: list[ChannelView]) -> Iterator[str]:
    if not channels:
        yield "No channel that could run it has ever been seen: check --channel, --node and --label, or start one."
        return
    by_state: dict[str, list[ChannelView]] = {}
    for channel in channels:
        by_state.setdefault(channel.state, []).append(channel)
    if up := by_state.get("up"):
        free = sum(max(0, channel.slots - channel.entries) for channel in up)
        yield f"{len(up)} channels that could run it are up, with {free} free slots now."
        return
    states = ", ".join(f"{len(some)} {state}" for state, some in sorted(by_state.items()))
    yield f"Channels that could run it: {states}; none takes work now."
    if reasons := sorted({channel.drain_reason for channel in channels if channel.drain_reason}):
        yield f"Reason given for the drain: {'; '.join(reasons)}."


def _scheduled(inspect: Inspect, view: JobView) -> Iterator[str]:
    del inspect
    due = full_moment(view.header.since / 1000)
    if view.header.attempt:
        yield f"Attempt {view.header.attempt} failed; it is tried again at {due}."
        if view.result.cause == "no_receiver":
            yield f"Why: {view.result.error}. This uses up no retries."
        else:
            yield f"{view.header.tries} of {view.spec.retries} retries are used."
    else:
        yield f"It is due at {due}."


def _dispatched(inspect: Inspect, view: JobView) -> Iterator[str]:
    yield f"It was handed to {_place(inspect, view)} at {full_moment(view.header.since / 1000)}."
    yield "The channel says that it runs once it has run for a moment."
    yield from _cancelling(view)


def _running(inspect: Inspect, view: JobView) -> Iterator[str]:
    since = full_moment(view.header.since / 1000)
    yield f"It runs on {_place(inspect, view)}, attempt {view.header.attempt}, since {since}."
    if view.spec.timeout:
        yield f"It is ended after {format_duration(view.spec.timeout)}."
    yield from _cancelling(view)


def _cancelling(view: JobView) -> Iterator[str]:
    from jobschedd.job import Flag

    if view.header.flags & Flag.CANCEL_REQUESTED:
        yield "Its end was asked for: the channel sends TERM, and KILL after its grace."


def _done(inspect: Inspect, view: JobView) -> Iterator[str]:
    del inspect
    from jobschedd.cli.exits import reason

    yield f"It ended at {full_moment(view.ended_at)}: {view.status}."
    if why := reason(view, view.id):
        yield f"{why}."
    elif view.result.exit_code:
        yield f"Its exit code was {view.result.exit_code}."
    if view.header.attempt > 1:
        yield f"It was dispatched {_times(view.header.attempt)}."


def _other(inspect: Inspect, view: JobView) -> Iterator[str]:
    del inspect
    yield f"It is {view.header.state.word} since {full_moment(view.header.since / 1000)}."


def _place(inspect: Inspect, view: JobView) -> str:
    place = inspect.places([view]).get(view.header.incarnation)
    return "/".join(place) if place else "a channel that is gone; its jobs are being taken back"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
