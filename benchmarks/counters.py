"""What a stretch of work costs Redis, by the server's own counters: no clock of ours, so the same on a busy machine."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

#: How a client starts a script.
SCRIPT_CALLS = ("eval", "evalsha", "fcall")
#: What measuring asks itself.
_OWN = ("info", "hello", "client|setinfo", "client|setname", "select")


@dataclass
class Cost:
    """Filled in at the end of the stretch. Commands inside scripts count as commands, too, as INFO has it."""

    commands: Counter[str] = field(default_factory=Counter)
    microseconds: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    memory: int = 0
    cpu: float = 0.0  # seconds, of the server's main thread as far as it tells them apart

    @property
    def calls(self) -> int:
        """Commands, those inside scripts included."""
        return self.commands.total() - self.script_calls

    @property
    def script_calls(self) -> int:
        """Scripts and functions that clients called."""
        return sum(self.commands[name] for name in SCRIPT_CALLS)

    @property
    def script_microseconds(self) -> int:
        """How long scripts and functions ran, what they called included."""
        return sum(self.microseconds[name] for name in SCRIPT_CALLS)

    def without(self, *names: str) -> Cost:
        """The same without these commands, such as those of whoever watched."""
        rest = {name: count for name, count in self.commands.items() if name not in names}
        return Cost(Counter(rest), self.microseconds, self.bytes_in, self.bytes_out, self.memory, self.cpu)


@contextlib.contextmanager
def counted(client: redis.Redis) -> Iterator[Cost]:
    """What the server does while the block runs, for whomever."""
    cost = Cost()
    # Bytes last before and first after: so that what INFO itself says is hardly among them.
    before, (bytes_in, bytes_out) = _state(client), _bytes(client)
    yield cost
    after_in, after_out = _bytes(client)
    after = _state(client)
    cost.bytes_in, cost.bytes_out = after_in - bytes_in, after_out - bytes_out
    cost.memory = after["memory"] - before["memory"]
    cost.cpu = after["cpu"] - before["cpu"]
    cost.commands = after["calls"] - before["calls"]
    cost.microseconds = after["usec"] - before["usec"]


def _bytes(client: redis.Redis) -> tuple[int, int]:
    stats: Any = client.info("stats")
    return int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"])


def _state(client: redis.Redis) -> dict[str, Any]:
    asked: Any = {}
    for section in ("commandstats", "memory", "cpu"):
        asked |= client.info(section)
    stats = {name.removeprefix("cmdstat_"): of for name, of in asked.items() if name.startswith("cmdstat_")}
    stats = {name: of for name, of in stats.items() if name not in _OWN}
    return {
        "memory": int(asked["used_memory"]),
        "cpu": sum(asked.get(f"used_cpu_{kind}_main_thread", asked[f"used_cpu_{kind}"]) for kind in ("sys", "user")),
        "calls": Counter({name: int(of["calls"]) for name, of in stats.items()}),
        "usec": Counter({name: int(of["usec"]) for name, of in stats.items()}),
    }
