"""Results that Redis has not confirmed yet, on the node's disk; and what a dead channel process left there.

A result is written (one write() for everything that ended together) before it is sent, so a SIGKILL of the
channel never makes a finished job run again. fdatasync is only for what stays unanswered: see ``sync``.
Acknowledging writes nothing: a successor that sends a confirmed result once more is told so by Redis.

The file: a magic, then records of u32 body length, u16 entry length, u16 zero, u32 crc of the body,
u32 crc of these 12 bytes; the body is the entry id followed by the payload. All little-endian.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.slave.register import PREFIX as REGISTER
from jobschedd.slave.register import Register, Start, boot_id, is_held, read_boot, read_busy, read_starts

SPOOL: Final = "spool-"
DAMAGED: Final = "damaged-"
#: What this channel last saw of the store's data, and what belongs to data that were given up.
STORE: Final = "store"
ASIDE: Final = "aside-"
_STORE_SIZE: Final = 128
_DAMAGED_KEPT: Final = 8  # files; the oldest go first
_UNFINISHED: Final = ".unfinished-"
_MAGIC: Final = b"jsspool1"
_LENGTHS: Final = struct.Struct("<IHHI")
_CRC: Final = struct.Struct("<I")
_HEAD: Final = _LENGTHS.size + _CRC.size
#: Bytes from which a spool that never gets empty is rewritten with what is left.
COMPACT_FROM: Final = 4 << 20

log = get_logger(__name__)


class Spool:
    """The spool of this incarnation. Not thread-safe: it belongs to the channel's loop."""

    def __init__(self, directory: Path | str, incarnation: str, compact_from: int = COMPACT_FROM) -> None:
        """Creates the file. Raises OSError: FileExistsError when this incarnation has one already."""
        self.path = Path(directory) / f"{SPOOL}{incarnation}"
        self._compact_from = compact_from
        self._fd = _create(self.path)
        self._kept: dict[str, bytes] = {}  # unacknowledged, oldest first
        self._pending: list[bytes] = []  # appended, not written yet
        self._size = 0
        self._unsynced = False
        self._name_synced = False
        self._ever_synced = False

    def append(self, entry: str, payload: bytes) -> None:
        """Keep the report on ``entry``, in memory until ``flush``."""
        self._pending.append(_record(entry, payload))
        self._kept[entry] = payload

    def flush(self) -> None:
        """Write everything appended since the last time.

        Raises OSError when the disk is full or broken; all stays in memory and the next flush tries again.
        """
        if not self._pending:
            return
        data = b"".join(self._pending if self._size else (_MAGIC, *self._pending))
        written = 0
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            if written:
                os.ftruncate(self._fd, self._size)  # or what follows would be unreadable
            raise
        self._pending.clear()
        self._size += written
        self._unsynced = True

    def acknowledge(self, entries: Iterable[str]) -> None:
        """Redis has confirmed the reports on these; unknown ones are ignored."""
        for entry in entries:
            self._kept.pop(entry, None)
        if not self._kept:
            self._empty()
        elif self._size >= self._compact_from and self._size > 2 * self._needed():
            self._compact()

    def unacknowledged(self) -> list[tuple[str, bytes]]:
        """(entry, payload) of every report that Redis has not confirmed, oldest first."""
        return list(self._kept.items())

    def sync(self) -> None:
        """Make what is unacknowledged survive a crash of the machine too; free when it does already."""
        self.flush()
        if not self._kept or not self._unsynced:
            return
        os.fdatasync(self._fd)
        self._unsynced = False
        self._ever_synced = True
        if not self._name_synced:
            _sync_directory(self.path.parent)
            self._name_synced = True

    def close(self) -> None:
        """Close the file; it stays, as after a crash."""
        os.close(self._fd)

    def _needed(self) -> int:
        return sum(_HEAD + len(entry) + len(payload) for entry, payload in self._kept.items())

    def _empty(self) -> None:
        self._pending.clear()
        if self._size:
            os.ftruncate(self._fd, 0)
            self._size = 0
        self._unsynced = self._ever_synced = False

    def _compact(self) -> None:
        """Rewrite what is left under the same name. On a full disk the old file simply goes on."""
        unfinished = self.path.with_name(f"{_UNFINISHED}{self.path.name}")
        data = b"".join((_MAGIC, *(_record(entry, payload) for entry, payload in self._kept.items())))
        try:
            fd = _create(unfinished)
        except OSError as error:
            self._compaction_failed(error)
            return
        try:
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(unfinished))
            if self._ever_synced:  # what was safe from a crash of the machine must stay so
                os.fdatasync(fd)
            failpoint("channel.spool.compacted")
            os.rename(unfinished, self.path)
            failpoint("channel.spool.renamed")
        except OSError as error:
            os.close(fd)
            unfinished.unlink(missing_ok=True)
            self._compaction_failed(error)
            return
        os.close(self._fd)
        self._fd, self._size = fd, len(data)
        self._pending.clear()
        self._unsynced = not self._ever_synced
        if self._ever_synced:
            _sync_directory(self.path.parent)

    def _compaction_failed(self, error: OSError) -> None:
        self._compact_from = 2 * self._size  # not again at once
        log.warning("the spool could not be compacted", file=self.path, size=self._size, error=error)


