"""The start register of a channel process: which dispatch entries it has started, safe from a SIGKILL.

Each start is noted in a shared file mapping before it happens. The page cache outlives the process, so the
next incarnation of the channel knows what ran, without one fsync. (After a crash of the whole machine it may be
incomplete: see ``recovery.py``.) Warm runners map the register too and note each function themselves.

The file, in native byte order (it never leaves its machine): one page for the magic and the boot id, then per slot
a region::

    0     u64  starts noted so far: the cursor of the ring, written after the start itself
    8     u64  how many of them were over at the last clear; the slot is free when both are equal
    4096  RING starts: u64 number, u64 entry time, u64 entry sequence, u64 starttime, u32 pid, u32 crc

A start counts only when its checksum holds, so neither a torn write nor a damaged page invents one. The
checksum begins with the version of this layout: a program of another version sees no starts at all.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

RING: Final = 1024
PREFIX: Final = "register-"
_UNFINISHED: Final = ".unfinished-"  # created, not locked yet: nobody may take it for a dead one's
_PAGE: Final = 4096
_VERSION: Final = 1
_MAGIC: Final = b"jobschedd start register\n"  # for people and file(1)
_BOOT_AT: Final = 64  # in the first page: length, text and checksum of the boot id
_BOOT: Final = struct.Struct("=B55sI")
_COUNTS: Final = struct.Struct("=QQ")
_COUNT: Final = struct.Struct("=Q")
_START: Final = struct.Struct("=QQQQI")
_CRC: Final = struct.Struct("=I")
_STRIDE: Final = 40
_REGION: Final = _PAGE + RING * _STRIDE


class Start(NamedTuple):
    """One noted start. ``pid`` is 0 for a function and for a command that was never spawned."""

    slot: int
    entry: str
    pid: int
    starttime: int  # of the process, in clock ticks since boot (field 22 of /proc/PID/stat)
    running: bool  # the last start of a slot that was not cleared


def write_start(mapped: mmap.mmap, offset: int, entry: str, pid: int = 0, starttime: int = 0) -> None:
    """Note in the slot whose region begins at ``offset`` of ``mapped`` that ``entry`` is started now.

    A repeated note of the same entry adds its pid. Raises ValueError when ``entry`` is no entry id.
    """
    time, _, sequence = entry.partition("-")
    number = _COUNT.unpack_from(mapped, offset)[0] + 1
    try:
        start = _START.pack(number, int(time), int(sequence), starttime, pid)
    except (ValueError, struct.error) as error:
        raise ValueError(f"cannot note the start of {entry!r} (pid {pid}): {error}") from None
    position = offset + _PAGE + number % RING * _STRIDE
    mapped[position : position + _STRIDE] = start + _CRC.pack(zlib.crc32(start, _VERSION))
    _COUNT.pack_into(mapped, offset, number)  # one aligned store: it is either there or not


class Register:
    """The register of this incarnation: locked (flock) for as long as the process lives."""

    def __init__(self, path: Path, lock: int, fd: int, slots: int) -> None:
        self.path = path
        self.slots = slots
        #: For runner processes to inherit. Not the locked one: a runner must not keep a dead channel's lock.
        self.fd = fd
        self._lock = lock
        self._mapped = mmap.mmap(fd, _size(slots))

    @classmethod
    def create(cls, directory: Path | str, incarnation: str, slots: int) -> Register:
        """A new register in ``directory``. Raises OSError, also when the disk has no room for it.

        Its blocks are reserved now: writing a mapping of a full disk would be a SIGBUS.
        """
        path = Path(directory) / f"{PREFIX}{incarnation}"
        if path.exists():
            raise FileExistsError(errno.EEXIST, "this incarnation has a register already", str(path))
        unfinished = path.with_name(f"{_UNFINISHED}{incarnation}")
        lock = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(lock, 0, _size(slots))
            os.pwrite(lock, _MAGIC, 0)
            os.pwrite(lock, _packed_boot(boot_id()), _BOOT_AT)
            os.rename(unfinished, path)
        except OSError:
            os.close(lock)
            os.unlink(unfinished)
            raise
        return cls(path, lock, os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), slots)

    def note(self, slot: int, entry: str, pid: int = 0, starttime: int = 0) -> None:
        """``entry`` is started now in ``slot``; call it again once the pid is known."""
        write_start(self._mapped, self.offset_of(slot), entry, pid, starttime)

    def clear(self, slot: int) -> None:
        """Nothing runs in ``slot``: call it only once the results of what ran there are spooled."""
        offset = self.offset_of(slot)
        (count,) = _COUNT.unpack_from(self._mapped, offset)
        _COUNT.pack_into(self._mapped, offset + 8, count)

    def offset_of(self, slot: int) -> int:
        """Where the region of ``slot`` begins: on a page boundary, so that it can be mapped alone."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of a register with {self.slots}")
        return _PAGE + slot * _REGION

    def busy(self) -> frozenset[int]:
        """The slots in which something runs."""
        counts = (_COUNTS.unpack_from(self._mapped, self.offset_of(slot)) for slot in range(self.slots))
        return frozenset(slot for slot, (count, cleared) in enumerate(counts) if count != cleared)

    def close(self) -> None:
        """Give up the lock; the file stays, as after a crash."""
        self._mapped.close()
        os.close(self.fd)
        os.close(self._lock)


