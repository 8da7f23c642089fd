"""The same job for every scheduler of the comparison, imported by their own workers from their own environments."""

from __future__ import annotations

import os
import time


def work(number: int, seconds: float) -> None:
    """Says in the ledger that it starts, takes its time, says that it stops."""
    _say("start", number)
    time.sleep(seconds)
    _say("stop", number)


def _say(kind: str, number: int) -> None:
    fd = os.open(os.environ["PEER_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{kind} {number}\n".encode())
    os.fsync(fd)
    os.close(fd)
