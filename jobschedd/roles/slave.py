"""What the children of a slave run, each in its own process after the fork: a channel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import Config
from jobschedd.errors import JobschedError
from jobschedd.logs import get_logger
from jobschedd.node.context import ChildContext, StopLevel
from jobschedd.slave.channel import Channel, ChannelSettings
from jobschedd.slave.process import inherit_nothing
from jobschedd.slave.processtree import become_subreaper
from jobschedd.slave.settings import ExecutionSettings
from jobschedd.slave.spool import Home
from jobschedd.store.channel import ChannelStore
from jobschedd.store.connect import connect
from jobschedd.store.keys import Keys
from jobschedd.store.knock import Knock
from jobschedd.store.pubsub import Inlet, PubSubChannel

log = get_logger(__name__)

Made = TypeVar("Made")

#: Seconds between two looks for room on a full disk.
ROOM_POLL = 0.5


def run_channel(config: Config, name: str, context: ChildContext) -> int:
    """Target of the children "channel NAME"."""
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
            may_record = config.connection.username in (None, "default")
            return ChannelStore(client, keys, SYSTEM_CLOCK, incarnation, timing.block, may_record=may_record)
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


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()
