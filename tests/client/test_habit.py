"""Who waits for each job that it submits need not ask to be told of its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import Cluster
from jobschedd import Client
from jobschedd.errors import WaitTimeout
from jobschedd.store.moves import Moves


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The jobs of each call that asked to be told."""
    calls: list[list[str]] = []
    await_end: Callable[..., Any] = Moves.await_end

    def spy(moves: Moves, number: int, ids: list[str]) -> Any:
        calls.append(list(ids))
        return await_end(moves, number, ids)

    monkeypatch.setattr(Moves, "await_end", spy)
    return calls


@pytest.fixture
def client(fleet: Cluster, asked: list[list[str]]) -> Iterator[Client]:
    """One that has the habit."""
    with fleet.client() as client:
        client.submit(["true"]).wait(10)
        assert len(asked) == 1
        asked.clear()
        yield client


def test_one_job_after_the_other(client, asked):
    for number in range(20):
        assert client.call("os.path:join", ["a", str(number)]).wait(10).result == f"a/{number}"
    assert asked == []


def test_a_long_job_too(client, asked):
    assert client.submit(["sh", "-c", "sleep 0.5; exit 3"]).wait(10).exit_code == 3
    assert asked == []


def test_one_that_had_ended_before(fleet, client, asked):
    job = client.submit(["true"])
    with fleet.client() as other:
        other.wait([job.id], 10)
    asked.clear()
    assert job.wait(10).succeeded
    assert asked == []


def test_a_wait_that_was_given_up_can_be_taken_up(client, asked):
    job = client.submit(["sleep", "0.5"])
    with pytest.raises(WaitTimeout):
        job.wait(0.05)
    assert job.wait(10).succeeded
    assert asked == [[job.id]]


def test_whoever_looks_in_between_asks(client, asked):
    """What else is done may be a retry: then the end in the inbox is an old one."""
    job = client.submit(["true"])
    assert job.state
    assert job.wait(10).succeeded
    assert asked == [[job.id]]


def test_a_retry_in_between(fleet, client):
    job = client.submit(["sh", "-c", "exit $JOBSCHED_ATTEMPT"])
    with fleet.client() as other:
        other.wait([job.id], 10)
    again = client.retry(job).wait(10)
    assert (again.exit_code, again.attempt) == (2, 2)


def test_what_another_wait_took_is_asked_for(client, asked):
    first = client.submit(["sleep", "0.2"])
    second = client.submit(["sleep", "0.5"])
    assert second.wait(10).succeeded, "what it is told of the first one is not its own"
    assert first.wait(10).succeeded
    assert [first.id] in asked


def test_the_habit_ends_with_a_job_that_nobody_waits_for(client, asked):
    client.submit(["true"])
    last = client.submit(["true"])
    assert last.wait(10).succeeded
    assert asked == [[last.id]]
    assert client.submit(["true"]).wait(10).succeeded
    assert asked == [[last.id]], "and begins again"


@pytest.mark.parametrize("wish", [{"key": "k"}, {"array": "1-2"}], ids=["key", "array"])
def test_not_where_the_job_may_be_another(client, asked, wish):
    (job,) = client.submit_many([{"command": ["true"], **wish}])
    client.wait([job], 10)
    assert asked[0] == [job.id]
