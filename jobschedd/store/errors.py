"""Redis' errors, translated into ours. The library, which takes long to import, is there when one of its errors is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobschedd.errors import DataLost, NoParent, NotTheLeader, QueueFull, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from redis import RedisError

_NOT_NOW = (
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "MISCONF",
    "BUSY",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",
)
_REFUSED = (
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "NOPROTO",
    "unknown command",
    "max number of clients",
    "MOVED",
    "CROSSSLOT",
)


@contextmanager
def translated() -> Iterator[None]:
    """Redis' errors come out as ours: what the caller can do about it decides which."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
    except Exception as error:
        from redis import RedisError

        if not isinstance(error, RedisError):
            raise
        raise translate(error) from error


def translate(error: RedisError) -> Exception:
    """The error of ours that says what ``error`` means."""
    import redis
    from redis import exceptions as of_redis
    from redis.sentinel import MasterNotFoundError

    text = str(error)
    if getattr(error, "in_our_words", False):
        return StoreRefused(text)
    if "NOTLEADER" in text:
        return NotTheLeader("another master holds the lead")
    if "DATALOST" in text:
        return DataLost(text.partition("DATALOST ")[2])
    if "QUEUEFULL" in text:
        return QueueFull(text.partition("QUEUEFULL ")[2])
    if "NOPARENT" in text:
        return NoParent(text.partition("NOPARENT ")[2])
    if "IDTAKEN" in text:
        return StoreRefused("Redis went back to older data in the middle of this submit: submit again")
    if isinstance(error, of_redis.OutOfMemoryError) or "OOM " in text:
        return QueueFull("Redis is at its memory limit: nothing new is accepted until jobs end")
    no_rights = of_redis.AuthenticationError | of_redis.AuthorizationError | of_redis.NoPermissionError
    if isinstance(error, no_rights) or any(word in text for word in _REFUSED):
        return StoreRefused(f"Redis refused us: {text}")
    if isinstance(error, of_redis.InvalidResponse):
        return StoreRefused(f"this does not speak the protocol of Redis: {text[:200]}")
    if isinstance(error, of_redis.BusyLoadingError | MasterNotFoundError | redis.ConnectionError | redis.TimeoutError):
        return StoreUnavailable(f"Redis cannot be reached: {text}")
    # Of these the library drops the word that begins the server's answer.
    busy = of_redis.ReadOnlyError | of_redis.MasterDownError | of_redis.ClusterDownError | of_redis.TryAgainError
    if isinstance(error, busy):
        return StoreUnavailable(f"Redis cannot serve us now: {text}")
    if isinstance(error, redis.ResponseError) and any(text.startswith(word) or f" {word}" in text for word in _NOT_NOW):
        return StoreUnavailable(f"Redis cannot serve us now: {text}")
    return StoreRefused(f"Redis answered with an error: {text}")
