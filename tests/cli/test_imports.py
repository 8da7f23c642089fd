"""What a command takes is mostly what it imports: none imports what only others need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redis_server import RedisServer

OF_OTHERS = {
    "jobschedd.client.aio",
    "jobschedd.client.history",
    "jobschedd.client.schedules",
    "jobschedd.client.workflow",
    "jobschedd.config.checks",
    "jobschedd.config.document",
    "jobschedd.config.loading",
    "jobschedd.config.reader",
    "jobschedd.cron",
    "jobschedd.recurrence",
    "jobschedd.schedule",
    "jobschedd.store.attempts",
    "jobschedd.store.durability",
    "jobschedd.store.embedded",
    "jobschedd.store.schedules",
    "multiprocessing",
    "psutil",
    "rich",
    "sqlite3",
    "yaml",
    "zoneinfo",
}
OF_READERS = {
    "jobschedd.cli.exits",
    "jobschedd.cli.render",
    "jobschedd.client.facts",
    "jobschedd.client.why",
    "jobschedd.store.inspect",
    "jobschedd.store.marks",
    "jobschedd.store.survey",
    "jobschedd.store.views",
}
OF_WAITERS = {"jobschedd.client.follow", "jobschedd.client.waiting", "jobschedd.store.listen"}
#: The library of Redis alone takes half as long as all the rest of a submit.
OF_THE_LONG_WAY = {"redis", "asyncio", "ssl", "jobschedd.store.connect"}
_SUBMIT = ("submit", "--", "true")


def imported(server: RedisServer, *arguments: str) -> set[str]:
    """The modules that this command has imported by its end."""
    code = (
        "import sys\n"
        "from jobschedd.cli.client import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(*sys.modules)"
    )
    line = [sys.executable, "-c", code, "--redis", server.url, *arguments]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return set(said.splitlines()[-1].split())


def test_submit(redis_server: RedisServer):
    imported(redis_server, *_SUBMIT)  # may have to load the functions, for which it needs the library
    modules = imported(redis_server, *_SUBMIT)
    assert "jobschedd.client.api" in modules
    assert sorted(modules & (OF_OTHERS | OF_READERS | OF_WAITERS | OF_THE_LONG_WAY)) == []


@pytest.mark.parametrize("command", [("list",), ("show", "1"), ("show", "1", "--json")])
def test_list_and_show(redis_server: RedisServer, command: tuple[str, ...]):
    imported(redis_server, *_SUBMIT)
    modules = imported(redis_server, *command)
    assert "jobschedd.store.views" in modules
    assert sorted(modules & (OF_OTHERS | OF_WAITERS)) == []
