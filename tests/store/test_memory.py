"""What uses how much; what is over its budget is refused, or forgotten in time."""

from __future__ import annotations

import pytest

from jobschedd.client import Client
from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.errors import NotTheLeader, QueueFull
from jobschedd.job import Outcome, State
from jobschedd.master.budgets import Budgets
from jobschedd.store.memory import Memory, Usage
from store_driver import KEEP


@pytest.fixture
def memory(driver):
    return Memory(driver.client, driver.keys)


def ended(driver, count: int = 1, **item) -> list[str]:
    """Jobs that have ended, and are in the history."""
    ids = driver.submit(count, **item)
    driver.moves.cancel(ids, KEEP)
    driver.client.delete(driver.keys.results)
    return ids


class TestSample:
    def test_every_kind_is_told_apart(self, driver, memory):
        channel = driver.channel()
        driver.dispatched(channel)
        ended(driver, 50)
        driver.submit(50, stdin="x" * 500)
        driver.submit(10, delay=60)
        driver.client.set("somebody:else", "x")
        sample = memory.sample(draws=3000)
        assert {"waiting", "finished", "active", "foreign", "classes"} <= set(sample.kinds)
        assert sample.keys == driver.client.dbsize()
        assert sample.keys_of("finished") == pytest.approx(50, abs=10)
        assert sample.keys_of("waiting") == pytest.approx(60, abs=10)
        assert sample.waiting == 60
        exact = sum(driver.client.memory_usage(driver.keys.job(str(job))) for job in range(52, 112))
        assert sample.waiting_bytes == pytest.approx(exact, rel=0.5)
        assert sample.bytes_of("waiting") == pytest.approx(exact, rel=0.3)

    def test_an_empty_database(self, driver, memory):
        driver.client.flushdb()
        sample = memory.sample()
        assert (sample.keys, sample.draws, sample.waiting, sample.bytes_of("finished")) == (0, 0, 0, 0)

    def test_a_long_list_is_sampled_from_its_ends(self, driver, memory):
        driver.submit(2000)
        mean = driver.client.memory_usage(driver.keys.job("1"))
        assert memory.sample().waiting_bytes == pytest.approx(2000 * mean, rel=0.1)

    def test_jobs_that_wait_for_others_are_a_kind_of_their_own(self, driver, memory):
        first, *_ = driver.submit(1)
        driver.submit(20, after=[first])
        sample = memory.sample(draws=2000)
        assert sample.waiting == 1
        assert sample.keys_of("blocked") == pytest.approx(20, abs=6)

    def test_held_jobs_count_too(self, driver, memory):
        ids = driver.submit(40, hold=True)
        mean = driver.client.memory_usage(driver.keys.job("1"))
        assert memory.sample().waiting == 40
        assert driver.dispatch(driver.channel(), 10).sent == 0
        assert driver.pending() == [], "they are parked"
        sample = memory.sample()
        assert (sample.waiting, sample.waiting_bytes) == (40, pytest.approx(40 * mean, rel=0.1))
        driver.moves.cancel(ids, KEEP)
        assert memory.sample().waiting == 0


