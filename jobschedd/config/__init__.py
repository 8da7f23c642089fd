"""YAML -> frozen, typed configuration. Every mistake is reported at once, with file, line and path."""

from __future__ import annotations

from jobschedd.config.loading import client_settings, default_state_dir, find, load
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
