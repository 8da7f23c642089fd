"""How every connection of ours behaves towards a server: patience, name, and what it takes for granted."""

from __future__ import annotations

#: Seconds that a command may take before the connection counts as dead.
COMMAND_TIMEOUT = 3.0
CONNECT_TIMEOUT = 2.0
OLDEST_SERVER = (7, 0)


def client_name(name: str) -> str:
    """What CLIENT LIST shows of us."""
    return "jobschedd:" + "".join(char if char.isalnum() or char in "-_./:" else "_" for char in name)
