"""A hint to cancel means one attempt: after a reconnect a channel reads hints of attempts long gone."""

from __future__ import annotations

from typing import Any

import pytest

from jobschedd.job import Order, Outcome, Result, Spec
from jobschedd.slave.executor import Executor
from jobschedd.slave.loop import Loop
from jobschedd.slave.settings import ExecutionSettings


@pytest.fixture
def ended() -> list[tuple[Order, Result]]:
    return []


@pytest.fixture
def executor(ended, tmp_path):
    loop = Loop()
    no_register: Any = None  # nothing starts here
    settings = ExecutionSettings(node="n1", channel="1", workdir=str(tmp_path))
    executor = Executor(1, loop, settings, no_register, lambda order, result: ended.append((order, result)))
    executor.accept([Order("7", 2, "5-1", Spec(command=("true",)))])
    yield executor
    loop.close()


@pytest.mark.parametrize(("job", "attempt"), [("7", 1), ("7", 3), ("8", 2)])
def test_a_hint_for_another_attempt_is_ignored(executor, ended, job, attempt):
    assert not executor.cancel(job, attempt)
    assert executor.knows("5-1") and ended == []


@pytest.mark.parametrize("attempt", [2, 0])
def test_a_hint_for_this_one_ends_it(executor, ended, attempt):
    assert executor.cancel("7", attempt)
    ((order, result),) = ended
    assert (order.attempt, result.outcome) == (2, Outcome.CANCELLED)
    assert executor.idle
