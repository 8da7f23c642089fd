"""The composition root: a configuration becomes the child processes that the supervisor keeps running.

Children get settings and open their own connections after the fork; nothing is connected before it.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobschedd import logs
from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import Config, load
from jobschedd.errors import ConfigError, ConfigProblem, JobschedError, StoreRefused
from jobschedd.logs import get_logger
from jobschedd.node.child import ChildSpec
from jobschedd.node.context import ChildContext, StopLevel
from jobschedd.node.daemonize import daemonized
from jobschedd.node.pidfile import AlreadyRunning, PidFile
from jobschedd.node.supervisor import Supervisor

if TYPE_CHECKING:
    from jobschedd.master.clerk import Clerk
    from jobschedd.master.dispatcher import Dispatcher
    from jobschedd.master.hooks import HookRunner
    from jobschedd.slave.channel import ChannelSettings

log = get_logger(__name__)

Made = TypeVar("Made")

#: What a channel may need beyond drain_timeout and term_grace to hand in its last results, in seconds.
LAST_RESULTS = 5.0
MASTER_STOP = 10.0
SERVER_STOP = 30.0
PROBE_PATIENCE = 20.0
SHORTEST_KEEP_MS = 10_000
#: Seconds between two looks for room on a full disk.
ROOM_POLL = 0.5
SERVER_STAGE, MASTER_STAGE, SLAVE_STAGE = 0, 1, 2


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
        import jobschedd.master.archive
        import jobschedd.master.clerk
        import jobschedd.master.collector
        import jobschedd.master.dispatcher
        import jobschedd.master.hooks
        import jobschedd.master.publisher
    if config.is_slave:
        import jobschedd.slave.channel
        import jobschedd.store.pubsub  # noqa: F401
    # What is there now stays: a collector that walks through it would copy each of its pages in every child.
    gc.collect()
    gc.freeze()


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
    root = Path(__file__).parent
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
    return ChildSpec(
        name=f"channel {name}",
        target=partial(run_channel, config, name),
        fingerprint=config.channel_fingerprint(name),
        stage=SLAVE_STAGE,
        drain_timeout=config.slave.drain_timeout + config.timing.term_grace + LAST_RESULTS,
    )


# -- the children's targets: each runs in its own process, after the fork --------------------------------------


def run_dispatcher(config: Config, instance: MasterInstance, context: ChildContext) -> int:
    """Target of the child "dispatcher"."""
    import msgspec

    from jobschedd.limits import parse_limit, stored
    from jobschedd.master.budgets import Budgets
    from jobschedd.master.collector import Keep
    from jobschedd.master.dispatcher import Dispatcher
    from jobschedd.master.guard import Guard, KnownFile
    from jobschedd.master.history import History
    from jobschedd.master.leadership import EpochFile, Leadership
    from jobschedd.master.placement import Placement
    from jobschedd.master.timetable import Timetable
    from jobschedd.store.bell import Bell
    from jobschedd.store.connect import blocking, check_server, connect
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.keys import Keys
    from jobschedd.store.marks import Marks
    from jobschedd.store.memory import Memory
    from jobschedd.store.moves import Moves
    from jobschedd.store.schedules import Schedules
    from jobschedd.store.survey import Survey

    timing, keys = config.timing, Keys(config.namespace)
    client = connect(config.connection, f"{config.node}/dispatcher")
    moves = Moves(client, keys)
    epochs = EpochFile(os.path.join(config.state_dir, f"epoch-{config.namespace}"))
    keep = Keep(_keep_ms(config.master.keep.succeeded.age), _keep_ms(config.master.keep.failed.age))
    guard = Guard(
        marks=Marks(client, keys),
        inspect=Inspect(client, keys),
        history=History(config.master.history),
        file=KnownFile(os.path.join(config.state_dir, f"known-{config.namespace}-{_place(config)}")),
        instance=instance.id,
        node=config.node,
        keep=keep.of,
        clock=SYSTEM_CLOCK,
    )
    make: Callable[..., Dispatcher] = Dispatcher if config.transport == "stream" else _publisher(config, client)
    dispatcher = make(
        moves=moves,
        survey=Survey(client, keys),
        bell=Bell(blocking(config.connection, f"{config.node}/dispatcher/bell", timing.block), keys),
        leadership=Leadership(moves, instance.id, timing.leader_lease, epochs, SYSTEM_CLOCK, instance.predecessor),
        placement=Placement(config.master.placement, weights=config.master.groups),
        clock=SYSTEM_CLOCK,
        lease=timing.lease,
        reap_scan=timing.reap_scan,
        block=timing.block,
        keep_ms=_keep_ms(config.master.keep.failed.age),
        check=partial(check_server, client),
        guard=guard,
        ageing=config.master.ageing,
        keep_after=config.master.keep_channel_after,
        limits=dict(stored(key, parse_limit(text)) for key, text in config.master.limits.items()),
        budgets=Budgets(
            Memory(client, keys),
            msgspec.structs.asdict(config.master.budgets) | _sizes_kept(config),
            SYSTEM_CLOCK,
            SHORTEST_KEEP_MS,
            config.master.history,
        ),
        timetable=Timetable(
            Schedules(client, keys),
            SYSTEM_CLOCK,
            config.master.schedules,
            config.node,
            _keep_ms(config.master.keep.failed.age),
        ),
    )
    context.ready()
    with _clerk(config, instance).at_work(), _hooks(config, instance).at_work():
        dispatcher.run(_stopping(context), context.wait, context.beat)
    return 0


def _sizes_kept(config: Config) -> dict[str, float]:
    keep = config.master.keep
    return {"succeeded": keep.succeeded.size, "failed": keep.failed.size}


def _clerk(config: Config, instance: MasterInstance) -> Clerk:
    from jobschedd.master.archive import Archive
    from jobschedd.master.clerk import Clerk
    from jobschedd.store.attempts import AnsweringMachine
    from jobschedd.store.connect import blocking
    from jobschedd.store.keys import Keys

    block = config.timing.block
    client = blocking(config.connection, f"{config.node}/dispatcher/clerk", block)
    keys, node = Keys(config.namespace), config.node
    machine = AnsweringMachine(client, keys, instance.id, node, block, instance.predecessor)
    keep, largest = config.master.history_keep, config.master.history_max_size
    return Clerk(machine, Archive(config.master.history), keep, largest, SYSTEM_CLOCK)


def _hooks(config: Config, instance: MasterInstance) -> HookRunner:
    from jobschedd.master.hooks import HookRunner
    from jobschedd.store.connect import blocking
    from jobschedd.store.hooks import Hooks
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.keys import Keys
    from jobschedd.store.moves import Moves

    timing, keys = config.timing, Keys(config.namespace)
    client = blocking(config.connection, f"{config.node}/dispatcher/hooks", timing.block)
    return HookRunner(
        hooks=config.master.hooks,
        store=Hooks(client, keys),
        inspect=Inspect(client, keys),
        moves=Moves(client, keys),
        instance=instance.id,
        clock=SYSTEM_CLOCK,
        look_every=timing.reap_scan,
        lease=timing.lease,
        block=timing.block,
    )


def _publisher(config: Config, client: Any) -> Callable[..., Dispatcher]:
    from jobschedd.master.publisher import Publisher
    from jobschedd.store.keys import Keys
    from jobschedd.store.publishing import Publishing

    return partial(
        Publisher,
        publishing=Publishing(client, Keys(config.namespace), SYSTEM_CLOCK),
        channels=config.master.channels,
        result_timeout=config.master.result_timeout,
        resend=config.master.on_no_receiver == "resend",
    )


def run_collector(config: Config, instance: MasterInstance, context: ChildContext) -> int:
    """Target of the child "collector"."""
    from jobschedd.master.collector import Collector, Keep
    from jobschedd.master.history import History
    from jobschedd.master.publisher import AnswerCollector
    from jobschedd.store.connect import blocking, connect
    from jobschedd.store.keys import Keys
    from jobschedd.store.moves import Moves
    from jobschedd.store.publishing import AnswerStream, Publishing
    from jobschedd.store.results import ResultStream
    from jobschedd.store.survey import Survey

    timing, keys = config.timing, Keys(config.namespace)
    client = connect(config.connection, f"{config.node}/collector")
    keep = config.master.keep
    moves = Moves(client, keys)
    reader = blocking(config.connection, f"{config.node}/collector/results", timing.block)
    make: Callable[..., Collector]
    if config.transport == "stream":
        make = partial(Collector, results=ResultStream(reader, keys))
    else:
        publishing = Publishing(client, keys, SYSTEM_CLOCK)
        answers = AnswerStream(reader, keys, SYSTEM_CLOCK, timing.heartbeat, moves, publishing)
        make = partial(AnswerCollector, results=answers)
    collector = make(
        moves=moves,
        survey=Survey(client, keys),
        history=History(config.master.history),
        instance=instance.id,
        clock=SYSTEM_CLOCK,
        block=timing.block,
        keep=Keep(_keep_ms(keep.succeeded.age), _keep_ms(keep.failed.age)),
        max_payload=config.master.max_payload,
    )
    context.ready()
    collector.run(_stopping(context), context.wait, context.beat)
    return 0


def run_channel(config: Config, name: str, context: ChildContext) -> int:
    """Target of the children "channel NAME"."""
    from jobschedd.slave.channel import Channel
    from jobschedd.slave.process import inherit_nothing
    from jobschedd.slave.processtree import become_subreaper
    from jobschedd.slave.spool import Home
    from jobschedd.store.channel import ChannelStore
    from jobschedd.store.connect import connect
    from jobschedd.store.keys import Keys
    from jobschedd.store.knock import Knock
    from jobschedd.store.pubsub import Inlet, PubSubChannel

    os.umask(config.slave.umask)
    os.makedirs(config.slave.workdir, mode=0o700, exist_ok=True)
    os.chdir(config.slave.workdir)
    become_subreaper()
    inherit_nothing()
    keys = Keys(config.namespace)

    handler = next(channel.handler for channel in config.slave.channels if channel.name == name)
    inlet = Inlet(handler, config.master.max_payload)

    def open_store(incarnation: str) -> ChannelStore:
        client, timing = connect(config.connection, f"{config.node}/{name}"), config.timing
        if config.transport == "stream":
            return ChannelStore(client, keys, SYSTEM_CLOCK, incarnation, timing.block)
        return PubSubChannel(
            client,
            keys,
            SYSTEM_CLOCK,
            incarnation,
            timing.block,
            name=name,
            interval=timing.heartbeat,
            inlet=inlet,
        )

    def knock() -> Knock:
        return Knock(connect(config.connection, f"{config.node}/{name}/knock"))

    directory = os.path.join(config.state_dir, config.namespace, config.node)

    def new_channel() -> Channel:
        home = Home(directory, name)
        return Channel(_channel_settings(config, name), home, open_store, context, knock=knock)

    channel = _once_there_is_room(new_channel, directory, context)
    return 0 if channel is None else channel.run()


def _once_there_is_room(make: Callable[[], Made], directory: str, context: ChildContext) -> Made | None:
    """What ``make`` makes; None when told to stop before. Who died of a full disk again and again would be given up."""
    told = False
    while True:
        try:
            return make()
        except OSError as error:
            problem = f"cannot keep this channel's files in {directory}: {error.strerror}"
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise JobschedError(problem) from error
        if not told:
            log.error("waiting for room on the disk", cause=problem)
        told = True
        context.beat(f"waiting: {problem}")
        if context.wait(ROOM_POLL) is not StopLevel.RUN:
            return None


def _channel_settings(config: Config, name: str) -> ChannelSettings:
    from jobschedd.slave.channel import ChannelSettings
    from jobschedd.slave.settings import ExecutionSettings

    slave, timing = config.slave, config.timing
    channel = next(channel for channel in slave.channels if channel.name == name)
    return ChannelSettings(
        node=config.node,
        name=name,
        slots=channel.slots,
        labels=channel.labels,
        resources=channel.amounts if config.transport == "stream" else {},  # the classic wire carries no terms
        execution=ExecutionSettings(
            node=config.node,
            channel=name,
            workdir=slave.workdir,
            env=slave.env,
            gpus=channel.gpus if config.transport == "stream" else (),
            umask=slave.umask,
            allow_commands=slave.allow.commands,
            allow_functions=slave.allow.functions,
            allow_shell=slave.allow.shell,
            python_path=slave.python_path,
            output_limit=slave.output_limit,
            max_payload=config.master.max_payload,
            term_grace=timing.term_grace,
            runner_recycle=slave.runner_recycle,
            runner_memory=slave.runner_memory,
        ),
        home=f"{_machine_id()}:{os.path.realpath(config.state_dir)}",
        heartbeat=timing.heartbeat,
        lease=timing.lease,
        return_after=timing.return_after,
        prefetch=timing.prefetch if config.transport == "stream" else 0.0,  # there, no order can be given back early
        drain_timeout=slave.drain_timeout,
        transport=config.transport,
    )


def _place(config: Config) -> str:
    """Where the data are: an operator who points a master at another Redis has lost nothing."""
    return hashlib.sha256(config.connection.url.encode()).hexdigest()[:8]


def _keep_ms(seconds: float) -> int:
    """A record must outlive its way into the history, whatever the retention."""
    return max(SHORTEST_KEEP_MS, round(seconds * 1000))


def _stopping(context: ChildContext) -> Callable[[], bool]:
    def stopping() -> bool:
        return context.check() is not StopLevel.RUN

    return stopping


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()
