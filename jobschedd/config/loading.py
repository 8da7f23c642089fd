"""From a file to a checked ``Config``, from nothing to the file, and the few settings that a client needs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from jobschedd.config import checks, values
from jobschedd.config.document import LARGEST_FILE, Document, Mistake, decode, parse
from jobschedd.config.model import Config, RedisConfig, resolve_embedded
from jobschedd.config.reader import Reader
from jobschedd.errors import ConfigError, ConfigProblem

FILE_NAME = "jobsched.yaml"
SYSTEM_FOLDER = "/etc/jobschedd"
SYSTEM_STATE = "/var/lib/jobschedd"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def load(path: str, environ: Mapping[str, str] | None = None, hostname: str | None = None) -> Config:
    """Read and check the file at ``path``. Raises ConfigError with every mistake in it, by line."""
    environ = os.environ if environ is None else environ
    hostname = socket.gethostname() if hostname is None else hostname
    data, mode = _contents(path)
    content, mistake = decode(data)
    if mistake is not None:
        raise ConfigError([_problem(path, mistake)])
    document = parse(content, hostname, environ)
    reader = Reader(
        document,
        folder=os.path.dirname(os.path.abspath(path)),
        defaults={("node",): hostname, ("state_dir",): default_state_dir(path, environ)},
        stand_ins={("role",): ("master", "slave"), ("redis",): RedisConfig(url="redis://unknown")},
    )
    config = _read(document, reader, hostname)
    url_had_password = False
    if config is not None:
        checks.check(config, document, reader)
        url_had_password = ":" in config.redis.url.partition("://")[2].rpartition("@")[0]
        config = _complete(config, reader, path)
    if reader.mistakes or config is None:
        raise ConfigError([_problem(path, mistake) for mistake in sorted(reader.mistakes, key=_place)])
    doubts = tuple(checks.warnings(config, document, mode, url_had_password))
    return msgspec.structs.replace(config, warnings=doubts)


def find(explicit: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The configuration file to use: ``explicit``, $JOBSCHED_CONFIG, ./etc, the user's, the system's.

    Raises ConfigError, which names the places, when none of them has one.
    """
    environ = os.environ if environ is None else environ
    named = explicit or environ.get("JOBSCHED_CONFIG")
    if named:
        return named
    places = search_places(environ)
    for place in places:
        if os.path.exists(place):
            _refuse_planted(place)
            return place
    looked = ", ".join(places)
    raise ConfigError(
        [ConfigProblem("jobschedd", None, "", f"no configuration file: give --config FILE (looked at {looked})")]
    )


def search_places(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where a configuration file is looked for when nobody names one."""
    user = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return (
        os.path.join("etc", FILE_NAME),
        os.path.join(user, "jobschedd", FILE_NAME),
        os.path.join(SYSTEM_FOLDER, FILE_NAME),
    )


def client_settings(
    redis_url: str | None = None, namespace: str | None = None, environ: Mapping[str, str] | None = None
) -> tuple[RedisConfig, str]:
    """Where a client connects, and the namespace: by options, $JOBSCHED_REDIS_URL or configuration file.

    Raises ConfigError, which says what to give, when none of them tells.
    """
    environ = os.environ if environ is None else environ
    origin = "--redis" if redis_url else "$JOBSCHED_REDIS_URL"
    url = redis_url or environ.get("JOBSCHED_REDIS_URL")
    if namespace is not None:
        namespace = _option(values.name, namespace, "--namespace")
    if url:
        redis = _option(lambda text: checks.split_login(RedisConfig(url=values.redis_url(text))), url, origin)
        return resolve_embedded(redis, default_state_dir("", environ)), namespace or "main"
    try:
        path = find(None, environ)
    except ConfigError as error:
        hint = "no Redis is named: give --redis URL, set $JOBSCHED_REDIS_URL or write a configuration file"
        places = ", ".join(search_places(environ))
        raise ConfigError([ConfigProblem("jobsched", None, "", f"{hint} (looked at {places})")]) from error
    config = load(path, environ)
    return config.connection, namespace or config.namespace


def default_state_dir(source: str, environ: Mapping[str, str]) -> str:
    """Where state lives when the file does not say: systemd's folder, the system's, or the user's own."""
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd joins several with colons
    if given:
        return given
    # A user who reads the system's file must find the system's socket: where systemd/jobschedd@.service puts it.
    folder, name = os.path.split(os.path.abspath(source))
    if folder == SYSTEM_FOLDER:
        return SYSTEM_STATE if name == FILE_NAME else f"{SYSTEM_STATE}-{name.removesuffix('.yaml')}"
    if os.geteuid() == 0:
        return SYSTEM_STATE
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "jobschedd")


def _contents(path: str) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST_FILE + 1), os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([ConfigProblem(path, None, "", f"cannot be read: {reason}")]) from None


def _read(document: Document, reader: Reader, hostname: str) -> Config | None:
    if document.value is None and document.mistakes:
        return None
    if not document.value:
        reader.mistake((), "is empty: it needs at least role and redis")
        return None
    config = reader.struct(Config, document.value, ())
    if isinstance(document.value, dict) and "node" not in document.value and not values.NAME.fullmatch(hostname):
        reader.mistake(("node",), f"the host name {values.shown(hostname)} is no valid name: set node")
    return config


def _complete(config: Config, reader: Reader, path: str) -> Config:
    redis = config.redis
    try:
        redis = checks.split_login(redis)
    except ValueError as error:
        reader.mistake(("redis", "url"), str(error))
    history = config.master.history or os.path.join(config.state_dir, "history.db")
    workdir = config.slave.workdir or os.path.join(config.state_dir, "jobs")
    return msgspec.structs.replace(
        config,
        redis=redis,
        master=msgspec.structs.replace(config.master, history=history),
        slave=msgspec.structs.replace(config.slave, workdir=workdir),
        source=path,
    )


def _refuse_planted(place: str) -> None:
    # Root in a folder that anybody may write to must not run what somebody put there.
    owner = os.stat(place).st_uid
    if os.geteuid() == 0 and not os.path.isabs(place) and owner != 0:
        problem = f"belongs to user {owner}, not root: name it with --config to use it all the same"
        raise ConfigError([ConfigProblem(place, None, "", problem)])


def _option(read: Any, value: str, origin: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ConfigError([ConfigProblem(origin, None, "", str(error))]) from None


def _problem(file: str, mistake: Mistake) -> ConfigProblem:
    # Parts of the file are quoted in messages: none may end the line or speak to the terminal.
    message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in mistake.message)
    return ConfigProblem(file, mistake.line, dotted(mistake.path), message)


def _place(mistake: Mistake) -> int:
    return mistake.line or 0


def dotted(path: Iterable[str | int]) -> str:
    """``slave.channels[0].name``; keys that are not plain words are quoted: a path stays on its line."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_KEY.fullmatch(part) else values.shown(part))
    return text
