"""The configuration as frozen, typed structs. What a field accepts stands in its annotation (values.py)."""

from __future__ import annotations

import hashlib
import os
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, unquote

import msgspec

from jobschedd.config.values import (
    Argv,
    Budget,
    Count,
    Derived,
    Duration,
    Environment,
    FilePath,
    LimitTable,
    Name,
    Names,
    Password,
    Patterns,
    PositiveDuration,
    RedisUrl,
    Resources,
    Retries,
    Roles,
    Schedules,
    Secret,
    Size,
    Slots,
    Text,
    Umask,
    Weights,
)


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every section. Text in place of the mapping stands for the field named by ``SHORTHAND``."""

    SHORTHAND: ClassVar[str] = ""


class RedisConfig(Struct, frozen=True, kw_only=True):
    """Where Redis is and who we are to it. ``url`` can be shown: a login in it moves to its own fields."""

    url: RedisUrl
    username: Text | None = None
    password: Password | None = None
    password_file: FilePath | None = None  # read at every connect, so that a rotated password needs no reload
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None

    @property
    def embedded(self) -> bool:
        """Whether the master's supervisor runs the server itself."""
        return self.url == "embedded"

    def secret(self) -> str | None:
        """The password: inline, else the first line of ``password_file``. Raises OSError, UnicodeError."""
        if self.password is not None:
            return self.password.reveal()
        if self.password_file is not None:
            with open(self.password_file, encoding="utf-8") as file:
                return file.readline().rstrip("\r\n")
        return None


class KeepSucceeded(Struct, frozen=True, kw_only=True):
    """How long records stay (seconds), and what they may use, as in ``Budgets``; 0: nothing of their own."""

    SHORTHAND: ClassVar[str] = "age"

    age: Duration = 3600.0
    size: Budget = 0.0


class KeepFailed(Struct, frozen=True, kw_only=True):
    """The same of jobs that ended in any other way."""

    SHORTHAND: ClassVar[str] = "age"

    age: Duration = 7 * 86400.0
    size: Budget = 0.0


class Keep(Struct, frozen=True, kw_only=True):
    """What becomes of finished records in Redis; history keeps longer."""

    succeeded: KeepSucceeded = KeepSucceeded()
    failed: KeepFailed = KeepFailed()


class Budgets(Struct, frozen=True, kw_only=True):
    """Bytes in Redis, or shares of its maxmemory (up to 1; without a maxmemory there is no such budget)."""

    pending: Budget = 0.5  # of jobs that wait; then submits are refused
    finished: Budget = 0.3  # of records of jobs that have ended; then those submitted first are forgotten
    output: Budget = 0.1  # of live output; then nobody new may follow
    reserve: Budget = 0.1  # what is left free for results: beyond, submits are refused


class HookConfig(Struct, frozen=True, kw_only=True):
    """Whom to tell of what: exactly one of ``command`` (on the master), ``webhook`` and ``job`` (on a channel)."""

    name: Name
    on: tuple[
        Literal["success", "failure", "named", "late", "node_down", "node_up"], ...
    ]  # named: of jobs that name it
    jobs: Text = "*"  # a pattern over the names of jobs
    nodes: Text = "*"  # a pattern over nodes
    start_within: PositiveDuration | None = None  # late: still waits for a channel after this time
    end_within: PositiveDuration | None = None  # late: still runs after this time
    command: Argv = ()
    webhook: Password | None = None  # a URL: it may hold a secret
    token: Password | None = None  # sent as "Authorization: Bearer ..."
    token_file: FilePath | None = None  # read at every call
    ca_file: FilePath | None = None
    job: Argv = ()
    job_channel: Text = ""
    timeout: PositiveDuration = 30.0
    retries: Retries = 8


class MasterConfig(Struct, frozen=True, kw_only=True):
    """What the dispatcher and the collector go by."""

    placement: Literal["least_loaded", "round_robin", "random"] = "least_loaded"
    channels: Names = ()
    history: FilePath = ""  # "" until load() puts <state_dir>/history.db there
    history_keep: Duration = 90 * 86400.0  # 0: for ever
    history_max_size: Size = 10 * 1024**3  # bytes; beyond, the oldest rows go
    hooks: tuple[HookConfig, ...] = ()
    keep: Keep = Keep()
    budgets: Budgets = Budgets()
    result_timeout: PositiveDuration = 3600.0
    on_no_receiver: Literal["resend", "fail"] = "resend"
    max_payload: Size = 1024 * 1024
    schedules: Schedules = ()
    limits: LimitTable = {}  # key -> jobs at a time, or a rate
    groups: Weights = {}  # group -> its weight beside the others; default: of those not named
    keep_channel_after: Duration = 600.0  # seconds that a job which needs much waits before a channel is kept; 0: never
    ageing: PositiveDuration | None = None  # seconds of waiting that count as one step of priority; None: strict


