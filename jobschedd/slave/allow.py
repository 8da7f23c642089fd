"""What this node lets be run: its own lists, whatever the master dispatches."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from fnmatch import fnmatchcase

from jobschedd.slave.settings import ExecutionSettings


def allows_command(settings: ExecutionSettings, name: str, path: str, *, by_job: bool) -> bool:
    """Whether the command called ``name``, found at ``path``, may run.

    A pattern may name it as given or by its real path. ``by_job`` says that the job itself chose the directories
    that it was searched in: then a bare name proves nothing and only the real path counts.
    """
    if "*" in settings.allow_commands:
        return True
    names = [os.path.realpath(path)]
    if _proves_something(name, by_job):
        names.append(name)
    return any(_matches(each, settings.allow_commands) for each in names)


def allows_function(settings: ExecutionSettings, name: str) -> bool:
    """Whether the function ``module:function`` may be called."""
    return _matches(name, settings.allow_functions)


def allows_shell(settings: ExecutionSettings) -> bool:
    """Whether a line of shell may run: whoever may write one can run anything."""
    return settings.allow_shell


def _proves_something(name: str, by_job: bool) -> bool:
    if "/" not in name:
        return not by_job
    # A relative path starts where the job wants it to, and "/opt/jobs/../../bin/sh" is not below /opt/jobs.
    return os.path.isabs(name) and os.path.normpath(name) == name


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
