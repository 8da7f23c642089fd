"""Why a job is where it is: one true sentence, with what would let it go on.

Each reason is a function of the facts that answers None where it does not apply. They are asked in a fixed order,
and the first that applies is the answer. The code is an interface (docs/json.md); the sentence is made only when
somebody reads it, so that a listing can have the codes of many jobs for one look at the fleet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobschedd.client import restraints
from jobschedd.client.facts import Facts, Fleet
from jobschedd.client.reason import Reason
from jobschedd.durations import format_duration
from jobschedd.job import Cause, Flag, Outcome, State, Target
from jobschedd.labels import LABEL
from jobschedd.limits import group_key
from jobschedd.store.inspect import Inspect
from jobschedd.store.views import ChannelView, JobView

#: Names that one sentence lists before it says how many more there are.
_SHOWN = 3


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is. ``state`` is None where there is no record."""

    id: str
    state: str | None
    reason: str
    sentence: str

    def json(self) -> dict[str, Any]:
        """As in docs/json.md."""
        return {"id": self.id, "state": self.state, "reason": self.reason, "explanation": [self.sentence]}


def explain(inspect: Inspect, job_id: str, view: JobView | None) -> Explanation:
    """``view``: its record, None where there is none. Raises StoreUnavailable, StoreRefused."""
    if view is None:
        code, sentence = _without_record(inspect, job_id)
        return Explanation(job_id, None, code, sentence)
    reason = reason_of(Facts(Fleet(inspect), view))
    return Explanation(view.id, view.header.state.word, reason.code, reason.tell())


def waiting_code(fleet: Fleet, view: JobView) -> str:
    """The code of what a job waits for, empty where it does not wait. For many jobs, with one look at the fleet."""
    waits = view.header.state in (State.PENDING, State.SCHEDULED, State.WAITING)
    return reason_of(Facts(fleet, view)).code if waits else ""


def reason_of(facts: Facts) -> Reason:
    """The first reason that applies."""
    for look in REASONS[facts.state]:
        if (reason := look(facts)) is not None:
            return reason
    word = facts.state.word
    return Reason(word, lambda: f"It is {word} since {moment(facts.header.since, facts)}.")


# -- what stops everything ------------------------------------------------------------------------------------


def data_lost(facts: Facts) -> Reason | None:
    """Nothing is dispatched before an operator has decided."""
    loss = facts.fleet.loss
    if loss is None:
        return None
    return Reason("data_lost", lambda: f"It waits: {loss.story}; nothing goes on before 'jobsched rebuild'.")


def no_master(facts: Facts) -> Reason | None:
    """Nobody dispatches."""
    if facts.fleet.led:
        return None
    return Reason("no_master", lambda: "It waits: no master leads; it goes on once a daemon with role master runs.")


# -- arrays ---------------------------------------------------------------------------------------------------


def array_limit(facts: Facts) -> Reason | None:
    """An array, or a task of one that has not started: as many are active as may be."""
    counts = facts.view.counts or facts.view.within
    if counts is None or not counts.not_started or not counts.limit or counts.active < counts.limit:
        return None
    what = f"It is an array of {counts.total} tasks ({counts})" if facts.view.is_array else "It is a task of an array"
    text = f"{what}: {counts.active} of at most {counts.limit} are active; the end of one of them starts the next."
    return Reason("array_limit", lambda: text)


def array_running(facts: Facts) -> Reason | None:
    """An array as a whole."""
    if not facts.view.is_array:
        return None
    return Reason("array", lambda: _array_running(facts))


def _array_running(facts: Facts) -> str:
    counts = facts.view.counts
    if counts is None:
        return "It is an array, and its counts are gone."
    if facts.view.spec.all_nodes:
        return f"It has a task on each of {counts.total} places ({counts}): it ends with the last of them."
    rest = (
        "those that have not started wait for free channels" if counts.not_started else "it ends with the last of them"
    )
    return f"It is an array of {counts.total} tasks ({counts}): {rest}."


# -- what stops this job --------------------------------------------------------------------------------------


def publish_again(facts: Facts) -> Reason | None:
    """pubsub: it reached nobody."""
    if facts.view.result.cause != Cause.NO_RECEIVER:
        return None
    return Reason(
        "no_receiver",
        lambda: f"It waits until {moment(facts.header.since, facts)} to be published again: {facts.view.result.error}.",
    )


def back_off(facts: Facts) -> Reason | None:
    """It failed, and has tries left."""
    if not facts.header.attempt:
        return None
    return Reason("retry_back_off", lambda: _back_off(facts))


def _back_off(facts: Facts) -> str:
    budget = f"{facts.header.tries} of {facts.spec.retries} retries used"
    return f"It waits until {moment(facts.header.since, facts)}: attempt {facts.header.attempt} failed ({budget})."


