"""The timetable against the real scripts, under a clock that a test moves: what is due, late, missed, and by whom."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from calendar_model import model
from jobschedd.clock import FakeClock
from jobschedd.errors import NotTheLeader
from jobschedd.job import decode_spec
from jobschedd.master.timetable import MISSED_AFTER, ServerTime, Timetable
from jobschedd.recurrence import time_zone
from jobschedd.schedule import Schedule, schedule
from jobschedd.store.schedules import Answer, Fire, Schedules
from store_driver import KEEP, Driver

HOUR = 3600


class Simulated(ServerTime):
    """The server's clock is the test's: in a past that the server has behind it, so that nothing is early."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self._fake = clock

    def told(self, now_ms: int) -> None:
        pass

    def now_ms(self) -> int:
        return round(self._fake.now() * 1000)

    def boottime_at(self, moment_ms: int) -> float:
        return self._fake.boottime() + moment_ms / 1000 - self._fake.now()


class Bench:
    """Schedules, a simulated clock, and timetables over one Redis."""

    def __init__(self, driver: Driver, begin: int) -> None:
        self.driver = driver
        self.begin = begin
        self.clock = FakeClock(now=float(begin))
        self.store = Schedules(driver.client, driver.keys)

    def add(self, **fields: Any) -> Schedule:
        """One that has dealt with everything before the simulation begins."""
        wanted = schedule({"name": "s", "command": ["true"], "if_running": "allow"} | fields)
        self.store.add(wanted)
        self.driver.client.hset(self.driver.keys.schedule(wanted.name), "cursor", self.begin * 1000 - 1)
        return wanted

    def timetable(self, store: Schedules | None = None, own: Sequence[Schedule] = ()) -> Timetable:
        """One that knows nothing yet."""
        return Timetable(store or self.store, self.clock, own, "m1", KEEP, Simulated(self.clock))

    def fired(self, name: str = "s") -> list[int]:
        """The times that have a job, in seconds, from the jobs themselves."""
        return self.all_fired().get(name, [])

    def all_fired(self) -> dict[str, list[int]]:
        count = int(self.driver.client.get(self.driver.keys.next_id) or 0)
        found: dict[str, list[int]] = {}
        for number in range(1, count + 1):
            spec = decode_spec(self.driver.record(str(number)).spec)
            found.setdefault(spec.schedule, []).append(spec.scheduled_for // 1000)
        return found

    def missed(self) -> int:
        stored = self.store.one("s")
        assert stored is not None
        return stored.missed


@pytest.fixture
def bench(driver: Driver) -> Bench:
    driver.lead()
    return Bench(driver, (driver.now_ms() // 1000 - 10 * 86_400) // HOUR * HOUR)


class TestDue:
    def test_it_knows_when_the_next_is_due(self, bench: Bench):
        bench.add(every="10m")
        timetable = bench.timetable()
        assert timetable.due_at == 0.0
        timetable.present()
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]
        bench.clock.advance(590)
        timetable.present()
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]
        assert timetable.due_at == pytest.approx(bench.clock.boottime() + 10)
        bench.clock.advance(10)
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin, bench.begin + 600]

    def test_many_at_once(self, bench: Bench):
        for number in range(450):
            bench.add(name=f"s{number}", every="1h")
        bench.timetable().fire_due(bench.driver.fence)
        fired = bench.all_fired()
        assert len(fired) == 450 and set(map(tuple, fired.values())) == {(bench.begin,)}

    def test_a_change_is_seen_when_it_is_told(self, bench: Bench):
        timetable = bench.timetable()
        timetable.fire_due(bench.driver.fence)
        bench.add(every="10m")
        timetable.forget()
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]
        bench.store.pause("s", "", "")
        bench.clock.advance(3000)
        timetable.fire_due(bench.driver.fence)  # was not told: the script refuses, and it reads again
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]

    def test_one_that_is_not_valid_here_stops_no_other(self, bench: Bench):
        bench.add(every="10m")
        bench.driver.client.hset(
            bench.driver.keys.schedules, "bad", b'{"name":"bad","job":{"command":["x"]},"cron":"99 * * * *"}'
        )
        bench.timetable().fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]

    def test_a_full_redis_is_tried_again(self, bench: Bench):
        bench.add(every="10m")
        timetable = bench.timetable()
        timetable.fire_due(bench.driver.fence)
        bench.clock.advance(601)
        bench.driver.client.config_set("maxmemory", 1)
        timetable.fire_due(bench.driver.fence)
        assert timetable.due_at == pytest.approx(bench.clock.boottime() + 1)
        bench.driver.client.config_set("maxmemory", 0)
        bench.clock.advance(1)
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin, bench.begin + 600]

    def test_what_waits_is_looked_after(self, bench: Bench):
        bench.add(every="10m", if_running="queue")
        timetable = bench.timetable()
        timetable.fire_due(bench.driver.fence)
        for _ in range(2):
            bench.clock.advance(600)
            timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin]
        fresh = bench.timetable()
        for job in ("1", "2"):
            bench.driver.moves.cancel([job], KEEP)
            bench.clock.advance(0.6)
            fresh.fire_due(bench.driver.fence)
            bench.clock.advance(0.6)
            timetable.fire_due(bench.driver.fence)  # another leader's memory is wrong now, and does no harm
        assert bench.fired() == [bench.begin, bench.begin + 600, bench.begin + 1200]

    def test_the_files_schedules_are_put_there_once_a_lead(self, bench: Bench):
        own = schedule({"name": "own", "every": "1h", "command": ["true"]})
        timetable = bench.timetable(own=[own])
        timetable.fire_due(bench.driver.fence)
        assert bench.store.one("own") is not None
        bench.driver.client.delete(bench.driver.keys.schedules)
        timetable.forget()
        timetable.fire_due(bench.driver.fence)
        assert bench.store.one("own") is None
        bench.driver.moves.release_lead("m1")
        timetable.fire_due(bench.driver.lead("m1"))


