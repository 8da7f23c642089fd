"""The files in etc/: they load as they are, and jobsched.yaml explains every key there is."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from jobschedd.config import Config, load
from jobschedd.config.model import Struct
from jobschedd.config.values import Derived

ETC = Path(__file__).parents[2] / "etc"
LOGIN = ("username", "password", "password_file", "ca_file", "cert_file", "key_file")


def keys(section: type[Struct]) -> typing.Iterator[str]:
    """Every key that a file may hold, of this section and those inside it."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        if Derived() in getattr(hint, "__metadata__", ()):
            continue
        yield field.encode_name
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, Struct):
                yield from keys(inner)


@pytest.mark.parametrize("file", sorted(ETC.glob("*.yaml")), ids=lambda file: file.name)
def test_loads_without_a_doubt(file: Path):
    assert load(str(file), {}, "web-07").warnings == ()


def test_every_key_is_explained():
    text = (ETC / "jobsched.yaml").read_text()
    missing = [key for key in set(keys(Config)) if not re.search(rf"\b{key}\b:?", text)]
    assert missing == []


def test_what_is_commented_out_is_the_default(tmp_path: Path):
    text = (ETC / "jobsched.yaml").read_text()
    known = set(keys(Config)) - set(LOGIN) - {"file", "python_path", "env"}
    uncommented = re.sub(
        r"^(\s*)# ( *)(\w+):(.*)$",
        lambda match: f"{match[1]}{match[2]}{match[3]}:{match[4]}" if match[3] in known else match[0],
        text,
        flags=re.MULTILINE,
    )
    assert uncommented.count("#") < text.count("#") - 20
    everything = tmp_path / "jobsched.yaml"
    # These need transport: pubsub to mean anything.
    everything.write_text(uncommented.replace('\n  channels: ["1", "2", "3"]\n', "\n"))
    environ = {"STATE_DIRECTORY": "/var/lib/jobschedd"}

    with_all, as_it_is = (load(str(file), environ, "web-07") for file in (everything, ETC / "jobsched.yaml"))

    assert msgspec.structs.replace(with_all, source="", warnings=()) == msgspec.structs.replace(as_it_is, source="")