class TestAdmission:
    def test_a_full_queue_refuses_and_says_why(self, driver, memory):
        memory.admit(driver.fence, Usage(full="jobs that wait use too much"), False, 60_000)
        with pytest.raises(QueueFull, match="queue full: jobs that wait use too much; try again"):
            driver.submit()
        assert driver.client.get(driver.keys.next_id) is None
        memory.admit(driver.fence, Usage(), False, 60_000)
        assert driver.submit() == ["1"]

    def test_what_is_there_goes_on(self, driver, memory):
        channel = driver.channel()
        first, second, third = driver.submit(3, retries=1)
        memory.admit(driver.fence, Usage(full="full"), False, 60_000)
        driver.dispatch(channel, 2)
        driver.end(first)
        driver.again(second)
        driver.moves.cancel([third], KEEP)
        assert [driver.state(job) for job in (first, second, third)] == [State.DONE, State.PENDING, State.DONE]

    def test_a_repeated_call_has_its_answer(self, driver, memory):
        from jobschedd.store.moves import OperationSlot
        from jobschedd.submission import submission

        slot, jobs = OperationSlot("c"), [submission({"command": ["true"]})]
        slot.sequence = 1
        assert driver.moves.submit(jobs, slot) == ["1"]
        memory.admit(driver.fence, Usage(full="full"), False, 60_000)
        assert driver.moves.submit(jobs, slot) == ["1"]

    def test_the_word_of_a_dead_leader_does_not_last(self, driver, memory):
        memory.admit(driver.fence, Usage(full="full"), True, 5000)
        assert 0 < driver.client.pttl(driver.keys.full) <= 5000
        assert 0 < driver.client.pttl(driver.keys.base + "quiet") <= 5000

    def test_only_the_leader_says_so(self, driver, memory):
        with pytest.raises(NotTheLeader):
            memory.admit("other:1", Usage(full="full"), False, 1000)
        with pytest.raises(NotTheLeader):
            memory.shed("other:1", 1, 100, 1, 0)

    def test_what_was_measured_can_be_read(self, driver, memory):
        assert memory.usage() is None
        said = Usage(at=1.5, pending=3, budgets={"pending": 7}, history="/x", history_bytes=9)
        memory.admit(driver.fence, said, False, 1000)
        assert memory.usage() == said

    def test_nobody_new_follows_while_output_is_over_its_budget(self, driver, memory):
        channel = driver.channel()
        job, _ = driver.dispatched(channel)
        memory.admit(driver.fence, Usage(), True, 60_000)
        assert driver.moves.follow(job) is State.DISPATCHED
        assert channel.hints() == []
        memory.admit(driver.fence, Usage(), False, 60_000)
        driver.moves.follow(job)
        assert len(channel.hints()) == 1


class TestShed:
    def shed(self, driver, memory, wanted: int = 1 << 40, first: int = 1, count: int = 1000):
        now = driver.now_ms()
        driver.wait_ms(now)
        return memory.shed(driver.fence, first, count, wanted, 0)

    def left(self, driver) -> list[int]:
        return sorted(int(key.partition(":")[2]) for key in driver.all_keys() if key.startswith("job:"))

    def test_those_submitted_first_go_first(self, driver, memory):
        ended(driver, 10)
        size = driver.client.memory_usage(driver.keys.job("1"))
        freed, records, following = self.shed(driver, memory, wanted=3 * size)
        assert (freed, records, following) == (3 * size, 3, 4)
        assert self.left(driver) == list(range(4, 11))

    def test_what_has_not_ended_stays(self, driver, memory):
        channel = driver.channel()
        driver.dispatched(channel)
        driver.submit(delay=60)
        driver.submit()
        ended(driver)
        assert self.shed(driver, memory)[1:] == (1, 0)
        assert self.left(driver) == [1, 2, 3]

    def test_what_is_not_in_the_history_stays(self, driver, memory):
        (job,) = driver.submit()
        driver.moves.cancel([job], KEEP)
        assert self.shed(driver, memory)[1] == 0
        driver.client.delete(driver.keys.results)
        assert self.shed(driver, memory)[1] == 1

    def test_so_does_what_was_judged_with_its_report_and_has_no_row_yet(self, driver, memory):
        job, _ = ended(driver, 2)
        driver.client.hset(driver.keys.judged, job, driver.client.get(driver.keys.job(job)))
        assert self.shed(driver, memory)[1] == 1
        assert self.left(driver) == [int(job)]
        driver.client.delete(driver.keys.judged)
        assert self.shed(driver, memory)[1] == 1

    def test_what_is_too_young_stays(self, driver, memory):
        ended(driver)
        assert memory.shed(driver.fence, 1, 100, 1 << 40, 60_000)[1] == 0

    def test_its_key_goes_with_it(self, driver, memory):
        ended(driver, key="k")
        self.shed(driver, memory)
        assert "once:k" not in driver.all_keys()
        assert driver.submit(key="k") == ["2"]

    def test_of_one_kind_of_end(self, driver, memory):
        channel = driver.channel(window=100)
        good, bad = [], []
        for number in range(6):
            job, _ = driver.dispatched(channel)
            driver.end(job, Outcome.FAILED if number % 2 else Outcome.SUCCEEDED)
            (bad if number % 2 else good).append(int(job))
        bad += map(int, ended(driver, 2))
        now = driver.now_ms()
        driver.wait_ms(now)
        assert memory.shed(driver.fence, 1, 100, 1 << 40, 0, "succeeded")[1:] == (3, 0)
        assert self.left(driver) == bad
        size = driver.client.memory_usage(driver.keys.job(str(bad[0])))
        assert memory.shed(driver.fence, 1, 100, size, 0, "failed")[1] == 1
        assert self.left(driver) == bad[1:]

    def test_tasks_of_an_array(self, driver, memory):
        """Also of one that runs; those of the other kind stay, and what is counted counts."""
        channel = driver.channel(window=100)
        (array,) = driver.submit(array="1-30%20")
        driver.dispatch(channel, 20)
        for index in range(1, 16):
            driver.end(f"{array}_{index}", Outcome.FAILED if index == 7 else Outcome.SUCCEEDED)
        driver.client.delete(driver.keys.results)
        driver.wait_ms(driver.now_ms())
        following, records, calls = 1, 0, 0
        while following:
            _, part, following = memory.shed(driver.fence, following, 5, 1 << 40, 0, "succeeded")
            records, calls = records + part, calls + 1
        assert (records, calls > 2) == (14, True), "in pieces"
        assert {f"job:{array}_7", f"job:{array}_16"} <= driver.all_keys()
        assert f"job:{array}_1" not in driver.all_keys()
        driver.dispatch(channel, 20)
        for index in range(16, 31):
            driver.end(f"{array}_{index}")
        assert driver.outcome(array) is Outcome.FAILED
        assert driver.moves.retry_array(array)[1] == 1
        assert driver.dispatch(channel, 20).sent == 1
        assert driver.header(f"{array}_7").attempt == 2
        driver.end(f"{array}_7")
        driver.client.delete(driver.keys.results)
        assert self.shed(driver, memory)[1:] == (17, 0)
        assert not [key for key in driver.all_keys() if key.startswith(("job:", "array"))]

    def test_tasks_of_a_job_for_all_nodes(self, driver, memory, redis_server):
        driver.moves.remember(driver.fence, [driver.channel(node=f"n{number}").info for number in range(1, 20)])
        with Client(redis_server.url, namespace="test") as client:
            job = client.submit(["true"], all=True).id
            client.cancel([job])
        tasks = [f"{job}_{number}" for number in range(1, 20)]
        driver.moves.cancel(tasks, KEEP)
        driver.client.delete(driver.keys.results)
        assert self.shed(driver, memory)[1:] == (20, 0)
        assert not [key for key in driver.all_keys() if key.startswith(("job:", "array"))]

    def test_step_by_step(self, driver, memory):
        ended(driver, 5)
        assert self.shed(driver, memory, count=2)[1:] == (2, 3)
        assert self.shed(driver, memory, first=3, count=2)[1:] == (2, 5)
        assert self.shed(driver, memory, first=5, count=2)[1:] == (1, 0)
        assert Outcome.CANCELLED and self.left(driver) == []


