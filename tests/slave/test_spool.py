"""The spool and the home of a channel, with real processes, real SIGKILLs and a disk that is really full."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import stat
import subprocess
import sys
import timeit
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobschedd.slave.register import Register, Start
from jobschedd.slave.spool import Home, Predecessor, Spool


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", "gpu")


@pytest.fixture
def spool(home: Home):
    spool = Spool(home.directory, "a1")
    yield spool
    spool.close()


def left(home: Home) -> list[tuple[str, bytes]]:
    """What a successor finds of one dead incarnation."""
    (predecessor,) = home.predecessors()
    return predecessor.unsent


class TestSpool:
    def test_what_was_flushed_is_found(self, home, spool):
        spool.append("1700000000000-12", b"one")
        spool.append("1700000000000-13", b"\0" * 1000)
        assert left(home) == []
        spool.flush()
        assert left(home) == spool.unacknowledged()
        assert left(home) == [("1700000000000-12", b"one"), ("1700000000000-13", b"\0" * 1000)]

    def test_everything_since_the_last_flush_is_one_write(self, spool, monkeypatch):
        writes = []
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
        for number in range(100):
            spool.append(f"1-{number}", b"x")
        spool.flush()
        spool.flush()
        assert len(writes) == 1

    def test_the_file_is_empty_when_nothing_is_left(self, home, spool):
        spool.append("1-1", b"one")
        spool.append("1-2", b"two")
        spool.flush()
        spool.acknowledge(["1-1", "9-9"])
        assert spool.unacknowledged() == [("1-2", b"two")]
        assert ("1-2", b"two") in left(home)
        spool.acknowledge(["1-2"])
        assert spool.path.stat().st_size == 0
        spool.append("1-3", b"three")
        spool.flush()
        assert left(home) == [("1-3", b"three")]

    def test_what_was_acknowledged_before_the_flush_is_not_written(self, spool):
        spool.append("1-1", b"one")
        spool.acknowledge(["1-1"])
        spool.flush()
        assert spool.path.stat().st_size == 0

    def test_the_newest_report_on_an_entry_counts(self, home, spool):
        spool.append("1-1", b"old")
        spool.append("1-2", b"x")
        spool.append("1-1", b"new")
        spool.flush()
        assert dict(left(home)) == dict(spool.unacknowledged()) == {"1-1": b"new", "1-2": b"x"}

    @pytest.mark.parametrize("synced", [False, True])
    def test_a_spool_that_never_gets_empty_stays_small(self, home, synced):
        spool = Spool(home.directory, "a1", compact_from=16 * 1024)
        spool.append("0-0", b"waits for ever")
        for number in range(1, 200):
            spool.append(f"0-{number}", b"x" * 1000)
            if synced:
                spool.sync()
            spool.flush()
            spool.acknowledge([f"0-{number}"])
            assert spool.path.stat().st_size < 18 * 1024
        spool.append("1-0", b"after")
        spool.flush()
        found = left(home)
        assert found[0] == ("0-0", b"waits for ever") and found[-1] == ("1-0", b"after")
        assert [file.name for file in home.directory.iterdir()] == ["spool-a1"]
        spool.close()

    def test_what_is_not_written_yet_survives_a_compaction(self, home):
        spool = Spool(home.directory, "a1", compact_from=1024)
        spool.append("1-1", b"x" * 4000)
        spool.append("1-2", b"y")
        spool.flush()
        spool.append("1-3", b"pending")
        spool.acknowledge(["1-1"])
        spool.flush()
        assert left(home) == [("1-2", b"y"), ("1-3", b"pending")]
        spool.close()

    def test_sync_costs_nothing_twice(self, spool, monkeypatch):
        syncs = []
        fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: syncs.append(fd) or fdatasync(fd))
        spool.sync()
        assert not syncs, "nothing to sync"
        spool.append("1-1", b"one")
        spool.sync()
        spool.sync()
        assert len(syncs) == 1
        spool.append("1-2", b"two")
        spool.flush()
        spool.acknowledge(["1-1", "1-2"])
        spool.sync()
        assert len(syncs) == 1

    def test_it_is_private_and_takes_no_link(self, home, spool, tmp_path):
        assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600
        target = tmp_path / "target"
        (home.directory / "spool-b2").symlink_to(target)
        with pytest.raises(FileExistsError):
            Spool(home.directory, "b2")
        assert not target.exists()


class TestHome:
    def test_it_is_private(self, tmp_path):
        directory = Home(tmp_path / "state", "gpu").directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        directory.chmod(0o755)
        Home(tmp_path / "state", "gpu")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    def test_a_link_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "channels").mkdir(mode=0o700)
        (tmp_path / "channels" / "gpu").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="Not a directory"):
            Home(tmp_path, "gpu")

    @pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to another user needs root")
    def test_a_directory_of_another_user_is_refused(self, tmp_path):
        directory = Home(tmp_path, "gpu").directory
        os.chown(directory, 4242, 4242)
        with pytest.raises(PermissionError, match="belongs to user 4242"):
            Home(tmp_path, "gpu")

    @pytest.mark.parametrize("channel", ["..", ".", "a/../../b", "", "a b", "ü\n", "%2E"])
    def test_any_name_stays_inside(self, tmp_path, channel):
        assert Home(tmp_path, channel).directory.parent == tmp_path / "channels"

    def test_different_names_have_different_homes(self, tmp_path):
        names = ["a/b", "a%2Fb", ".", "%2E", "", "%"]
        assert len({Home(tmp_path, name).directory for name in names}) == len(names)

    def test_an_incarnation_that_lives_is_no_predecessor(self, tmp_path, home):
        register, spool = home.open("a1", slots=2)
        register.note(0, "1-1")
        assert home.predecessors() == [] == Home(tmp_path / "state", "gpu").predecessors()
        assert home.busy_elsewhere() == 0, "its own slots are not elsewhere"
        assert Home(tmp_path / "state", "gpu").busy_elsewhere() == 1
        register.clear(0)
        assert Home(tmp_path / "state", "gpu").busy_elsewhere() == 0
        register.close()
        spool.close()

    def test_slots_of_an_elder_count_until_it_ends(self, tmp_path, home):
        elder, elders_spool = home.open("a1", slots=3)
        elder.note(0, "1-1")
        elder.note(2, "1-2")
        successor = Home(tmp_path / "state", "gpu")
        register, spool = successor.open("b2", slots=3)
        register.note(1, "1-3")
        assert successor.busy_elsewhere() == 2
        elder.clear(0)
        assert successor.busy_elsewhere() == 1
        home.close(elder, elders_spool)
        assert successor.busy_elsewhere() == 0 == successor.busy_elsewhere()
        successor.close(register, spool)

    def test_asking_when_there_is_no_elder_costs_nothing(self, home, monkeypatch):
        register, spool = home.open("a1", slots=1)
        monkeypatch.setattr(os, "scandir", None)
        assert home.busy_elsewhere() == 0
        spool.close()
        register.close()

    def test_a_dead_one_is_found_until_it_is_discarded(self, tmp_path, home):
        register, spool = home.open("a1", slots=2)
        register.note(1, "1-1", 7, 8)
        spool.append("0-1", b"done")
        spool.flush()
        register.close()
        spool.close()
        successor = Home(tmp_path / "state", "gpu")
        found = Predecessor("a1", [("0-1", b"done")], [Start(1, "1-1", 7, 8, running=True)])
        assert successor.predecessors() == successor.predecessors() == [found]
        assert successor.busy_elsewhere() == 0
        successor.discard(found)
        assert successor.predecessors() == []
        assert list(successor.directory.iterdir()) == []
        successor.discard(found)

    def test_the_oldest_comes_first(self, tmp_path, home):
        for incarnation, time in (("b", 100), ("a", 300), ("c", 200)):
            Register.create(home.directory, incarnation, 1).close()
            os.utime(home.directory / f"register-{incarnation}", (time, time))
        assert [predecessor.incarnation for predecessor in home.predecessors()] == ["b", "c", "a"]

    def test_a_spool_whose_register_is_gone_still_counts(self, home, spool):
        spool.append("1-1", b"x")
        spool.flush()
        assert home.predecessors() == [Predecessor("a1", [("1-1", b"x")], [])]

    def test_leftovers_that_are_neither_are_left_alone(self, home):
        (home.directory / "notes.txt").write_text("mine")
        (home.directory / ".unfinished-zz").write_bytes(b"")
        (home.directory / "damaged-old").write_bytes(b"")
        (home.directory / "register-directory").mkdir()
        (home.directory / "spool-link").symlink_to("/etc/passwd")
        assert home.predecessors() == []
        assert home.busy_elsewhere() == 0
        assert len(list(home.directory.iterdir())) == 5

    def test_an_orderly_end_leaves_nothing(self, home):
        register, spool = home.open("a1", slots=1)
        register.note(0, "1-1")
        spool.append("1-1", b"x")
        spool.flush()
        spool.acknowledge(["1-1"])
        register.clear(0)
        home.close(register, spool)
        assert list(home.directory.iterdir()) == []

    def test_an_end_with_unsent_reports_leaves_them(self, tmp_path, home):
        register, spool = home.open("a1", slots=1)
        spool.append("1-1", b"x")
        home.close(register, spool)
        assert left(Home(tmp_path / "state", "gpu")) == [("1-1", b"x")]


# One process that does every step in turn and kills itself after the given one.
STEPS = """
import os, signal, sys
from jobschedd.slave.spool import Home
home = Home(sys.argv[1], "gpu")
last = int(sys.argv[2])
register, spool = home.open("a1", slots=1)
steps = [
    lambda: register.note(0, "1-1"),
    lambda: register.note(0, "1-1", 7, 8),
    lambda: spool.append("1-1", b"result"),
    lambda: spool.flush(),
    lambda: register.clear(0),
    lambda: spool.acknowledge(["1-1"]),
    lambda: register.note(0, "1-2"),
]
for step in steps[:last]:
    step()
