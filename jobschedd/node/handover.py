"""Replacing a process by a newly installed build under the same pid, and what the one leaves to the other.

A memory file holds it, the environment names the file and the pid it is meant for: the variable may be
inherited by anybody, and only that process believes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_VARIABLE = "JOBSCHEDD_HANDOVER"

Legacy = Callable[[], tuple[Any, Iterable[int]]]
_legacies: dict[str, Legacy] = {}
_received: dict[str, Any] | None = None
_start_directory: str | None = None


def leave(part: str, legacy: Legacy) -> None:
    """Have ``legacy()`` asked, at a replacement, for what to leave as ``part`` (JSON types) and which descriptors."""
    _legacies[part] = legacy


def forget(part: str) -> None:
    """Leave nothing as ``part`` after all."""
    _legacies.pop(part, None)


def remember_directory() -> None:
    """Call before leaving the directory that the command line's relative paths refer to."""
    global _start_directory
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        _start_directory = os.getcwd()


def take(part: str) -> Any:
    """One part of what a predecessor left to this very process, once; None when there was none."""
    global _received
    if _received is None:
        _received = _receive()
    return _received.pop(part, None)


def replace_process(environment: Mapping[str, str]) -> None:
    """Execute this program's command line anew, ``environment`` added. Returns only by raising OSError."""
    answers = {part: legacy() for part, legacy in _legacies.items()}
    memory = os.memfd_create("jobschedd-handover")
    descriptors = [memory, *(fd for _, fds in answers.values() for fd in fds)]
    try:
        with open(memory, "w", encoding="utf-8", closefd=False) as file:
            json.dump({part: state for part, (state, _) in answers.items()}, file)
        for fd in descriptors:
            os.set_inheritable(fd, True)
        if _start_directory is not None:
            os.chdir(_start_directory)
        python = sys.executable or sys.orig_argv[0]
        variables = {**os.environ, **environment, _VARIABLE: f"{os.getpid()}:{memory}"}
        os.execve(python, [python, *sys.orig_argv[1:]], variables)  # noqa: S606 - without a shell is the point
    finally:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        os.close(memory)


def _receive() -> dict[str, Any]:
    pid, _, fd = os.environ.pop(_VARIABLE, "").partition(":")
    if pid != str(os.getpid()) or not fd.isdecimal():
        return {}
    with open(int(fd), encoding="utf-8") as file:
        file.seek(0)
        state = json.load(file)
    assert isinstance(state, dict)
    return state