class TestBudgets:
    """Over a budget, down to a little less than it."""

    def bytes_of(self, driver, outcome: Outcome) -> int:
        keys = [key for key in driver.all_keys() if key.startswith("job:")]
        records = [(key, driver.header(key.partition(":")[2])) for key in keys]
        same = [
            key for key, header in records if (header.outcome is Outcome.SUCCEEDED) is (outcome is Outcome.SUCCEEDED)
        ]
        return sum(driver.client.memory_usage(driver.keys.base + key) for key in same)

    def test_each_kind_of_end_has_its_own(self, driver, memory):
        channel = driver.channel(window=1000)
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
            for job in driver.submit(200):
                driver.dispatch(channel, 1)
                driver.end(job, outcome)
        driver.client.delete(driver.keys.results, driver.keys.dispatch(channel.incarnation))
        driver.wait_ms(driver.now_ms())
        failed = self.bytes_of(driver, Outcome.FAILED)
        budget = self.bytes_of(driver, Outcome.SUCCEEDED) // 4
        shares = {"pending": 0, "finished": 0, "output": 0, "reserve": 0, "succeeded": budget, "failed": 10 * failed}
        budgets = Budgets(memory, shares, SYSTEM_CLOCK, 0)
        for _ in range(30):
            budgets.look(driver.fence)
        assert self.bytes_of(driver, Outcome.FAILED) == failed
        assert 0.3 * budget < self.bytes_of(driver, Outcome.SUCCEEDED) < 1.3 * budget
        assert memory.usage().budgets["succeeded"] == budget
