"""The server-side scripts: one file a move in ``lua/``, its header read as data.

A script's first comment lines say which fixed keys it uses (``-- KEYS: leader pending``, names of attributes
of ``Keys``) and what it takes and returns. They are passed as KEYS and reach the script as ``KEY.leader``. ``-- WITH:
create`` says that it uses ``lua/create.lua``, which several share; all use ``record.lua`` and ``array.lua``.

All together they are one library of functions, which the server keeps; a script that is evaluated is made anew, with
all that it shares, at each call. That is what is left to a client that has the right neither to call functions nor to
load them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from jobschedd.store.keys import Keys

if TYPE_CHECKING:
    import redis

    from jobschedd.store.direct import Direct

#: The library of functions that slaves call, and the version in its name: two versions live side by side.
CHANNEL_LIBRARY = "jobsched_channel_4"
REPORT, REGISTER, LEAVE = "jobsched_report_4", "jobsched_register_4", "jobsched_leave_4"
TAKE, ANSWER = "jobsched_take_4", "jobsched_answer_4"
#: How the names of libraries of moves begin: each text has a library of its own, so that versions live side by side.
MOVES = "jobsched_moves_"
_SHARED_BY_ALL = ("record", "array")

_LUA = os.path.join(os.path.dirname(__file__), "lua")
#: Clients that may not call functions.
_without_functions: WeakSet[redis.Redis] = WeakSet()


class Source(NamedTuple):
    """One file: what it says of itself, and its text."""

    name: str
    flags: tuple[str, ...]
    keys: tuple[str, ...]
    shares: tuple[str, ...]
    body: str

    @property
    def key_table(self) -> str:
        """The Lua table of its fixed keys."""
        return "{" + ", ".join(f"{key} = KEYS[{number}]" for number, key in enumerate(self.keys, 1)) + "}"


class Script:
    """One move: the names of its fixed keys, the function that it is, and its text and digest where that may not be."""

    def __init__(self, name: str) -> None:
        self.name = name
        source = _source(name)
        if source is None:
            raise ValueError(f"{name}.lua says no KEYS in its header: it is no move")
        self._source = source
        self.key_names = source.keys

    @property
    def function(self) -> str:
        """Its name in the library."""
        return f"{moves_library()[0]}_{self.name}"

    @cached_property
    def text(self) -> str:
        """What is evaluated where there are no functions."""
        shebang = f"#!lua flags={','.join(self._source.flags)}" if self._source.flags else "#!lua"
        shared = "\n".join(map(_text, (*_SHARED_BY_ALL, *self._source.shares)))
        head = f"local BASE, KEY = ARGV[1], {self._source.key_table}"
        return f"{shebang}\n{head}\n{shared}\nbegin_call()\n{self._source.body}"

    @cached_property
    def sha(self) -> str:
        """The server's own name for that text."""
        return hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - a name

    def call(self, client: redis.Redis, keys: Keys, *args: Any, **fixed: str) -> Any:
        """Run it; load it when the server lost it. ``fixed`` gives keys that are no attributes of ``Keys``."""
        arguments = self.arguments(keys, args, fixed)
        if client not in _without_functions:
            try:
                return self._call_function(client, arguments)
            except Exception as error:
                if not _is_about_functions(error):
                    raise  # it has the right to call functions, and not to what this one does
                _without_functions.add(client)
        return self._evaluate(client, arguments)

    def begin(self, client: Direct, keys: Keys, *args: Any) -> Callable[[], Any]:
        """Send it, and go on: what comes back waits for the answer, once."""
        if client in _without_functions:
            return partial(self.call, client, keys, *args)
        asked = client.begin("FCALL", self.function, *self.arguments(keys, args, {}))

        def answer() -> Any:
            try:
                return asked.answer()
            except Exception as error:
                if not (_is_missing(error) or _is_about_functions(error)):
                    raise
            return self.call(client, keys, *args)  # nothing has happened yet

        return answer

    def arguments(self, keys: Keys, args: tuple[Any, ...], fixed: Mapping[str, str]) -> tuple[Any, ...]:
        """Of FCALL and EVAL, behind the name or the text."""
        names = [fixed.get(name) or getattr(keys, name) for name in self.key_names]
        return (len(names), *names, keys.base, *args)

    def _call_function(self, client: redis.Redis, arguments: tuple[Any, ...]) -> Any:
        try:
            return client.fcall(self.function, *arguments)
        except Exception as error:
            if not _is_missing(error):
                raise
        load_moves(client)
        return client.fcall(self.function, *arguments)

    def _evaluate(self, client: redis.Redis, arguments: tuple[Any, ...]) -> Any:
        try:
            return client.evalsha(self.sha, *arguments)
        except Exception as error:
            if not _is(error, "NoScriptError"):
                raise
            # Loads it too, and in the same step: between two, somebody might flush the scripts again.
            return client.eval(self.text, *arguments)


