"""What uses how much; what is over its budget is refused, or forgotten in time."""

from __future__ import annotations

import pytest

from jobschedd.errors import NotTheLeader, QueueFull
from jobschedd.job import Outcome, State
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

    def test_what_is_too_young_stays(self, driver, memory):
        ended(driver)
        assert memory.shed(driver.fence, 1, 100, 1 << 40, 60_000)[1] == 0

    def test_its_key_goes_with_it(self, driver, memory):
        ended(driver, key="k")
        self.shed(driver, memory)
        assert "once:k" not in driver.all_keys()
        assert driver.submit(key="k") == ["2"]

    def test_step_by_step(self, driver, memory):
        ended(driver, 5)
        assert self.shed(driver, memory, count=2)[1:] == (2, 3)
        assert self.shed(driver, memory, first=3, count=2)[1:] == (2, 5)
        assert self.shed(driver, memory, first=5, count=2)[1:] == (1, 0)
        assert Outcome.CANCELLED and self.left(driver) == []
