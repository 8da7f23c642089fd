"""What the demo calls on its nodes: ordinary functions of ordinary modules."""

from __future__ import annotations

import time


def primes(limit: int) -> int:
    """How many primes there are below ``limit``."""
    sieve = bytearray([1]) * limit
    sieve[:2] = bytes(min(limit, 2))
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return sum(sieve)


def greet(name: str, pause: float = 0.0) -> str:
    """A greeting, after ``pause`` seconds."""
    print(f"greeting {name}")  # noqa: T201 - its output is captured, and that is the point
    time.sleep(pause)
    return f"hello, {name}"


def statistics(numbers: list[float]) -> dict[str, float]:
    """The mean and the extremes of ``numbers``."""
    return {"mean": sum(numbers) / len(numbers), "least": min(numbers), "most": max(numbers)}