def _is(error: Exception, name: str) -> bool:
    """Of the library, which who only wants to know the name of a script does not import."""
    from redis import exceptions

    return isinstance(error, getattr(exceptions, name))


def _is_missing(error: Exception) -> bool:
    return "function not found" in str(error).lower() and _is(error, "ResponseError")


def _is_about_functions(error: Exception) -> bool:
    text = str(error).upper()
    return ("FCALL" in text or "FUNCTION" in text) and _is(error, "NoPermissionError")


def load_moves(client: redis.Redis) -> None:
    """Load the library of moves. Raises the library's errors."""
    client.function_load(moves_library()[1], replace=True)


@cache
def script(name: str) -> Script:
    """The script ``lua/<name>.lua``, read once a process."""
    return Script(name)


def channel_library() -> str:
    """The source of the functions that slaves call."""
    body = _text("channel")
    shared = "\n".join(map(_text, _named(body, "SHARED") or ()))
    return "\n".join(shared if line.startswith("-- SHARED:") else line for line in body.splitlines())


@cache
def moves_library() -> tuple[str, str]:
    """Name and text of the library of all moves. The digest of the text is part of the name."""
    sources = [source for source in map(_source, _names()) if source is not None]
    shared = "\n".join(map(_text, dict.fromkeys((*_SHARED_BY_ALL, *(part for one in sources for part in one.shares)))))
    moves = "\n".join(f"function moves.{one.name}()\n{one.body}\nend" for one in sources)
    functions = "\n".join(f"register('{one.name}', {_lua_list(one.flags)}, {_lua_list(one.keys)})" for one in sources)
    text = _LIBRARY.format(shared=shared, moves=moves, functions=functions)
    name = MOVES + hashlib.sha1(text.encode()).hexdigest()[:12]  # noqa: S324 - a name
    return name, text.replace("LIBRARY", name)


#: While it is loaded, a library sees nothing of the language's own: all is made at the first call, and kept. What
#: belongs to a call (arguments, keys) is set at each.
_LIBRARY = """#!lua name=LIBRARY
local KEYS, ARGV, KEY, BASE, moves, begin_call

local function make_moves()
local moves = {{}}
{shared}
{moves}
return moves, begin_call
end

local function register(name, flags, keys)
  redis.register_function{{function_name = 'LIBRARY_' .. name, flags = flags, callback = function(given, args)
    if not moves then moves, begin_call = make_moves() end
    KEYS, ARGV, BASE, KEY = given, args, args[1], {{}}
    for at, key in ipairs(keys) do KEY[key] = given[at] end
    begin_call()
    return moves[name]()
  end}}
end
{functions}
"""


def _lua_list(words: tuple[str, ...]) -> str:
    return "{" + ", ".join(f"'{word}'" for word in words) + "}"


def _names() -> list[str]:
    return sorted(name.removesuffix(".lua") for name in os.listdir(_LUA) if name.endswith(".lua"))


@cache
def _source(name: str) -> Source | None:
    """None for a file that is a part of others, or a library."""
    body, flags = _text(name), ""
    if body.startswith("#!"):
        shebang, _, body = body.partition("\n")
        flags = shebang.partition("flags=")[2]
    keys = _named(body, "KEYS")
    if keys is None or name == "channel":
        return None
    return Source(name, tuple(filter(None, flags.split(","))), keys, _named(body, "WITH") or (), body)


def _named(body: str, what: str) -> tuple[str, ...] | None:
    """The words of a header line; None where there is no such line."""
    for line in body.splitlines():
        if line.startswith(f"-- {what}:"):
            return tuple(line.removeprefix(f"-- {what}:").split())
    return None


@cache
def _text(name: str) -> str:
    with open(os.path.join(_LUA, f"{name}.lua"), encoding="utf-8") as file:
        return file.read()
