"""Logging for a daemon: one line an event, ``message key=value ...``, and never a reason to fail.

Under the journal a line is ``<priority>process: message key=value`` without a time (the journal has its own);
on a terminal it has the time and colour; elsewhere a full time stamp, plain; ``json`` is one object a line.
A line that cannot be written (reader gone or stuck, disk full) is counted and dropped, never raised.
"""

from __future__ import annotations

import enum
import errno
import json
import logging
import os
import re
import select
import stat
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from jobschedd.errors import JobschedError, UsageError

#: Between INFO and WARNING: normal, but an operator wants to see it (syslog's "notice").
NOTICE = 25

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": NOTICE,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("auto", "journal", "terminal", "plain", "json")

_PRIORITIES = {"debug": 7, "info": 6, "notice": 5, "warning": 4, "error": 3}
_COLOURS = {"debug": "2", "info": "32", "notice": "36", "warning": "33", "error": "31;1"}
_VALUE_LIMIT = 2_000
#: poll() promises room for this many bytes in a pipe, not for more.
_CHUNK = select.PIPE_BUF
#: How long one line may wait for a slow reader before it is dropped (seconds).
_PATIENCE = 0.2

logging.addLevelName(NOTICE, "NOTICE")


class Logger:
    """Named source of log lines. Fields that are None are left out; values are quoted where needed."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def enabled(self, level: str) -> bool:
        """True when lines of this level (a key of LEVELS) are written: ask before expensive preparations."""
        return self._logger.isEnabledFor(LEVELS[level])

    def debug(self, message: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        self._write(logging.INFO, message, fields)

    def notice(self, message: str, /, **fields: object) -> None:
        self._write(NOTICE, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        self._write(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: object) -> None:
        """Inside ``except``: an error line with the one-line cause; the traceback follows at level debug only."""
        error = sys.exception()
        self._write(logging.ERROR, message, {**fields, "cause": error})
        if error is not None and self._logger.isEnabledFor(logging.DEBUG):
            for line in "".join(traceback.format_exception(error)).splitlines():
                self._write(logging.DEBUG, "  " + line, {})

    def _write(self, level: int, message: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    """The logger of a module: ``log = get_logger(__name__)``."""
    return Logger(name if name.partition(".")[0] == "jobschedd" else f"jobschedd.{name}")


def configure(
    level: str = "info", format: str = "auto", process_name: str | None = None, file: str | Path | None = None
) -> None:
    """Send the log to stderr, or appended to ``file`` (see ``reopen``). May be called again.

    ``level``: a key of LEVELS; ``format``: one of FORMATS; ``process_name`` opens each message,
    None keeps the present one.
    Raises UsageError for an unknown level or format, or a file that cannot be opened.
    """
    if level not in LEVELS:
        raise UsageError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise UsageError(f"log format {format!r} is none of {', '.join(FORMATS)}")
    handler = DroppingHandler(Path(file) if file is not None else None)
    present = next((_process_name(each) for each in _handlers()), "")
    name = present if process_name is None else process_name
    handler.setFormatter(_formatter(_detected(handler.fd) if format == "auto" else format, name))
    root = logging.getLogger()
    for old in _handlers():
        handler.dropped += old.dropped
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)  # libraries
    logging.getLogger("jobschedd").setLevel(LEVELS[level])


def set_process_name(name: str) -> None:
    """Change what opens each message: a forked child says who it is."""
    for handler in _handlers():
        if isinstance(handler.formatter, _LineFormatter | _JsonFormatter):
            handler.formatter.process_name = name


def _process_name(handler: logging.Handler) -> str:
    formatter = handler.formatter
    return formatter.process_name if isinstance(formatter, _LineFormatter | _JsonFormatter) else ""


def reopen() -> None:
    """Open the log file anew (after logrotate moved it away); nothing to do when logging to stderr."""
    for handler in _handlers():
        handler.reopen()


def dropped_lines() -> int:
    """How many lines this process could not write."""
    return sum(handler.dropped for handler in _handlers())


def _handlers() -> list[DroppingHandler]:
    return [each for each in logging.getLogger().handlers if isinstance(each, DroppingHandler)]


# Writing: whatever happens to the other end, the daemon goes on.


class DroppingHandler(logging.Handler):
    """Writes whole lines to stderr or a file. A line that cannot be written is counted in ``dropped``."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.dropped = 0
        self._path = path
        self._unsaid = 0
        self._torn = False
        self.fd = 2 if path is None else _append(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a bad field must not end the process that logs it
            line = f"unprintable log record: {type(error).__name__}"
        if self._unsaid and self._write(self._notice_of_loss(record)):
            self._unsaid = 0
        if not self._write(line):
            self.dropped += 1
            self._unsaid += 1

    def reopen(self) -> None:
        """See ``logs.reopen``; keeps the old file when the new one cannot be opened."""
        if self._path is None:
            return
        try:
            fresh = _append(self._path)
        except UsageError:
            self.dropped += 1
            return
        os.close(self.fd)
        self.fd = fresh

    def close(self) -> None:
        if self._path is not None and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        super().close()

    def _notice_of_loss(self, record: logging.LogRecord) -> str:
        loss = logging.LogRecord(record.name, logging.WARNING, "", 0, "log lines were lost", None, None)
        loss.fields = {"lines": self._unsaid}
        return self.format(loss)

    def _write(self, line: str) -> bool:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._torn:  # an earlier line stopped half-way: do not glue this one to it
            data = b"\n" + data
        try:
            for start in range(0, len(data), _CHUNK):
                self._write_chunk(data[start : start + _CHUNK])
                self._torn = True
        except OSError:
            return False
        self._torn = False
        return True

    def _write_chunk(self, chunk: bytes) -> None:
        # A reader that stopped reading would block write() for ever, and with it the scheduler.
        patience = 0.0 if self._unsaid else _PATIENCE
        while chunk:
            if not _writable(self.fd, patience):
                raise BlockingIOError(errno.EAGAIN, "nobody reads the log")
            chunk = chunk[os.write(self.fd, chunk) :]


def _writable(fd: int, patience: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(patience * 1000))


def _append(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise UsageError(f"cannot open the log file {path}: {error.strerror}") from error


# Formatting


def _detected(fd: int) -> str:
    if fd == 2 and _is_journal(fd):
        return "journal"
    return "terminal" if os.isatty(fd) else "plain"


def _is_journal(fd: int) -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino)) and not stat.S_ISREG(found.st_mode)


