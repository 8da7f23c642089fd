"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobschedd.clock import FakeClock
from jobschedd.node.child import Child, ChildSpec
from jobschedd.node.notify import Notifier
from jobschedd.node.supervisor import Supervisor, Timing
from node_harness import Node, NotifySocket, child


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    address = f"@jobschedd-test-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = NotifySocket(address)
    yield manager
    manager.close()


def start(node: Node, manager: NotifySocket, **settings: object) -> None:
    node.configure(**settings)
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    node.start(env=environment)


def test_the_life_of_a_node(node: Node, manager: NotifySocket) -> None:
    channels = [child(f"channel {number}", "working") for number in (1, 2, 3, 4)]
    start(node, manager, children=[child("base", "environment", stage=0), *(each | {"stage": 1} for each in channels)])
    assert manager.wait_for("READY=1") == "READY=1\nSTATUS=base and 4 channels running; base: idle"
    assert not any("READY=1" in each for each in manager.messages()[:1]), "the first word is that it is starting"
    assert node.log("environment")[0]["names"] == "", "no child can speak in our name"
    seen = len(manager.messages())
    manager.wait_for("WATCHDOG=1", after=seen)

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    seen = len(manager.messages())
    node.send(signal.SIGHUP)
    usec = int(manager.wait_for("RELOADING=1", after=seen).split("MONOTONIC_USEC=")[1].split("\n")[0])
    assert before <= usec <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.wait_for("READY=1", after=seen)

    assert node.stop() == 0
    assert manager.wait_for("STOPPING=1").startswith("STOPPING=1\nSTATUS=draining: waiting for base and 4 channels")
    assert int(manager.wait_for("EXTEND_TIMEOUT_USEC=").split("=")[1]) == 800_000
    order = [each.split("\n")[0] for each in manager.messages()]
    assert order.index("READY=1") < order.index("RELOADING=1") < order.index("STOPPING=1")


def test_a_degraded_node_says_who_and_why(node: Node, manager: NotifySocket) -> None:
    start(node, manager, children=[child("channel 1"), child("channel 2", "broken")])
    status = manager.wait_for("STATUS=degraded").split("STATUS=")[1]
    assert status.startswith("degraded: channel 2 given up after 5 failed starts: ValueError: no such module")
    assert "\n" not in status
    # Given up is not hanging: the watchdog goes on.
    manager.wait_for("WATCHDOG=1", after=len(manager.messages()))
    node.configure(problem="nonsense")
    node.send(signal.SIGHUP)
    assert "reload failed" in manager.wait_for("READY=1\nSTATUS=degraded", after=len(manager.messages()) - 1)
    assert node.stop() == 0


def test_the_watchdog_is_fed_only_while_every_child_answers(tmp_path: Path) -> None:
    manager = NotifySocket(str(tmp_path / "notify"))
    clock = FakeClock()
    supervisor = Supervisor(
        list,
        name="test",
        clock=clock,
        timing=Timing(liveness_timeout=10),
        notifier=Notifier(manager.address, 3_000_000),
    )
    now = clock.boottime()
    spec = ChildSpec("channel 1", lambda context: 0)
    one, two = (Child(spec, pid=0, status_fd=-1, started=now, ready_at=now, last_beat=now) for _ in range(2))
    supervisor._children = {1: one, 2: two}

    def fed_after(seconds: float) -> bool:
        clock.advance(seconds)
        seen = len(manager.messages())
        supervisor._tell_the_service_manager()
        return "WATCHDOG=1" in manager.messages()[seen:]

    assert fed_after(1) and not fed_after(0.5) and fed_after(1)
    one.last_beat = clock.boottime()
    two.last_beat = clock.boottime() - 10
    assert not fed_after(2)
    two.last_beat = clock.boottime()
    assert fed_after(2)
    manager.close()


def test_without_a_manager_nothing_happens() -> None:
    environment: dict[str, str] = {}
    notifier = Notifier.from_environment(environment)
    notifier.ready("fine")
    assert notifier.watchdog_interval is None and notifier.environment() == {}


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1", "HOME": "/"}
    assert Notifier.from_environment(environment).watchdog_interval is None
    assert environment == {"HOME": "/"}
    ours = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(dict(ours))
    assert notifier.watchdog_interval == 1.0 and notifier.environment() == ours


def test_a_manager_that_is_gone_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    for number in range(3):
        notifier.status(f"status {number}")
    assert [each.getMessage() for each in caplog.records] == ["cannot reach the service manager"]
