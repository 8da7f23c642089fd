"""The event loop: timers in their order and number, descriptors and their callbacks."""

from __future__ import annotations

import os

import pytest

from jobschedd.clock import FakeClock
from jobschedd.slave.loop import Loop


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def loop(clock):
    loop = Loop(clock)
    yield loop
    loop.close()


def test_timers_come_in_their_order_and_once(loop, clock):
    called = []
    for seconds in (3, 1, 2):
        loop.call_later(seconds, lambda seconds=seconds: called.append(seconds))
    loop.run_once(0)
    assert called == []
    clock.advance(2)
    loop.run_once(0)
    assert called == [1, 2]
    clock.advance(2)
    loop.run_once(0)
    loop.run_once(0)
    assert called == [1, 2, 3]


def test_a_cancelled_timer_is_void_even_in_the_round_it_is_due(loop, clock):
    called = []
    later = loop.call_later(2, lambda: called.append("later"))
    loop.call_later(1, later.cancel)
    clock.advance(5)
    loop.run_once(0)
    assert called == []


def test_cancelled_timers_do_not_pile_up(loop, clock):
    kept = [loop.call_later(86400, lambda: None) for _ in range(100)]
    for _ in range(20_000):
        loop.call_later(86400, lambda: None).cancel()
    assert len(loop._timers) <= 2048
    called = []
    for timer in kept:
        timer.callback = lambda: called.append(1)
    clock.advance(86400)
    loop.run_once(0)
    assert len(called) == 100


def test_a_descriptor_until_it_is_unwatched(loop):
    ours, theirs = os.pipe()
    got = []
    loop.watch(ours, lambda: got.append(os.read(ours, 10)))
    os.write(theirs, b"one")
    loop.run_once(1)
    loop.run_once(0)
    loop.unwatch(ours)
    loop.unwatch(ours)
    os.write(theirs, b"two")
    loop.run_once(0)
    assert got == [b"one"]
    os.close(ours)
    os.close(theirs)


def test_only_while_there_is_something_to_write(loop):
    ours, theirs = os.pipe()
    called = []
    loop.watch_writable(theirs, lambda: called.append(1))
    loop.run_once(1)
    loop.unwatch_writable(theirs)
    loop.unwatch_writable(theirs)
    loop.run_once(0)
    assert called == [1]
    os.close(ours)
    os.close(theirs)
