"""What single fields cannot know: contradictions between them (mistakes) and doubts about them (warnings)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from jobschedd.config.document import Document
from jobschedd.config.model import Config, HookConfig, socket_path
from jobschedd.config.reader import Reader
from jobschedd.config.values import shown
from jobschedd.durations import format_duration

_LONGEST_SOCKET_PATH = 107  # bytes that fit a Unix socket's address


def check(config: Config, document: Document, reader: Reader) -> None:
    """Note every contradiction in ``config``; what rests on a field that is wrong already is passed over."""
    _check_roles(config, reader)
    _check_names(document, reader, "slave", "channels", "channel")
    _check_names(document, reader, "master", "schedules", "schedule")
    _check_gpus(config, reader)
    _check_redis(config, reader)
    _check_timing(config, reader)
    _check_history(config, reader)
    _check_hooks(config, reader)


def _check_hooks(config: Config, reader: Reader) -> None:
    names: set[str] = set()
    for index, hook in enumerate(config.master.hooks):
        path = ("master", "hooks", index)
        if not reader.sound(*path):
            continue
        for field, problem in _problems_of(hook, names):
            reader.mistake((*path, field), problem, at=path)
        names.add(hook.name)


def _problems_of(hook: HookConfig, names: set[str]) -> Iterator[tuple[str, str]]:
    if hook.name in names:
        yield "name", f"hook {shown(hook.name)} exists already"
    if not hook.on:
        yield "on", "needs at least one of success, failure, named, late, node_down, node_up"
    if sum((bool(hook.command), hook.webhook is not None, bool(hook.job))) != 1:
        yield "command", "give exactly one of command, webhook, job"
    if ("late" in hook.on) == (hook.start_within is None and hook.end_within is None):
        yield "on", "late, and start_within or end_within, belong together"
    if hook.webhook is not None and not hook.webhook.reveal().startswith(("https://", "http://")):
        yield "webhook", "must be a URL that begins with https:// or http://"
    if hook.token is not None and hook.token_file is not None:
        yield "token_file", "give token or token_file, not both"


def _check_history(config: Config, reader: Reader) -> None:
    keep, records = config.master.history_keep, max(config.master.keep.succeeded.age, config.master.keep.failed.age)
    if reader.sound("master", "keep") and reader.sound("master", "history_keep") and 0 < keep < records:
        message = f"is shorter than records stay in Redis (keep: {format_duration(records)}); 0 means for ever"
        reader.mistake(("master", "history_keep"), message, at=("master", "keep"))


def _check_roles(config: Config, reader: Reader) -> None:
    if not reader.sound("role"):
        return
    if config.is_slave and reader.sound("slave") and not config.slave.channels:
        reader.mistake(
            ("slave", "channels"),
            'role slave needs at least one channel, such as [{name: "1"}]',
            at=("role",),
        )
    if config.redis.embedded and reader.sound("redis", "url") and not config.is_master:
        reader.mistake(("redis", "url"), "embedded needs role master on the same machine: it runs the server")
    pubsub_master = config.is_master and config.transport == "pubsub" and reader.sound("transport")
    if pubsub_master and reader.sound("master", "channels") and not config.master.channels:
        reader.mistake(
            ("master", "channels"),
            "a master with transport: pubsub must be told its channels: nobody announces them there",
            at=("transport",),
        )


def _check_names(document: Document, reader: Reader, role: str, kind: str, what: str) -> None:
    # By the document, not the structs: an item with another mistake counts too, and has its line.
    section = document.value.get(role) if isinstance(document.value, dict) else None
    items = section.get(kind) if isinstance(section, dict) else None
    first: dict[str, int] = {}
    for index, item in enumerate(items if isinstance(items, list) else ()):
        name = item.get("name") if isinstance(item, dict) else item
        if not isinstance(name, str):
            continue
        if name in first:
            line = document.line((role, kind, first[name]))
            reader.mistake((role, kind, index, "name"), f"{what} {shown(name)} exists already, in line {line}")
        first.setdefault(name, index)


def _check_gpus(config: Config, reader: Reader) -> None:
    """Two channels that both hand out GPU 0 would oversubscribe it."""
    owners: dict[str, str] = {}
    for index, channel in enumerate(config.slave.channels):
        for gpu in channel.gpus:
            if gpu in owners:
                problem = f"GPU {gpu} belongs to channel {shown(owners[gpu])} already: list each channel's own, [2, 3]"
                reader.mistake(("slave", "channels", index, "resources", "gpus"), problem)
                break
        owners |= dict.fromkeys(channel.gpus, channel.name)


def _check_redis(config: Config, reader: Reader) -> None:
    redis = config.redis
    if not reader.sound("redis"):
        return
    if redis.password is not None and redis.password_file is not None:
        reader.mistake(("redis", "password_file"), "give password or password_file, not both")
    if (redis.cert_file is None) != (redis.key_file is None):
        given = "cert_file" if redis.key_file is None else "key_file"
        reader.mistake(("redis", given), "cert_file and key_file belong together: give both or neither")
    for key in ("ca_file", "cert_file", "key_file"):
        if getattr(redis, key) is not None and not redis.url.startswith("rediss://"):
            reader.mistake(("redis", key), "is for TLS only, and url does not start with rediss://")
    for key in ("password_file", "ca_file", "cert_file", "key_file"):
        file = getattr(redis, key)
        # A file that only the daemon's user may look at is no mistake when somebody else runs the check.
        if file is not None and not os.path.lexists(file) and os.access(os.path.dirname(file), os.X_OK):
            reader.mistake(("redis", key), f"{shown(file)} does not exist")
    socket = socket_path(config.state_dir)
    if redis.embedded and len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH and reader.sound("state_dir"):
        message = f"is too long for a Unix socket: {shown(socket)} exceeds {_LONGEST_SOCKET_PATH} bytes"
        reader.mistake(("state_dir",), message, at=("redis", "url"))


def _check_timing(config: Config, reader: Reader) -> None:
    timing = config.timing
    for longer, shorter, why in (
        ("lease", "heartbeat", "one late heartbeat must not cost a channel its lease"),
        ("leader_lease", "block", "the leader must come round to renew its lease in time"),
    ):
        if not reader.sound("timing", longer) or not reader.sound("timing", shorter):
            continue
        if getattr(timing, longer) <= 2 * getattr(timing, shorter):
            message = f"must be more than twice {shorter} ({getattr(timing, shorter):g}s): {why}"
            reader.mistake(("timing", longer), message, at=("timing", shorter))


def warnings(config: Config, document: Document, mode: int, url_had_password: bool) -> Iterator[str]:
    """Doubts that stop nothing. ``mode`` is the file's st_mode."""
    inline = [
        key
        for key, held in (("password", "password" in document.value["redis"]), ("url", url_had_password))
        if held and ("redis", key) not in document.substituted
    ]
    if inline and mode & stat.S_IROTH:
        yield _line(
            config,
            document,
            f"redis.{inline[0]}",
            "the file holds a password and everybody may read it: chmod o-r",
        )
    if mode & stat.S_IWOTH:
        yield f"{config.source}: everybody may write this file, and with it run commands here: chmod o-w"
    if config.redis.embedded and (config.redis.password is not None or config.redis.username is not None):
        yield _line(config, document, "redis.password", "has no effect with url: embedded")
    if config.master.schedules and not config.is_master:
        yield _line(config, document, "master.schedules", "has no effect without role master")
    if config.transport == "stream":
        for key in ("channels", "result_timeout", "on_no_receiver"):
            if ("master", key) in document.lines:
                yield _line(config, document, f"master.{key}", "has no effect with transport: stream")
        for index, channel in enumerate(config.slave.channels):
            if channel.handler:
                path = f"slave.channels[{index}].handler"
                yield _line(config, document, path, "has no effect with transport: stream")
    else:
        for index, channel in enumerate(config.slave.channels):
            if channel.resources:
                path = f"slave.channels[{index}].resources"
                yield _line(config, document, path, "has no effect with transport: pubsub: no job that asks goes there")


def _line(config: Config, document: Document, path: str, message: str) -> str:
    keys = tuple(int(part) if part.isdigit() else part for part in path.replace("[", ".").replace("]", "").split("."))
    return f"{config.source}:{document.line(keys)}: {path}: {message}"
