"""The ``jobschedd`` command: run the daemon, check its configuration, install it as a service.

Each command imports what it needs when it runs: ``check`` is part of every start and reload.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import click

from jobschedd import __version__
from jobschedd.cli.guard import guarded
from jobschedd.errors import ConfigError

if TYPE_CHECKING:
    from jobschedd.config import Config

_ABOUT_ITSELF = ("--help", "-h", "--version")


class _RunByDefault(click.Group):
    """Without a subcommand, ``run`` is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _ABOUT_ITSELF):
            args = ["run", *args]
        return super().parse_args(ctx, args)


_config_option = click.option(
    "--config",
    "-c",
    metavar="FILE",
    help="Configuration file. [default: $JOBSCHED_CONFIG, ./etc, ~/.config/jobschedd, /etc/jobschedd]",
)


@click.group(cls=_RunByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jobschedd", message="%(prog)s %(version)s")
def daemon() -> None:
    """The jobschedd daemon: master, slave or both, as the configuration says.

    Without a command it runs in the foreground: 'jobschedd --config FILE' is 'jobschedd run --config FILE'.
    """


@daemon.command()
@_config_option
@click.option("--daemonize", is_flag=True, help="Go to the background once everything is up.")
@click.option("--pidfile", metavar="FILE", help="Hold this file locked, with the process id in it.")
def run(config: str | None, daemonize: bool, pidfile: str | None) -> None:
    """Run the roles of the configuration (the default command).

    SIGTERM drains and stops, a second one or SIGINT stops at once, SIGHUP applies a changed configuration.
    """
    from jobschedd.config import find
    from jobschedd.roles import run as run_roles

    # Absolute, because a daemon changes its directory.
    path = os.path.abspath(find(config))
    sys.exit(run_roles(path, daemonize, os.path.abspath(pidfile) if pidfile else None))


@daemon.command()
@_config_option
@click.option("--strict", is_flag=True, help="Take warnings for errors.")
def check(config: str | None, strict: bool) -> None:
    """Check the configuration and say what would run.

    Prints every mistake, one a line, as FILE:LINE: KEY: MESSAGE. Exit code: 0, or 78 after a mistake.
    """
    from jobschedd.config import find, load

    path = find(config)
    try:
        loaded = load(path)
    except ConfigError as error:
        # The mistakes are what this command was asked for: its output, not a failure of its own.
        click.echo(str(error))
        sys.exit(error.exit_code)
    for line in loaded.warnings:
        click.echo(f"{line} (warning)")
    if strict and loaded.warnings:
        sys.exit(ConfigError.exit_code)
    click.echo(f"{path}: ok")
    for line in _summary(loaded):
        click.echo(f"  {line}")


@daemon.command("install-service")
@click.option("--print", "print_only", is_flag=True, help="Show the files and where they go; change nothing.")
@click.option("--root", metavar="DIR", default="/", help="Only write the files, into a system staged under DIR.")
@click.option(
    "--profile",
    type=click.Choice(["standard", "privileged", "strict"]),
    help="privileged: jobs run as root; strict: hardly any rights, for masters. [default: as it is, else standard]",
)
def install_service(print_only: bool, root: str, profile: str | None) -> None:
    """Install unit files, service user, folders and a default configuration."""
    from jobschedd.cli.service import install_service as install

    sys.exit(install(print_only, root=root, profile=profile))


def _summary(config: Config) -> Iterator[str]:
    redis = config.connection
    yield f"node {config.node}: {' and '.join(config.roles)}, namespace {config.namespace}"
    embedded = " (embedded server)" if config.redis.embedded else ""
    yield f"redis {redis.url}{embedded}, transport {config.transport}"
    if config.is_master:
        channels = f" to channels {', '.join(config.master.channels)}" if config.master.channels else ""
        yield f"master: 2 processes, placement {config.master.placement}{channels}"
        yield f"history {config.master.history}"
    if config.is_slave:
        count, slots = len(config.slave.channels), sum(channel.slots for channel in config.slave.channels)
        names = ", ".join(
            channel.name + (f" ({channel.slots} slots)" if channel.slots > 1 else "")
            for channel in config.slave.channels
        )
        yield f"slave: {_count(count, 'channel')}, {_count(slots, 'job')} at once: {names}"
        yield f"jobs run in {config.slave.workdir}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main() -> NoReturn:
    """Entry point of the ``jobschedd`` command."""
    guarded("jobschedd", daemon)


if __name__ == "__main__":
    main()
