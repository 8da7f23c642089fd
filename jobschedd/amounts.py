"""Resources that channels have and jobs ask for: amounts by name, as whole numbers of the smallest unit. Pure.

``cpus`` counts thousandths of one, ``memory`` bytes, ``gpus`` whole ones (handed out by number), and any other name
whole ones. They are an agreement between jobs and channels: nobody is stopped from using more than was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
#: The slots of its channel that a job takes at once: every channel has them without declaring them.
SLOTS = "slots"
MOST_SLOTS = 1024
MOST = 1 << 50
MOST_NAMES = 16
MOST_GPUS = 1024

_CPUS = re.compile(r"\d{1,6}(?:\.\d{1,3})?", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?)(i?B)?", re.ASCII)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_amount(name: str, value: Any) -> int:
    """What ``value`` says of a resource. Raises ValueError with a mendable message."""
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:50]!r} is no name of a resource: lower-case letters, digits, '_' and '-', at most 32")
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(text) > 40:
        raise ValueError(f"{name}: expected an amount")
    amount = _amount(name, text)
    if not 0 < amount <= (MOST_SLOTS if name == SLOTS else MOST):
        raise ValueError(f"{name}: {text!r} is out of range")
    return amount


def _amount(name: str, text: str) -> int:
    if name == "cpus":
        if _CPUS.fullmatch(text) is None:
            raise ValueError(f"cpus: {text!r} is no number of processors; write 2 or 0.5")
        return round(float(text) * 1000)
    if name == "memory":
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f"memory: {text!r} is no size; write bytes, or 512M, 16G")
        step = 1000 if match[3] == "B" and match[2] else 1024
        return round(float(match[1]) * float(step ** _UNITS[match[2]]))
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{name}: {text!r} is no whole number")
    return int(text)


def show_amount(name: str, amount: int) -> str:
    """For people: ``2``, ``0.5``, ``16G``."""
    if name == "cpus":
        return f"{amount / 1000:g}"
    if name == "memory":
        for unit, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
            if amount >= 1024**power and amount * 100 % 1024**power == 0:
                return f"{amount / 1024**power:g}{unit}"
    return str(amount)


def show(amounts: Mapping[str, int]) -> str:
    """``cpus 2, memory 16G``."""
    return ", ".join(f"{name} {show_amount(name, amount)}" for name, amount in sorted(amounts.items()))
