"""What must hold of every module, every failpoint and every script."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib import resources

import pytest

import jobschedd
from jobschedd.failpoints import FAILPOINTS
from jobschedd.job import TRANSITIONS, State
from jobschedd.store.keys import Keys
from jobschedd.store.scripts import Script

MODULES = sorted(module.name for module in pkgutil.walk_packages(jobschedd.__path__, "jobschedd."))
SOURCES = [
    file.read_text()
    for name in MODULES
    if (file := resources.files("jobschedd").joinpath(*name.split(".")[1:-1], name.split(".")[-1] + ".py")).is_file()
]
LUA = {
    file.name.removesuffix(".lua"): file.read_text()
    for file in resources.files("jobschedd.store").joinpath("lua").iterdir()
    if file.name.endswith(".lua")
}
SCRIPTS = sorted(
    name for name, text in LUA.items() if re.search(r"^-- KEYS:", text, re.M) and "redis.register" not in text
)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_can_be_imported(module):
    importlib.import_module(module)


def test_the_package_itself_is_light_to_import():
    """A job's environment and the supervisor pay for every import: none of these is needed to say the version."""
    code = "import jobschedd, sys; print(*sorted(m for m in ('redis', 'rich', 'click', 'yaml') if m in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.split() == []


@pytest.mark.parametrize("package", ["jobschedd", "jobschedd.client", "jobschedd.config"])
def test_a_package_that_imports_on_demand_has_all_that_it_names(package):
    module = importlib.import_module(package)
    assert {name for name in module.__all__ if getattr(module, name, None) is None} == set()
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_names_of_the_package_are_those_of_its_client():
    from jobschedd import AsyncClient, Client, Job
    from jobschedd.client import aio, api, jobs

    assert (AsyncClient, Client, Job) == (aio.AsyncClient, api.Client, jobs.Job)


class TestFailpoints:
    def used(self) -> list[str]:
        return [name for source in SOURCES for name in re.findall(r"\bfailpoint\(\s*\"([a-z_.]+)\"\s*\)", source)]

    def test_every_failpoint_of_the_list_is_in_the_code(self):
        assert sorted(set(FAILPOINTS) - set(self.used())) == []

    def test_every_failpoint_of_the_code_is_in_the_list(self):
        assert sorted(set(self.used()) - set(FAILPOINTS)) == []

    def test_names_are_unique(self):
        assert len(set(FAILPOINTS)) == len(FAILPOINTS)


class TestScripts:
    def test_there_are_some(self):
        assert {"submit", "dispatch", "collect", "requeue", "cancel", "retry", "promote", "lead"} <= set(SCRIPTS)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_its_keys_are_keys_of_the_namespace(self, name):
        keys, given = Keys("x"), {"operation", "queue"}
        for key in Script(name).key_names:
            assert key in given or isinstance(getattr(keys, key), str)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_it_uses_the_keys_that_it_names(self, name):
        body = "\n".join(line for line in LUA[name].splitlines() if not line.startswith("--"))
        assert sorted(set(re.findall(r"\bKEY\.(\w+)", body))) == sorted(Script(name).key_names)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_a_write_of_the_master_is_fenced(self, name):
        names_fence = re.search(r"ARGV: base, fence", LUA[name]) is not None
        compares = "if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER" in LUA[name]
        assert names_fence == compares

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_only_new_work_is_refused_by_a_full_redis(self, name):
        refused = "allow-oom" not in LUA[name].splitlines()[0]
        assert refused == (name in {"submit", "retry", "again", "reserve", "fire"})

    def test_the_transitions_of_the_headers_are_those_of_the_table(self):
        assert header_transitions() == set(TRANSITIONS)

    def test_every_move_is_in_one_script(self):
        moves = [move for text in LUA.values() for move in set(re.findall(r"^-- move: (\w+):", text, re.M))]
        assert sorted(moves) == sorted({move for move, _, _ in TRANSITIONS})


def header_transitions() -> set[tuple[str, State | None, State]]:
    found = set()
    for text in LUA.values():
        for move, before, after in re.findall(r"^-- move: (\w+): ([A-Z, ]+) -> ([A-Z, ]+)$", text, re.M):
            for one in before.split(", "):
                for other in after.split(", "):
                    found.add((move, None if one == "NONE" else State[one], State[other]))
    return found
