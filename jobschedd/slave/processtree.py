"""The processes that a channel process is the ancestor of: who belongs to which job, and the end of those nobody owns.

A killed process group is not a killed job: what called setsid() or daemonized lives on. So the channel process is a
subreaper: everything below a job that loses its parent becomes a child of the channel, where it can be seen and killed.
One channel runs several jobs, so an adopted orphan is attributed before it is killed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from jobschedd.slave.loop import Loop, Timer

PR_SET_CHILD_SUBREAPER: Final = 36
TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Seconds between two looks for orphans while jobs run: a job may leave thousands of dead ones behind in a day.
ROUND: Final = 2.0


class Identity(NamedTuple):
    """A process for good: its number may be given to another one, number and start together are not."""

    pid: int
    start: int  # clock ticks since boot


class Status(NamedTuple):
    """What /proc/PID/stat says of a process."""

    identity: Identity
    state: str
    parent: int
    group: int
    session: int


def become_subreaper() -> None:
    """Adopt the orphans among this process's descendants from now on. Raises OSError where the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_CHILD_SUBREAPER)")


def ticks_now() -> int:
    """The start time that a process forked at this moment gets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * TICKS // 1_000_000_000


def status_of(pid: int) -> Status | None:
    """None when there is no such process (any more)."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name stands in parentheses and may contain any character, parentheses and blanks too.
    fields = text[text.rindex(b")") + 2 :].split()
    return Status(Identity(pid, int(fields[19])), fields[0].decode(), *map(int, fields[1:4]))


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process; empty when it is gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    if not _kernel_lists_children():
        return children_by_scan(pid)
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def children_by_scan(pid: int) -> list[int]:
    """The same from all of /proc, for a kernel without CONFIG_PROC_CHILDREN."""
    everybody = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [child for child in everybody if (status := status_of(child)) is not None and status.parent == pid]


def descendants_of(pid: int) -> list[Status]:
    """Everything that lives below ``pid``, parents before children."""
    found: list[Status] = []
    waiting = children_of(pid)
    for child in waiting:  # grows while it is walked
        status = status_of(child)
        if status is not None and status.state != "Z":
            found.append(status)
            waiting.extend(children_of(child))
    return found


