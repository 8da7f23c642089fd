"""Where things are when nobody says: the configuration file, the state, and the Redis that a client is to use.

Light to import: a client that is told its Redis reads no file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jobschedd.config import values
from jobschedd.config.model import RedisConfig, resolve_embedded, split_login
from jobschedd.errors import ConfigError, ConfigProblem

FILE_NAME = "jobsched.yaml"
SYSTEM_FOLDER = "/etc/jobschedd"
SYSTEM_STATE = "/var/lib/jobschedd"


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
        redis = _option(lambda text: split_login(RedisConfig(url=values.redis_url(text))), url, origin)
        return resolve_embedded(redis, default_state_dir("", environ)), namespace or "main"
    try:
        path = find(None, environ)
    except ConfigError as error:
        hint = "no Redis is named: give --redis URL, set $JOBSCHED_REDIS_URL or write a configuration file"
        places = ", ".join(search_places(environ))
        raise ConfigError([ConfigProblem("jobsched", None, "", f"{hint} (looked at {places})")]) from error
    from jobschedd.config.loading import load  # who names a Redis has no file to read

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
