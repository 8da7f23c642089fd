"""The server-side scripts: one file a move in ``lua/``, its header read as data.

A script's first comment lines say which fixed keys it uses (``-- KEYS: leader pending``, names of attributes
of ``Keys``) and what it takes and returns. They are passed as KEYS and reach the script as ``KEY.leader``. ``-- WITH:
create`` puts ``lua/create.lua`` in front, which several share; ``record.lua`` and ``array.lua`` are in front of all.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

import redis
from redis.exceptions import NoScriptError

from jobschedd.store.keys import Keys

#: The library of functions that slaves call, and the version in its name: two versions live side by side.
CHANNEL_LIBRARY = "jobsched_channel_1"
REPORT, REGISTER, LEAVE = "jobsched_report_1", "jobsched_register_1", "jobsched_leave_1"
TAKE, ANSWER = "jobsched_take_1", "jobsched_answer_1"


class Script:
    """One script: its text with the shared part put in, the names of its fixed keys, its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        body = _text(name)
        self.key_names = _key_names(body)
        shebang = ""
        if body.startswith("#!"):
            shebang, _, body = body.partition("\n")
        table = ", ".join(f"{key} = KEYS[{number}]" for number, key in enumerate(self.key_names, 1))
        parts = "\n".join((_text("record"), _on_demand("array"), *map(_text, _named(body, "WITH"))))
        self.text = f"{shebang}\n{parts}\nlocal KEY = {{{table}}}\n{body}".lstrip()
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - the server's own name for it

    def call(self, client: redis.Redis, keys: Keys, *args: Any, **fixed: str) -> Any:
        """Run it; load it when the server lost it. ``fixed`` gives keys that are no attributes of ``Keys``."""
        names = [fixed.get(name) or getattr(keys, name) for name in self.key_names]
        arguments = (len(names), *names, keys.base, *args)
        try:
            return client.evalsha(self.sha, *arguments)
        except NoScriptError:
            # Loads it too, and in the same step: between two, somebody might flush the scripts again.
            return client.eval(self.text, *arguments)


def _text(name: str) -> str:
    return resources.files("jobschedd.store").joinpath("lua", f"{name}.lua").read_text()


def _on_demand(table: str) -> str:
    """``lua/TABLE.lua``, which fills that table, run when somebody first looks into it.

    Each call makes all functions of its script anew. Most calls need none of these, and they are as many as the others.
    """
    fill = f"local function fill_{table}()\n{_text(table)}\nend"
    look = f"function(_, name) setmetatable({table}, nil) fill_{table}() return {table}[name] end"
    return f"{fill}\nsetmetatable({table}, {{__index = {look}}})"


def _key_names(body: str) -> tuple[str, ...]:
    if "\n-- KEYS:" not in f"\n{body}":
        raise ValueError("a script says no KEYS in its header")
    return _named(body, "KEYS")


def _named(body: str, what: str) -> tuple[str, ...]:
    """The words of a header line."""
    for line in body.splitlines():
        if line.startswith(f"-- {what}:"):
            return tuple(line.removeprefix(f"-- {what}:").split())
    return ()


@cache
def script(name: str) -> Script:
    """The script ``lua/<name>.lua``, read once a process."""
    return Script(name)


def channel_library() -> str:
    """The source of the functions that slaves call."""
    return _text("channel")
