"""The simplest account of when a cron expression runs: every minute of real time looked at through its zone."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo


def model(minutes: Set[int], hours: Set[int], zone: ZoneInfo, dst: str, begin: int, end: int) -> list[int]:
    """All times in [begin, end), in seconds: walk through real minutes, look at the wall clock before and after."""
    found = []
    seen: set[datetime] = set()
    at = begin - 2 * 86_400  # what comes twice must have been seen the first time
    before = None
    while at < end:
        wall = datetime.fromtimestamp(at, zone).replace(tzinfo=None)
        expected = wall if before is None else before + timedelta(minutes=1)
        runs = wall.hour in hours and wall.minute in minutes and (dst == "run_twice" or wall not in seen)
        while expected < wall:  # the clock has jumped over these
            if expected.hour in hours and expected.minute in minutes and dst != "skip":
                runs = True
            expected += timedelta(minutes=1)
        if runs and at >= begin:
            found.append(at)
        seen.add(wall)
        before = wall
        at += 60
    return found
