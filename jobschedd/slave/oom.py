"""Did the kernel kill one of our processes for want of memory? Asked of the counter that it keeps for our cgroup."""

from __future__ import annotations

import functools
import re
from typing import Final

COUNTER: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class OomWatch:
    """Tells whether the counter moved since the last question. It counts every process of the cgroup."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._last = self._count()

    def moved(self) -> bool:
        """Whether the kernel killed for want of memory since the last call (or since the beginning)."""
        last, self._last = self._last, self._count()
        return self._last > last

    def _count(self) -> int:
        try:
            with open(self._path, "rb") as file:
                found = COUNTER.search(file.read())
        except OSError:
            return 0
        return int(found[1]) if found else 0


@functools.cache
def oom_watch() -> OomWatch:
    """The one watch of this process: a kill that one kind of job was told of shall not be told to another again.

    Call it early: it knows only of what came after the first call.
    """
    return OomWatch(counter_file())


def counter_file() -> str:
    """The file with this process's ``oom_kill`` line: cgroup v2, v1, or the whole machine's without either."""
    for path in _candidates():
        if _has_counter(path):
            return path
    return "/proc/vmstat"


def _candidates() -> list[str]:
    paths = []
    for line in _lines("/proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            paths += [f"{root}{group}/memory.events" for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")]
        elif "memory" in controllers.split(","):
            paths.append(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
    return paths


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _has_counter(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return COUNTER.search(file.read()) is not None
    except OSError:
        return False
