"""The composition root: a configuration becomes the child processes that the supervisor keeps running.

Children get settings and open their own connections after the fork; nothing is connected before it.
"""

from __future__ import annotations

import gc
import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobschedd import logs
from jobschedd.config import Config, load
from jobschedd.errors import ConfigError, ConfigProblem, JobschedError, StoreRefused
from jobschedd.logs import get_logger
from jobschedd.node.child import ChildSpec
from jobschedd.node.daemonize import daemonized
from jobschedd.node.pidfile import AlreadyRunning, PidFile
from jobschedd.node.supervisor import Supervisor

log = get_logger(__name__)

#: What a channel may need beyond drain_timeout and term_grace to hand in its last results, in seconds.
LAST_RESULTS = 5.0
MASTER_STOP = 10.0
SERVER_STOP = 30.0
PROBE_PATIENCE = 20.0
SERVER_STAGE, MASTER_STAGE, SLAVE_STAGE = 0, 1, 2
#: New objects after which garbage is looked for: a batch of a thousand reports has some thousands, and all are in use.
_COLLECT_AFTER = 20_000


@dataclass(frozen=True)
class MasterInstance:
    """One start of the supervisor as a master, and the one before it in this state directory, which is dead."""

    id: str
    predecessor: str = ""

    @classmethod
    def succeed(cls, config: Config, held: ExitStack) -> MasterInstance:
        """A new instance. Only the first master of a state directory has a predecessor; another one stands by."""
        if not config.is_master:
            return cls(secrets.token_hex(8))
        try:
            held.enter_context(_lock(config, f"master-{config.namespace}"))
        except AlreadyRunning:
            return cls(secrets.token_hex(8))
        path = Path(config.state_dir) / f"instance-{config.namespace}"
        predecessor = path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else ""
        instance = cls(secrets.token_hex(8), predecessor)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(instance.id)
        return instance


def run(config_path: str, daemonize: bool = False, pidfile: str | None = None) -> int:
    """Run the daemon that ``config_path`` describes until it is stopped; the exit code.

    Raises ConfigError, and AlreadyRunning when this node's slave or this embedded server runs already.
    """
    config = load(config_path)
    for warning in config.warnings:
        print(f"jobschedd: warning: {warning}", file=sys.stderr)  # noqa: T201 - nobody logs yet
    _make_private(config.state_dir)
    build = build_fingerprint()
    with ExitStack() as held:
        readiness = held.enter_context(daemonized(detach=daemonize, pidfile=Path(pidfile) if pidfile else None))
        if config.redis.embedded:
            held.enter_context(_lock(config, "redis"))
            _await_former_server(config)
        if config.is_slave:
            held.enter_context(_lock(config, f"slave-{config.namespace}-{config.node}"))
        instance = MasterInstance.succeed(config, held)
        _configure_logs(config)
        _load_program(config)
        supervisor = Supervisor(
            partial(_load_children, config_path, config, instance),
            name=", ".join(config.roles),
            on_ready=readiness.ready,
            build_changed=lambda: build_fingerprint() != build and new_build_runs(),
        )
        return supervisor.run()


def _load_program(config: Config) -> None:
    """Everything that children run, before they are forked: they share its memory and start at once.

    And a child that is replaced runs the program that this supervisor started with, whatever was installed since.
    """
    if config.is_master:
        import jobschedd.roles.master
    if config.is_slave:
        import jobschedd.roles.slave  # noqa: F401
    # What is there now stays: a collector that walks through it would copy each of its pages in every child.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _await_former_server(config: Config) -> None:
    from jobschedd.store import embedded

    embedded.await_predecessor(config.state_dir)


def _load_children(config_path: str, first: Config, instance: MasterInstance) -> Sequence[ChildSpec]:
    """At the start and at every reload."""
    config = load(config_path)
    fixed = (config.state_dir, config.redis.embedded, config.namespace, config.node)
    if fixed != (first.state_dir, first.redis.embedded, first.namespace, first.node):
        problem = "cannot change while the daemon runs: restart it instead"
        raise ConfigError([ConfigProblem(config.source, None, "state_dir, namespace, node or redis.url", problem)])
    _configure_logs(config)
    return children(config, instance)


def _lock(config: Config, name: str) -> PidFile:
    return PidFile(Path(config.state_dir) / f"{name}.lock")


def _configure_logs(config: Config) -> None:
    logs.configure(config.log.level, config.log.format, process_name="supervisor", file=config.log.file)


def _make_private(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise JobschedError(f"cannot create state_dir {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise JobschedError(f"cannot write to state_dir {directory}: give it to the user that runs the daemon")


def build_fingerprint() -> str:
    """Changes when the installed program does: by name, size and time of every file of the package."""
    root = Path(__file__).parents[1]
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".lua"))
    facts = [f"{path}:{status.st_size}:{status.st_mtime_ns}" for path in files if (status := path.stat())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def new_build_runs() -> bool:
    """Whether the program that is installed now starts: replacing ourselves by a broken one would end the node."""
    probe = (sys.executable, "-m", "jobschedd.cli.daemon", "--version")
    try:
        answer = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.error("the new program does not start; going on with the old one", error=error)
        return False
    if answer.returncode != 0:
        log.error("the new program does not start; going on with the old one", error=answer.stderr.strip()[-300:])
    return answer.returncode == 0


def children(config: Config, instance: MasterInstance) -> list[ChildSpec]:
    """The processes of this configuration. ``instance`` names this start of the supervisor as a master."""
    specs: list[ChildSpec] = []
    if config.redis.embedded:
        specs.append(_embedded_server(config))
    if config.is_master:
        specs += _master(config, instance)
    if config.is_slave:
        specs += [_channel(config, channel.name) for channel in config.slave.channels]
    return specs


def _embedded_server(config: Config) -> ChildSpec:
    from jobschedd.store import embedded

    try:
        program = embedded.command(config.state_dir)
    except StoreRefused as error:
        raise ConfigError([ConfigProblem(config.source, None, "redis.url", str(error))]) from error
    return ChildSpec(
        name="redis",
        target=None,
        program=program,
        fingerprint=" ".join(program),
        stage=SERVER_STAGE,
        drain_timeout=SERVER_STOP,
        ready_check=partial(embedded.answers, config.state_dir),
    )


def _master(config: Config, instance: MasterInstance) -> list[ChildSpec]:
    from jobschedd.roles.master import run_collector, run_dispatcher

    fingerprint = config.master_fingerprint()
    return [
        ChildSpec(
            name=name,
            target=partial(target, config, instance),
            fingerprint=fingerprint,
            stage=MASTER_STAGE,
            drain_timeout=MASTER_STOP,
        )
        for name, target in (("dispatcher", run_dispatcher), ("collector", run_collector))
    ]


def _channel(config: Config, name: str) -> ChildSpec:
    from jobschedd.roles.slave import run_channel

    return ChildSpec(
        name=f"channel {name}",
        target=partial(run_channel, config, name),
        fingerprint=config.channel_fingerprint(name),
        stage=SLAVE_STAGE,
        drain_timeout=config.slave.drain_timeout + config.timing.term_grace + LAST_RESULTS,
    )
