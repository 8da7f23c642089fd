"""From the name of a command to the file that is executed, and from the kernel's refusal to the cause of a failure."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from jobschedd.job import Cause

MESSAGE_LIMIT: Final = 2000
RESOURCE: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})
NO_SUCH_PATH: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
#: Where the kernel's own words would not help.
REASONS: Final = {
    errno.ENOEXEC: "it is neither a binary for this machine nor a script that begins with #!",
    errno.ETXTBSY: "it is open for writing (text file busy)",
    errno.EACCES: "permission denied (mode, directory or a file system mounted noexec)",
}


class StartFailed(Exception):
    """The job could not be started: no process exists."""

    def __init__(self, cause: Cause, message: str) -> None:
        # Names of jobs are in it: whatever they are, it must fit into a result, and be text.
        message = message[:MESSAGE_LIMIT].encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.cause = cause
        self.message = message


def find(name: str, search: str) -> str:
    """The path to execute for ``name``, looked for in ``search`` (a PATH) unless it contains a slash.

    Raises StartFailed with NOT_FOUND or NOT_EXECUTABLE.
    """
    if "/" in name:
        return name
    refused = ""
    for directory in search.split(":") if name else ():
        path = f"{directory or '.'}/{name}"
        if not _is_file(path):
            continue
        if os.access(path, os.X_OK):
            return path
        refused = refused or path
    if refused:
        raise StartFailed(Cause.NOT_EXECUTABLE, f"{refused}: cannot be executed: no execute permission")
    raise StartFailed(Cause.NOT_FOUND, f"{name or repr(name)}: command not found in PATH={search}")


def refusal(error: OSError, path: str) -> StartFailed:
    """Why executing ``path`` ended in ``error``."""
    number = error.errno or 0
    if number in RESOURCE:
        return shortage(error)
    if number == errno.E2BIG:
        return StartFailed(Cause.ARGV, "arguments and environment are larger than this system can pass on")
    if number in NO_SUCH_PATH and not os.path.lexists(path):
        return StartFailed(Cause.NOT_FOUND, f"{path}: command not found")
    if number in NO_SUCH_PATH:
        return StartFailed(Cause.NOT_EXECUTABLE, f"{path}: cannot be executed: {_missing_interpreter(path)}")
    reason = REASONS.get(number, error.strerror)
    return StartFailed(Cause.NOT_EXECUTABLE, f"{path}: cannot be executed: {reason}")


def shortage(error: OSError) -> StartFailed:
    """The node itself lacks something; another try later may find it."""
    return StartFailed(Cause.RESOURCE, f"this node cannot start a process now: {error.strerror}")


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _missing_interpreter(path: str) -> str:
    try:
        with open(path, "rb") as file:
            first = file.readline(256)
    except OSError as error:
        return f"it cannot be followed: {error.strerror}"  # a dangling link, most likely
    if first.startswith(b"#!"):
        line = first[2:].strip(b" \t\n").decode(errors="replace")
        return f"its interpreter does not exist: {line!r}"  # repr: mostly it is an invisible carriage return
    return "the loader that it asks for does not exist"