def send(process: Identity, number: int) -> None:
    """Signal exactly this process; nothing happens when it is gone or not ours to signal."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        status = status_of(process.pid)
        if status is not None and status.identity == process:
            signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(pidfd)


class Output(Protocol):
    """Our end of a pipe that a tree writes to."""

    @property
    def fd(self) -> int:
        """-1 once closed."""
        ...


class Tree:
    """One process that the channel started (a command's main process, or a runner) and all that comes from it."""

    __slots__ = ("attempt", "job", "outputs", "over", "pid", "seen", "since")

    def __init__(self, pid: int, job: str = "", attempt: int = 0, since: int | None = None) -> None:
        self.pid = pid  # leads a session of its own
        self.job = job  # what runs in it now; a runner changes these three from job to job
        self.attempt = attempt
        self.since = since  # ticks at which that began; None: it is idle
        self.outputs: Sequence[Output] = ()
        self.over = False  # nothing of it may live any longer
        self.seen: set[Identity] = set()  # descendants that are known for sure

    def signal(self, *numbers: int) -> None:
        """Signal the group and every descendant outside of it. The main process must not have been reaped yet."""
        below = descendants_of(self.pid)
        self.seen.update(status.identity for status in below)
        for number in numbers:
            _signal_group(self.pid, number)
            for status in below:
                if status.group != self.pid:
                    send(status.identity, number)


class Household:
    """All trees of this channel process, and the strangers among its children: adopted orphans."""

    def __init__(self) -> None:
        self._trees: dict[int, Tree] = {}
        self._children = -1  # open /proc file that lists them
        self._owner_of_file = 0
        self._dawn = 0  # no child that is older can come from a job
        self._given_up: set[Identity] = set()
        self._loop: Loop | None = None
        self._timer: Timer | None = None

    def join(self, tree: Tree, loop: Loop) -> None:
        """Call it right after the process was started, before anything else can look at the children."""
        if not self._dawn:
            self._dawn = ticks_now() - 1
            self._dawn = min(self._dawn, tree.since) if tree.since is not None else self._dawn
        self._trees[tree.pid] = tree
        self._attend(loop)

    def leave(self, tree: Tree) -> None:
        """Its main process was reaped, or will never be waited for again."""
        self._trees.pop(tree.pid, None)

    def has_strangers(self) -> bool:
        """Whether any child is not one that we started: cheap, asked at the end of every job."""
        trees = self._trees
        return any(int(pid) not in trees for pid in self._list())

    def signal(self, tree: Tree, *numbers: int) -> None:
        """Signal all of a tree: what is below its main process, and what the household adopted from it."""
        tree.signal(*numbers)
        for status in self._strangers():
            if self._owner(status) is tree:
                _signal_branch(status, *numbers)

    def sweep(self) -> list[Status]:
        """Reap dead orphans and kill those whose job is over, with all below them.

        Returns those that still live although they must not, or that live in a tree whose main process is gone.
        """
        remaining: list[Status] = []
        for status in self._strangers():
            owner = self._owner(status)
            if owner is None and self._may_belong_to_running(status):
                continue
            if owner is None or owner.over:
                _signal_branch(status, signal.SIGKILL)
            remaining.append(status)
        return remaining

    def give_up(self, statuses: list[Status]) -> None:
        """These do not die (uninterruptible, or not ours to kill): no later job shall wait for them."""
        self._given_up.update(status.identity for status in statuses)

    def give_up_main(self, tree: Tree) -> None:
        """Its main process does not die; should it ever, it is reaped."""
        self._given_up.add(Identity(tree.pid, tree.since or 0))
        self.leave(tree)

    def remains_of(self, tree: Tree) -> list[Status]:
        """Sweep, and say what is still to die or to end before ``tree`` is gone for good."""
        return [status for status in self.sweep() if self._concerns(status, tree)]

    def _strangers(self) -> list[Status]:
        """The orphans that live and for which we still hope; dead ones are reaped by the way."""
        pids = [int(pid) for pid in self._list()]
        statuses = [status_of(pid) for pid in pids if pid not in self._trees and not _reaped(pid)]
        return [
            status
            for status in statuses
            if status is not None and self._may_be_orphan(status) and status.identity not in self._given_up
        ]

    def _concerns(self, status: Status, tree: Tree) -> bool:
        owner = self._owner(status)
        if owner is None:
            return tree.since is None or status.identity.start >= tree.since
        return owner is tree

    def _may_be_orphan(self, status: Status) -> bool:
        # A job leads a session of its own and nothing can join ours again: who is in ours was started by ourselves.
        return status.session != os.getsid(0) and status.identity.start >= self._dawn

    def _owner(self, status: Status) -> Tree | None:
        tree = self._trees.get(status.session)
        if tree is not None:
            return tree
        for tree in self._trees.values():
            if status.identity in tree.seen:
                return tree
        job = _job_in_environment(status.identity.pid)
        pipes = _pipes_held(status.identity.pid)
        for tree in self._trees.values():
            if job is not None and job == (tree.job, tree.attempt):
                return tree
            if pipes and any(output.fd >= 0 and _inode(output.fd) in pipes for output in tree.outputs):
                return tree
        return None

    def _may_belong_to_running(self, status: Status) -> bool:
        if _job_in_environment(status.identity.pid) is not None:
            return False  # it says whose it is, and that job is not here any more
        start = status.identity.start
        return any(tree.since is not None and tree.since <= start and not tree.over for tree in self._trees.values())

    def _list(self) -> list[bytes]:
        if self._owner_of_file != os.getpid():
            self._open_list()
        if self._children < 0:
            return [str(pid).encode() for pid in children_by_scan(os.getpid())]
        # Only we can take a child out of this list, by reaping it: so what we read is complete.
        text = part = os.pread(self._children, 4096, 0)
        while len(part) > 2048:  # a shorter piece is the last: it only ends early by less than one number
            part = os.pread(self._children, 4096, len(text))
            text += part
        return text.split()

    def _open_list(self) -> None:
        if self._children >= 0:
            os.close(self._children)
        self._owner_of_file = pid = os.getpid()
        # Orphans are given to the first living thread of a subreaper: the main one, as long as it lives.
        try:
            self._children = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._children = -1

    def _attend(self, loop: Loop) -> None:
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._timer = loop.call_later(ROUND, self._go_round)

    def _go_round(self) -> None:
        self._timer = None
        self._given_up = {process for process in self._given_up if _lives(process)}
        remaining = self.sweep()
        if self._loop is not None and (remaining or self._given_up or self._has_running()):
            self._attend(self._loop)

    def _has_running(self) -> bool:
        return any(tree.since is not None for tree in self._trees.values())


#: Who starts a process in a channel process tells it here, or the process is taken for an orphan and killed.
household: Final = Household()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # nobody left in it, or all of it runs as somebody else


def _signal_branch(status: Status, *numbers: int) -> None:
    for each in (*descendants_of(status.identity.pid), status):
        for number in numbers:
            send(each.identity, number)


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _lives(process: Identity) -> bool:
    status = status_of(process.pid)
    return status is not None and status.identity == process


def _job_in_environment(pid: int) -> tuple[str, int] | None:
    variables = dict(_pairs(_read(f"/proc/{pid}/environ")))
    try:
        return variables[b"JOBSCHED_JOB_ID"].decode(), int(variables[b"JOBSCHED_ATTEMPT"])
    except (KeyError, ValueError):
        return None


def _pairs(environ: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in environ.split(b"\0"):
        name, _, value = line.partition(b"=")
        yield name, value


def _pipes_held(pid: int) -> set[int]:
    held = set()
    for fd in (0, 1, 2):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith("pipe:["):
            held.add(int(target[6:-1]))
    return held


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


@functools.cache
def _kernel_lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # the process is gone, or not ours to look at
        return b""
