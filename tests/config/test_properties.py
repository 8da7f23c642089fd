"""Whatever a file holds, loading it gives a Config or a ConfigError, and a message never breaks its line."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobschedd.config import Config, load
from jobschedd.config.document import resolve
from jobschedd.errors import ConfigError

KEYS = (
    "role node namespace redis url username password password_file ca_file transport state_dir master placement "
    "channels history keep succeeded failed result_timeout on_no_receiver max_payload slave name slots labels handler "
    "allow commands functions shell python_path workdir drain_timeout env umask output_limit timing heartbeat lease "
    "block log level format file"
).split()
WORDS = (
    "slave master [master,slave] redis://h embedded sentinel://a:1/m unix:///x stream pubsub 1 0 -1 1.5 1e400 .nan "
    "true no ~ 022 5s 1d 1MiB [] {} [1] [a,[b]] {a:1} '' '${X}' ${hostname} ${A:-b} $${ *a &a !!str !x <<: '\\ud800' "
    '"\\ud800" "\\0" "\\n" 99999999999999999999999 0x10 0o7 0b1 1_000 12:30 2001-01-01'
).split()


def survives(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        config = load(str(file), {"X": "\udc80"}, "web-07")
    except ConfigError as error:
        mistakes = error
    else:
        assert isinstance(config, Config)
        return
    assert mistakes.problems
    assert len(str(mistakes).splitlines()) == len(mistakes.problems)
    assert all(str(problem).isprintable() for problem in mistakes.problems)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "jobsched.yaml"


@given(st.binary(max_size=200))
@example(b"\x80")
@example(b"a: \xc2\x85b")
@example(b"%YAML 9.9\n---\na: 1")
@example(b"%TAG ! tag:x,2000:\n---\n!y a")
def test_any_bytes(file: Path, content: bytes):
    survives(file, content)


@given(st.text(alphabet=string.ascii_letters + string.digits + "{}[]:,-#&*!|>'\"%@`?~$ \t\n\\/.\u2028", max_size=200))
def test_any_text_of_yaml_characters(file: Path, content: str):
    survives(file, content.encode())


def _mapping(depth: int) -> st.SearchStrategy[str]:
    keys = st.sampled_from(KEYS) | st.sampled_from(WORDS)
    words = st.sampled_from(WORDS)
    if depth:
        words = words | _mapping(depth - 1).map(lambda inner: "\n" + _indented(inner))
        words = words | st.lists(words, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
    return st.lists(st.tuples(keys, words), max_size=6).map(
        lambda pairs: "\n".join(f"{key}: {word}" for key, word in pairs)
    )


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(_mapping(2))
def test_nearly_right_files(file: Path, content: str):
    survives(file, ("role: slave\nredis: {url: embedded}\n" + content).encode())
    survives(file, content.encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("+1", 1),
        ("0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("~", None),
        # What YAML 1.1 or a lenient reader would make something else of:
        *((text, text) for text in ("no", "Yes", "on", "OFF", "y", "017", "00", "-01", "1_000", "12:30", "0b1")),
        *((text, text) for text in ("2001-01-01", "=", ".inf", ".nan", "1e9999", "01.5", "9" * 19, "\u0661")),
    ],
)
def test_unquoted_values(text: str, value: object):
    resolved = resolve(text)
    assert resolved == value
    assert type(resolved) is type(value)


@given(st.integers(-(10**17), 10**17))
def test_integers(number: int):
    assert resolve(str(number)) == number


@given(st.text(max_size=30))
def test_resolve_takes_any_text(text: str):
    assert isinstance(resolve(text), str | int | float | None)
