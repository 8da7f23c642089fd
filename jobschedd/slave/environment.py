"""The environment of a job: built from nothing, so that no secret and no habit of the daemon leaks into it."""

from __future__ import annotations

import functools
import os
import pwd
from datetime import UTC, datetime
from typing import Final

from jobschedd.job import Order, task_of
from jobschedd.slave.settings import ExecutionSettings

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Names that only this software gives a value to.
OWN_PREFIX: Final = "JOBSCHED_"
#: Variables that only some jobs have.
_NOT_ALWAYS: Final = (
    "JOBSCHED_ARRAY_ID",
    "JOBSCHED_ARRAY_INDEX",
    "JOBSCHED_SCHEDULE",
    "JOBSCHED_SCHEDULED_FOR",
    "JOBSCHED_SLOTS",
)


def node_environment(settings: ExecutionSettings) -> dict[str, str]:
    """What every job on this node gets: the basic names, then what the node's configuration adds or changes."""
    return dict(_node_environment(settings))


@functools.lru_cache(maxsize=4)
def _node_environment(settings: ExecutionSettings) -> dict[str, str]:
    return {**_account(os.geteuid()), "PATH": PATH, "LANG": os.environ.get("LANG", "C.UTF-8"), **settings.env}


def job_variables(order: Order, settings: ExecutionSettings) -> dict[str, str]:
    """By what a job knows which it is. The task of an array is called ``N_INDEX``."""
    variables = {
        "JOBSCHED_JOB_ID": order.job,
        "JOBSCHED_ATTEMPT": str(order.attempt),
        "JOBSCHED_CHANNEL": settings.channel,
        "JOBSCHED_NODE": settings.node,
    }
    if order.spec.schedule:
        variables["JOBSCHED_SCHEDULE"] = order.spec.schedule
        variables["JOBSCHED_SCHEDULED_FOR"] = _utc(order.spec.scheduled_for)
    if order.spec.slots > 1:
        variables["JOBSCHED_SLOTS"] = str(order.spec.slots)
    task = task_of(order.job)
    if task is not None:
        variables["JOBSCHED_ARRAY_ID"], variables["JOBSCHED_ARRAY_INDEX"] = task[0], str(task[1])
    return variables | gpu_variables(order, settings)


def gpu_variables(order: Order, settings: ExecutionSettings) -> dict[str, str]:
    """Which GPUs are its own. On a channel that has some, a job that asked for none sees none."""
    if not settings.gpus:
        return {}
    own = ",".join(settings.gpus[number] for number in order.gpus if number < len(settings.gpus))
    return {"JOBSCHED_GPUS": own, "CUDA_VISIBLE_DEVICES": own}


def job_environment(order: Order, settings: ExecutionSettings) -> dict[str, str]:
    """All of it. The job's own names win over the node's, except for those that begin with JOBSCHED_."""
    environment = node_environment(settings)
    for name, value in order.spec.env.items():
        if not (name.startswith(OWN_PREFIX) and name in environment):
            environment[name] = value
    for name in _NOT_ALWAYS:
        environment.pop(name, None)
    environment.update(job_variables(order, settings))
    return environment


def _utc(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if milliseconds % 1000 else "seconds").replace("+00:00", "Z")


@functools.lru_cache(maxsize=4)
def _account(uid: int) -> dict[str, str]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:  # containers run under numbers that no file knows
        return {"HOME": "/", "USER": str(uid), "LOGNAME": str(uid)}
    return {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
