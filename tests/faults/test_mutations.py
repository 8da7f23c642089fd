"""The net has no holes: with one guard of the product taken away at a time, the tests that watch over it fail.

Each mutant is a copy of the package with one edit. The tests run in a process of their own, and so do the daemons
that they start: all of them find the copy first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import jobschedd

PACKAGE = Path(jobschedd.__file__).parent
ROOT = Path(__file__).parents[2]
NOTLEADER = r"if call\('GET', KEY\.leader\) ~= ARGV\[2\] then return redis\.error_reply\([^)]*\) end"

FENCED = sorted(path.name for path in PACKAGE.glob("store/lua/*.lua") if re.search(NOTLEADER, path.read_text()))
TAKES_ALL = (
    r"ours = redis\.call\('XDEL', keys\[1\], entry\)",
    "ours = math.max(1, redis.call('XDEL', keys[1], entry))",
)
SENT_AGAIN = """
            request = b"".join(map(_packed, commands))
            try:
                line.send(request)
                answers = line.receive(len(commands))
            except redis.ConnectionError:
                line = self._take()
                line.send(request)
                answers = line.receive(len(commands))
"""


@dataclass(frozen=True)
class Mutation:
    """``pattern`` -> ``replacement`` in ``files`` below the package; ``tests`` must notice. ``too``: as well."""

    files: str
    pattern: str
    replacement: str
    tests: Sequence[str]
    too: Sequence[Mutation] = ()


MUTATIONS = {
    "results of any attempt are accepted": Mutation(
        "store/lua/collect.lua",
        r"if r\.attempt == attempt and is_entry\(.*\) then",
        "if true then",
        ["tests/store/test_collect.py"],
    ),
    "results of any attempt are accepted, seen by whole daemons": Mutation(
        "store/lua/collect.lua",
        r"if r\.attempt == attempt and is_entry\(.*\) then",
        "if true then",
        ["tests/end_to_end/test_outages.py"],
        too=[Mutation("store/lua/channel.lua", *TAKES_ALL, [])],
    ),
    **{
        f"who lost the lead may write: {name}": Mutation(
            f"store/lua/{name}", NOTLEADER, "", ["tests/store/test_lead.py"]
        )
        for name in FENCED
    },
    "who lost the lead may write, seen by 10,000 writes": Mutation(
        "store/lua/*.lua", NOTLEADER, "", ["tests/faults/test_leadership.py"]
    ),
    "results are not spooled": Mutation(
        "slave/spool.py",
        r"written = os\.write\(self\._fd, data\)",
        "written = len(data)",
        ["tests/faults/test_matrix.py::test_what_is_spooled_never_runs_again"],
    ),
    "starts are not noted": Mutation(
        "slave/executor.py",
        r"self\._register\.note\(slot, .*\)",
        "pass",
        ["tests/faults/test_poison.py"],
    ),
    "the node's clock decides when its lease ends": Mutation(
        "store/channel.py",
        r'"PEXPIRE", lease, lease_ms\)',
        '"PEXPIREAT", lease, round(self.orders._clock.now() * 1000) + lease_ms)',
        ["tests/store/test_channel.py"],
    ),
    "a report need not take its entry": Mutation(
        "store/lua/channel.lua",
        *TAKES_ALL,
        ["tests/store/test_channel.py"],
    ),
    "reports share an entry of which the collector reads the last": Mutation(
        "store/lua/channel.lua", r"redis\.pcall\('GET', together\) == leads", "true", ["tests/store/test_channel.py"]
    ),
    "an unreadable report takes those along that came with it": Mutation(
        "master/collector.py", r", alone=False\)", ")", ["tests/master/test_collector.py"]
    ),
    "what the short way did is done again on the long one": Mutation(
        "client/session.py",
        r"except Unusual:\n            self\._hang_up\(\)",
        "except Unusual:\n            slot.sequence += 1",
        ["tests/store/test_brief.py"],
    ),
    "the library repeats commands": Mutation(
        "store/connect.py",
        r'"retry": Retry\(NoBackoff\(\), 0\),\n        "retry_on_error"',
        '"retry": Retry(NoBackoff(), 3),\n        "retry_on_error"',
        ["tests/faults/test_library.py"],
    ),
    "our own way to the socket repeats commands": Mutation(
        "store/direct.py",
        r"\n            line\.send\(.*\)\n            answers = line\.receive\(.*\)\n",
        SENT_AGAIN,
        ["tests/faults/test_library.py"],
    ),
    "a submit has no memory": Mutation(
        "store/lua/submit.lua",
        r"if seen == ARGV\[2\] then",
        "if false then",
        ["tests/faults/test_lost_replies.py", "tests/store/test_submit.py"],
    ),
    "one condition that holds is enough": Mutation(
        "store/lua/unblock.lua",
        r"if left == 0 then",
        "if left then",
        ["tests/store/test_unblock.py", "tests/store/test_shape_model.py"],
    ),
    "what was meant for an earlier time of waiting counts": Mutation(
        "store/lua/unblock.lua",
        r" or r\.entry_number ~= tonumber\(time\)",
        "",
        ["tests/store/test_unblock.py"],
    ),
    "an end counts for those that come later": Mutation(
        "store/lua/record.lua",
        r"call\('RENAME', BASE \.\. 'dependents:' \.\. parent, BASE \.\. 'unblocking:' \.\. number\)",
        "call('COPY', BASE .. 'dependents:' .. parent, BASE .. 'unblocking:' .. number)",
        ["tests/store/test_unblock.py"],
    ),
    "a stale place in a list is a place": Mutation(
        "store/lua/record.lua",
        r" and r\.class == class and r\.priority == priority",
        "",
        ["tests/store/test_hold.py"],
    ),
    "a held job is dispatched": Mutation(
        "store/lua/dispatch.lua",
        r"if has\(r\.flags, HELD\) then",
        "if false then",
        ["tests/store/test_hold.py"],
    ),
    "silence is trusted at once": Mutation(
        "master/dispatcher.py",
        r"return self\._trusted_since is not None and .*",
        "return True",
        ["tests/end_to_end/test_outages.py::test_a_stalled_redis_requeues_nobody", "tests/master/test_dispatcher.py"],
    ),
    "a suspect runs beside others": Mutation(
        "slave/executor.py",
        r"if order\.crashes:\n                self\._suspect = order\.entry",
        "pass",
        ["tests/slave/test_suspects.py"],
    ),
}


def _mutant(directory: Path, mutation: Mutation | None) -> Path:
    """A copy of the package with the edit, proved to have taken place."""
    copy = directory / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is None:
        return copy
    for each in (mutation, *mutation.too):
        edits = 0
        for file in sorted(copy.glob(each.files)):
            text, count = re.subn(each.pattern, lambda _, new=each.replacement: new, file.read_text())
            file.write_text(text)
            edits += count
        assert edits, f"the edit {each.pattern!r} does not apply any more: adapt it"
    return copy


def _run(directory: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The tests, against whatever package lies in ``directory``: the checkout itself must not come before it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "FAULTS_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-x", "-p", "no:cacheprovider", "-c", f"{ROOT}/setup.cfg"]
    return subprocess.run(
        [
            *command,
            *("--rootdir", str(ROOT), "-o", "pythonpath=tests", "-m", "not faults"),
            *(str(ROOT / test) for test in tests),
        ],
        cwd=directory,
        env=environment | {"PYTHONPATH": str(directory)},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_the_copy_is_what_runs_and_unchanged_it_passes(tmp_path):
    """Or a mutant might fail for no reason of its own."""
    copy = _mutant(tmp_path, None)
    where = tmp_path / "test_where.py"
    where.write_text(
        "import jobschedd, subprocess, sys\n"
        "def test_the_package_is_the_copy():\n"
        f"    assert jobschedd.__file__ == {str(copy / '__init__.py')!r}\n"
        "    code = 'import jobschedd; print(jobschedd.__file__, end=str())'\n"
        "    assert subprocess.check_output([sys.executable, '-c', code], cwd='/', text=True) == jobschedd.__file__\n"
    )
    every = sorted({test for mutation in MUTATIONS.values() for test in mutation.tests})
    run = _run(tmp_path, [str(where), *every])
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_guard_is_noticed(tmp_path, name):
    mutation = MUTATIONS[name]
    _mutant(tmp_path, mutation)
    run = _run(tmp_path, mutation.tests)
    assert run.returncode == 1, (
        f"nobody noticed, or the run broke ({run.returncode}):\n{run.stdout[-3000:]}{run.stderr}"
    )
    # A failed assertion, not a mutant that cannot even be imported.
    assert re.search(r"^FAILED ", run.stdout, re.MULTILINE), run.stdout[-3000:]
