"""What is kept of a stream, against the plain definition of it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import Captured
from jobschedd.slave.loop import Loop
from jobschedd.slave.output import CHUNK, CHUNKS_AT_ONCE, Excerpt, Stream


@given(limit=st.integers(0, 60), chunks=st.lists(st.binary(max_size=80), max_size=30))
def test_an_excerpt_is_the_first_quarter_and_the_last_three(limit, chunks):
    excerpt = Excerpt(limit)
    for chunk in chunks:
        excerpt.add(chunk)
    stream = b"".join(chunks)
    head = stream[: limit // 4]
    rest = stream[len(head) :]
    tail = rest[max(0, len(rest) - (limit - limit // 4)) :]
    assert excerpt.captured == Captured(head, tail, len(stream))
    assert excerpt.captured.truncated == (len(stream) > limit)
    for offset, data in excerpt.pieces:
        assert stream[offset : offset + len(data)] == data


def test_single_bytes_take_no_more_memory_than_they_are():
    excerpt = Excerpt(1000)
    for _ in range(100_000):
        excerpt.add(b"x")
    assert excerpt.captured == Captured(b"x" * 250, b"x" * 750, 100_000)


@pytest.fixture
def pipe():
    loop = Loop()
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    closed = []
    stream = Stream(1, ours, 1000, loop, lambda: closed.append(True))
    yield loop, stream, theirs, closed
    stream.close()
    if not closed:
        os.close(theirs)
    loop.close()


def test_its_end_is_said_once(pipe):
    loop, stream, theirs, closed = pipe
    stream.watch()
    stream.watch()
    os.write(theirs, b"hello")
    loop.run_once(1)
    assert (stream.excerpt.size, closed) == (5, [])
    os.close(theirs)
    loop.run_once(1)
    loop.run_once(0)
    assert (stream.fd, closed) == (-1, [True])


def test_a_call_for_nothing_is_harmless(pipe):
    _, stream, _, closed = pipe
    stream.read()
    assert (stream.excerpt.size, closed) == (0, [])


def test_one_go_is_bounded(pipe):
    _, stream, theirs, _ = pipe
    written = []

    def refill(number: int, offset: int, data: bytes) -> None:
        written.append(os.write(theirs, bytes(CHUNK)))  # somebody writes as fast as we read

    os.write(theirs, bytes(CHUNK))
    stream.listen(refill)
    stream.read()
    assert len(written) == CHUNKS_AT_ONCE
