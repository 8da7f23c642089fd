"""What the children of a master run, each in its own process after the fork: the dispatcher and the collector."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import Config
from jobschedd.limits import parse_limit, stored
from jobschedd.master.archive import Archive
from jobschedd.master.budgets import Budgets
from jobschedd.master.clerk import Clerk
from jobschedd.master.collector import Collector, Keep
from jobschedd.master.dispatcher import Dispatcher
from jobschedd.master.guard import Guard, KnownFile
from jobschedd.master.history import History
from jobschedd.master.hooks import HookRunner
from jobschedd.master.leadership import EpochFile, Leadership
from jobschedd.master.placement import Placement
from jobschedd.master.publisher import AnswerCollector, Publisher
from jobschedd.master.timetable import Timetable
from jobschedd.node.context import ChildContext, StopLevel
from jobschedd.store.attempts import AnsweringMachine
from jobschedd.store.bell import Bell
from jobschedd.store.connect import blocking, check_server, connect
from jobschedd.store.hooks import Hooks
from jobschedd.store.inspect import Inspect
from jobschedd.store.keys import Keys
from jobschedd.store.marks import Marks
from jobschedd.store.memory import Memory
from jobschedd.store.moves import Moves
from jobschedd.store.publishing import AnswerStream, Publishing
from jobschedd.store.results import ResultStream
from jobschedd.store.schedules import Schedules
from jobschedd.store.survey import Survey

if TYPE_CHECKING:
    from jobschedd.roles import MasterInstance

SHORTEST_KEEP_MS = 10_000


def run_dispatcher(config: Config, instance: MasterInstance, context: ChildContext) -> int:
    """Target of the child "dispatcher"."""
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
        keep_ms=keep.failed,
        keep_successes_ms=keep.succeeded,
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
    block = config.timing.block
    client = blocking(config.connection, f"{config.node}/dispatcher/clerk", block)
    keys, node = Keys(config.namespace), config.node
    machine = AnsweringMachine(client, keys, instance.id, node, block, instance.predecessor)
    keep, largest = config.master.history_keep, config.master.history_max_size
    return Clerk(machine, Archive(config.master.history), keep, largest, SYSTEM_CLOCK)


def _hooks(config: Config, instance: MasterInstance) -> HookRunner:
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
    return partial(
        Publisher,
        publishing=Publishing(client, Keys(config.namespace), SYSTEM_CLOCK),
        channels=config.master.channels,
        result_timeout=config.master.result_timeout,
        resend=config.master.on_no_receiver == "resend",
    )


def run_collector(config: Config, instance: MasterInstance, context: ChildContext) -> int:
    """Target of the child "collector"."""
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