def _formatter(format: str, process_name: str) -> logging.Formatter:
    if format == "json":
        return _JsonFormatter(process_name)
    if format == "journal":
        return _JournalFormatter(process_name)
    if format == "terminal":
        return _TerminalFormatter(process_name)
    return _PlainFormatter(process_name)


class _LineFormatter(logging.Formatter):
    """The parts that every line format shares."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self.process_name = process_name

    def sentence(self, record: logging.LogRecord) -> str:
        who = f"{printable(self.process_name)}: " if self.process_name else ""
        return f"{who}{printable(record.getMessage())}"

    def pairs(self, record: logging.LogRecord) -> list[tuple[str, str]]:
        return [(key, _quoted(_plain(value))) for key, value in _fields(record).items()]


class _JournalFormatter(_LineFormatter):
    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={value}" for key, value in self.pairs(record))
        return f"<{_PRIORITIES[_level_name(record.levelno)]}>{self.sentence(record)}{pairs}"


class _PlainFormatter(_LineFormatter):
    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={value}" for key, value in self.pairs(record))
        return f"{_timestamp(record)} {_level_name(record.levelno):7} {self.sentence(record)}{pairs}"


class _TerminalFormatter(_LineFormatter):
    def __init__(self, process_name: str) -> None:
        super().__init__(process_name)
        self._colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def format(self, record: logging.LogRecord) -> str:
        level = _level_name(record.levelno)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        pairs = "".join(f" {self._paint('2', key + '=')}{value}" for key, value in self.pairs(record))
        return f"{self._paint('2', clock)} {self._paint(_COLOURS[level], f'{level:7}')} {self.sentence(record)}{pairs}"

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


class _JsonFormatter(logging.Formatter):
    def __init__(self, process_name: str) -> None:
        super().__init__()
        self.process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": _level_name(record.levelno),
            "process": self.process_name,
            "process_pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            name = f"{key}_" if key in entry else key
            number = isinstance(value, bool | int | float) and not isinstance(value, enum.Enum)
            entry[name] = value if number else _plain(value)
        return json.dumps(entry)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:  # a library's own logger.exception()
        fields.setdefault("cause", record.exc_info[1])
    return {key: value for key, value in fields.items() if value is not None}


def _level_name(number: int) -> str:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    if number >= NOTICE:
        return "notice"
    return "info" if number >= logging.INFO else "debug"


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, enum.Enum) and not isinstance(value, str):
        return value.name.lower()
    if isinstance(value, BaseException):
        return one_line(value)
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(_plain(each) for each in value)
    return str(value)


def one_line(error: BaseException) -> str:
    """An error's cause as one line: our own errors speak for themselves, others show their type."""
    text = str(error)
    if isinstance(error, JobschedError) and text:
        return text.replace("\n", "; ")
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def printable(text: str) -> str:
    """``text`` with everything that is not printable escaped: no log line can forge another or drive a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _quoted(text: str) -> str:
    if len(text) > _VALUE_LIMIT:
        text = f"{text[:_VALUE_LIMIT]}... ({len(text) - _VALUE_LIMIT} more)"
    if text and text.isprintable() and not any(each in text for each in ' "=\\'):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


# Secrets

_USERINFO = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^:@/?#\s]*):[^?#\s]*@", re.IGNORECASE)
_PASSWORD_OPTION = re.compile(r"(?P<name>[?&]password=)[^&#\s]*", re.IGNORECASE)


def redact(text: str) -> str:
    """A Redis URL, or a text that holds some, with every password replaced by ``***``.

    Greedy on purpose: a password with an unescaped ``@`` or ``/`` must not show through either.
    """
    hidden = _USERINFO.sub(r"\g<scheme>\g<user>:***@", text)
    return _PASSWORD_OPTION.sub(r"\g<name>***", hidden)
