"""jobschedd: a job scheduler for a fleet that has Redis and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobschedd.version import VERSION as __version__

__all__ = ["AsyncClient", "Client", "Job", "__version__"]

if TYPE_CHECKING:
    from jobschedd.client import AsyncClient, Client, Job
else:

    def __getattr__(name: str) -> Any:
        # On demand: the daemons import this package and need no client.
        if name in ("AsyncClient", "Client", "Job"):
            from jobschedd import client

            return getattr(client, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