os.kill(os.getpid(), signal.SIGKILL)
"""
RESULT = [("1-1", b"result")]


class TestKilled:
    @pytest.mark.parametrize(
        ("steps", "unsent", "started"),
        [
            (0, [], []),
            (1, [], [Start(0, "1-1", 0, 0, True)]),
            (2, [], [Start(0, "1-1", 7, 8, True)]),
            (3, [], [Start(0, "1-1", 7, 8, True)]),
            (4, RESULT, [Start(0, "1-1", 7, 8, True)]),
            (5, RESULT, [Start(0, "1-1", 7, 8, False)]),
            (6, [], [Start(0, "1-1", 7, 8, False)]),
            (7, [], [Start(0, "1-1", 7, 8, False), Start(0, "1-2", 0, 0, True)]),
        ],
    )
    def test_between_any_two_steps(self, tmp_path, steps, unsent, started):
        killed = subprocess.run([sys.executable, "-c", STEPS, tmp_path, str(steps)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert Home(tmp_path, "gpu").predecessors() == [Predecessor("a1", unsent, started)]

    @pytest.mark.parametrize("lines", [1, 5, 30])
    def test_at_any_moment_of_a_busy_writer(self, tmp_path, lines):
        """What it said after flush() is there, whole; a record cut off in the middle harms nobody."""
        code = """
