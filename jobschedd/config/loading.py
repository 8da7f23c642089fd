"""From a file to a checked ``Config``."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping

import msgspec

from jobschedd.config import checks, values
from jobschedd.config.document import LARGEST_FILE, Document, Mistake, decode, parse
from jobschedd.config.model import Config, RedisConfig, split_login
from jobschedd.config.places import default_state_dir
from jobschedd.config.reader import Reader
from jobschedd.errors import ConfigError, ConfigProblem

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
        redis = split_login(redis)
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
