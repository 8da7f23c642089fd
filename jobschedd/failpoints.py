"""Named points between two effects where a test may kill, stop or break a process.

Inert and nearly free unless ``JOBSCHED_FAILPOINTS`` is set: ``name:action[:nth[:marker]]``, several joined by
``,``. Actions: ``kill`` (SIGKILL to itself), ``stop`` (SIGSTOP to itself), ``raise`` (FailpointHit).
``nth`` fires on that passage only (default 1). With a marker (a file path without ``,`` or ``:``) the
point fires at most once over all processes: the one that creates the file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

#: Every failpoint of the product. A name that is not listed here is a programming error, so that the
#: fault matrix generated from this list cannot miss a point.
FAILPOINTS = (
    "client.submit.before",
    "client.submit.after",
    "client.reserve.after",
    "client.wait.registered",
    "client.wait.told",
    "dispatcher.lead.acquired",
    "dispatcher.lead.kept",
    "dispatcher.configure.after",
    "dispatcher.heal.after",
    "dispatcher.keep.after",
    "dispatcher.forget.after",
    "dispatcher.survey.after",
    "dispatcher.bell.after",
    "dispatcher.dispatch.before",
    "dispatcher.dispatch.after",
    "dispatcher.offer.after",
    "dispatcher.requeue.before",
    "dispatcher.requeue.after",
    "dispatcher.promote.after",
    "dispatcher.interrupt.after",
    "dispatcher.timetable.after",
    "dispatcher.fire.before",
    "dispatcher.fire.after",
    "dispatcher.unblock.before",
    "dispatcher.unblock.after",
    "dispatcher.cancel.before",
    "dispatcher.audit.after",
    "dispatcher.recover.after",
    "guard.begin.after",
    "guard.settle.after",
    "guard.admit.after",
    "guard.restore.after",
    "guard.finish.after",
    "publisher.publish.before",
    "publisher.publish.after",
    "collector.begin.after",
    "collector.heard.after",
    "collector.passed_on.after",
    "collector.read.after",
    "collector.verdict.after",
    "collector.history.after",
    "collector.delete.after",
    "hooks.notice.after",
    "hooks.route.before",
    "hooks.route.after",
    "hooks.deliver.after",
    "clerk.answer.before",
    "clerk.prune.after",
    "channel.connect.opened",
    "channel.register.after",
    "channel.recovery.sent",
    "channel.recovery.crashed",
    "channel.recovery.left",
    "channel.recovery.discarded",
    "channel.connect.after",
    "channel.disconnect.after",
    "channel.heard.after",
    "channel.answer.sent",
    "channel.read.after",
    "channel.start.before",
    "channel.start.registered",
    "channel.start.spawned",
    "channel.function.sent",
    "channel.exit.before_spool",
    "channel.spool.after",
    "channel.spool.compacted",
    "channel.spool.renamed",
    "channel.report.sent",
    "channel.report.acknowledged",
    "channel.return.before",
    "channel.drain.after",
    "channel.leave.before",
    "channel.leave.after",
    "runner.start.before",
    "runner.start.registered",
    "runner.result.before",
    "runner.result.after",
    "supervisor.fork.after",
    "supervisor.bury.after",
    "supervisor.reload.loaded",
    "supervisor.reload.after",
    "supervisor.stop.told",
)


class FailpointHit(RuntimeError):
    """Raised by a failpoint with action ``raise``: an exception where nobody expects one."""


def _nothing(name: str) -> None:
    """The failpoint of production: no test asked for anything."""


def _armed(setting: str) -> Callable[[str], None]:
    plan: dict[str, tuple[str, int, str]] = {}
    for part in filter(None, setting.split(",")):
        name, action, *rest = part.split(":")
        if name not in FAILPOINTS:
            raise ValueError(f"JOBSCHED_FAILPOINTS names {name!r}, which does not exist")
        nth = int(rest[0]) if rest and rest[0] else 1
        plan[name] = (action, nth, rest[1] if len(rest) > 1 else "")
    passages: dict[str, int] = {}

    def failpoint(name: str) -> None:
        if name not in FAILPOINTS:
            raise AssertionError(f"failpoint {name!r} is not in the list")
        if name not in plan:
            return
        action, nth, marker = plan[name]
        passages[name] = passages.get(name, 0) + 1
        if passages[name] == nth and (not marker or _first_to_create(marker)):
            _act(name, action)

    return failpoint


def _first_to_create(marker: str) -> bool:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise FailpointHit(name)
    else:
        raise ValueError(f"failpoint action {action!r} is none of kill, stop, raise")


_setting = os.environ.get("JOBSCHED_FAILPOINTS", "")
#: Call it between two effects: ``failpoint("channel.spool.after")``.
failpoint: Callable[[str], None] = _armed(_setting) if _setting else _nothing
