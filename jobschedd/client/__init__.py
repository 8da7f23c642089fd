"""The Python client: submit commands and functions, wait for them, read how they ended.

from jobschedd import Client

client = Client("redis://127.0.0.1:6379/0")
job = client.submit(["sleep", "1"], retries=2)
job.wait()
print(job.outcome, job.exit_code, job.output())
print(client.call("myapp.tasks:add", args=[1, 2]).wait().result)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "AsyncClient": "aio",
    "AsyncJob": "aio",
    "Cancelled": "api",
    "Changed": "api",
    "Client": "api",
    "Explanation": "why",
    "Job": "jobs",
    "Node": "workflow",
    "Options": "api",
    "Output": "follow",
    "Workflow": "workflow",
}

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Cancelled",
    "Changed",
    "Client",
    "Explanation",
    "Job",
    "Node",
    "Options",
    "Output",
    "Workflow",
]

if TYPE_CHECKING:
    from jobschedd.client.aio import AsyncClient, AsyncJob
    from jobschedd.client.api import Cancelled, Changed, Client, Options
    from jobschedd.client.follow import Output
    from jobschedd.client.jobs import Job
    from jobschedd.client.why import Explanation
    from jobschedd.client.workflow import Node, Workflow
else:

    def __getattr__(name: str) -> Any:
        # On demand: who submits a job from a shell waits for every import.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
