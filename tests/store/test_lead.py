"""lead: one instance at a time, idempotent for it, under an epoch that only grows."""

from __future__ import annotations

import os
import threading
from importlib import resources

import pytest
import redis

from jobschedd.clock import FakeClock
from jobschedd.errors import StoreUnavailable
from jobschedd.master.leadership import EpochFile, Leadership
from jobschedd.store.moves import Moves
from jobschedd.store.scripts import script
from redis_server import wait_until
from store_driver import Driver


@pytest.fixture
def driver(redis_server):
    driver = Driver(redis_server)
    yield driver
    driver.close()


def acquire(driver, instance, lease=60_000, lowest=1):
    return driver.moves.acquire_lead(instance, lease, lowest)


class TestMove:
    def test_the_first_gets_it(self, driver):
        assert acquire(driver, "a") == (1, "")
        assert driver.moves.leader() == "a:1"

    def test_again_is_the_same_lead_renewed(self, driver):
        acquire(driver, "a", lease=5000)
        assert acquire(driver, "a", lease=60_000) == (1, "")
        assert driver.client.pttl(driver.keys.leader) > 50_000

    def test_another_waits_and_is_told_for_whom(self, driver):
        acquire(driver, "a")
        assert acquire(driver, "b") == (None, "a:1")
        assert driver.moves.leader() == "a:1"

    def test_released_it_is_free_at_once(self, driver):
        acquire(driver, "a")
        assert driver.moves.release_lead("a")
        assert driver.moves.leader() is None
        assert acquire(driver, "b") == (2, "")

    def test_only_the_holder_releases(self, driver):
        acquire(driver, "a")
        assert not driver.moves.release_lead("b")
        assert driver.moves.leader() == "a:1"

    def test_it_ends_by_itself(self, driver):
        acquire(driver, "a", lease=30)
        wait_until(lambda: acquire(driver, "b")[0], 5, "the lead ends")
        assert driver.moves.leader() == "b:2"

    def test_the_epoch_grows_with_every_new_lead(self, driver):
        for expected in range(1, 6):
            assert acquire(driver, "a") == (expected, "")
            driver.moves.release_lead("a")

    def test_never_below_what_somebody_saw(self, driver):
        """Redis was rolled back to an older copy: the masters remember."""
        assert acquire(driver, "a", lowest=42) == (42, "")
        driver.moves.release_lead("a")
        assert acquire(driver, "a", lowest=7) == (43, "")

    def test_instances_with_colons(self, driver):
        assert acquire(driver, "a:b:7") == (1, "")
        assert acquire(driver, "a:b:7") == (1, "")

    def test_many_at_once_one_wins(self, driver):
        answers = []

        def contend(instance):
            with driver.server.client() as client:
                answers.append(Moves(client, driver.keys).acquire_lead(instance, 60_000, 1)[0])

        threads = [threading.Thread(target=contend, args=(f"i{number}",)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers, key=str) == [1] + [None] * 11


class TestLeadership:
    """The dispatcher's side: asks when a third has passed, and trusts nothing it was not told in time."""

    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def make(self, driver, clock, tmp_path):
        def make(instance="a"):
            epochs = EpochFile(str(tmp_path / f"epoch-{instance}"))
            return Leadership(driver.moves, instance, 9.0, epochs, clock)

        return make

    def test_it_asks_only_when_a_third_has_passed(self, driver, clock, make):
        lead = make()
        assert lead.hold() and lead.fence == "a:1"
        driver.client.pexpire(driver.keys.leader, 1_000_000)
        clock.advance(2.9)
        assert lead.hold()
        assert driver.client.pttl(driver.keys.leader) > 900_000, "not asked yet"
        clock.advance(0.2)
        assert lead.hold()
        assert driver.client.pttl(driver.keys.leader) <= 9000, "renewed"

    def test_after_a_pause_it_asks_before_it_believes(self, driver, clock, make):
        lead = make()
        assert lead.hold()
        clock.advance(100)
        driver.client.delete(driver.keys.leader)
        assert make("b").hold()
        assert not lead.hold()

    def test_a_standby_takes_over(self, driver, clock, make):
        first, second = make("a"), make("b")
        assert first.hold() and not second.hold()
        first.release()
        assert second.hold() and second.fence == "b:2"
        assert not first.hold() or first.fence != "a:1"

    def test_a_restarted_dispatcher_goes_on_under_the_same_epoch(self, make):
        assert make().hold()
        restarted = make()
        assert restarted.hold() and restarted.fence == "a:1"

    def test_the_epoch_is_kept_on_disk(self, driver, clock, make, tmp_path):
        lead = make()
        lead.hold()
        assert EpochFile(str(tmp_path / "epoch-a")).read() == 1
        assert os.stat(tmp_path / "epoch-a").st_mode & 0o777 == 0o600
        driver.client.flushall()
        clock.advance(4)
        assert lead.hold() and lead.fence == "a:2", "a higher epoch than any that was seen"

    def test_a_disk_that_cannot_keep_it_stops_nothing(self, driver, clock, tmp_path):
        lead = Leadership(driver.moves, "a", 9.0, EpochFile(str(tmp_path / "missing" / "epoch")), clock)
        assert lead.hold() and lead.fence == "a:1"

    @pytest.mark.parametrize("damage", ["", "seven", "\xff", "-5", "9" * 100, "1\n2"])
    def test_a_damaged_file_counts_for_nothing(self, tmp_path, damage):
        (tmp_path / "epoch").write_text(damage, encoding="latin-1")
        assert EpochFile(str(tmp_path / "epoch")).read() in (0, int("9" * 32))

    def test_without_redis_it_says_so_and_leads_again_later(self, driver, clock, make):
        lead = make()
        assert lead.hold()
        driver.server.kill()
        clock.advance(4)
        with pytest.raises(StoreUnavailable):
            lead.hold()
        lead.release()  # cannot, and does not fail
        driver.server.start()
        assert lead.hold()


#: They decide who leads, and whether anybody may.
BEFORE_ANY_LEAD = {"lead.lua", "mark.lua", "rebuild.lua"}
FENCED = sorted(
    path.name.removesuffix(".lua")
    for path in resources.files("jobschedd.store").joinpath("lua").iterdir()
    if "-- KEYS: leader" in path.read_text() and path.name not in BEFORE_ANY_LEAD
)


class TestFence:
    @pytest.mark.parametrize("name", FENCED)
    def test_nobody_but_the_leader_moves_anything(self, driver, name):
        """Every script that is told who leads looks at it before anything else."""
        acquire(driver, "leader")
        before = driver.all_keys()
        for fence in ("another:1", "leader:0", "leader:2", ""):
            with pytest.raises(redis.ResponseError, match="NOTLEADER"):
                script(name).call(driver.client, driver.keys, fence, *["1"] * 12)
        assert driver.all_keys() == before

    def test_there_are_some(self):
        assert {"collect", "dispatch", "hint", "promote", "publish", "reap", "requeue"} < set(FENCED)
