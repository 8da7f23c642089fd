"""``submit --file``: a stream of jobs, one JSON object a line, in flat memory.

Lines are submitted as they come: a slow writer need not wait until a batch is full, a fast one gets full batches.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from jobschedd.cli.context import note
from jobschedd.client.api import CHUNK, CHUNK_BYTES
from jobschedd.errors import InvalidJob, JobschedError, NoParent, UsageError
from jobschedd.job import Submission, Target
from jobschedd.links import Refs, targets
from jobschedd.submission import submission

if TYPE_CHECKING:
    from jobschedd.client import Client
    from jobschedd.client.session import Durable

_READ = 256 * 1024
_LONGEST_LINE = 16 << 20
#: Different targets to look up, so that a typing error in a channel is noticed.
_MOST_TARGETS = 1000

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Line = tuple[int, bytes]
Numbered = tuple[int, Submission]


class BadLine(InvalidJob):
    """A line that is no job: which, and what is wrong with it."""

    def __init__(self, path: str, number: int, field: str, problem: str) -> None:
        where = f"{path if path != '-' else 'standard input'}:{number}"
        super().__init__(f"{where}: {field}" if field else where, problem)


def submit_file(
    client: Client, path: str, defaults: Mapping[str, Any], wait: bool, durable: Durable | None = None
) -> int:
    """Submit every line of ``path``, print one id a line; an exit code. Raises BadLine, StoreUnavailable, QueueFull"""
    feed = _Feed(client, path, defaults, durable)
    ids: list[str] = []
    try:
        with ExitStack() as stack:
            progress = stack.enter_context(_Progress(feed.size))
            for accepted in feed.accepted():
                click.echo("\n".join(accepted))
                sys.stdout.flush()
                progress.show(feed.submitted, feed.read)
                if wait:
                    ids += accepted
    except (JobschedError, KeyboardInterrupt):
        note(f"{feed.submitted} job{_were(feed.submitted)} submitted before this")
        raise
    if durable is not None and durable.confirmed is not None:
        note(f"durable: {durable.confirmed}")
    from jobschedd.cli.submit import warn_of_hooks

    warn_of_hooks(client, defaults)
    if not wait:
        return 0
    from jobschedd.cli.endings import wait_for
    from jobschedd.cli.exits import ours
    from jobschedd.client import Job

    with ours():
        return wait_for(client, [Job(client, job_id) for job_id in ids], None)


def _were(count: int) -> str:
    return " was" if count == 1 else "s were"


class _Feed:
    def __init__(self, client: Client, path: str, defaults: Mapping[str, Any], durable: Durable | None) -> None:
        self._durable = durable
        self._refs = Refs()
        self.submitted = 0
        self.read = 0
        self._client = client
        self._path = path
        self._defaults = defaults
        self._targets: set[Target] = set()
        try:
            self._fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            about = os.fstat(self._fd)
            if stat.S_ISDIR(about.st_mode):
                raise UsageError(f"--file: {path} is a directory")
        except OSError as error:
            raise UsageError(f"--file: cannot read {path}: {error.strerror}") from None
        self.size = about.st_size if stat.S_ISREG(about.st_mode) else None

    def accepted(self) -> Iterator[list[str]]:
        """The ids of one batch after the other."""
        for lines in self._batches():
            yield from _one_ahead(self._send, self._chunks(lines))

    def _chunks(self, lines: list[Line]) -> Iterator[list[Numbered]]:
        chunk: list[Numbered] = []
        size = 0
        bad: BadLine | None = None
        for number, line in lines:
            try:
                job = self._job(number, line)
            except BadLine as error:
                bad = error
                break
            if chunk and (len(chunk) == CHUNK or size + job.size > CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append((number, job))
            size += job.size
        if chunk:
            yield chunk
        if bad is not None:
            raise bad

    def _send(self, chunk: list[Numbered]) -> list[str]:
        from jobschedd.cli.submit import submit_all

        jobs = [job for _, job in chunk]
        try:
            ids = submit_all(self._client, jobs, self._durable, self._refs)
        except NoParent as error:
            number = next(number for number, job in chunk if error.parent in targets(job))
            raise BadLine(self._path, number, error.field, error.problem) from None
        self.submitted += len(ids)
        for job in jobs:
            if job.target not in self._targets and len(self._targets) < _MOST_TARGETS:
                self._targets.add(job.target)
                self._warn_unserved(job.target)
        return ids

    def _warn_unserved(self, target: Target) -> None:
        if not self._client.session.served(target):
            from jobschedd.cli.submit import could_run

            note(f"warning: some jobs wait: no channel has ever been seen that {could_run(target)}")

    def _job(self, number: int, line: bytes) -> Submission:
        try:
            item = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadLine(self._path, number, "", f"no JSON: {error}") from None
        if not isinstance(item, dict):
            raise BadLine(self._path, number, "", 'must be a JSON object, such as {"command": ["true"]}')
        try:
            return self._refs.check(submission({**self._defaults, **item}))
        except InvalidJob as error:
            raise BadLine(self._path, number, error.field, error.problem) from None

    def _batches(self) -> Iterator[list[Line]]:
        """Whatever whole lines there are, at most one read's worth; blank lines are left out."""
        rest, number = b"", 0
        while data := os.read(self._fd, _READ):
            self.read += len(data)
            *lines, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
            if len(rest) > _LONGEST_LINE:
                raise BadLine(self._path, number + len(lines) + 1, "", f"is longer than {_LONGEST_LINE} bytes")
            yield [(number + at, line) for at, line in enumerate(lines, 1) if line.strip()]
            number += len(lines)
        if rest.strip():
            yield [(number + 1, rest)]


def _one_ahead(send: Callable[[Item], Answer], items: Iterator[Item]) -> Iterator[Answer]:
    """The answers to all items, in order: the next one is made ready while the server is at work on the last.

    Where ``items`` ends with a bad line, that comes last.
    """
    under_way: Future[Answer] | None = None
    bad: BadLine | None = None
    more = True
    while more:
        try:
            item = next(items, None)
        except BadLine as error:
            item, bad = None, error
        more = item is not None
        before = None if under_way is None else under_way.result()
        under_way = None if item is None else _begun(send, item)
        if before is not None:
            yield before
    if bad is not None:
        raise bad


def _begun(send: Callable[[Item], Answer], item: Item) -> Future[Answer]:
    """In a thread that does not keep a process that was told to end."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(send(item))
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=run, name="jobsched feed", daemon=True).start()
    return answer


class _Progress:
    """A progress bar on standard error, where people look at it and it does not run into the ids."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty() and not sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("{task.fields[jobs]:,} jobs, {task.fields[rate]:,.0f}/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, jobs=0, rate=0.0)
        return self

    def show(self, jobs: int, read: int) -> None:
        """So many jobs and bytes are through."""
        if self._bar is not None:
            elapsed = self._bar.tasks[0].elapsed or 1e-9
            self._bar.update(self._task, completed=read, jobs=jobs, rate=jobs / elapsed)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
