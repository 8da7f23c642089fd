"""The one factory of Redis clients.

Client-side retries are off: the library would repeat a command blindly after a lost reply, and a repeated
XADD is a second job. What is safe to repeat is repeated by the caller. Every wait is bounded: a blocking read
asks the server for less time than the socket waits.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, MasterDownError, NoPermissionError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from jobschedd.config import RedisConfig
from jobschedd.errors import StoreRefused
from jobschedd.store.direct import Direct
from jobschedd.store.errors import translated
from jobschedd.store.manners import COMMAND_TIMEOUT, CONNECT_TIMEOUT, OLDEST_SERVER, client_name

#: What the socket waits beyond the block time of a blocking command.
BLOCK_MARGIN = 2.0
SENTINEL_PORT = 26379


def connect(config: RedisConfig, name: str, *, timeout: float = COMMAND_TIMEOUT) -> Direct:
    """A client named ``name`` (shown by CLIENT LIST). It connects at its first command. ``timeout`` in seconds."""
    options: dict[str, Any] = {
        "credential_provider": _Login(config) if _has_login(config) else None,
        "redis_connect_func": _introduce,
        "client_name": client_name(name),
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
        "protocol": 2,
    } | _library()
    parts = urlsplit(config.url)
    if parts.scheme != "unix":
        options["socket_keepalive"] = True
    if parts.scheme == "rediss":
        options |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": config.ca_file,
            "ssl_certfile": config.cert_file,
            "ssl_keyfile": config.key_file,
        }
    if parts.scheme == "sentinel":
        return _by_sentinel(config, options)
    made: Any = Direct.from_url(config.url, **{key: value for key, value in options.items() if value is not None})
    client: Direct = made
    return client


def blocking(config: RedisConfig, name: str, block: float) -> Direct:
    """A client for reads that block ``block`` seconds on the server: a connection of its own, patient enough."""
    return connect(config, name, timeout=block + BLOCK_MARGIN)


def _by_sentinel(config: RedisConfig, options: dict[str, Any]) -> Direct:
    parts = urlsplit(config.url)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    service, _, database = parts.path.strip("/").partition("/")
    addresses = [_address(host) for host in hosts]
    patience = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    sentinel: Any = Sentinel(addresses, sentinel_kwargs=patience)  # type: ignore[no-untyped-call]
    how = {"db": int(database or 0), "connection_class": _ToTheMaster, **options}
    master: Direct = sentinel.master_for(service or "mymaster", redis_class=Direct, **how)
    return master


class _ToTheMaster(SentinelManagedConnection):
    """Asks the sentinels anew when its server may no longer be the master: it is told so long after the others."""

    def read_response(self, *args: Any, **how: Any) -> Any:
        try:
            return super().read_response(*args, **how)
        except ResponseError as error:
            if str(error).startswith(("NOREPLICAS", "MASTERDOWN")) or isinstance(error, MasterDownError):
                self.disconnect()  # type: ignore[no-untyped-call]
                raise redis.ConnectionError(str(error)) from error
            raise


def _address(host: str) -> tuple[str, int]:
    """``name``, ``name:port``, ``[::1]`` or ``[::1]:port``."""
    parts = urlsplit(f"//{host}")
    return parts.hostname or "", parts.port or SENTINEL_PORT


class _NoPasswordFile(AuthenticationError):
    """The library cleans up after errors of its own only."""

    in_our_words = True


class _Login(CredentialProvider):
    """Asked at every connect, so that a rotated password file needs no reload."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._config.secret() or ""
        except (OSError, UnicodeDecodeError) as error:
            file = self._config.password_file
            raise _NoPasswordFile(f"cannot read the password file {file}: {error}") from error
        return (password,) if self._config.username is None else (self._config.username, password)


@cache
def _library() -> dict[str, Any]:
    """The library's version, for the server to show. Not told, it reads and parses its package's metadata for it."""
    try:
        from redis.driver_info import DriverInfo
    except ImportError:
        return {"lib_version": redis.__version__}
    return {"driver_info": DriverInfo(lib_version=redis.__version__)}


def _has_login(config: RedisConfig) -> bool:
    return any(part is not None for part in (config.username, config.password, config.password_file))


def _introduce(connection: Any) -> None:
    """Log in and say our name. A server at its limit of clients has hung up by then: what did it say before?"""
    if isinstance(connection._sock, ssl.SSLSocket):
        connection.on_connect()
        return
    with connection._sock.dup() as ear:
        try:
            connection.on_connect()
        except redis.ConnectionError as error:
            with suppress(OSError):
                if (said := ear.recv(512, socket.MSG_DONTWAIT)).startswith(b"-"):
                    raise redis.ConnectionError(said[1:].decode(errors="replace").strip()) from error
            raise


def check_server(client: redis.Redis) -> None:
    """Raises StoreRefused where this server cannot hold jobs safely, and says how to mend it."""
    info = _allowed(lambda: client.info("server") | client.info("cluster"))
    if info is None:
        return  # a submitter or viewer may lack the right to ask; the daemons do ask
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_SERVER:
        raise StoreRefused(f"Redis {version} is too old: 7.0 or newer, or Valkey, is needed")
    if info.get("cluster_enabled"):
        raise StoreRefused("Redis runs in cluster mode, which is not supported: use a single server or Sentinel")
    policy = maxmemory_policy(client)
    if policy not in ("noeviction", None):
        raise StoreRefused(
            f"maxmemory-policy is {policy}: Redis would throw jobs away when full; "
            "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
        )


def maxmemory_policy(client: redis.Redis) -> str | None:
    """The eviction policy; None where we may not ask, or the server has been told not to answer."""
    try:
        with translated():
            return str(client.config_get("maxmemory-policy").get("maxmemory-policy", "")) or None
    except StoreRefused:
        return None


def _allowed(ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        with translated():
            return ask()
    except StoreRefused as error:
        if isinstance(error.__cause__, NoPermissionError):
            return None
        raise