def scheduled(facts: Facts) -> Reason | None:
    """Its time has not come."""
    return Reason("scheduled", lambda: f"It waits until it is due, at {moment(facts.header.since, facts)}.")


def dependency(facts: Facts) -> Reason | None:
    """Other jobs must end first."""
    return Reason("dependency", lambda: _dependency(facts))


def _dependency(facts: Facts) -> str:
    conditions = dict(condition.rpartition(":")[::2] for condition in facts.spec.after)
    awaited = facts.inspect.awaited(facts.view.id)
    missing = [parent for parent in conditions if parent in awaited]
    due = facts.view.due_ms
    besides = f", but not before {moment(due, facts)}" if due else ""
    if Flag.HELD in facts.header.flags:
        besides += f", and is held then until 'jobsched release {facts.view.id}'"
    if not missing:
        return f"What it waited for has come: a master lets it go on in a moment{besides}."
    wishes = [_wish(facts, parent, conditions[parent]) for parent in missing[:_SHOWN]]
    if len(missing) > _SHOWN:
        wishes.append(f"{len(missing) - _SHOWN} more jobs have ended as it asks")
    return f"It waits for {len(missing)} of {len(conditions)} jobs: it goes on when {' and '.join(wishes)}{besides}."


_WISHES = {"ok": "has succeeded", "any": "has ended", "fail": "has ended without success"}


def _wish(facts: Facts, parent: str, condition: str) -> str:
    view = facts.inspect.job(parent)
    name = f" ({view.spec.name})" if view is not None and view.spec.name else ""
    now = "it has no record" if view is None else f"it {'has ended: ' if view.ended else 'is '}{view.status}"
    return f"job {parent}{name} {_WISHES.get(condition, condition)} ({now})"


def held(facts: Facts) -> Reason | None:
    """A user holds it."""
    if Flag.HELD not in facts.header.flags:
        return None
    return Reason("held", lambda: _held(facts))


def _held(facts: Facts) -> str:
    # A task that has not started is held with its array.
    job = facts.view.id.partition("_")[0] if facts.view.within else facts.view.id
    said = facts.inspect.held(job)
    since = f" since {moment(round(float(said['since']) * 1000), facts)}" if said.get("since") else ""
    what = "It is held"
    if facts.view.within:
        what = f"Its array, {job}, is held"
    elif facts.header.state is State.RUNNING:
        what = f"It is an array ({facts.view.counts}), and what has not started is held"
    return f"{what}{since}{_remark(said)}; 'jobsched release {job}' lets it go on."


def group_paused(facts: Facts) -> Reason | None:
    """A user has paused its group. Of a running array, that matters while tasks have not started."""
    group = facts.spec.group
    said = facts.fleet.drains.get(group_key(group)) if group else None
    counts = facts.view.counts
    if said is None or (facts.state is State.RUNNING and (counts is None or not counts.not_started)):
        return None
    resume = f"'jobsched resume --group {group}' lets it go on"
    return Reason("paused", lambda: f"It waits: its group {group} is paused{_remark(said)}; {resume}.")


# -- where it could run ---------------------------------------------------------------------------------------


def no_channel(facts: Facts) -> Reason | None:
    """Nobody of that name was ever there."""
    target = Target(channel=facts.target.channel, node=facts.target.node)
    if facts.fleet.admitting(target):
        return None
    return Reason(
        "no_channel",
        lambda: f"It waits: no channel has ever been seen that {_wished(target)}; it goes on once one is started.",
    )


def no_label(facts: Facts) -> Reason | None:
    """Somebody of that name, but none with the labels."""
    if facts.candidates:
        return None
    return Reason("no_label", lambda: _no_label(facts))


def _no_label(facts: Facts) -> str:
    target = Target(channel=facts.target.channel, node=facts.target.node)
    labels = sorted({label for channel in facts.fleet.admitting(target) for label in channel.labels})
    there = f"there are {', '.join(labels)}" if labels else "they have none"
    wished = " and ".join(facts.target.labels)
    plain = all(LABEL.fullmatch(label) for label in facts.target.labels)
    wish = f"has the label {wished}" if plain else f"meets the labels '{wished}'"
    verb = "has" if plain else "does"
    return f"It waits: no channel that {_wished(target)} {wish} ({there}); it goes on once one {verb}."


def offline(facts: Facts) -> Reason | None:
    """Whoever could run it is gone or silent."""
    if any(channel.state not in ("down", "lost") for channel in facts.candidates):
        return None
    return Reason("offline", lambda: _offline(facts))


