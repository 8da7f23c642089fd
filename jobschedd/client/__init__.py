"""The Python client: submit commands and functions, wait for them, read how they ended.

from jobschedd import Client

client = Client("redis://127.0.0.1:6379/0")
job = client.submit(["sleep", "1"], retries=2)
job.wait()
print(job.outcome, job.exit_code, job.output())
print(client.call("myapp.tasks:add", args=[1, 2]).wait().result)
"""

from __future__ import annotations

from jobschedd.client.aio import AsyncClient, AsyncJob
from jobschedd.client.api import Cancelled, Changed, Client, Options
from jobschedd.client.follow import Output
from jobschedd.client.jobs import Job
from jobschedd.client.why import Explanation
from jobschedd.client.workflow import Node, Workflow

__all__ = ["Cancelled", "Changed", "Client", "Explanation", "Job", "Node", "Options", "Output", "Workflow"]
__all__ = ["AsyncClient", "AsyncJob", "Cancelled", "Changed", "Client", "Explanation", "Job", "Options", "Output"]
