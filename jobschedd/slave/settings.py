"""What the execution of jobs needs to know of its node and channel, taken from the config once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class ExecutionSettings:
    """Times in seconds, sizes in bytes. Each is equal to itself only."""

    node: str
    channel: str
    workdir: str
    gpus: tuple[str, ...] = ()  # the channel's, as CUDA calls them; jobs get them by number
    env: Mapping[str, str] = field(default_factory=dict)  # added to every job's environment
    umask: int = 0o022
    allow_commands: tuple[str, ...] = ("*",)
    allow_functions: tuple[str, ...] = ("*",)
    allow_shell: bool = True
    python_path: tuple[str, ...] = ()
    output_limit: int = 64 * 1024  # kept of each stream: the first quarter and the last three
    max_payload: int = 1 << 20
    term_grace: float = 10.0  # from TERM to KILL
    runner_recycle: int = 100_000  # jobs after which a runner is replaced
    runner_memory: int = 512 << 20  # growth of a runner's memory after which it is replaced
