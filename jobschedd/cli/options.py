"""The options that describe a job, shared by submit, call and run; from them the item that gets checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobschedd.errors import InvalidJob, UsageError

if TYPE_CHECKING:
    from jobschedd.client.session import Durable

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--channel", metavar="[NODE/]CHANNEL", help="Run on this dispatch channel only."),
    click.option("--node", metavar="NODE", help="Run on this node only."),
    click.option(
        "--label", "labels", metavar="EXPR", multiple=True, help="Run on channels with this label: gpu, 'gpu && !spot'."
    ),
    click.option("--avoid-failed", is_flag=True, help="Let a retry go to another node than the last one."),
    click.option("--priority", type=int, metavar="N", help="-100 to 100; higher goes first. [default: 0]"),
    click.option("--in", "delay", metavar="DURATION", help="Run after this time: 90, 5m, 2h, 1d."),
    click.option("--at", metavar="TIME", help="Run at this time: ISO 8601, local where it names no zone."),
    click.option("--slots", type=int, metavar="N", help="Slots of its channel that it takes at once. [default: 1]"),
    click.option("--cpus", metavar="N", help="Processors that it needs of its channel's: 2, 0.5."),
    click.option("--memory", metavar="SIZE", help="Memory that it needs: 512M, 16G."),
    click.option("--gpus", metavar="N", help="GPUs that it needs; which, says CUDA_VISIBLE_DEVICES."),
    click.option(
        "--resource", "resources", metavar="NAME=N", multiple=True, help="Another resource that it needs; repeatable."
    ),
    click.option("--group", metavar="NAME", help="Count it to this group: groups share by weight, and have limits."),
    click.option(
        "--limit-key",
        "limit_keys",
        metavar="KEY[=N]",
        multiple=True,
        help="At most N jobs with this key at a time (what an operator set for it wins); repeatable. [default: 1]",
    ),
    click.option(
        "--rate",
        "rates",
        metavar="KEY=N/PERIOD",
        multiple=True,
        help="At most N starts with this key within the period: api=10/m, api=5/30s; repeatable.",
    ),
    click.option(
        "--after",
        metavar="ID[:ok|any|fail]",
        multiple=True,
        help="Run when this job has succeeded (ended, failed); all of several, a,b or repeated. [default: ok]",
    ),
    click.option("--retries", type=int, metavar="N", help="Try again so many times after a failure. [default: 0]"),
    click.option("--retry-delay", metavar="DURATION", help="Pause before the first retry; it doubles. [default: 1s]"),
    click.option("--retry-on", metavar="CAUSE", multiple=True, help="Retry after this cause only; repeatable."),
    click.option("--timeout", metavar="DURATION", help="End it after so long."),
    click.option("--expires", metavar="DURATION", help="Give it up if it has not started within this time."),
    click.option("--lost-after", metavar="DURATION", help="Extra patience with a silent node. [default: 0]"),
    click.option(
        "--overlap",
        type=click.Choice(["allow", "forbid"]),
        help="May two attempts run at once when a node is cut off? [default: allow]",
    ),
    click.option("--no-retry-on-loss", is_flag=True, help="Start it once at most: what is lost stays lost."),
    click.option(
        "--max-crashes", type=int, metavar="N", help="Give up after it took its channel down so often. [default: 2]"
    ),
    click.option("--array", metavar="INDICES", help="A job array: 1-100, 0-98:2, 1,3,7-9; and %N: so many at once."),
    click.option("--all", is_flag=True, help="Run on every node that matches; those away until it --expires (1d)."),
    click.option("--all-channels", is_flag=True, help="Run on every channel that matches, likewise."),
    click.option("--max-failures", type=int, metavar="N", help="Of an array: stop it after so many failures."),
    click.option(
        "--on-success", metavar="HOOK", multiple=True, help="Tell this hook of the masters' when it has succeeded."
    ),
    click.option(
        "--on-failure", metavar="HOOK", multiple=True, help="Tell this hook when it has failed, was lost or expired."
    ),
    click.option("--key", metavar="KEY", help="Idempotency key: the same key gives the same job."),
    click.option(
        "--key-scope",
        type=click.Choice(["record", "running", "pending"]),
        help="The key is free again once the job's record is gone, once it has ended, or once a channel has it. "
        "[default: record]",
    ),
    click.option("--hold", is_flag=True, help="Keep it from being dispatched until 'jobsched release ID'."),
    click.option("--env", metavar="K=V", multiple=True, help="Set a variable (K alone: as it is here); repeatable."),
    click.option("--cwd", metavar="DIR", help="Working directory on the node. [default: the node's workdir]"),
    click.option("--name", metavar="NAME", help="A name for people and for 'list --name'."),
)

_SPOKEN = {
    "delay": "--in",
    "labels": "--label",
    "retry_on_loss": "--no-retry-on-loss",
    "limit_keys": "--limit-key",
    "rates": "--rate",
    "resources": "--resource",
}
_NAMES = frozenset(
    "channel node group slots cpus memory gpus priority at after retries retry_delay retry_on timeout expires "
    "lost_after overlap max_crashes key key_scope env cwd array all all_channels max_failures on_success "
    "on_failure name stdin shell kwargs".split()
)

_stdin_option = click.option("--stdin", metavar="FILE", help="Its standard input ('-': ours). [default: empty]")


def durable_options(command: Command) -> Command:
    """Adds --durable and what belongs to it."""
    durable = click.option(
        "--durable", is_flag=True, help="Return once it is known to be on the server's disk; exit code 75 if not."
    )
    replicas = click.option(
        "--replicas", type=click.IntRange(min=1), metavar="N", help="And on so many replicas (implies --durable)."
    )
    within = click.option(
        "--durable-within", metavar="DURATION", default="10s", help="Wait at most so long. [default: 10s]"
    )
    return durable(replicas(within(command)))


def durable_from(options: dict[str, Any]) -> Durable | None:
    """What these ask for; they are taken out of ``options``. Raises InvalidJob."""
    from jobschedd.client.api import durable_wish

    durable, replicas, within = (options.pop(name) for name in ("durable", "replicas", "durable_within"))
    try:
        return durable_wish(replicas or durable, within)
    except InvalidJob as error:
        raise InvalidJob("--durable-within", error.problem) from None


def job_options(command: Command) -> Command:
    """Adds the options of every job."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def command_options(command: Command) -> Command:
    """Adds the options of a job that is a command, and the command itself."""
    shell = click.option("--shell", metavar="LINE", help="A line for the node's shell, instead of a COMMAND.")
    argument = click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
    return job_options(_stdin_option(shell(argument(command))))


def item_from(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say, in the keys of a JSONL line. Raises UsageError, InvalidJob."""
    item = {name: value for name, value in options.items() if value not in (None, (), False)}
    if item.pop("no_retry_on_loss", False):
        item["retry_on_loss"] = False
    if "env" in item:
        item["env"] = dict(_variable(text) for text in item["env"])
    if "stdin" in item:
        item["stdin"] = _contents(item["stdin"])
    item.setdefault("submitter", user())
    return item


def option_of(field: str) -> str:
    """What people called this field of an item."""
    name, separator, rest = field.partition(".")
    if name in _SPOKEN:
        return _SPOKEN[name] + separator + rest
    return f"--{name.replace('_', '-')}{separator}{rest}" if name in _NAMES else field


def user() -> str:
    """Who submits, for people who look at the job."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise InvalidJob("env", f"{name!r} is not set here: write {name}=VALUE")
    return name, os.environ[name]


def _contents(path: str) -> bytes:
    try:
        with click.open_file(path, "rb") as file:
            data: bytes = file.read()
            return data
    except OSError as error:
        raise UsageError(f"--stdin: cannot read {path}: {error.strerror}") from None
