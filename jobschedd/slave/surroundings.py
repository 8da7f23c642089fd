"""What a function finds when it is called in a warm runner, and what is undone after it: environment, directory,
output streams, the handler of SIGTERM, child processes."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Mapping
from typing import Final, TextIO

from jobschedd.slave.exchange import Page, Setup, Task
from jobschedd.slave.processtree import children_of

#: signal.getsignal, where there is one without an enumeration's member made of the answer: in a tenth of the time.
_handler_of: Callable[[int], object] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)

OWN_PREFIX: Final = "JOBSCHED_"
#: Seconds that children of a function get to die of SIGKILL.
SWEEP_PATIENCE: Final = 5.0


class Surroundings:
    """Environment, working directory and signals of one job after another."""

    def __init__(self, setup: Setup) -> None:
        self._workdir = setup.workdir
        os.environ["JOBSCHED_CHANNEL"] = setup.channel
        os.environ["JOBSCHED_NODE"] = setup.node
        self._clean = dict(_variables())
        self._attempt = b""

    def enter(self, task: Task) -> None:
        """Raises OSError when the working directory cannot be entered, ValueError for an impossible environment."""
        self._set(b"JOBSCHED_JOB_ID", task.job.encode())
        attempt = b"%d" % task.attempt
        if attempt != self._attempt:
            self._set(b"JOBSCHED_ATTEMPT", attempt)
            self._attempt = attempt
        os.chdir(os.path.join(self._workdir, task.cwd) if task.cwd else self._workdir)
        if "_" in task.job:
            os.environ["JOBSCHED_ARRAY_ID"], _, os.environ["JOBSCHED_ARRAY_INDEX"] = task.job.partition("_")
        for name, value in task.env.items() if task.env else ():
            if not (name.startswith(OWN_PREFIX) and name in os.environ):
                os.environ[name] = value

    def leave(self) -> None:
        """Undo what this job was given and what it changed."""
        if _variables() != self._clean:
            _restore(self._clean)
        if _handler_of(signal.SIGTERM) != signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _set(self, name: bytes, value: bytes) -> None:
        os.environb[name] = self._clean[name] = value


def _variables() -> Mapping[bytes, bytes]:
    # The mapping behind os.environ: comparing it takes 0.3 us, comparing os.environ itself 40.
    raw: Mapping[bytes, bytes] | None = getattr(os.environ, "_data", None)
    return dict(os.environb) if raw is None else raw


def _restore(wanted: Mapping[bytes, bytes]) -> None:
    for name in os.environb.keys() - wanted.keys():
        del os.environb[name]
    for name, value in wanted.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


class Output:
    """The runner's side of stdout and stderr, and the question whether a job wrote anything."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._pipes = os.dup(1), os.dup(2)  # whatever a function does to descriptors 1 and 2
        self._streams = _text(1), _text(2)
        self._waiting = array.array("i", [0])
        sys.stdout, sys.stderr = self._streams

    def settle(self) -> None:
        """Push out what the job's streams hold back, and make them what they were."""
        out, err = self._streams
        try:
            out.flush()
            err.flush()
        except (OSError, ValueError):  # closed, or sent elsewhere
            self._reopen()
        if sys.stdout is not out or sys.stderr is not err:
            sys.stdout, sys.stderr = self._streams
        os.dup2(self._pipes[0], 1)
        os.dup2(self._pipes[1], 2)

    def written(self) -> bool:
        """Whether something was written that the channel has not attributed yet.

        The pipes come first, the channel's word second: the channel says "dirty" before it reads, so whatever is
        not in the pipe any more has set the word already.
        """
        out, err = self._pipes
        waiting = self._waiting
        fcntl.ioctl(out, termios.FIONREAD, waiting)
        if waiting[0]:
            return True
        fcntl.ioctl(err, termios.FIONREAD, waiting)
        return bool(waiting[0] or self._page.counts[Page.DIRTY])

    def _reopen(self) -> None:
        os.dup2(self._pipes[0], 1)
        os.dup2(self._pipes[1], 2)
        for stream in self._streams:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # what a closed stream still held is gone
        self._streams = _text(1), _text(2)


def silence() -> None:
    """From now on whatever is printed goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def sweep() -> bool:
    """Kill and reap every descendant of this process, a subreaper. Returns whether none is left."""
    if not _has_children():
        return True
    patience = time.monotonic() + SWEEP_PATIENCE
    while _has_children():
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)  # it is ours and not reaped yet, so the number is still its own
        while _has_children() and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass
        if time.monotonic() > patience:
            return False
        time.sleep(0.0005)
    return True


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _text(fd: int) -> TextIO:
    # Line by line, because somebody may follow.
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
