"""The limit of an array with the real thing: whoever is killed or restarted, never one more at once."""

from __future__ import annotations

import random
import signal

import pytest

from faults.scene import Scene
from redis_server import wait_until
from station import living

LIMIT, TASKS = 3, 60
#: Adds nothing to the sleep; by it the processes of tasks are found.
MARK = "0.000271828"


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.faults), pytest.param(3, marks=pytest.mark.faults)]
)
def test_never_one_more_than_the_limit(cluster, ledger, redis_server, seed):
    """What counts are processes, not what the store says of them."""
    scene = Scene(cluster, ledger, redis_server)
    dice = random.Random(seed)
    with scene.client as client:
        scene.start(slots=4)
        array = client.submit(["sleep", "0.1", MARK], array=f"1-{TASKS}%{LIMIT}", max_crashes=50, retries=20)
        most = 0

        def has_ended_so_many(number: int) -> bool:
            nonlocal most
            scene.keep_up()
            most = max(most, len(living(MARK)))
            assert most <= LIMIT, f"one more than the limit\n{cluster.logs()}"
            return array.refresh().ended or (array.counts is not None and array.counts.ended >= number)

        for number in range(6):
            wait_until(lambda number=number: has_ended_so_many(6 * number + 3), 60, "it goes on", every=0.01)
            if number % 2:
                scene.master.kill(dice.choice(["dispatcher", "collector"]))
            else:
                scene.slave.signal(f"channel {dice.choice('12')}", dice.choice([signal.SIGKILL, signal.SIGTERM]))
        wait_until(lambda: has_ended_so_many(TASKS + 1), 90, f"all have ended\n{cluster.logs()}", every=0.01)
        assert most == LIMIT, "void: so many never ran"
        assert array.outcome == "succeeded", array.error
        assert array.counts is not None and array.counts.outcomes == {"succeeded": TASKS}
