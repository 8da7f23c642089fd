"""A node for the tests: a supervisor whose children come from a JSON file and do nothing useful.

python node_script.py CONFIG [--detach] [--pidfile FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jobschedd import logs
from jobschedd.errors import ConfigError, ConfigProblem
from jobschedd.logs import get_logger
from jobschedd.node.child import ChildSpec
from jobschedd.node.context import ChildContext, StopLevel
from jobschedd.node.daemonize import daemonized
from jobschedd.node.restart import RestartLimits
from jobschedd.node.supervisor import Supervisor, Timing

log = get_logger("node_script")


def steady(context: ChildContext) -> int:
    """Ready, then idle until told to stop."""
    context.ready("idle")
    while context.wait(10.0) == StopLevel.RUN:
        pass
    return 0


def working(context: ChildContext) -> int:
    """Takes 0.5 s to drain, nothing to stop now."""
    context.ready()
    while context.wait(10.0) == StopLevel.RUN:
        pass
    log.info("told", stop=context.check())
    context.wait(0.5)
    log.info("ends", stop=context.check(), orphaned=context.orphaned)
    return 0


def stubborn(context: ChildContext) -> int:
    """Hears, beats and never stops."""
    context.ready()
    while True:
        context.wait(0.05)


def deaf(context: ChildContext) -> int:
    """Beats (so nobody thinks that it hangs) but never looks at what it was told."""
    context.ready()
    while True:
        context.beat()
        time.sleep(0.05)


def hanging(context: ChildContext) -> int:
    """Silent once it is ready."""
    context.ready()
    while True:
        time.sleep(1)


def broken(context: ChildContext) -> int:
    """Cannot even start."""
    raise ValueError("no such module: nonsense\nand a second line")


def refused(context: ChildContext) -> int:
    raise ConfigError([ConfigProblem("x.yaml", 3, "slave", "nonsense")])


def late(context: ChildContext) -> int:
    """Never says that it is ready, but goes on."""
    while context.wait(10.0) == StopLevel.RUN:
        pass
    return 0


def slow(context: ChildContext) -> int:
    """Ready after 0.4 s."""
    context.wait(0.4)
    return steady(context)


def family(context: ChildContext) -> int:
    """Leaves children, grandchildren and escaped sessions behind when it is killed."""
    escape = "setsid sh -c 'sleep 1001 & sleep 1002' & sleep 1003 & (sleep 1004 &) ; sleep 1005"
    subprocess.Popen(["sh", "-c", escape])  # nobody waits for it: that is the point
    return steady(context)


def environment(context: ChildContext) -> int:
    names = [name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG", "JOBSCHEDD_HANDOVER"))]
    log.info("environment", names=",".join(names))
    open_files = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if int(fd) < 1000 and os.path.exists(f"/proc/self/fd/{fd}")
    ]
    log.info("descriptors", pipes=sum(each.startswith("pipe:") for each in open_files))
    status = Path("/proc/self/status").read_text()
    masks = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Sig")}
    log.info("signals", blocked=masks["SigBlk"])
    return steady(context)


BEHAVIOURS: dict[str, Callable[[ChildContext], int]] = {
    each.__name__: each
    for each in (steady, working, stubborn, deaf, hanging, broken, refused, late, slow, family, environment)
}


class Loader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._build = self.read().get("build")

    def read(self) -> dict:
        return json.loads(self._path.read_text())

    def specs(self) -> list[ChildSpec]:
        settings = self.read()
        time.sleep(settings.get("load_takes", 0))
        if settings.get("bug"):
            raise ZeroDivisionError("a defect in load")
        if settings.get("only_new_build_refuses") and self._build == settings["build"]:
            raise ConfigError([ConfigProblem(str(self._path), 1, "role", "is no longer supported")])
        if settings.get("problem"):
            raise ConfigError([ConfigProblem(str(self._path), 7, "slave.channels", settings["problem"])])
        return [_spec(child) for child in settings["children"]]


def _spec(child: dict) -> ChildSpec:
    program = child.get("program")
    ready_file = child.get("ready_file")
    return ChildSpec(
        name=child["name"],
        target=None if program else BEHAVIOURS[child.get("behaviour", "steady")],
        program=tuple(program) if program else None,
        fingerprint=child.get("fingerprint", child.get("behaviour", "steady")),
        stage=child.get("stage", 0),
        drain_timeout=child.get("drain_timeout", 2.0),
        ready_check=(lambda: os.path.exists(ready_file)) if ready_file else None,
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--pidfile", type=Path)
    arguments = parser.parse_args()
    path = arguments.config.absolute()
    loader = Loader(path)
    settings = loader.read()
    build = settings.get("build")
    sys.executable = settings.get("python", sys.executable)
    with daemonized(detach=arguments.detach, pidfile=arguments.pidfile) as readiness:
        logs.configure("debug", "json", "node", file=settings.get("log"))
        log.info("up", build=build, ppid=os.getppid(), cwd=os.getcwd())
        if settings.get("refuse"):
            raise ConfigError([ConfigProblem(str(path), 1, "role", settings["refuse"])])
        timing = Timing(
            liveness_timeout=settings.get("liveness_timeout", 1.0),
            start_timeout=settings.get("start_timeout", 1.0),
            kill_margin=0.2,
            now_timeout=0.5,
            reload_pause=settings.get("reload_pause", 0.1),
            extend_every=0.2,
            restart=RestartLimits(
                first_delay=0.01, delay_limit=3.0, ready_delay_limit=0.1, quick=1.0, max_failures=5, stable=1.0
            ),
        )
        supervisor = Supervisor(
            loader.specs,
            name="test",
            timing=timing,
            on_ready=readiness.ready,
            build_changed=lambda: loader.read().get("build") != build,
        )
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
