"""``doctor``: what is wrong, or soon will be, and how to mend it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from jobschedd.cli.context import connect, connection_options, json_option, print_json
from jobschedd.cli.render import safe
from jobschedd.durations import format_duration
from jobschedd.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from jobschedd.config import RedisConfig
    from jobschedd.store.inspect import Inspect
    from jobschedd.store.views import ChannelView

#: Connections that a channel process and a master need at most.
_PER_CHANNEL, _PER_MASTER = 3, 4
_MOST_SKEW = 2.0  # seconds
_SLOW_ANSWER = 0.05  # seconds
_LONG_QUEUE = 10_000
_MASTER_SILENT = 90.0  # seconds; a master says every 30 that it is there
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``level``: ok, warning or error; ``mend``: what to do about it."""

    check: str
    level: str
    message: str
    mend: str = ""


@click.command("doctor", short_help="Say what is wrong, and how to mend it.")
@json_option
@connection_options
def doctor_command(as_json: bool) -> None:
    """Examine Redis, the master, the channels and the queues; say how to mend what is wrong.

    Exit code: 0, or 1 where there is an error (warnings stop nobody); 69 where Redis cannot be asked at all.
    """
    client = connect()
    code = 0
    try:
        # Not client.inspect: a server that a submit would refuse is what this command is for.
        findings = list(examine(client.session.inspect))
    except (StoreUnavailable, StoreRefused) as error:
        findings, code = [_beyond_reach(error, client.session.config)], error.exit_code
    sick = any(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"ok": not sick, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
            click.echo(f"{mark}{finding.check}: {safe(finding.message)}")
            if finding.mend:
                click.echo(f"        -> {safe(finding.mend)}")
    sys.exit(code or (1 if sick else 0))


def examine(inspect: Inspect) -> Iterator[Finding]:
    """Every finding, good ones too. Raises StoreUnavailable, StoreRefused where Redis cannot be asked."""
    begin = time.perf_counter()
    server_time = inspect.time()
    took = time.perf_counter() - begin
    info = inspect.server()
    channels = inspect.channels()
    yield _reach(took)
    yield _data(inspect)
    yield _version(info)
    yield _policy(inspect)
    yield _memory(info)
    yield from _persistence(info)
    yield _connections(info, channels)
    yield _clock(server_time, took)
    yield _leader(inspect)
    yield from _schedules(inspect)
    yield from _channels(channels)
    yield from _unserved(inspect, channels)
    yield from _queues(inspect)


def _beyond_reach(error: StoreUnavailable | StoreRefused, config: RedisConfig) -> Finding:
    where = f"the server at {config.url}"
    text = str(error)
    if isinstance(error, StoreUnavailable):
        mend = f"start {where}, or correct redis.url; if it runs: is it listening there, is a firewall between?"
        if config.url.startswith("unix:"):
            mend = f"start {where}, or correct redis.url; an embedded server (url: embedded) is started by jobschedd"
        if "cannot serve us now" in text:
            mend = f"look at the log of {where}: it answers, but does no work for us"
    elif "does not speak" in text:
        mend = "something else listens there: correct redis.url (rediss:// where the port is for TLS)"
    elif "no permission" in text.lower() or "NOPERM" in text:
        mend = "give this user the rights it lacks (ACL SETUSER), or use another user"
    elif "refused us" in text:
        mend = f"check redis.username and redis.password_file, or the login in the URL, against {where}"
    else:
        mend = f"look at {where}, and at its log"
    return Finding("redis", "error", text, mend)


def _reach(took: float) -> Finding:
    if took > _SLOW_ANSWER:
        mend = "look for slow commands (SLOWLOG GET), swapping, or a long way to the server"
        return Finding("redis", "warning", f"answers in {format_duration(took)}", mend)
    return Finding("redis", "ok", f"answers in {took * 1000:.1f} ms")


def _data(inspect: Inspect) -> Finding:
    from jobschedd.cli.rebuild import ways_out
    from jobschedd.store.marks import Marks

    loss = Marks(inspect.client, inspect.keys).loss()
    if loss is None:
        return Finding("data", "ok", "what the masters know of is there")
    ago = format_duration(max(0.0, time.time() - loss.since))
    state = "being rebuilt now" if loss.rebuilding else "nothing is accepted or dispatched; running jobs go on"
    return Finding("data", "error", f"{loss.story}; noticed {ago} ago by {loss.by}; {state}", ways_out(loss))


def _version(info: dict[str, Any]) -> Finding:
    from jobschedd.store.manners import OLDEST_SERVER

    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "?"))
    compatible = str(info.get("redis_version", "0"))
    if info.get("cluster_enabled"):
        return Finding("version", "error", f"{name} {version} in cluster mode", "use a single server, or Sentinel")
    if tuple(int(part) for part in compatible.split(".")[:2] if part.isdigit()) < OLDEST_SERVER:
        return Finding("version", "error", f"{name} {version} is too old", "upgrade to Redis 7.0 or newer, or Valkey")
    return Finding("version", "ok", f"{name} {version}")


