"""What Linux offers to tie processes together, and their titles. The standard library has none of it."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_parent_death_signal(signum: signal.Signals) -> None:
    """Have the kernel send ``signum`` to this process when its parent dies.

    The parent may have died before the call: compare ``os.getppid()`` afterwards.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process instead of PID 1's. Not inherited by fork."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children_of_this_process() -> set[int]:
    """Pids of all present children, adopted ones and zombies included."""
    pid = os.getpid()
    try:
        return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return {each.pid for each in psutil.Process(pid).children()}


def command_of(pid: int) -> str | None:
    """The command name of a process, for a log line; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def set_title(title: str) -> None:
    """Show ``title`` in ``ps`` and ``pstree``; without the setproctitle package nothing changes."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)
