"""The start register, with real processes, real locks and real SIGKILLs."""

from __future__ import annotations

import fcntl
import signal
import stat
import subprocess
import sys
import timeit
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobschedd.slave import register as module
from jobschedd.slave.register import RING, Register, Start, is_held, map_slot, read_busy, read_starts


@pytest.fixture
def register(tmp_path: Path):
    register = Register.create(tmp_path, "a1", slots=2)
    yield register
    register.close()


def python(code: str, *arguments: object, **options) -> subprocess.Popen[str]:
    """A process of its own that runs ``code`` and talks to us over its standard streams."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


class TestNoting:
    def test_nothing_is_noted_at_first(self, register):
        assert read_starts(register.path) == []
        assert register.busy() == read_busy(register.path) == frozenset()

    def test_a_start_runs_until_its_slot_is_cleared(self, register):
        register.note(1, "1700000000000-12", pid=41, starttime=99)
        assert read_starts(register.path) == [Start(1, "1700000000000-12", 41, 99, running=True)]
        assert register.busy() == read_busy(register.path) == {1}
        register.clear(1)
        assert read_starts(register.path) == [Start(1, "1700000000000-12", 41, 99, running=False)]
        assert register.busy() == read_busy(register.path) == frozenset()

    def test_only_the_last_start_of_a_slot_runs(self, register):
        for sequence in range(3):
            register.note(0, f"5-{sequence}")
        assert [(start.entry, start.running) for start in read_starts(register.path)] == [
            ("5-0", False),
            ("5-1", False),
            ("5-2", True),
        ]

    def test_a_second_note_of_an_entry_adds_its_pid(self, register):
        register.note(0, "5-1")
        register.note(0, "5-1", pid=7, starttime=8)
        assert read_starts(register.path) == [Start(0, "5-1", 7, 8, running=True)]

    def test_the_newest_starts_stay(self, register):
        for number in range(3 * RING + 5):
            register.note(0, f"{number}-0")
        entries = [start.entry for start in read_starts(register.path)]
        assert entries == [f"{number}-0" for number in range(2 * RING + 5, 3 * RING + 5)]

    def test_slots_do_not_touch_each_other(self, register):
        for number in range(2 * RING):
            register.note(0, f"{number}-0")
        register.note(1, "7-7")
        assert read_starts(register.path)[-1] == Start(1, "7-7", 0, 0, running=True)
        register.clear(0)
        assert register.busy() == {1}

    @pytest.mark.parametrize("entry", ["", "5", "-", "a-1", "1-b", "-1-2", f"{1 << 64}-0", f"0-{1 << 64}"])
    def test_what_is_no_entry_id_is_refused_and_changes_nothing(self, register, entry):
        before = register.path.read_bytes()
        with pytest.raises(ValueError, match="cannot note"):
            register.note(0, entry)
        assert register.path.read_bytes() == before

    def test_the_largest_ids_fit(self, register):
        largest = f"{(1 << 64) - 1}-{(1 << 64) - 1}"
        register.note(0, largest, pid=(1 << 32) - 1, starttime=(1 << 64) - 1)
        assert read_starts(register.path) == [Start(0, largest, (1 << 32) - 1, (1 << 64) - 1, running=True)]

    @pytest.mark.parametrize("slot", [-1, 2])
    def test_an_unknown_slot_is_refused(self, register, slot):
        with pytest.raises(IndexError):
            register.note(slot, "1-1")


class TestFile:
    def test_it_is_private_and_takes_no_link(self, tmp_path, register):
        assert stat.S_IMODE(register.path.stat().st_mode) == 0o600
        (tmp_path / "register-b2").symlink_to(register.path)
        with pytest.raises(OSError, match="symbolic links"):
            read_starts(tmp_path / "register-b2")
        with pytest.raises(FileExistsError):
            Register.create(tmp_path, "b2", slots=1)

    def test_an_incarnation_has_one_register(self, tmp_path, register):
        register.note(0, "1-1")
        with pytest.raises(FileExistsError):
            Register.create(tmp_path, "a1", slots=2)
        assert len(read_starts(register.path)) == 1
        assert [file.name for file in tmp_path.iterdir()] == ["register-a1"]

    def test_its_blocks_are_reserved(self, register):
        """Else a full disk would end the channel with SIGBUS at its next start of a job."""
        status = register.path.stat()
        assert status.st_blocks * 512 >= status.st_size

    def test_a_region_can_be_mapped_alone(self, register):
        for slot in range(2):
            with map_slot(register.fd, register.offset_of(slot)) as mapped:
                module.write_start(mapped, 0, f"{slot}-9")
        assert [(start.slot, start.entry) for start in read_starts(register.path)] == [(0, "0-9"), (1, "1-9")]


WRITER = """
import sys
from jobschedd.slave.register import Register
register = Register.create(sys.argv[1], "a1", slots=1)
print("ready", flush=True)
number = 0
while True:
    number += 1
    register.note(0, f"{number}-{number}", pid=number, starttime=number)
    if number % 64 == 0:
        print(number, flush=True)
