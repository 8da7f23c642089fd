"""YAML -> frozen, typed configuration. Every mistake is reported at once, with file, line and path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobschedd.config.model import (
    Allow,
    ChannelConfig,
    Config,
    HookConfig,
    Keep,
    LogConfig,
    MasterConfig,
    RedisConfig,
    SlaveConfig,
    Timing,
    resolve_embedded,
    socket_path,
)
from jobschedd.config.places import client_settings, default_state_dir, find
from jobschedd.config.values import Secret

__all__ = [
    "Allow",
    "ChannelConfig",
    "Config",
    "HookConfig",
    "Keep",
    "LogConfig",
    "MasterConfig",
    "RedisConfig",
    "Secret",
    "SlaveConfig",
    "Timing",
    "client_settings",
    "default_state_dir",
    "find",
    "load",
    "resolve_embedded",
    "socket_path",
]

if TYPE_CHECKING:
    from jobschedd.config.loading import load
else:

    def __getattr__(name: str) -> Any:
        # On demand: a client that is told its Redis reads no file.
        if name == "load":
            from jobschedd.config.loading import load

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
