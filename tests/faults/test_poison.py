"""Jobs that kill their channel process: they stop at exactly ``max_crashes``, and nobody else suffers for it."""

from __future__ import annotations

from collections import Counter

import pytest

from faults.scene import of_account, tallied
from ledger import SUCCESS, judge
from redis_server import wait_until

POISON = frozenset({("failed", "poison")})


def poison(ledger, kind: str, **options):
    """Kills the process that supervises it, a moment after its start."""
    item = getattr(ledger, kind)(seconds=0.3, **options)
    if kind == "item":
        command = item["command"]
        command[2] = command[2].replace("say stop", 'kill -9 "$PPID"; sleep 30')
    else:
        item["function"] = "ledger_poison:run"
        module = (ledger.path.parent / "ledger_job.py").read_text()
        assert module.count('say("stop")') == 1
        module = module.replace('say("stop")', "os.kill(os.getppid(), 9); time.sleep(30)")
        (ledger.path.parent / "ledger_poison.py").write_text(module)
    return item


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("item", 2),
        pytest.param("function", 2, marks=pytest.mark.faults),
        *(pytest.param(kind, most, marks=pytest.mark.faults) for kind in ("item", "function") for most in (1, 3)),
    ],
)
def test_poison_beside_innocents(cluster, ledger, redis_server, kind, most):
    """Two poison jobs among forty others in one channel of four slots."""
    cluster.start("master")
    channels = [{"name": "1", "slots": 4}]
    # Shorter than the pause before its restart, a lease would end before the successor can say who ran.
    timing = {"lease": 6.0}
    cluster.start("slave", channels=channels, timing=timing, slave={"python_path": [ledger.python_path]})
    with cluster.client() as client:
        make = getattr(ledger, kind)
        guilty = ledger.submit(client, [poison(ledger, kind, max_crashes=most)])
        ledger.submit(client, [make(seconds=0.5) for _ in range(3)])
        wait_until(lambda: len(ledger.events()[0]) >= 4, 10, f"four run side by side\n{cluster.logs()}")
        guilty += ledger.submit(client, [poison(ledger, kind, max_crashes=most)])
        ledger.submit(client, [make(seconds=0.05) for _ in range(36)])
    with tallied("poison", f"{kind}, max_crashes {most}") as figures, redis_server.client() as client:
        account = judge(cluster, ledger, client, within=40, expected=SUCCESS | POISON)
        figures |= of_account(account)
        _assert_only_the_guilty(account, guilty, most)


def _assert_only_the_guilty(account, guilty, most):
    poisoned = {end.job for end in account.ends if end.cause == "poison"}
    assert poisoned == {job.id for job in guilty}, "the culprits, and nobody else"
    starts = Counter(event.job for event in account.events if event.kind == "start")
    assert {starts[job.id] for job in guilty} == {most}, "started exactly so often"
    again = [job for job, count in starts.items() if count > 1 and job not in poisoned]
    # The first crash of each: who ran beside it. From then on it was alone.
    assert again or most == 1, "void: nobody ran beside them"
    assert len(again) <= 2 * 3, f"charged although they ran beside nobody suspicious: {again}"
    assert all(starts[job] == 2 for job in again)
