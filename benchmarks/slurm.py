"""Slurm on this machine alone, from Debian's packages unpacked into ``build/``: a controller and one node."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.environments import ROOT, debian_files, first_line

sys.path.append(str(ROOT / "tests"))

from redis_server import free_port

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libmunge2", "libhwloc15")
LIBRARIES = f"usr/lib/{platform.machine()}-linux-gnu"
PATIENCE = 60
CONFIG = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def version() -> str:
    """Of the programs, without their name."""
    libraries = [f"{name}={value}" for name, value in _libraries().items()]
    return first_line("env", *libraries, _program("sbin/slurmctld-wlm"), "-V").split()[-1]


def rate(count: int, at_a_time: int) -> float:
    """/bin/true a second, by so many loops of ``srun`` side by side; each waits for its end."""
    each = max(1, count // at_a_time)
    with _running(at_a_time) as environment, ThreadPoolExecutor(at_a_time) as loops:
        _until_it_runs(environment)
        began = time.perf_counter()
        list(loops.map(lambda _: _one_after_the_other(environment, each), range(at_a_time)))
        return each * at_a_time / (time.perf_counter() - began)


def _one_after_the_other(environment: dict[str, str], count: int) -> None:
    for _ in range(count):
        _srun(environment).check_returncode()


def _srun(environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [_program("bin/srun"), "/bin/true"], env=environment, capture_output=True, timeout=PATIENCE, check=False
    )


def _until_it_runs(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while (tried := _srun(environment)).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Slurm does not come up: {tried.stderr.decode(errors='replace').strip()[:200]}")
        time.sleep(0.5)


@contextlib.contextmanager
def _running(cpus: int) -> Iterator[dict[str, str]]:
    """Controller and node, with the environment that its clients need."""
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as home, contextlib.ExitStack() as stack:
        for part in ("state", "spool"):
            (Path(home) / part).mkdir()
        config = Path(home) / "slurm.conf"
        config.write_text(
            CONFIG.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                plugins=_files() / LIBRARIES / "slurm-wlm",
                ports=(free_port(), free_port()),
                home=home,
                cpus=cpus,
            )
        )
        environment = dict(os.environ) | _libraries() | {"SLURM_CONF": str(config)}
        node = [_program("sbin/slurmd-wlm"), "-D", "-f", str(config), "-d", _program("sbin/slurmstepd-wlm")]
        for command in ([_program("sbin/slurmctld-wlm"), "-D", "-f", str(config)], node):
            stack.enter_context(_process(command, environment))
        yield environment


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=silent, stdout=silent, stderr=silent)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _files() -> Path:
    return debian_files(*PACKAGES)


def _program(name: str) -> str:
    return str(_files() / "usr" / name)


def _libraries() -> dict[str, str]:
    places = [_files() / LIBRARIES, _files() / LIBRARIES / "slurm-wlm"]
    return {"LD_LIBRARY_PATH": ":".join(map(str, places))}
