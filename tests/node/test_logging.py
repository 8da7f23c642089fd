"""Log lines: how they read in each place, and that nothing that happens to their reader reaches the daemon."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum, IntEnum, StrEnum
from pathlib import Path

import pytest

from jobschedd import logs
from jobschedd.errors import StoreUnavailable, UsageError
from jobschedd.logs import DroppingHandler, get_logger, redact
from node_harness import wait_until

log = get_logger("test")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    levels = root.level, logging.getLogger("jobschedd").level
    yield
    for handler in [each for each in root.handlers if isinstance(each, DroppingHandler)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    logging.getLogger("jobschedd").setLevel(levels[1])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    DRAIN = 1


class State(StrEnum):
    DONE = "done"


def test_a_line_in_the_journal_has_its_priority_and_no_time(file: Path) -> None:
    logs.configure("debug", "journal", "channel 1", file)
    log.debug("a")
    log.info("job started", job="17", argv="sh -c 'x=1'", empty="", nothing=None, took=1.50001, ok=True)
    log.notice("b", colour=Colour.RED, level=Level.DRAIN, state=State.DONE, path=Path("/x y"), many=[1, 2])
    log.warning("c", raw=b"\xff", quote='say "hi"', back="a\\b")
    log.error("d", cause=StoreUnavailable("no answer\nfrom redis"), other=KeyError("x"))
    assert file.read_text().splitlines() == [
        "<7>channel 1: a",
        """<6>channel 1: job started job=17 argv="sh -c 'x=1'" empty="" took=1.5 ok=yes""",
        '<5>channel 1: b colour=red level=drain state=done path="/x y" many=1,2',
        r'<4>channel 1: c raw="\\xff" quote="say \"hi\"" back="a\\b"',
        """<3>channel 1: d cause="no answer; from redis" other="KeyError: 'x'\"""",
    ]


def test_nobody_can_forge_a_line_or_drive_the_terminal(file: Path) -> None:
    logs.configure("info", "journal", file=file)
    log.info("line\n<0>forged\x1b]52;c;x\a", value="a\r\nb\x9b\u202e\ud800")
    assert file.read_text() == ("<6>line\\n<0>forged\\x1b]52;c;x\\x07" + ' value="a\\r\\nb\\x9b\\u202e\\ud800"\n')


def test_plain_has_a_full_time_and_the_level(file: Path) -> None:
    logs.configure("info", "plain", "supervisor", file)
    log.debug("hidden")
    log.warning("died", pid=7)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d warning supervisor: died pid=7\n", file.read_text()
    )


def test_the_terminal_has_colour_unless_it_is_unwanted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    logs.configure("info", "terminal", file=file)
    log.error("bad", pid=7)
    assert "\x1b[31;1merror  \x1b[0m bad" in file.read_text()
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure("info", "terminal", file=file)
    log.error("plainly bad", pid=7)
    assert re.fullmatch(r"\d\d:\d\d:\d\d error   plainly bad pid=7", file.read_text().splitlines()[-1])


def test_json_is_one_object_a_line_and_keeps_numbers(file: Path) -> None:
    logs.configure("info", "json", "channel 1", file)
    log.info("two\nlines", pid=7, message="clash", ok=False, level=Level.DRAIN, cause=ValueError("x"))
    entry = json.loads(file.read_text())
    assert entry["message"] == "two\nlines" and entry["message_"] == "clash"
    assert (entry["pid"], entry["ok"], entry["level_"]) == (7, False, "drain")
    assert (entry["level"], entry["process"], entry["logger"]) == ("info", "channel 1", "jobschedd.test")
    assert entry["process_pid"] == os.getpid() and entry["cause"] == "ValueError: x"


@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_traceback_is_for_debuggers_only(file: Path, level: str) -> None:
    logs.configure(level, "journal", file=file)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed", job="1")
    first, *rest = file.read_text().splitlines()
    assert first == r'<3>failed job=1 cause="ValueError: first\nsecond"'
    assert all(line.startswith("<7>") for line in rest)
    assert bool(rest) == (level == "debug") == any("Traceback" in line for line in rest)


def test_a_librarys_warning_and_exception_read_like_ours(file: Path) -> None:
    logs.configure("info", "journal", "channel 1", file)
    logging.getLogger("redis").info("hidden")
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("redis").exception("lost %s", "it")
    assert file.read_text() == '<3>channel 1: lost it cause="OSError: gone"\n'