def _policy(inspect: Inspect) -> Finding:
    from jobschedd.store.connect import maxmemory_policy

    policy = maxmemory_policy(inspect.client)
    if policy is None:
        return Finding("eviction", "warning", "maxmemory-policy cannot be read", "allow CONFIG GET, or look yourself")
    if policy != "noeviction":
        mend = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
        return Finding("eviction", "error", f"maxmemory-policy {policy} throws jobs away when memory is full", mend)
    return Finding("eviction", "ok", "maxmemory-policy noeviction")


def _memory(info: dict[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit and used > 0.9 * limit:
        mend = "raise maxmemory, or lower master.keep; submits are refused at the limit, results still accepted"
        level = "error" if used >= limit else "warning"
        return Finding("memory", level, f"{used / limit:.0%} of maxmemory is used", mend)
    bound = f" of {limit >> 20} MiB" if limit else "; no limit is set"
    return Finding("memory", "ok", f"{used >> 20} MiB used{bound}")


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("loading"):
        yield Finding("persistence", "warning", "Redis is loading its data", "wait")
    if not int(info.get("aof_enabled", 0)):
        mend = "CONFIG SET appendonly yes, and appendonly yes in redis.conf"
        yield Finding("persistence", "warning", "the append-only file is off: jobs are lost when Redis dies", mend)
    elif info.get("aof_last_write_status", "ok") != "ok":
        mend = "free the disk that holds the append-only file; see the server's log"
        yield Finding("persistence", "error", "the last write to the append-only file failed", mend)
    else:
        yield Finding("persistence", "ok", "append-only file on")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        mend = "free disk or memory; Redis refuses writes meanwhile where stop-writes-on-bgsave-error is set"
        yield Finding("persistence", "error", "the last background save failed", mend)


def _connections(info: dict[str, Any], channels: list[ChannelView]) -> Finding:
    used, limit = int(info.get("connected_clients", 0)), int(info.get("maxclients", 10_000) or 10_000)
    present = sum(channel.state != "down" for channel in channels)
    wanted = present * _PER_CHANNEL + _PER_MASTER
    if max(used, wanted) > 0.8 * limit:
        mend = "raise maxclients (and the server's file limit)"
        message = f"{used} of {limit} connections are used; {present} channels may need {wanted}"
        return Finding("connections", "error" if used >= limit else "warning", message, mend)
    return Finding("connections", "ok", f"{used} of {limit}")


def _clock(server_time: float, took: float) -> Finding:
    skew = abs(time.time() - server_time) - took
    if skew > _MOST_SKEW:
        mend = "set up NTP on both; leases go by the server's clock, but times that people read would confuse them"
        return Finding("clock", "warning", f"{format_duration(skew)} between this machine and Redis", mend)
    return Finding("clock", "ok", "this machine and Redis agree")


def _leader(inspect: Inspect) -> Finding:
    leader = inspect.leader()
    if leader is None:
        mend = "start a daemon with role master for this namespace, and look at its log: journalctl -u jobschedd"
        return Finding("master", "error", f"no master leads namespace {inspect.keys.namespace}", mend)
    instance, _, epoch = leader[0].rpartition(":")
    return Finding("master", "ok", f"{instance} leads, epoch {epoch}")


def _schedules(inspect: Inspect) -> Iterator[Finding]:
    from jobschedd.store.schedules import Schedules

    store = Schedules(inspect.client, inspect.keys)
    now = store.now()
    living = [master for master in store.masters() if now - master.at < _MASTER_SILENT * 1000]
    if len({master.schedules for master in living}) > 1:
        everything = {one for master in living for one in master.schedules}
        differing = {
            one.partition(":")[0] for one in everything if not all(one in master.schedules for master in living)
        }
        message = (
            f"the configurations of the masters {_some([master.name for master in living])} differ in "
            f"{_some(sorted(differing))}: which holds depends on who leads"
        )
        yield Finding("schedules", "warning", message, "give all masters the same master.schedules")
    found, unreadable = store.all()
    if unreadable:
        mend = "they were written by a newer version: finish the upgrade"
        yield Finding("schedules", "error", f"not readable for this version: {_some(unreadable)}", mend)
    paused = [one.schedule.name for one in found if one.paused is not None]
    if found:
        yield Finding("schedules", "ok", f"{len(found)}" + (f", paused: {_some(paused)}" if paused else ""))


def _channels(channels: list[ChannelView]) -> Iterator[Finding]:
    up = [channel for channel in channels if channel.state == "up"]
    if not channels:
        yield Finding("channels", "error", "none has ever been seen", "start a daemon with role slave")
        return
    if not up:
        mend = "start a daemon with role slave, or resume what is drained: jobsched channels"
        yield Finding("channels", "error", f"none of {len(channels)} is up", mend)
    else:
        yield Finding("channels", "ok", f"{len(up)} of {len(channels)} up, {sum(one.slots for one in up)} slots")
    living = {channel.node for channel in up}
    for channel in channels:
        if channel.state == "lost":
            mend = "its jobs are taken back by themselves; look at the node, or its way to Redis"
            yield Finding("channels", "error", f"{channel.name} is lost with {channel.entries} jobs", mend)
        elif channel.state == "down" and channel.node in living:
            mend = f"removed on purpose? else look at the log of {channel.node}: journalctl -u jobschedd"
            yield Finding("channels", "warning", f"{channel.name} is down while its node is up", mend)
    # A pubsub subscriber that is none of ours has no node.
    down = sorted({channel.node for channel in channels if channel.state == "down" and channel.node} - living)
    if down:
        mend = "start jobschedd there, if they are meant to be up"
        yield Finding("channels", "warning", f"nodes that are down: {_some(down)}", mend)
    aside = {channel.name: channel.aside for channel in up if channel.aside}
    if aside:
        mend = "they lie in files aside-* under channels/ in the state directory of the node; remove them there"
        message = f"results of data that were given up: {_some([f'{name} {count}' for name, count in aside.items()])}"
        yield Finding("channels", "warning", message, mend)
    versions = sorted({channel.version for channel in up if channel.version})
    if len(versions) > 1:
        yield Finding("channels", "warning", f"versions differ: {', '.join(versions)}", "finish the upgrade")


def _unserved(inspect: Inspect, channels: list[ChannelView]) -> Iterator[Finding]:
    from jobschedd.cli.submit import could_run
    from jobschedd.job import Target

    waiting: dict[Target, int] = {}
    for (target, _), count in inspect.pending_by_class(exact=True).items():
        states = {one.state for one in channels if target.admits(one.node, one.channel, frozenset(one.labels))}
        if "up" not in states:
            waiting[target] = waiting.get(target, 0) + count
    for target, count in sorted(waiting.items(), key=lambda item: item[0].key()):
        place = "any channel" if target == Target() else f"a channel that {could_run(target)}"
        jobs = "1 job waits" if count == 1 else f"{count} jobs wait"
        mend = "start or resume such a channel, or cancel the jobs: jobsched list --state pending"
        yield Finding("pending", "error", f"{jobs} for {place}, and none such is up", mend)
    if not waiting:
        yield Finding("pending", "ok", "every waiting job has a channel that is up")


def _queues(inspect: Inspect) -> Iterator[Finding]:
    counts = inspect.counts()
    if counts.uncollected > _LONG_QUEUE:
        mend = "the master's collector is behind, or stuck: look at its log, and at the disk with history.db"
        yield Finding("results", "warning", f"{counts.uncollected} messages with reports wait to be collected", mend)
    if counts.cancelling > 100:
        mend = "their channels do not answer: jobsched channels"
        yield Finding("cancels", "warning", f"{counts.cancelling} cancelled jobs still run", mend)
    if counts.dead_letters:
        newest = inspect.dead_letters(1)[0]
        mend = "somebody writes to our keys who should not, or in a version that we cannot read"
        message = f"{counts.dead_letters} dead letters, the newest from {newest['source']}: {newest['reason']}"
        yield Finding("dead letters", "warning", message, mend)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
