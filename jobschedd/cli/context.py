"""What every client command shares: where Redis is, the client, JSON on standard output, notes on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobschedd.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from jobschedd.client import Client

Command = TypeVar("Command", bound=Callable[..., Any])

_URL, _NAMESPACE = "jobsched.redis", "jobsched.namespace"


def _remember(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_URL if parameter.name == "redis" else _NAMESPACE] = value


def connection_options(command: Command) -> Command:
    """Adds --redis and --namespace, which may stand before the command or among its options."""
    redis = click.option(
        "--redis",
        metavar="URL",
        callback=_remember,
        expose_value=False,
        help="Where Redis is. [default: $JOBSCHED_REDIS_URL, else the configuration file]",
    )
    namespace = click.option(
        "--namespace",
        metavar="NS",
        callback=_remember,
        expose_value=False,
        help="The namespace to work in. [default: $JOBSCHED_NAMESPACE, else the configuration file's, else main]",
    )
    return redis(namespace(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as docs/json.md describes it.")


def connect() -> Client:
    """The client that the options ask for. Raises ConfigError, UsageError."""
    from jobschedd.client import Client

    meta = click.get_current_context().meta
    try:
        return Client(meta.get(_URL), meta.get(_NAMESPACE))
    except ConfigError as error:
        if error.problems[0].file.startswith("--"):
            raise UsageError(str(error)) from None
        raise


def print_json(value: Any) -> None:
    """One JSON document, for people and programs."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_lines(values: Iterable[Any]) -> None:
    """A JSON array with one element a line, written as the elements come."""
    import msgspec

    separator = b"["
    for value in values:
        click.echo(separator + b"\n" + msgspec.json.encode(value), nl=False)
        separator = b","
    click.echo(b"[]" if separator == b"[" else b"\n]")


def note(text: str) -> None:
    """A remark for people, beside the output."""
    click.echo(f"jobsched: {text}", err=True)
