"""``logs``: what a job wrote, now or as it comes."""

from __future__ import annotations

import codecs
import os
import time

import click

from jobschedd.cli.context import connect, connection_options, note
from jobschedd.cli.render import safe_lines
from jobschedd.errors import UsageError

#: Seconds that a look at a job that has not ended may take, and how long it waits for its channel to send anything.
_LONGEST_LOOK, _LONGEST_SILENCE = 3.0, 1.5


class Writer:
    """Writes a job's bytes to our standard output and error; for a terminal with its controls escaped, unless raw."""

    def __init__(self, raw: bool) -> None:
        self._escape = {stream: not raw and os.isatty(stream) for stream in (1, 2)}
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("backslashreplace") for stream in self._escape}

    def write(self, stream: int, data: bytes, missing: int = 0) -> None:
        """Bytes of a job's ``stream``, and how many before them were not kept."""
        if missing:
            note(f"... {missing} bytes of {'stdout' if stream == 1 else 'stderr'} not kept ...")
        if self._escape[stream]:
            text = self._decoders[stream].decode(data).replace("\r\n", "\n")
            data = safe_lines(text).encode()
        write_all(stream, data)


def write_all(fd: int, data: bytes) -> None:
    """Every byte, unbuffered, so that two streams keep their order. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@click.command("logs", short_help="Print what a job wrote.")
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--raw", is_flag=True, help="Let control sequences through to the terminal.")
@connection_options
def logs_command(job_id: str, follow: bool, raw: bool) -> None:
    """Print what a job wrote, its standard output and its standard error each to our own.

    Of long output the first and the last part are kept. On a terminal, control sequences are shown, not obeyed.
    """
    client = connect()
    job = client.job(job_id)
    if job.is_array:
        raise UsageError(
            f"job {job_id} is an array: name a task, such as {job_id}_1 (see 'jobsched list --tasks {job_id}')"
        )
    state = job.state
    if not follow and state in ("pending", "scheduled", "waiting"):
        note(f"job {job_id} is {state}: it has written nothing yet")
        return
    follower = client.follower(job_id)
    writer = Writer(raw)
    attempt, begin = 0, time.monotonic()
    for piece in follower.pieces():
        if piece is not None:
            if attempt and piece.attempt > attempt:
                note(f"--- attempt {piece.attempt} ---")
            attempt = piece.attempt
            writer.write(piece.stream, piece.data, piece.missing)
        looked = time.monotonic() - begin
        if not follow and (looked > _LONGEST_LOOK or (piece is None and (attempt or looked > _LONGEST_SILENCE))):
            note(f"job {job_id} is {client.job(job_id).state}; 'jobsched logs -f {job_id}' goes on")
            break