"""

RUNNER = """
import sys
from jobschedd.slave.register import map_slot, write_start
mapped = map_slot(int(sys.argv[1]), int(sys.argv[2]))
write_start(mapped, 0, "8-1")
print("noted", flush=True)
sys.stdin.read()
"""


class TestProcesses:
    def test_a_lock_ends_with_its_process(self, tmp_path):
        holder = python(WRITER, tmp_path)
        try:
            assert holder.stdout.readline() == "ready\n"
            assert is_held(tmp_path / "register-a1")
        finally:
            holder.kill()
            holder.communicate()
        assert not is_held(tmp_path / "register-a1")

    def test_two_may_look_at_the_same_time(self, tmp_path):
        register = Register.create(tmp_path, "a1", slots=1)
        register.close()
        with open(register.path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # another successor looks just now
            assert not is_held(register.path)

    def test_a_runner_notes_in_its_slot_but_does_not_keep_the_lock(self, tmp_path):
        register = Register.create(tmp_path, "a1", slots=2)
        runner = python(RUNNER, register.fd, register.offset_of(1), pass_fds=(register.fd,))
        try:
            assert runner.stdout.readline() == "noted\n"
            assert read_starts(register.path) == [Start(1, "8-1", 0, 0, running=True)]
            assert is_held(register.path)
            register.close()
            assert not is_held(register.path), "the runner still lives, but the channel does not"
        finally:
            runner.communicate("")

    @pytest.mark.parametrize("lines", [1, 2, 17, 40])
    def test_a_sigkill_anywhere_leaves_only_whole_starts(self, tmp_path, lines):
        """The writer is killed somewhere between two stores; what it said it had noted is there."""
        writer = python(WRITER, tmp_path)
        said = [writer.stdout.readline() for _ in range(lines + 1)]
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        starts = read_starts(tmp_path / "register-a1")
        numbers = [start.pid for start in starts]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "no hole"
        assert all(start.entry == f"{start.pid}-{start.pid}" for start in starts)
        assert numbers[-1] >= int(said[-1]) and len(numbers) >= min(RING - 1, numbers[-1])
        assert [start.running for start in starts] == [False] * (len(starts) - 1) + [True]


class TestDamage:
    @pytest.fixture(scope="class")
    @classmethod
    def sample(cls, tmp_path_factory) -> tuple[Path, bytes, set[Start]]:
        register = Register.create(tmp_path_factory.mktemp("damage"), "a1", slots=1)
        for number in range(20):
            register.note(0, f"1700000000000-{number}", pid=number + 1, starttime=5)
        register.close()
        starts = read_starts(register.path)
        return register.path, register.path.read_bytes(), set(starts)

    @staticmethod
    def invented(path: Path, data: bytes, truth: set[Start]) -> set[tuple[str, int]]:
        path.write_bytes(data)
        read_busy(path)
        known = {(start.entry, start.pid) for start in truth}
        return {(start.entry, start.pid) for start in read_starts(path)} - known

    def test_truncation_at_every_byte_where_it_could_hurt(self, sample):
        path, data, truth = sample
        starts_end = 4096 + 4096 + 22 * 40
        for length in (*range(64), *range(4090, 4120), *range(8190, starts_end), len(data) - 1):
            assert not self.invented(path, data[:length], truth)
        assert set(read_starts(path)) == truth, "the last cut took nothing but zeros"

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, 4096 + 4096 + 22 * 40), st.integers(1, 255)), max_size=30))
    def test_flipped_bytes_never_raise_and_invent_nothing(self, sample, flips):
        path, data, truth = sample
        damaged = bytearray(data)
        for position, mask in flips:
            damaged[position] ^= mask
        assert not self.invented(path, bytes(damaged), truth)

    def test_one_damaged_start_costs_only_itself(self, sample):
        path, data, truth = sample
        damaged = bytearray(data)
        damaged[4096 + 4096 + 3 * 40 + 8] ^= 1
        path.write_bytes(damaged)
        assert truth - set(read_starts(path)) == {Start(0, "1700000000000-2", 3, 5, running=False)}

    def test_starts_of_another_layout_are_not_seen(self, sample, monkeypatch):
        path, data, _ = sample
        path.write_bytes(data)
        monkeypatch.setattr(module, "_VERSION", 2)
        assert read_starts(path) == []


def test_noting_costs_microseconds(register):
    """On the way of every job: no system call. The bound is loose, for machines that are busy."""
    note = min(timeit.repeat(lambda: register.note(0, "1700000000000-12", 4711, 99), number=1000, repeat=10))
    clear = min(timeit.repeat(lambda: register.clear(0), number=1000, repeat=10))
    print(f"note {note * 1000:.2f} us, clear {clear * 1000:.2f} us")
    assert note < 0.020 and clear < 0.010
