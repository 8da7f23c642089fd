"""The indices of a job array: what a user writes (``1-100:2,200%5``), and the bitmap that the store keeps. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

#: Highest index: a bitmap of all of them has 1.25 MB.
HIGHEST_INDEX = 9_999_999
#: Parts that one text may list.
MOST_PARTS = 10_000
_PART = re.compile(r"(\d{1,12})(?:-(\d{1,12})(?::(\d{1,12}))?)?", re.ASCII)


class Indices(msgspec.Struct, frozen=True):
    """Ranges ``(first, last, step)`` as they were written, and how many tasks may run at once (0: any number)."""

    ranges: tuple[tuple[int, int, int], ...]
    limit: int = 0

    def bitmap(self) -> bytes:
        """One bit an index, as SETBIT numbers them: index 0 is the highest bit of byte 0."""
        marks = bytearray(b"0") * (8 * (max(last for _, last, _ in self.ranges) // 8 + 1))
        for first, last, step in self.ranges:
            marks[first : last + 1 : step] = b"1" * ((last - first) // step + 1)
        return int(marks, 2).to_bytes(len(marks) // 8, "big")


def parse_indices(text: str) -> Indices:
    """``1-100``, ``0-98:2`` (each second), ``1,3,7-9``, any of them with ``%N`` behind. Raises ValueError."""
    listed, percent, limit = text.replace(" ", "").partition("%")
    if percent and (re.fullmatch(r"\d{1,8}", limit, re.ASCII) is None or not int(limit)):
        raise ValueError(f"{limit[:20]!r} is no limit: %N takes a number from 1 on")
    parts = listed.split(",")
    if len(parts) > MOST_PARTS:
        raise ValueError(f"lists {len(parts)} parts; at most {MOST_PARTS} are taken")
    return Indices(tuple(_range(part) for part in parts), int(limit or 0))


def _range(part: str) -> tuple[int, int, int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{part[:40]!r} is no index and no range: write 1-100, 0-98:2 or 1,3,7-9, and %5 behind it")
    first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
    if last > HIGHEST_INDEX or first > HIGHEST_INDEX:
        raise ValueError(f"{part[:40]!r} goes beyond the highest index, {HIGHEST_INDEX}")
    if last < first:
        raise ValueError(f"{part[:40]!r} ends before it begins")
    if not step:
        raise ValueError(f"{part[:40]!r} has a step of 0")
    return first, last, step


def members(bitmap: bytes) -> Iterator[int]:
    """The indices whose bit is set, in order."""
    for at, byte in enumerate(bitmap):
        if byte:
            yield from (8 * at + bit for bit in range(8) if byte & (0x80 >> bit))


def count(bitmap: bytes) -> int:
    """How many bits are set."""
    return int.from_bytes(bitmap, "big").bit_count()


def bytes_of(indices: range) -> bytes:
    """The bitmap of a plain range."""
    return Indices(((indices.start, indices.stop - 1, 1),)).bitmap() if indices else b""


def contains(bitmap: bytes, index: int) -> bool:
    """Whether the bit of this index is set."""
    return index // 8 < len(bitmap) and bool(bitmap[index // 8] & (0x80 >> index % 8))
