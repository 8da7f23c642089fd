"""Following live output, against real daemons."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from cluster import Cluster
from jobschedd import Client, Job
from jobschedd.errors import NoSuchJob
from redis_server import wait_until


@pytest.fixture
def client(fleet: Cluster) -> Iterator[Client]:
    with fleet.client() as client:
        yield client


def streams(client: Client, job: Job) -> tuple[bytes, bytes, int]:
    out, err, missing = b"", b"", 0
    for piece in client.follow(job):
        out += piece.data if piece.stream == 1 else b""
        err += piece.data if piece.stream == 2 else b""
        missing += piece.missing
    return out, err, missing


SLOW = "for i in 1 2 3 4; do echo out $i; echo err $i >&2; sleep 0.3; done"


def test_output_comes_while_it_runs_and_once(client: Client):
    job = client.submit(["sh", "-c", SLOW], follow=True)
    begin = time.monotonic()
    arrived = [(piece.stream, piece.data, time.monotonic() - begin) for piece in client.follow(job)]

    assert b"".join(data for stream, data, _ in arrived if stream == 1) == b"out 1\nout 2\nout 3\nout 4\n"
    assert b"".join(data for stream, data, _ in arrived if stream == 2) == b"err 1\nerr 2\nerr 3\nerr 4\n"
    assert arrived[0][2] < arrived[-1][2] - 0.5, "it came bit by bit"
    assert job.outcome == "succeeded"


def test_who_comes_late_sees_everything_once(client: Client):
    job = client.submit(["sh", "-c", SLOW])
    wait_until(lambda: job.state == "running", 5, "it runs")
    time.sleep(0.4)  # it has written something by now

    assert streams(client, job) == (b"out 1\nout 2\nout 3\nout 4\n", b"err 1\nerr 2\nerr 3\nerr 4\n", 0)


def test_two_may_follow(client: Client):
    job = client.submit(["sh", "-c", SLOW], follow=True)
    first, second = client.follow(job), client.follow(job)
    together = list(zip(first, second, strict=False))

    assert together
    assert [piece.data for piece, _ in together] == [piece.data for _, piece in together]


def test_a_job_that_had_ended_shows_what_was_kept(client: Client):
    job = client.submit(["sh", "-c", "echo out; echo err >&2; exit 1"]).wait(10)

    assert streams(client, job) == (b"out\n", b"err\n", 0)


def test_binary_output_is_identical(client: Client):
    job = client.submit(["sh", "-c", "head -c 50000 /dev/urandom | tee /dev/stderr"], follow=True)
    out, err, missing = streams(client, job)

    assert (len(out), missing) == (50_000, 0)
    assert hashlib.sha256(out).digest() == hashlib.sha256(err).digest()
    assert job.output() == out


def test_long_output_has_a_hole_that_is_told(client: Client):
    job = client.submit(["sh", "-c", "seq 1 200000"]).wait(10)
    out, _, missing = streams(client, job)
    whole = b"".join(b"%d\n" % number for number in range(1, 200_001))

    assert len(out) + missing == len(whole)
    assert whole.startswith(out[:1000]) and whole.endswith(out[-1000:])
    assert b"\n... %d bytes not kept ...\n" % missing in job.output()


def test_every_attempt_is_shown(client: Client):
    line = "echo attempt $JOBSCHED_ATTEMPT; sleep 0.2; test $JOBSCHED_ATTEMPT = 2"
    job = client.submit(["sh", "-c", line], follow=True, retries=1, retry_delay=0.1)
    pieces = list(client.follow(job))

    assert [(piece.attempt, piece.data) for piece in pieces] == [(1, b"attempt 1\n"), (2, b"attempt 2\n")]
    assert job.outcome == "succeeded"


def test_a_job_that_never_starts_ends_the_following(client: Client):
    job = client.submit(["true"], channel="nobody")
    client.cancel(job)

    assert streams(client, job) == (b"", b"", 0)
    with pytest.raises(NoSuchJob):
        client.follow(999_999_999).__next__()
