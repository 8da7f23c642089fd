"""The ``jobsched`` command: its subcommands, each imported when it is used, and how errors end it."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from jobschedd import __version__
from jobschedd.cli.context import connection_options
from jobschedd.errors import ConfigError, JobschedError

INTERRUPTED, BROKEN_PIPE = 130, 141
#: New objects after which garbage is looked for: importing makes some tens of thousands, and keeps them.
_COLLECT_AFTER = 50_000

#: Where each command lives, in the order of the help.
COMMANDS = {
    "demo": "demo",
    "submit": "submit",
    "call": "submit",
    "run": "run",
    "list": "jobs",
    "show": "jobs",
    "explain": "explain",
    "wait": "endings",
    "cancel": "endings",
    "workflow": "workflow",
    "tree": "workflow",
    "retry": "endings",
    "hold": "control",
    "release": "control",
    "priority": "control",
    "logs": "logs",
    "schedule": "schedule",
    "history": "history",
    "nodes": "fleet",
    "channels": "fleet",
    "drain": "fleet",
    "pause": "fleet",
    "resume": "fleet",
    "limit": "limits",
    "top": "top",
    "usage": "usage",
    "doctor": "doctor",
    "rebuild": "rebuild",
}


class _Commands(click.Group):
    """Imports a command's module when it is asked for: a submit need not wait for the tables of a listing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f"jobschedd.cli.{COMMANDS[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read our output has seen enough; nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        return result


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jobsched", message="%(prog)s %(version)s")
@connection_options
def client() -> None:
    """Submit jobs, watch them, read how they ended; look after the nodes that run them.

    Redis is found by --redis, $JOBSCHED_REDIS_URL or the configuration file. 'jobsched demo' shows everything at once
    and needs nothing.
    """


def main() -> NoReturn:
    """Entry point of the ``jobsched`` command."""
    gc.set_threshold(_COLLECT_AFTER)
    _open_standard_streams()
    try:
        sys.exit(_run())
    finally:
        # The interpreter would look at every object once more, to free what goes with the process.
        gc.freeze()


def _open_standard_streams() -> None:
    """A stream that came closed leads to nowhere: its number must not go to the connection to Redis."""
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _run() -> int:
    try:
        code = client.main(prog_name="jobsched", standalone_mode=False)
    except JobschedError as error:
        # A configuration's mistakes name their file and line themselves, as compilers do.
        click.echo(str(error) if isinstance(error, ConfigError) else f"jobsched: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        # A full disk, a folder that may not be written: nothing that a traceback would explain better.
        click.echo(f"jobsched: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
