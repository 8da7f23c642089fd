"""The state of the node in one line, for ``systemctl status`` and the log."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from jobschedd.node.child import Child
from jobschedd.node.context import StopLevel
from jobschedd.node.service import Service

_LIMIT = 500


def summary(level: StopLevel, services: Collection[Service], children: Collection[Child], problem: str) -> str:
    """For example ``collector, dispatcher and 4 channels running; reload failed: ...``."""
    parts = _stopping(level, children) if level > StopLevel.RUN else _running(services, children)
    if problem and level == StopLevel.RUN:
        parts.append(f"reload failed: {problem}")
    line = "; ".join(parts)
    return line if len(line) <= _LIMIT else line[: _LIMIT - 3] + "..."


def _stopping(level: StopLevel, children: Collection[Child]) -> list[str]:
    verb = "draining" if level == StopLevel.DRAIN else "stopping"
    return [f"{verb}: waiting for {_counted(child.name for child in children)}" if children else "stopped"]


def _running(services: Collection[Service], children: Collection[Child]) -> list[str]:
    given_up = [service for service in services if service.given_up is not None]
    parts = [f"degraded: {service.name} {service.given_up}" for service in given_up]
    by_state = {state: [each.name for each in services if each.state == state] for state in _STATES}
    parts += [f"{_counted(names)} {_STATES[state]}" for state, names in by_state.items() if names]
    leaving = [child.name for child in children if child.told > StopLevel.RUN]
    if leaving:
        parts.append(f"{_counted(leaving)} draining")
    parts += [f"{each.name}: {each.child.status}" for each in services if each.child and each.child.status]
    return parts or ["nothing to run"]


_STATES = {"running": "running", "starting": "starting", "waiting": "waiting to start"}


def _counted(names: Iterable[str]) -> str:
    """``channel 1, channel 2, dispatcher`` -> ``2 channels and dispatcher``; a single one keeps its full name."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.partition(" ")[0], []).append(name)
    parts = [each[0] if len(each) == 1 else f"{len(each)} {kind}s" for kind, each in sorted(kinds.items())]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
