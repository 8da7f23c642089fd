"""``schedule``: what runs again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json, print_json_lines
from jobschedd.cli.options import command_options, item_from, option_of, user
from jobschedd.cli.render import full_moment, moment, print_table, safe
from jobschedd.durations import format_duration
from jobschedd.errors import InvalidJob, UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client
    from jobschedd.client.schedules import Coming
    from jobschedd.schedule import Schedule
    from jobschedd.store.schedules import Fired, Stored

Command = TypeVar("Command", bound=Callable[..., Any])

_TIMING = ("cron", "every", "timezone", "dst", "start", "end", "jitter")
_POLICIES = ("catch_up", "catch_up_max", "if_running")


def _timing_options(command: Command) -> Command:
    for option in (
        click.option("--jitter", metavar="DURATION", help="Start up to so much later; the same for the same time."),
        click.option("--end", metavar="TIME", help="Not after this time."),
        click.option("--start", metavar="TIME", help="Not before this time; the anchor of --every."),
        click.option(
            "--dst",
            type=click.Choice(["skip", "run_once", "run_twice"]),
            help="For a wall-clock time that a day does not have, or has twice. [default: run_once]",
        ),
        click.option("--timezone", metavar="ZONE", help="Such as Europe/Berlin, for --cron. [default: UTC]"),
        click.option("--every", metavar="DURATION", help="At fixed intervals, counted from 1970-01-01 UTC or --start."),
        click.option(
            "--cron", metavar="EXPRESSION", help="'MIN HOUR DAY MONTH WEEKDAY', with seconds first if 6; or @daily."
        ),
    ):
        command = option(command)
    return command


@click.group("schedule", short_help="Run jobs again and again.")
def schedule_command() -> None:
    """Run jobs again and again: by cron expression in a time zone, or at fixed intervals.

    \b
    jobsched schedule add backup --cron '0 3 * * *' --timezone Europe/Berlin -- /usr/local/bin/backup
    jobsched schedule next backup

    Schedules can also stand in the master's configuration (master.schedules); those are changed there.
    """


@schedule_command.command("add")
@click.argument("schedule_name", metavar="NAME")
@_timing_options
@click.option(
    "--catch-up",
    type=click.Choice(["none", "last", "all"]),
    help="Of the times missed while no master led, run none, the last or all. [default: last]",
)
@click.option("--catch-up-max", type=int, metavar="N", help="Catch up, or queue, so many at most. [default: 100]")
@click.option(
    "--if-running",
    type=click.Choice(["skip", "queue", "replace", "allow"]),
    help="When the job of the time before has not ended: leave this one out, let it wait, cancel the other one and "
    "run after it, or run both. [default: skip]",
)
@click.option("--replace", is_flag=True, help="Change the schedule of this name, if there is one.")
@click.option("--function", metavar="MODULE:FUNCTION", help="A Python function, instead of a COMMAND.")
@click.option("--args", metavar="JSON", help="Its arguments, as a JSON array.")
@click.option("--kwargs", metavar="JSON", help="Its keyword arguments, as a JSON object.")
@command_options
@connection_options
def add_command(schedule_name: str, command: tuple[str, ...], replace: bool, **options: Any) -> None:
    """Add a schedule. The options of 'jobsched submit' hold for each of its jobs.

    \b
    jobsched schedule add backup --cron '0 3 * * *' --timezone Europe/Berlin -- /usr/local/bin/backup
    jobsched schedule add tick --every 30s --channel 1 --shell 'date >> /tmp/ticks'
    """
    if options.pop("name", None):
        raise UsageError("--name: the jobs of a schedule are called as the schedule")
    item = _item(schedule_name, options, command)
    client = connect()
    try:
        added = client.schedules.add(item, replace=replace)
    except InvalidJob as error:
        raise InvalidJob(_option(error.field), error.problem) from None
    for line in _remarks(added):
        note(line)


def _item(schedule_name: str, options: dict[str, Any], command: tuple[str, ...]) -> dict[str, Any]:
    schedule_fields = {name: options.pop(name) for name in (*_TIMING, *_POLICIES)}
    for name in ("args", "kwargs"):
        if options[name] is not None:
            options[name] = _json(f"--{name}", options[name])
    if not command and not options["shell"] and not options["function"]:
        raise UsageError("what shall it run? jobsched schedule add NAME [OPTIONS] -- COMMAND...")
    item = item_from(options | {"command": command})
    return (
        item | {"name": schedule_name} | {name: value for name, value in schedule_fields.items() if value is not None}
    )


def _json(where: str, text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        raise InvalidJob(where, f"{text!r} is no JSON") from None


def _option(field: str) -> str:
    if field == "name":
        return "NAME"
    return f"--{field.replace('_', '-')}" if field in (*_TIMING, *_POLICIES, "args") else option_of(field)


def _remarks(added: Schedule) -> Iterator[str]:
    from jobschedd.client.schedules import coming

    first = coming(added, round(time.time() * 1000), 1)
    yield f"schedule {added.name} runs first at {_local(first[0])}" if first else f"schedule {added.name} is over"
    recurrence = added.recurrence()
    if recurrence.cron is not None and recurrence.cron.hourly and added.dst != "run_twice" and _has_changes(added):
        yield (
            f"when clocks in {added.timezone} go back, nothing runs for that hour the second time; "
            "for a steady interval give --dst run_twice, or --every"
        )


def _has_changes(added: Schedule) -> bool:
    from datetime import UTC, datetime, timedelta

    zone, now = added.recurrence().zone, datetime.now(UTC)
    return len({(now + timedelta(days=day)).astimezone(zone).utcoffset() for day in range(0, 366, 7)}) > 1


@schedule_command.command("list")
@json_option
@connection_options
def list_command(as_json: bool) -> None:
    """List the schedules, with the last and the next time of each."""
    client = connect()
    found = client.schedules.all()
    if as_json:
        print_json_lines(_document(one) for one in found)
        return
    headers = ("NAME", "STATE", "WHEN", "ZONE", "LAST", "NEXT", "ORIGIN", "WHAT")
    print_table(headers, (_row(one) for one in found))


def _row(one: Stored) -> tuple[str, ...]:
    upcoming = _next(one)
    return (
        one.schedule.name,
        _state(one),
        _when(one.schedule),
        one.schedule.timezone if one.schedule.cron else "",
        moment(one.fired_for / 1000) if one.fired_for else "",
        moment(upcoming) if upcoming and not one.paused else "",
        one.origin,
        _what(one.schedule)[:200],
    )


def _state(one: Stored) -> str:
    if one.paused is not None:
        return "paused"
    return "active" if _next(one) else "over"


def _when(one: Schedule) -> str:
    return one.cron or f"every {format_duration(one.every / 1000)}"


def _what(one: Schedule) -> str:
    job = one.job
    return f"{job['function']}()" if "function" in job else job.get("shell") or " ".join(job.get("command", ()))


def _next(one: Stored) -> float | None:
    found = next(one.schedule.recurrence().after(max(one.cursor, round(time.time() * 1000))), None)
    return None if found is None else found / 1000


def _document(one: Stored) -> dict[str, Any]:
    schedule = one.schedule
    return {
        "name": schedule.name,
        "state": _state(one),
        "cron": schedule.cron or None,
        "every": schedule.every / 1000 or None,
        "timezone": schedule.timezone,
        "dst": schedule.dst.value,
        "catch_up": schedule.catch_up.value,
        "catch_up_max": schedule.catch_up_max,
        "if_running": schedule.if_running.value,
        "jitter": schedule.jitter / 1000,
        "start": schedule.start / 1000 or None,
        "end": schedule.end / 1000 or None,
        "job": schedule.job,
        "origin": one.origin,
        "paused": one.paused,
        "last": one.fired_for / 1000 or None,
        "last_job": one.job or None,
        "next": None if one.paused is not None else _next(one),
        "waiting": [moment / 1000 for moment in one.waiting],
        "fired": one.fired,
        "skipped": one.skipped,
        "missed": one.missed,
    }


@schedule_command.command("show")
@click.argument("name", metavar="NAME")
@json_option
@connection_options
def show_command(name: str, as_json: bool) -> None:
    """Show everything about one schedule: its policies, what it did last, and why it does not fire."""
    client = connect()
    stored = client.schedules.get(name)
    fires = client.schedules.fires(name)
    outcomes = _outcomes(client, fires)
    if as_json:
        lines = [_fired(fire, outcomes) for fire in fires]
        print_json(_document(stored) | {"explanation": list(why(client, stored)), "fires": lines})
        return
    for label, value in _details(stored):
        click.echo(f"{label + ':':<13}{value}")
    for sentence in why(client, stored):
        click.echo(safe(sentence))
    if fires:
        headers = ("TIME", "WHAT", "JOB", "OUTCOME", "LATE")
        print_table(headers, (_fire_row(fire, outcomes) for fire in fires))


def _details(one: Stored) -> Iterator[tuple[str, str]]:
    schedule = one.schedule
    yield "schedule", f"{schedule.name} ({_state(one)})"
    yield "what", safe(_what(schedule))
    options = {name: value for name, value in schedule.job.items() if name not in ("command", "shell", "function")}
    if options:
        yield "options", safe(", ".join(f"{name} {value}" for name, value in options.items()))
    yield "when", _when(schedule) + (f" in {schedule.timezone}, dst {schedule.dst}" if schedule.cron else "")
    for label, bound in (("start", schedule.start), ("end", schedule.end)):
        if bound:
            yield label, full_moment(bound / 1000)
    if schedule.jitter:
        yield "jitter", f"up to {format_duration(schedule.jitter / 1000)}"
    yield (
        "policies",
        f"catch up {schedule.catch_up} (at most {schedule.catch_up_max}), if running {schedule.if_running}",
    )
    yield "origin", "the master's configuration" if one.origin == "config" else "jobsched schedule add"
    counts = (("fired", one.fired), ("skipped", one.skipped), ("missed", one.missed))
    yield "counts", ", ".join(f"{count} {word}" for word, count in counts)
    if one.fired_for:
        yield "last", f"{full_moment(one.fired_for / 1000)}, job {one.job}"
    upcoming = _next(one)
    if upcoming and one.paused is None:
        yield "next", full_moment(upcoming)


def why(client: Client, one: Stored) -> Iterator[str]:
    """Sentences about why it fires when it does, or does not."""
    if one.paused is not None:
        by = f" by {one.paused['by']}" if one.paused.get("by") else ""
        reason = f": {one.paused['reason']}" if one.paused.get("reason") else ""
        since = full_moment(one.paused.get("since") or 0.0)
        yield f"It is paused{by} since {since}{reason}. Its times pass without a job."
        yield f"To let it fire again, from its next time on: jobsched schedule resume {one.schedule.name}"
        return
    if client.inspect.leader() is None:
        yield "No master leads: nothing fires. Start a daemon with role master."
    upcoming = _next(one)
    if upcoming is None:
        yield "It is over: none of its times is left."
    else:
        yield f"It fires next at {full_moment(upcoming)}."
    if one.waiting:
        many = "1 time waits" if len(one.waiting) == 1 else f"{len(one.waiting)} times wait"
        yield f"{many} for the end of job {one.job}."


def _outcomes(client: Client, fires: list[Fired]) -> dict[str, str]:
    from jobschedd.store.views import JobView

    jobs = sorted({fire.job for fire in fires if fire.job})
    records = client.inspect.records(jobs)
    return {job: JobView(job, record).status for job, record in zip(jobs, records, strict=True) if record is not None}


def _fired(fire: Fired, outcomes: dict[str, str]) -> dict[str, Any]:
    return {
        "time": int(fire.time) / 1000,
        "at": fire.at / 1000,
        "what": fire.what,
        "job": fire.job or None,
        "status": outcomes.get(fire.job),
    }


def _fire_row(fire: Fired, outcomes: dict[str, str]) -> tuple[str, ...]:
    late = max(0.0, fire.at / 1000 - int(fire.time) / 1000)
    outcome = outcomes.get(fire.job, "") if fire.what == "fired" else ""
    return (moment(int(fire.time) / 1000), fire.what, fire.job, outcome, format_duration(late))


@schedule_command.command("next")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("-n", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="So many times.")
@_timing_options
@click.option("--after", metavar="TIME", help="Times after this one. [default: now]")
@json_option
@connection_options
def next_command(name: str | None, count: int, after: str | None, as_json: bool, **options: Any) -> None:
    """Show the next times of a schedule, or of an expression that is not one yet, with notes on changes of the clocks.

    \b
    jobsched schedule next backup
    jobsched schedule next --cron '30 2 * * *' --timezone Europe/Berlin --after 2027-03-27
    """
    from jobschedd.client.schedules import coming
    from jobschedd.schedule import schedule

    given = {field: value for field, value in options.items() if value is not None}
    if (name is None) != bool(given):
        raise UsageError("give either the NAME of a schedule, or --cron or --every")
    if name is not None:
        stored = connect().schedules.get(name)
        wanted = stored.schedule
        if stored.paused is not None:
            note(f"schedule {name} is paused: these times would pass without a job")
    else:
        try:
            wanted = schedule({"name": "expression", "command": ["true"], **given})
        except InvalidJob as error:
            raise InvalidJob(_option(error.field), error.problem) from None
    found = coming(wanted, _milliseconds(after), count)
    if as_json:
        print_json_lines(one.json() for one in found)
    else:
        for one in found:
            click.echo(_local(one) + ("  " if one.note else "") + one.note)
    if len(found) < count:
        note(f"only {len(found)} of its times are left" if found else "none of its times is left")


def _milliseconds(after: str | None) -> int:
    from jobschedd.submission import point_in_time

    if after is None:
        return round(time.time() * 1000)
    try:
        return round(point_in_time(after).timestamp() * 1000)
    except InvalidJob as error:
        raise InvalidJob("--after", error.problem) from None


def _local(one: Coming) -> str:
    text = one.local.isoformat(sep=" ", timespec="milliseconds" if one.local.microsecond else "seconds")
    jitter = f" (+{format_duration(one.starts - one.at)})" if one.starts != one.at else ""
    return f"{one.local:%a} {text} {one.local.tzname()}{jitter}" if one.runs else f"{one.local:%a} {text} --"


@schedule_command.command("pause")
@click.argument("name", metavar="NAME")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it paused.")
@connection_options
def pause_command(name: str, reason: str) -> None:
    """Let the times of a schedule pass until it is resumed. Its jobs are left alone."""
    if not connect().schedules.pause(name, reason, user()):
        note(f"schedule {name} was paused already; jobsched schedule show {name} says by whom")


@schedule_command.command("resume")
@click.argument("name", metavar="NAME")
@connection_options
def resume_command(name: str) -> None:
    """Let a paused schedule fire again, from its next time on: what passed meanwhile is not caught up."""
    if not connect().schedules.resume(name):
        raise UsageError(f"schedule {name} is not paused")


@schedule_command.command("remove")
@click.argument("name", metavar="NAME")
@connection_options
def remove_command(name: str) -> None:
    """Remove a schedule. Jobs that it has fired stay."""
    connect().schedules.remove(name)