class ChannelConfig(Struct, frozen=True, kw_only=True):
    """One dispatch channel: one process with ``slots`` jobs at a time."""

    SHORTHAND: ClassVar[str] = "name"

    name: Name
    slots: Slots = 1
    labels: Names = ()
    handler: Argv = ()  # pubsub only: what runs for an id that has no record
    resources: Resources = {}  # what its jobs may ask for; gpus: how many, or which

    @property
    def gpus(self) -> tuple[str, ...]:
        """Its GPUs, as CUDA calls them."""
        said = self.resources.get("gpus", 0)
        return tuple(map(str, range(said))) if isinstance(said, int) else said

    @property
    def amounts(self) -> dict[str, int]:
        """How much it has, by name."""
        return {name: said if isinstance(said, int) else len(said) for name, said in self.resources.items()}


class Allow(Struct, frozen=True, kw_only=True):
    """What may run on this node at all: shell-style patterns over argv[0] and ``module:function``."""

    commands: Patterns = ("*",)
    functions: Patterns = ("*",)
    shell: bool = True


class SlaveConfig(Struct, frozen=True, kw_only=True):
    """What the channel processes go by."""

    channels: tuple[ChannelConfig, ...] = ()
    allow: Allow = Allow()
    python_path: tuple[FilePath, ...] = ()
    workdir: FilePath = ""  # "" until load() puts <state_dir>/jobs there
    drain_timeout: Duration = 60.0
    env: Environment = {}
    umask: Umask = 0o022
    output_limit: Size = 64 * 1024  # bytes kept per stream: a head and a tail
    runner_recycle: Count = 100_000  # functions that one runner process serves before a fresh one takes over
    runner_memory: Size = 512 * 1024 * 1024  # bytes that a runner may grow by before it is replaced


class Timing(Struct, frozen=True, kw_only=True):
    """Every time bound, in seconds. The defaults give the recovery times that the documentation promises."""

    heartbeat: PositiveDuration = 5.0
    lease: PositiveDuration = 15.0
    leader_lease: PositiveDuration = 10.0
    reap_scan: PositiveDuration = 2.0
    block: PositiveDuration = 1.0
    term_grace: Duration = 10.0
    return_after: Duration = 0.1
    prefetch: Duration = 0.05


class LogConfig(Struct, frozen=True, kw_only=True):
    """How much is logged, in which form, and where to (None: stderr)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "journal", "plain", "json"] = "auto"
    file: FilePath | None = None


class Config(Struct, frozen=True, kw_only=True, rename={"roles": "role"}):
    """One configuration file, checked and complete: every default is filled in."""

    roles: Roles
    node: Name
    namespace: Name = "main"
    redis: RedisConfig
    transport: Literal["stream", "pubsub"] = "stream"
    state_dir: FilePath
    master: MasterConfig = MasterConfig()
    slave: SlaveConfig = SlaveConfig()
    timing: Timing = Timing()
    log: LogConfig = LogConfig()
    source: Annotated[str, Derived()] = ""  # the file this came from
    warnings: Annotated[tuple[str, ...], Derived()] = ()  # doubts that stop nothing; each a full line

    @property
    def is_master(self) -> bool:
        return "master" in self.roles

    @property
    def is_slave(self) -> bool:
        return "slave" in self.roles

    @property
    def connection(self) -> RedisConfig:
        """What to connect to: as written, or the socket of the embedded server."""
        return resolve_embedded(self.redis, self.state_dir)

    def channel_fingerprint(self, name: str) -> str:
        """Text that changes whenever anything changes that channel ``name`` goes by. Raises KeyError."""
        for channel in self.slave.channels:
            if channel.name == name:
                slave = msgspec.structs.replace(self.slave, channels=(channel,))
                return self._fingerprint("slave", slave)
        raise KeyError(name)

    def master_fingerprint(self) -> str:
        """Text that changes whenever anything changes that the master's processes go by."""
        return self._fingerprint("master", self.master)

    def _fingerprint(self, role: str, section: Struct) -> str:
        shared = (
            self.node,
            self.namespace,
            self.redis,
            self.transport,
            self.state_dir,
            self.timing,
            self.log,
        )
        text = msgspec.json.encode([role, section, *shared], enc_hook=_revealed, order="deterministic")
        return hashlib.sha256(text).hexdigest()[:16]


def socket_path(state_dir: str) -> str:
    """The Unix socket of the embedded server."""
    return os.path.join(state_dir, "redis.sock")


def resolve_embedded(redis: RedisConfig, state_dir: str) -> RedisConfig:
    """``redis`` as something to connect to: ``embedded`` becomes the socket in ``state_dir``."""
    if not redis.embedded:
        return redis
    return msgspec.structs.replace(redis, url="unix://" + quote(socket_path(state_dir)))


def split_login(redis: RedisConfig) -> RedisConfig:
    """Move user and password out of the URL, so that it can be shown. Raises ValueError: both places used."""
    scheme, separator, rest = redis.url.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    if not at:
        return redis
    username, colon, password = login.partition(":")
    if colon and password and (redis.password is not None or redis.password_file is not None):
        raise ValueError("holds a password, and there is another beside it: keep one")
    if username and redis.username is not None:
        raise ValueError("holds a user name, and there is another beside it: keep one")
    return msgspec.structs.replace(
        redis,
        url=f"{scheme}{separator}{host}{slash}{path}",
        username=unquote(username) or redis.username,
        password=Secret(unquote(password)) if password else redis.password,
    )


def _revealed(value: object) -> object:
    # Only ever hashed: a changed password must change the fingerprint.
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"no way to fingerprint a {type(value).__name__}")
