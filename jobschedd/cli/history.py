"""``history``: attempts that ended, from the histories of all live masters."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json_lines
from jobschedd.cli.exits import SAME_WORD
from jobschedd.cli.render import moment, print_table
from jobschedd.durations import format_duration, parse_duration
from jobschedd.errors import InvalidJob, UsageError
from jobschedd.job import Outcome

if TYPE_CHECKING:
    from jobschedd.client.history import Histories
    from jobschedd.store.attempts import Attempt

_LIMIT = 50
_HEADERS = ("JOB", "TRY", "OUTCOME", "CAUSE", "EXIT", "WHERE", "ENDED", "TOOK", "NAME", "WHAT")


@click.command("history", short_help="List attempts that ended, from the masters' histories.")
@click.option("--job", metavar="ID", help="Only this job: each of its attempts.")
@click.option("--node", metavar="NODE", default="", help="Only what ran there.")
@click.option("--channel", metavar="[NODE/]CHANNEL", default="", help="Only what ran on this channel.")
@click.option("--name", metavar="PATTERN", default="", help="Only names that match, such as 'backup-*'.")
@click.option("--label", metavar="LABEL", default="", help="Only jobs that asked for this label.")
@click.option("--state", "--outcome", "words", metavar="WORD", multiple=True, help="Only this outcome; or a,b.")
@click.option("--cause", metavar="CAUSE", default="", help="Only this cause, such as oom or timeout.")
@click.option("--schedule", metavar="NAME", default="", help="Only jobs of this schedule.")
@click.option("--since", metavar="TIME", help="Ended then or later: 2h (ago), or an ISO 8601 time.")
@click.option("--until", metavar="TIME", help="Ended before then.")
@click.option("--final", is_flag=True, help="Only accepted ends, not the tries that another one followed.")
@click.option("--limit", type=click.IntRange(0), help=f"At most so many; 0 for all. [default: {_LIMIT}; all to export]")
@click.option("--export", "form", type=click.Choice(["jsonl", "csv"]), help="Write all of it in this form.")
@click.option("--output", metavar="FILE", help="Where to export to. [default: standard output]")
@json_option
@connection_options
def history_command(
    words: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int | None,
    form: str | None,
    output: str | None,
    as_json: bool,
    **which: Any,
) -> int:
    """List attempts that ended, newest first. Every live master is asked; what several have is shown once.

    An attempt stays there for master.history_keep, long after the job's record is gone. Exit code 1: not every master
    answered, so something may be missing; 69: none did.
    """
    if output is not None and form is None:
        raise UsageError("--output needs --export jsonl or --export csv")
    if limit is None:
        limit = 0 if form else _LIMIT
    outcomes = [word for text in words for word in text.split(",")]
    found = connect().history(
        outcomes=outcomes, since=_point("--since", since), until=_point("--until", until), limit=limit, **which
    )
    if form:
        with _destination(output) as file:
            _export(found, form, file)
    elif as_json:
        print_json_lines(attempt.json() for attempt in found)
    else:
        print_table(_HEADERS, (_row(attempt) for attempt in found))
    return _end(found)


def _end(found: Histories) -> int:
    if found.problem is None:
        return 0
    note(f"not all of it: {found.problem}")
    return found.problem.exit_code


def _point(option: str, text: str | None) -> float | None:
    """``2h``: so long ago; else a point in time."""
    from jobschedd.submission import point_in_time

    if text is None:
        return None
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        try:
            return point_in_time(text).timestamp()
        except InvalidJob:
            problem = "is neither a duration such as 2h nor an ISO 8601 time such as 2027-03-01T04:00"
            raise UsageError(f"{option}: {text[:50]!r} {problem}") from None


def _row(attempt: Attempt) -> tuple[str, ...]:
    outcome = next(outcome for outcome in Outcome if outcome.word == attempt.outcome)
    exit_code = "" if attempt.exit_code is None else str(attempt.exit_code)
    took = "" if attempt.duration is None else format_duration(attempt.duration)
    return (
        attempt.job,
        f"{attempt.attempt}{'' if attempt.final else ' (retried)'}",
        attempt.outcome,
        "" if attempt.cause in SAME_WORD.get(outcome, ()) else attempt.cause,
        f"sig {attempt.signal}" if attempt.signal else exit_code,
        "/".join(filter(None, (attempt.node, attempt.channel))),
        moment(attempt.ended),
        took,
        attempt.name,
        attempt.what if len(attempt.what) <= 200 else attempt.what[:199] + "…",
    )


# -- export ---------------------------------------------------------------------------------------------------


@contextmanager
def _destination(output: str | None) -> Iterator[IO[str]]:
    """A private file that has its name only once it is whole, or standard output."""
    if output is None:
        yield sys.stdout
        return
    partial = f"{output}.part"
    descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        yield file
    os.replace(partial, output)


def _export(attempts: Iterable[Attempt], form: str, file: IO[str]) -> None:
    if form == "jsonl":
        _write_jsonl(attempts, file)
    else:
        _write_csv(attempts, file)


def _write_jsonl(attempts: Iterable[Attempt], file: IO[str]) -> None:
    import msgspec

    encode = msgspec.json.Encoder().encode
    for attempt in attempts:
        file.write(encode(attempt.json()).decode() + "\n")


def _write_csv(attempts: Iterable[Attempt], file: IO[str]) -> None:
    from jobschedd.store.attempts import CSV_COLUMNS

    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for attempt in attempts:
        fields = attempt.json() | {"labels": " ".join(attempt.labels)}
        writer.writerow([_cell(fields[name]) for name in CSV_COLUMNS])


def _cell(value: object) -> object:
    """As JSON writes it; nothing where there is nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value