class TestCatchUp:
    """Nobody led for five hours; the times were every half hour."""

    def after_downtime(self, bench: Bench, seconds: float = 5 * HOUR + 10, **fields: Any) -> list[int]:
        bench.add(every="30m", **fields)
        bench.clock.advance(seconds)
        bench.timetable().fire_due(bench.driver.fence)
        return [(moment - bench.begin) // 1800 for moment in bench.fired()]

    def test_none(self, bench: Bench):
        assert self.after_downtime(bench, 5 * HOUR + 61, catch_up="none") == []
        assert bench.missed() == 11

    def test_last(self, bench: Bench):
        assert self.after_downtime(bench, 5 * HOUR + 61, catch_up="last") == [10]
        assert bench.missed() == 10

    def test_all(self, bench: Bench):
        assert self.after_downtime(bench, 5 * HOUR + 61, catch_up="all") == list(range(11))
        assert bench.missed() == 0

    def test_all_with_a_maximum(self, bench: Bench):
        assert self.after_downtime(bench, 5 * HOUR + 61, catch_up="all", catch_up_max=3) == [8, 9, 10]
        assert bench.missed() == 8

    @pytest.mark.parametrize("catch_up", ["none", "last", "all"])
    def test_what_is_not_a_minute_late_is_met_whatever_the_policy(self, bench: Bench, catch_up: str):
        assert 10 in self.after_downtime(bench, 5 * HOUR + 59, catch_up=catch_up)

    def test_it_goes_on_from_there(self, bench: Bench):
        self.after_downtime(bench, 5 * HOUR + 61, catch_up="none")
        timetable = bench.timetable()
        timetable.fire_due(bench.driver.fence)
        bench.clock.advance(1740)
        timetable.fire_due(bench.driver.fence)
        assert bench.fired() == [bench.begin + 11 * 1800]

    def test_a_year_of_seconds_is_no_work(self, driver: Driver):
        driver.lead()
        bench = Bench(driver, driver.now_ms() // 1000 - 400 * 86_400)
        bench.add(every="1s", catch_up="all", catch_up_max=5)
        bench.clock.advance(399 * 86_400)
        bench.timetable().fire_due(bench.driver.fence)
        fired, now = bench.fired(), round(bench.clock.now())
        assert fired == list(range(now - MISSED_AFTER // 1000 - 4, now + 1))


# -- the leader is killed every minute ----------------------------------------------------------------------------


class Killed(Exception):
    """SIGKILL, as far as one object can die."""


class Mortal(Schedules):
    """Dies before or after its next fire, when told to."""

    dies = ""

    def fire(self, fence: str, fires: Sequence[Fire], keep_ms: int) -> tuple[int, list[Answer]]:
        if self.dies == "before":
            raise Killed
        answer = super().fire(fence, fires, keep_ms)
        if self.dies == "after":
            raise Killed
        return answer


class Master:
    """One of five: an instance with a memory of its own."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.name = name
        self.starts = 0
        self.fence = ""
        self.start()

    def start(self) -> None:
        """With an empty memory, under a new instance id."""
        self.starts += 1
        self.instance = f"{self.name}.{self.starts}"
        self.store = Mortal(self.bench.driver.client, self.bench.driver.keys)
        self.timetable = self.bench.timetable(self.store)

    def lead(self, after: str) -> None:
        epoch, holder = self.bench.driver.moves.acquire_lead(self.instance, 3_600_000, 1, after)
        assert epoch is not None, f"{holder} leads"
        self.fence = f"{self.instance}:{epoch}"

    def turn(self) -> bool:
        """Whether it lived through it, leading."""
        try:
            self.timetable.fire_due(self.fence)
        except (Killed, NotTheLeader):
            return False
        return True


def last_changes(zone: str, now: int) -> list[int]:
    """The last two changes of the zone's clocks that the server has behind it, in seconds; a day ago without any."""
    info, found = time_zone(zone), []
    at = now - 86_400
    offset = datetime.fromtimestamp(at, info).utcoffset()
    while at > now - 800 * 86_400 and len(found) < 2:
        at -= 1800
        before = datetime.fromtimestamp(at, info).utcoffset()
        if before != offset:
            found.append(at + 1800)
            offset = before
    return found or [now - 86_400]


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kolkata"]


#: Both changes in each; "make test" runs one in each direction, "make faults" all.
SAMPLED = {("Europe/Berlin", 0), ("Australia/Lord_Howe", 1)}
WINDOWS = [
    pytest.param(
        zone, which, id=f"{zone}-{which}", marks=pytest.mark.slow if (zone, which) in SAMPLED else pytest.mark.faults
    )
    for zone in ZONES
    for which in (0, 1)
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("zone", "which"), WINDOWS)
def test_five_masters_whose_leader_is_killed_every_minute_for_a_day(driver: Driver, zone: str, which: int):
    """Every time is fired as its policy says, and once: against the model that looks at every minute."""
    driver.lead("nobody")
    changes = last_changes(zone, driver.now_ms() // 1000 - 2 * 86_400)
    if which >= len(changes):
        changes = [changes[0] - 40 * 86_400] * 2  # no clocks change in Kolkata: some other day
    begin = (changes[which] - 12 * HOUR) // 60 * 60
    end = begin + 24 * HOUR
    bench = Bench(driver, begin)
    expected = {}
    for policy in ("skip", "run_once", "run_twice"):
        for name, minutes, hours in (("often", {0, 20, 40}, set(range(24))), ("night", {15, 45}, {1, 2, 3})):
            cron = f"{','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(hours)))} * * *"
            full = f"{name}-{policy}"
            bench.add(name=full, cron=cron, timezone=zone, dst=policy, catch_up="none", priority=len(expected))
            expected[full] = model(minutes, hours, time_zone(zone), policy, begin, end)
    bench.add(name="interval", every="7m", catch_up="none")
    expected["interval"] = [at for at in range(begin, end) if at % 420 == 0]

    chance = random.Random(f"{zone} {which}")
    masters = [Master(bench, f"m{number}") for number in range(5)]
    leader, superseded = masters[0], None
    leader.lead("nobody")
    deaths: Counter[str] = Counter()
    for _ in range(24 * 60):
        moment = chance.randrange(3)
        way = chance.choice(["before", "after", "idle", "superseded"])
        for part in range(3):
            if superseded is not None:  # it was only stopped, and goes on as if nothing had happened
                superseded.turn()
            if part == moment and way in ("before", "after"):
                leader.store.dies = way
            alive = leader.turn()
            if not alive or (part == moment and way in ("idle", "superseded")):
                deaths[way] += 1
                old, before = leader, leader.instance
                leader = chance.choice([master for master in masters if master is not old])
                superseded = old if way == "superseded" else None
                if superseded is None:
                    old.start()
                leader.start()
                leader.lead(before)
                leader.turn()
            bench.clock.advance(20)
    leader.store.dies = ""
    bench.clock.advance(-1)  # the end itself is not part of it
    assert leader.turn() or masters
    fired = bench.all_fired()
    for name, times in expected.items():
        assert sorted(fired.get(name, [])) == times, f"{name}: {zone} {datetime.fromtimestamp(begin, UTC)}"
    assert set(deaths) == {"before", "after", "idle", "superseded"}, "void: nobody was killed so"