def _offline(facts: Facts) -> str:
    ones = [f"{channel.name} is {_absence(channel)}" for channel in facts.candidates]
    who = "the only channel" if len(ones) == 1 else f"none of the {len(ones)} channels"
    verb = "is not there" if len(ones) == 1 else "is there"
    return f"It waits: {who} that could run it {verb} ({listed(ones)}); it goes on once one is back."


def _absence(channel: ChannelView) -> str:
    return "down" if channel.state == "down" else "silent, its lease has ended"


def drained(facts: Facts) -> Reason | None:
    """Whoever could run it takes nothing new."""
    if facts.up:
        return None
    present = [channel for channel in facts.candidates if channel.state in ("draining", "drained", "paused")]
    code = "paused" if all(channel.state == "paused" for channel in present) else "drained"
    return Reason(code, lambda: _drained(facts, present))


def _drained(facts: Facts, present: list[ChannelView]) -> str:
    drains = facts.fleet.drains
    names = sorted({name for channel in present for name in _drains_of(channel, drains)})
    said = [f"{name} is {_how_drained(drains[name], facts)}{_remark(drains[name])}" for name in names]
    resume = f"'jobsched resume {names[0]}'" if names else "'jobsched resume'"
    return f"It waits: {listed(said)}; {resume} lets it go on."


def _drains_of(channel: ChannelView, drains: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name in (channel.node, channel.channel, channel.name) if name in drains]


def _how_drained(drain: dict[str, Any], facts: Facts) -> str:
    if drain.get("pause"):
        return "paused"
    if not drain.get("deadline"):
        return "drained"
    then = {"requeue": "then its jobs run elsewhere", "kill": "then its jobs are cancelled"}.get(drain.get("then", ""))
    return f"drained until {moment(round(drain['deadline'] * 1000), facts)}" + (f", {then}," if then else "")


def _remark(said_by_user: dict[str, Any]) -> str:
    """What a user gave as reason, and who it was."""
    parts = [str(said_by_user.get("reason") or ""), f"by {said_by_user['by']}" if said_by_user.get("by") else ""]
    said = ", ".join(filter(None, parts))
    return f" ({said})" if said else ""


# -- its turn -------------------------------------------------------------------------------------------------


def higher_priority(facts: Facts) -> Reason | None:
    """More urgent jobs wait for the same channels."""
    ahead = facts.fleet.above(facts.target, facts.header.priority)
    if facts.free or not ahead:
        return None
    return Reason(
        "priority",
        lambda: (
            f"It waits: {_jobs(ahead)} of higher priority {_are(ahead)} ahead for the same channels "
            f"({_busy_slots(facts)}); it goes on when they have started and a slot is free."
        ),
    )


def busy(facts: Facts) -> Reason | None:
    """No slot is free."""
    if facts.free:
        return None
    return Reason("busy", lambda: _busy(facts))


def _busy(facts: Facts) -> str:
    ahead, exact = facts.inspect.ahead_of(facts.view)
    about = "" if exact else "about "
    line = f"{about}{_jobs(ahead)} {_are(ahead)} ahead of it in line" if ahead else "it is the next in line"
    return f"It waits: {_busy_slots(facts)}; {line}, and it starts when a slot is free."


def _busy_slots(facts: Facts) -> str:
    slots = sum(channel.slots for channel in facts.up)
    names = listed([channel.name for channel in facts.up])
    running = facts.inspect.some_entries([channel.incarnation for channel in facts.up], _SHOWN)
    jobs = f" (with job {listed(running)})" if running else ""
    return f"{'the slot' if slots == 1 else f'all {slots} slots'} of {names} {_are(slots)} busy{jobs}"


def about_to_start(facts: Facts) -> Reason | None:
    """There is room: it is a matter of moments."""
    return Reason(
        "starting", lambda: f"It is about to be dispatched: {listed([one.name for one in facts.free])} has a free slot."
    )


# -- with a channel -------------------------------------------------------------------------------------------


def cancelling(facts: Facts) -> Reason | None:
    """A user asked for its end."""
    if Flag.CANCEL_REQUESTED not in facts.header.flags:
        return None
    return Reason(
        "cancelling",
        lambda: f"It is being cancelled on {facts.place_name}: TERM was asked for, and KILL follows after the grace.",
    )


def channel_silent(facts: Facts) -> Reason | None:
    """Whoever has it is not heard of."""
    if facts.place is None or facts.place.state != "lost":
        return None
    return Reason("channel_silent", lambda: _channel_silent(facts))


def _channel_silent(facts: Facts) -> str:
    patience = f" and {format_duration(facts.spec.lost_after)} more" if facts.spec.lost_after else ""
    then = "it is given to another channel" if facts.spec.retry_on_loss else "it ends as lost"
    return f"{facts.place_name}, which has it, is silent: {then} once that has lasted for a lease{patience}."