def test_a_bad_field_is_no_failure(file: Path) -> None:
    class Bad:
        def __str__(self) -> str:
            raise ZeroDivisionError

    logs.configure("info", "journal", file=file)
    log.info("x", bad=Bad())
    log.info("percent %s %d", long="x" * 5000)
    lines = file.read_text().splitlines()
    assert lines[0] == "unprintable log record: ZeroDivisionError"
    assert lines[1].startswith("<6>percent %s %d long=") and lines[1].endswith('x... (3000 more)"')


@pytest.mark.parametrize("arguments", [{"level": "loud"}, {"format": "xml"}, {"file": "/nonexistent/log"}])
def test_what_cannot_be_configured_is_a_usage_error(arguments: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        logs.configure(**arguments)


def test_configuring_again_replaces(file: Path) -> None:
    logs.configure("info", "journal", "supervisor", file)
    logs.configure("info", "journal", file=file)
    log.info("once")
    assert file.read_text() == "<6>supervisor: once\n"


# What may happen to the other end


def handler_on(fd: int) -> DroppingHandler:
    logs.configure("info", "journal")
    handler = next(each for each in logging.getLogger().handlers if isinstance(each, DroppingHandler))
    handler.fd = fd
    return handler


def test_a_reader_that_is_gone_is_survived() -> None:
    reader, writer = os.pipe()
    handler_on(writer)
    os.close(reader)
    for _ in range(3):
        log.info("into the void")
    assert logs.dropped_lines() == 3
    os.close(writer)
    log.info("and without a descriptor")
    assert logs.dropped_lines() == 4


def test_a_full_disk_is_survived() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    handler_on(full)
    log.info("no room")
    assert logs.dropped_lines() == 1
    os.close(full)


def test_a_reader_that_stops_reading_blocks_nobody_and_learns_what_it_missed() -> None:
    reader, writer = os.pipe()
    handler_on(writer)
    os.set_blocking(reader, False)
    for number in range(300):
        log.info("line", number=number, padding="x" * 1000)
    lost = logs.dropped_lines()
    assert 200 < lost < 300
    text = b""
    for _ in range(20):
        while True:
            try:
                text += os.read(reader, 65536)
            except BlockingIOError:
                break
        log.info("again")
    lines = text.decode().splitlines()
    assert f"<4>log lines were lost lines={lost}" in lines
    assert lines[-1] == "<6>again" and logs.dropped_lines() == lost
    assert all(re.match(r"<\d>|$", line) for line in lines), "no line is glued to half of another"
    os.close(reader)
    os.close(writer)


def test_a_moved_file_is_followed_on_reopen(file: Path) -> None:
    logs.configure("info", "journal", file=file)
    log.info("one")
    moved = file.rename(file.with_suffix(".1"))
    log.info("two")
    logs.reopen()
    log.info("three")
    assert (moved.read_text(), file.read_text()) == ("<6>one\n<6>two\n", "<6>three\n")
    moved = file.rename(file.with_suffix(".2"))
    file.mkdir()
    logs.reopen()
    log.info("four")
    assert moved.read_text() == "<6>three\n<6>four\n"


# Where a line goes


PROGRAM = """
import os, sys
if "journal" in sys.argv:
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
from jobschedd import logs
logs.configure(process_name="p")
logs.get_logger("x").info("hello", n=1)
"""


def test_the_journal_is_recognised_by_its_device_and_inode() -> None:
    def stderr_of(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}).stderr

    assert stderr_of("journal") == "<6>p: hello n=1\n"
    assert stderr_of(JOURNAL_STREAM="1:2").endswith(" info    p: hello n=1\n")
    assert not stderr_of(JOURNAL_STREAM="nonsense").startswith("<")


def test_a_terminal_is_recognised() -> None:
    ours, theirs = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment, check=True)
    os.set_blocking(ours, False)
    assert b"\x1b[32minfo" in wait_until(lambda: os.read(ours, 4096))
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("rediss://user:secret@host/0?x=1", "rediss://user:***@host/0?x=1"),
        ("redis://user:se/cr@et@host/0", "redis://user:***@host/0"),
        ("unix:///run/redis@1/sock?password=secret&db=1", "unix:///run/redis@1/sock?password=***&db=1"),
        ("unix://user:secret@/run/sock", "unix://user:***@/run/sock"),
        (
            "cannot reach redis://:secret@a:1 nor redis://:secret@b:2",
            "cannot reach redis://:***@a:1 nor redis://:***@b:2",
        ),
        ("REDIS://u:secret@h", "REDIS://u:***@h"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