def map_slot(fd: int, offset: int) -> mmap.mmap:
    """Map the region of one slot alone, for a runner: ``write_start(map_slot(fd, offset), 0, entry)``."""
    return mmap.mmap(fd, _REGION, offset=offset)


def is_held(path: Path) -> bool:
    """Whether the process that created this register lives. Raises OSError when it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_starts(path: Path) -> list[Start]:
    """Every start that can be read, slot by slot, oldest first; an entry noted twice shows once.

    What is damaged is left out. Raises OSError when the file cannot be read.
    """
    data = _read(path)
    return [start for slot in range(_slots(data)) for start in _starts_of(data, slot)]


def boot_id() -> str:
    """Which boot of this machine this is; "" where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_boot(path: Path) -> str:
    """The boot in which this register was made; "" when that cannot be read. Raises OSError."""
    size, text, crc = _BOOT.unpack(_read(path)[:_PAGE].ljust(_PAGE, b"\0")[_BOOT_AT : _BOOT_AT + _BOOT.size])
    return str(text[:size].decode("ascii", "replace")) if crc == zlib.crc32(text, _VERSION) else ""


def _packed_boot(boot: str) -> bytes:
    text = boot.encode("ascii", "replace")[:55]
    return _BOOT.pack(len(text), text, zlib.crc32(text.ljust(55, b"\0"), _VERSION))


def read_busy(path: Path) -> frozenset[int]:
    """The slots in which something runs. Raises OSError when the file cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        slots = max(0, os.fstat(fd).st_size - _PAGE) // _REGION
        counts = (_COUNTS.unpack(os.pread(fd, _COUNTS.size, _PAGE + slot * _REGION)) for slot in range(slots))
        return frozenset(slot for slot, (count, cleared) in enumerate(counts) if count != cleared)
    finally:
        os.close(fd)


def _starts_of(data: bytes, slot: int) -> list[Start]:
    region = _PAGE + slot * _REGION
    _, cleared = _COUNTS.unpack_from(data, region)
    noted = sorted(_intact(data, region + _PAGE))
    starts: dict[str, Start] = {}
    for number, time, sequence, starttime, pid in noted:
        entry = f"{time}-{sequence}"
        starts.pop(entry, None)
        starts[entry] = Start(slot, entry, pid, starttime, number == noted[-1][0] and number > cleared)
    return list(starts.values())


def _intact(data: bytes, ring: int) -> list[tuple[int, int, int, int, int]]:
    found = []
    for position in range(ring, ring + RING * _STRIDE, _STRIDE):
        start = data[position : position + _START.size]
        (crc,) = _CRC.unpack_from(data, position + _START.size)
        if crc == zlib.crc32(start, _VERSION):
            found.append(_START.unpack(start))
    return found


def _size(slots: int) -> int:
    return _PAGE + slots * _REGION


def _slots(data: bytes) -> int:
    return max(0, len(data) - _PAGE) // _REGION


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        data = file.read()
    missing = -max(0, len(data) - _PAGE) % _REGION
    return data + bytes(missing)  # so that a truncated region still shows its first starts