import sys
from jobschedd.slave.spool import Home
register, spool = Home(sys.argv[1], "gpu").open("a1", slots=1)
batch = 0
while True:
    batch += 1
    for number in range(20):
        spool.append(f"{batch}-{number}", b"%d" % batch * 5000)
    spool.flush()
    print(batch, flush=True)
    if batch % 10 == 0:
        spool.acknowledge([f"{old}-{number}" for old in range(batch - 9, batch) for number in range(20)])
"""
        writer = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        writer.communicate()
        unsent = dict(left(Home(tmp_path, "gpu")))
        batch = int(said[-1])
        assert {f"{batch}-{number}" for number in range(20)} <= unsent.keys()
        assert all(payload == entry.split("-")[0].encode() * 5000 for entry, payload in unsent.items())


class TestDamage:
    RECORDS = tuple((f"1700000000000-{number}", bytes([number]) * (number * 7)) for number in range(12))

    @pytest.fixture(scope="class")
    @classmethod
    def sample(cls, tmp_path_factory) -> tuple[Home, bytes]:
        home = Home(tmp_path_factory.mktemp("damage"), "gpu")
        spool = Spool(home.directory, "a1")
        for entry, payload in cls.RECORDS:
            spool.append(entry, payload)
        spool.flush()
        spool.close()
        return home, spool.path.read_bytes()

    @staticmethod
    def read(home: Home, data: bytes) -> list[tuple[str, bytes]]:
        (home.directory / "spool-a1").write_bytes(data)
        return left(home)

    def test_truncation_at_every_byte_costs_only_the_rest(self, sample):
        home, data = sample
        ends, end = [], 8
        for entry, payload in self.RECORDS:
            end += 16 + len(entry) + len(payload)
            ends.append(end)
        assert ends[-1] == len(data)
        for length in range(len(data) + 1):
            whole = sum(end <= length for end in ends)
            assert self.read(home, data[:length]) == list(self.RECORDS[:whole])

    def test_any_flipped_byte_of_a_body_costs_one_record(self, sample):
        home, data = sample
        start = 8
        for index, (entry, payload) in enumerate(self.RECORDS):
            for position in range(start + 16, start + 16 + len(entry) + len(payload)):
                damaged = bytearray(data)
                damaged[position] ^= 0x55
                assert self.read(home, damaged) == [*self.RECORDS[:index], *self.RECORDS[index + 1 :]]
            start += 16 + len(entry) + len(payload)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_arbitrary_damage_never_raises_and_invents_nothing(self, sample, data):
        home, whole = sample
        damaged = bytearray(whole)
        flips = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=10)
        for position, value in data.draw(flips):
            damaged[position] = value
        cut = data.draw(st.integers(0, len(whole)))
        garbage = data.draw(st.binary(max_size=50))
        assert set(self.read(home, bytes(damaged[:cut]) + garbage)) <= set(self.RECORDS)

    def test_a_record_within_a_payload_is_never_taken_for_one(self, home):
        """A job's output is data here: it must not be able to forge the report on another job."""
        forger = Spool(home.directory, "f0")
        forger.append("6-6", b"forged")
        forger.flush()
        forged = forger.path.read_bytes()[8:]
        forger.close()
        forger.path.unlink()
        spool = Spool(home.directory, "a1")
        spool.append("1-1", forged * 3)
        spool.append("1-2", b"later")
        spool.flush()
        spool.close()
        data = spool.path.read_bytes()
        for position in range(len(data)):
            damaged = bytearray(data)
            damaged[position] ^= 1
            assert "6-6" not in dict(self.read(home, damaged))

    def test_damage_is_logged_and_kept_aside(self, sample, caplog):
        home, data = sample
        damaged = bytearray(data)
        damaged[40] ^= 1
        with caplog.at_level(logging.ERROR):
            self.read(home, damaged)
        (said,) = caplog.records
        assert "damaged" in said.message and said.fields["file"] == home.directory / "spool-a1"
        assert "no record" in said.fields["damage"]
        (predecessor,) = home.predecessors()
        home.discard(predecessor)
        assert home.predecessors() == []
        assert (home.directory / "damaged-a1").read_bytes() == damaged

    def test_an_intact_one_is_not_kept_and_nothing_is_logged(self, sample, caplog):
        home, data = sample
        self.read(home, data)
        home.discard(home.predecessors()[0])
        assert not caplog.records
        assert not (home.directory / "spool-a1").exists()

    def test_only_the_newest_damaged_ones_are_kept(self, home):
        for number in range(12):
            (home.directory / f"spool-{number:02}").write_bytes(b"of another version")
            os.utime(home.directory / f"spool-{number:02}", (number, number))
        for predecessor in home.predecessors():
            home.discard(predecessor)
        names = sorted(file.name for file in home.directory.iterdir())
        assert names == [f"damaged-{number:02}" for number in range(4, 12)]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> Path:
    """Use up every byte of the file system."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                file.writelines(itertools.repeat(b"x" * size))
    return filler


class TestFullDisk:
    def test_nothing_is_lost_and_it_goes_on_when_there_is_room(self, small_disk):
        home = Home(small_disk, "gpu")
        spool = Spool(home.directory, "a1")
        spool.append("1-1", b"before")
        spool.flush()
        filler = fill(small_disk)
        spool.append("1-2", b"y" * 300_000)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as refused:
                spool.flush()
            assert refused.value.errno == errno.ENOSPC
            assert left(home) == [("1-1", b"before")], "no half record"
        assert [entry for entry, _ in spool.unacknowledged()] == ["1-1", "1-2"]
        filler.unlink()
        spool.append("1-3", b"after")
        spool.flush()
        assert left(home) == [("1-1", b"before"), ("1-2", b"y" * 300_000), ("1-3", b"after")]
        spool.close()

    def test_a_partial_write_is_taken_back(self, small_disk):
        home = Home(small_disk, "gpu")
        spool = Spool(home.directory, "a1")
        spool.append("1-1", b"z" * 2_000_000)  # larger than the whole disk: some of it is written
        with pytest.raises(OSError, match="No space left"):
            spool.flush()
        assert spool.path.stat().st_size == 0
        spool.acknowledge(["1-1"])  # Redis took it all the same
        spool.append("1-2", b"small")
        spool.flush()
        assert left(home) == [("1-2", b"small")]
        spool.close()

    def test_compaction_waits_for_room(self, small_disk, caplog):
        home = Home(small_disk, "gpu")
        spool = Spool(home.directory, "a1", compact_from=1024)
        spool.append("1-1", b"x" * 10_000)
        spool.append("1-2", b"y" * 5_000)
        spool.flush()
        filler = fill(small_disk)
        spool.acknowledge(["1-1"])
        assert "could not be compacted" in caplog.text
        assert dict(left(home))["1-2"] == b"y" * 5_000
        assert {file.name for file in home.directory.iterdir()} == {"spool-a1"}
        filler.unlink()
        spool.close()

    def test_a_register_is_refused_at_once_and_leaves_nothing(self, small_disk):
        home = Home(small_disk, "gpu")
        filler = fill(small_disk)
        with pytest.raises(OSError, match="No space left"):
            home.open("a1", slots=2)
        assert list(home.directory.iterdir()) == []
        filler.unlink()
        register, spool = home.open("a1", slots=2)
        home.close(register, spool)


def test_the_way_of_every_job_costs_microseconds_and_no_fsync(spool, monkeypatch):
    """One write and one truncation at idle, a share of them under load. Loose bounds, for busy machines."""

    def forbidden(fd: int) -> None:
        raise AssertionError("fsync on the way of every job")

    monkeypatch.setattr(os, "fsync", forbidden)
    monkeypatch.setattr(os, "fdatasync", forbidden)
    payload = b"r" * 300
    batch = [f"1700000000000-{number}" for number in range(100)]

    def one() -> None:
        spool.append("1700000000000-12", payload)
        spool.flush()
        spool.acknowledge(("1700000000000-12",))

    def hundred() -> None:
        for entry in batch:
            spool.append(entry, payload)
        spool.flush()
        spool.acknowledge(batch)

    alone = min(timeit.repeat(one, number=200, repeat=10)) / 200
    batched = min(timeit.repeat(hundred, number=5, repeat=10)) / 500
    print(f"alone {alone * 1e6:.1f} us, in batches of 100 {batched * 1e6:.1f} us a result")
    assert alone < 200e-6 and batched < 30e-6
