"""Processes that a dead child left behind: they become ours to end, and so do theirs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection

from jobschedd.logs import get_logger
from jobschedd.node.prctl import become_subreaper, children_of_this_process, command_of

log = get_logger(__name__)


class Orphans:
    """Kills what this process adopted as a subreaper: every child of it that is neither known nor ``foreign``."""

    def __init__(self, foreign: Collection[int] | None = None) -> None:
        become_subreaper()
        #: Children from before us (``helper & exec jobschedd``): not ours to kill.
        self.foreign = children_of_this_process() if foreign is None else set(foreign)
        self._killed: set[int] = set()

    def kill(self, known: Collection[int]) -> None:
        """One sweep. The descendants of what it kills surface as children in turn: sweep after each death."""
        for pid in children_of_this_process().difference(known, self.foreign, self._killed):
            self._killed.add(pid)
            log.warning("killed a process that a dead child left behind", pid=pid, command=command_of(pid))
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or a setuid program
                os.kill(pid, signal.SIGKILL)

    def buried(self, pid: int) -> None:
        """``pid``, which was none of our children, has been reaped."""
        self._killed.discard(pid)
        self.foreign.discard(pid)

    def any_left(self) -> bool:
        """True while killed orphans have not been reaped."""
        return bool(self._killed)