def suspect(facts: Facts) -> Reason | None:
    """Its channel process died under it before: it gets a channel for itself."""
    if not facts.header.crashes or facts.place is None or facts.place.entries < 2:
        return None
    return Reason(
        "suspect",
        lambda: (
            f"It waits on {facts.place_name} until nothing else runs there, for a minute at most: its channel process "
            f"died under it before ({facts.header.crashes} of {facts.spec.max_crashes} crashes)."
        ),
    )


def dispatched(facts: Facts) -> Reason | None:
    """A channel has it."""
    when = moment(facts.header.since, facts)
    return Reason("dispatched", lambda: f"It was handed to {facts.place_name} at {when} and is about to start there.")


def running(facts: Facts) -> Reason | None:
    """It runs."""
    return Reason("running", lambda: _running(facts))


def _running(facts: Facts) -> str:
    limit = f"; it is ended after {format_duration(facts.spec.timeout)}" if facts.spec.timeout else ""
    since = moment(facts.header.since, facts)
    return f"It runs on {facts.place_name}, attempt {facts.header.attempt}, since {since}{limit}."


def ended(facts: Facts) -> Reason | None:
    """It is over."""
    return Reason("ended", lambda: _ended(facts))


def _ended(facts: Facts) -> str:
    view, result = facts.view, facts.view.result
    where = "/".join(filter(None, (result.node, result.channel)))
    place = f" on {where}" if where else ""
    tries = f", at attempt {view.header.attempt}" if view.header.attempt > 1 else ""
    when = moment(round(view.ended_at * 1000), facts)
    return f"It has {_outcome(view)}{place}{tries}, at {when}{_last_line(result.error)}."


def _outcome(view: JobView) -> str:
    result = view.result
    words = {Outcome.TIMED_OUT: "timed out", Outcome.LOST: "been lost", Outcome.CANCELLED: "been cancelled"}
    word = words.get(view.outcome, {Outcome.SKIPPED: "been skipped"}.get(view.outcome, view.outcome.word))
    if result.signal:
        return f"{word} (signal {result.signal})"
    if result.cause == Cause.EXIT and result.exit_code:
        return f"{word} (exit code {result.exit_code})"
    plain = (Cause.EXIT, Cause.CANCELLED, Cause.TIMEOUT, Cause.EXPIRED, "")
    return word if result.cause in plain else f"{word} ({result.cause})"


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    return f": {lines[-1][:300].rstrip('.')}" if lines else ""


#: By state, what is asked in this order. To add a reason: write a function, and put it where it takes precedence.
REASONS: dict[State, tuple[Callable[[Facts], Reason | None], ...]] = {
    State.WAITING: (data_lost, no_master, dependency, held),
    State.SCHEDULED: (data_lost, held, publish_again, back_off, scheduled),
    State.PENDING: (
        data_lost,
        no_master,
        held,
        group_paused,
        array_limit,
        no_channel,
        no_label,
        offline,
        restraints.too_large,
        drained,
        restraints.limit,
        restraints.rate,
        restraints.place_limit,
        restraints.elsewhere,
        restraints.resources,
        restraints.slots,
        restraints.kept,
        higher_priority,
        restraints.turn,
        busy,
        about_to_start,
    ),
    State.DISPATCHED: (cancelling, channel_silent, suspect, dispatched),
    State.RUNNING: (held, group_paused, array_limit, array_running, cancelling, channel_silent, running),
    State.DONE: (ended,),
}


# -- words ----------------------------------------------------------------------------------------------------


def _without_record(inspect: Inspect, job_id: str) -> tuple[str, str]:
    newest = inspect.newest_id()
    number = job_id.partition("_")[0]
    if number.isdigit() and int(number) > newest:
        given = f"ids up to {newest} have been given so far" if newest else "no job has been submitted yet"
        return "never_submitted", f"There never was a job {job_id} in this namespace: {given}."
    return "record_expired", f"Job {job_id} has ended and its record has expired: the history may know how it ended."


def moment(milliseconds: int, facts: Facts) -> str:
    """A time with its zone, and how far away it is."""
    seconds = milliseconds / 1000
    away = seconds - facts.fleet.now
    distance = f"in {format_duration(away)}" if away > 0 else f"{format_duration(-away)} ago"
    return f"{datetime.fromtimestamp(seconds).astimezone().isoformat(sep=' ', timespec='seconds')} ({distance})"


def listed(names: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _wished(target: Target) -> str:
    if target.channel or target.node:
        return f"is {target.node or '*'}/{target.channel or '*'}"
    return "could run it"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