class Predecessor(NamedTuple):
    """What a dead process of the same channel left behind."""

    incarnation: str
    unsent: list[tuple[str, bytes]]  # (entry, payload) of reports that Redis may not have
    started: list[Start]  # its newest starts, some of them reported already
    #: The machine has started anew since: its pids mean nothing now, and its starts may be incomplete.
    rebooted: bool = False


class Home:
    """The directory of one channel, private to the user of the daemon."""

    def __init__(self, state_dir: Path | str, channel: str) -> None:
        """Creates what is missing. Raises OSError when it cannot be made ours alone (0700, no link)."""
        self.directory = Path(state_dir) / "channels" / _file_name(channel)
        self._incarnation = ""
        self._elders: set[str] | None = None  # living incarnations that were here before ours
        _make_private(self.directory.parent)
        _make_private(self.directory)

    def open(self, incarnation: str, slots: int) -> tuple[Register, Spool]:
        """The register and the spool of a new incarnation, which is this process. Raises OSError."""
        register = Register.create(self.directory, incarnation, slots)
        try:
            spool = Spool(self.directory, incarnation)
        except OSError:
            register.path.unlink()
            register.close()
            raise
        self._incarnation = incarnation
        self._elders = self._others()
        return register, spool

    def predecessors(self) -> list[Predecessor]:
        """Every incarnation whose process is gone, oldest first. Reads only: it may be called again."""
        return [self._read(incarnation) for incarnation in self._incarnations() if not self._lives(incarnation)]

    def discard(self, predecessor: Predecessor) -> None:
        """Redis knows everything that ``predecessor`` left: drop it. A damaged spool is kept, renamed.

        The register goes last: alone it only repeats starts that Redis has answered.
        """
        spool = self.directory / f"{SPOOL}{predecessor.incarnation}"
        try:
            _, damage = _parse(_read_file(spool))
        except FileNotFoundError:
            damage = ""
        if damage:
            spool.replace(self.directory / f"{DAMAGED}{predecessor.incarnation}")
            self._forget_old_damage()
        spool.unlink(missing_ok=True)
        (self.directory / f"{REGISTER}{predecessor.incarnation}").unlink(missing_ok=True)

    def close(self, register: Register, spool: Spool) -> None:
        """The orderly end of this incarnation: its files go unless something is unacknowledged or runs."""
        if spool.unacknowledged():
            spool.sync()
        elif not register.busy():
            spool.path.unlink(missing_ok=True)
            register.path.unlink(missing_ok=True)
        spool.close()
        register.close()

    def busy_elsewhere(self) -> int:
        """Slots still held by other living incarnations of this channel, which drain.

        Once ours is open, only those that were here before it: nearly always none, which costs nothing.
        """
        others = self._others() if self._elders is None else self._elders
        busy = {incarnation: self._busy(incarnation) for incarnation in others}
        if self._elders:
            self._elders = {incarnation for incarnation in others if self._lives(incarnation)}
        return sum(busy.values())

    def _others(self) -> set[str]:
        return {name for name in self._incarnations() if name != self._incarnation and self._lives(name)}

    def _incarnations(self) -> list[str]:
        found: dict[str, int] = {}
        for file in self._files():
            for prefix in (REGISTER, SPOOL):
                if file.name.startswith(prefix) and file.is_file(follow_symlinks=False):
                    found.setdefault(file.name.removeprefix(prefix), file.stat(follow_symlinks=False).st_mtime_ns)
        return sorted(found, key=lambda incarnation: (found[incarnation], incarnation))

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.directory) as files:
            yield from files

    def _lives(self, incarnation: str) -> bool:
        if incarnation == self._incarnation:
            return True
        try:
            return is_held(self.directory / f"{REGISTER}{incarnation}")
        except FileNotFoundError:
            return False  # a register is made before its spool and dropped after it

    def _busy(self, incarnation: str) -> int:
        try:
            if not self._lives(incarnation):
                return 0
            return len(read_busy(self.directory / f"{REGISTER}{incarnation}"))
        except FileNotFoundError:  # it has just ended
            return 0

    def _read(self, incarnation: str) -> Predecessor:
        return Predecessor(
            incarnation, self._unsent(incarnation), self._started(incarnation), self._is_of_another_boot(incarnation)
        )

    def _unsent(self, incarnation: str) -> list[tuple[str, bytes]]:
        path = self.directory / f"{SPOOL}{incarnation}"
        try:
            records, damage = _parse(_read_file(path))
        except FileNotFoundError:
            return []
        if damage:
            log.error("a spool is damaged: what can be read of it is used", file=path, damage=damage)
        return records

    def _started(self, incarnation: str) -> list[Start]:
        try:
            return read_starts(self.directory / f"{REGISTER}{incarnation}")
        except FileNotFoundError:
            return []

    def _is_of_another_boot(self, incarnation: str) -> bool:
        try:
            return read_boot(self.directory / f"{REGISTER}{incarnation}") not in ("", boot_id())
        except FileNotFoundError:
            return False

    # -- the store that this channel works for ----------------------------------------------------------------

    def recall(self) -> tuple[str, int]:
        """(identity, mark) of the store's data as we last saw them; ("", 0) when nothing is known."""
        try:
            identity, mark = _read_file(self.directory / STORE).decode("ascii").split()
            return identity, int(mark)
        except FileNotFoundError:
            return "", 0
        except (OSError, ValueError) as error:
            log.warning("cannot read what we knew of Redis; it is trusted", file=self.directory / STORE, error=error)
            return "", 0

    def remember(self, identity: str, mark: int) -> None:
        """Keep what we see of the store's data. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.directory / STORE, flags, 0o600)
        try:
            os.pwrite(fd, f"{identity} {mark}".ljust(_STORE_SIZE - 1).encode("ascii") + b"\n", 0)
        finally:
            os.close(fd)

    def put_aside(self, identity: str, reports: Iterable[tuple[str, bytes]]) -> Path:
        """Keep reports on data that are given up, for people: a spool file that nobody sends. Raises OSError."""
        path = self.directory / f"{ASIDE}{urllib.parse.quote(identity, safe='')}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            begin = b"" if os.fstat(fd).st_size else _MAGIC
            os.write(fd, begin + b"".join(_record(entry, payload) for entry, payload in reports))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return path

    def aside(self) -> int:
        """How many reports are kept so."""
        files = [file.path for file in self._files() if file.name.startswith(ASIDE)]
        return sum(len(_parse(_read_file(Path(path)))[0]) for path in files)

    def _forget_old_damage(self) -> None:
        damaged = [file for file in self._files() if file.name.startswith(DAMAGED)]
        damaged.sort(key=lambda file: file.stat(follow_symlinks=False).st_mtime_ns)
        for file in damaged[:-_DAMAGED_KEPT]:
            os.unlink(file.path)


def _record(entry: str, payload: bytes) -> bytes:
    body = entry.encode() + payload
    lengths = _LENGTHS.pack(len(body), len(body) - len(payload), 0, zlib.crc32(body))
    return lengths + _CRC.pack(zlib.crc32(lengths)) + body


def _parse(data: bytes) -> tuple[list[tuple[str, bytes]], str]:
    """The intact records (the newest where an entry has several) and what is wrong with the rest, if any.

    The lengths have a checksum of their own, so a damaged body costs only its record. Nothing is searched for
    behind damaged lengths: the output of a job, which is data here, could look like a record.
    """
    if not data:
        return [], ""
    if data[: len(_MAGIC)] != _MAGIC:
        return [], "not a spool of this version"
    records: dict[str, bytes] = {}
    damage = []
    position = len(_MAGIC)
    while position < len(data):
        lengths = data[position : position + _LENGTHS.size]
        crc = data[position + _LENGTHS.size : position + _HEAD]
        if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(lengths):
            damage.append(f"{len(data) - position} bytes from {position} on are no record")
            break
        size, entry_size, _, body_crc = _LENGTHS.unpack(lengths)
        body = data[position + _HEAD : position + _HEAD + size]
        if len(body) == size and body_crc == zlib.crc32(body):
            records[body[:entry_size].decode(errors="replace")] = body[entry_size:]
        else:
            damage.append(f"the record at {position} is {'cut off' if len(body) < size else 'corrupt'}")
        position += _HEAD + size
    return list(records.items()), "; ".join(damage)


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _read_file(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return file.read()


def _file_name(channel: str) -> str:
    """A name that is one harmless path component, whatever the channel is called."""
    return urllib.parse.quote(channel, safe="").replace(".", "%2E") or "%"


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"belongs to user {status.st_uid}, not to us", str(directory))
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
