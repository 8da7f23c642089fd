"""How an error of ours ends a command line: its text on stderr, its exit code, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from jobschedd.errors import ConfigError, JobschedError


def guarded(program: str, command: Callable[..., object]) -> NoReturn:
    """Run a click ``command`` and exit. Every JobschedError becomes a line on stderr and its exit code."""
    try:
        command(prog_name=program)
    except JobschedError as error:
        # A configuration's mistakes name their file and line themselves, as compilers do.
        text = str(error) if isinstance(error, ConfigError) else f"{program}: {error}"
        print(text, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    sys.exit(0)
