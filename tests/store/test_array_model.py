"""Arrays against a simple model: never more at once than the limit, whatever happens, and each task has one end.

The model knows the set of indices of each array and how each of them ended; nothing of bitmaps, markers or counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobschedd.job import Outcome, State
from jobschedd.store.inspect import Inspect
from jobschedd.store.moves import CancelAnswer, RetryAnswer, Verdict
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel

WINDOW = 4


@dataclass
class Known:
    """What the model knows of an array. ``open``: indices without an end; ``ends``: how the others ended."""

    limit: int
    open: set[int]
    ends: dict[int, Outcome] = field(default_factory=dict)

    def end(self, index: int, outcome: Outcome) -> None:
        self.open.remove(index)  # raises where it had ended
        self.ends[index] = outcome

    @property
    def failed(self) -> set[int]:
        return {index for index, outcome in self.ends.items() if outcome is not Outcome.SUCCEEDED}


class Life(RuleBasedStateMachine):
    """Rules are what may happen; the invariants are the promise."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.server.wipe()
        self.driver = Driver(self.server)
        self.driver.lead()
        self.inspect = Inspect(self.driver.client, self.driver.keys)
        self.arrays: dict[str, Known] = {}
        self.channels: list[FakeChannel] = []

    def teardown(self) -> None:
        self.finish_everything()
        self.driver.close()

    @initialize()
    def begin(self) -> None:
        self.channels = [self.driver.channel(str(number), window=WINDOW) for number in range(2)]

    @rule(first=st.integers(0, 3), count=st.integers(1, 9), step=st.integers(1, 3), limit=st.integers(0, 3))
    def submit(self, first: int, count: int, step: int, limit: int) -> None:
        text = f"{first}-{first + step * (count - 1)}:{step}" + (f"%{limit}" if limit else "")
        (job,) = self.driver.submit(array=text)
        self.arrays[job] = Known(limit, set(range(first, first + step * count, step)))

    @rule()
    def submit_a_plain_job(self) -> None:
        self.driver.submit()

    @rule(channel=st.integers(0, 1), count=st.integers(1, 5))
    def dispatch(self, channel: int, count: int) -> None:
        self.driver.dispatch(self.channels[channel], count)

    @rule(channel=st.integers(0, 1), outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED]))
    def end(self, channel: int, outcome: Outcome) -> None:
        if jobs := self.channels[channel].jobs():
            self.end_of(channel, jobs[0], outcome)

    @rule(channel=st.integers(0, 1))
    def bring_back(self, channel: int) -> None:
        if jobs := self.channels[channel].jobs():
            cancelled = self.driver.header(jobs[0]).flags & 1
            self.take_away(channel, jobs[0])
            self.driver.bring_back(jobs[0])
            if cancelled:
                self.note(jobs[0], Outcome.CANCELLED)

    @rule(channel=st.integers(0, 1))
    def end_with_a_retry(self, channel: int) -> None:
        if jobs := self.channels[channel].jobs():
            cancelled = self.driver.header(jobs[0]).flags & 1
            self.take_away(channel, jobs[0])
            self.driver.again(jobs[0], delay_ms=60_000)
            if cancelled:
                self.note(jobs[0], Outcome.CANCELLED)

    @rule()
    def back_off_is_over(self) -> None:
        if scheduled := self.driver.client.zrange(self.driver.keys.scheduled, 0, -1):
            self.driver.client.zadd(self.driver.keys.scheduled, dict.fromkeys(scheduled, 1))
        self.driver.moves.promote(self.driver.fence, KEEP, 1000)

    @rule(channel=st.integers(0, 1))
    def die_and_come_back(self, channel: int) -> None:
        dead = self.channels[channel]
        cancelled = {job for job in dead.jobs() if self.driver.header(job).flags & 1}
        dead.die()
        for job in self.driver.requeue(dead).jobs:
            if job in cancelled:
                self.note(job, Outcome.CANCELLED)
        dead.register(WINDOW)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.arrays:
            return
        job = data.draw(st.sampled_from(sorted(self.arrays)))
        self.driver.moves.cancel([job], KEEP)
        known = self.arrays[job]
        held = self.active(job)
        for index in known.open - held:
            known.end(index, Outcome.CANCELLED)
        self.tell_tasks()

    def tell_tasks(self) -> None:
        _, tasks = self.driver.moves.repeat_hints(self.driver.fence, 1000)
        for task, (answer, _) in zip(tasks, self.driver.moves.cancel(tasks, KEEP) if tasks else [], strict=True):
            if answer is CancelAnswer.CANCELLED:
                self.note(task, Outcome.CANCELLED)

    @rule(data=st.data())
    def cancel_a_task(self, data: st.DataObject) -> None:
        if not self.arrays:
            return
        job = data.draw(st.sampled_from(sorted(self.arrays)))
        index = data.draw(st.sampled_from(sorted(self.arrays[job].open | set(self.arrays[job].ends))))
        ((answer, _),) = self.driver.moves.cancel([f"{job}_{index}"], KEEP)
        if answer is CancelAnswer.CANCELLED:
            self.note(f"{job}_{index}", Outcome.CANCELLED)
        elif answer is CancelAnswer.ENDED:
            assert index in self.arrays[job].ends

    @rule(data=st.data(), everything=st.booleans())
    def retry(self, data: st.DataObject, everything: bool) -> None:
        if not self.arrays:
            return
        job = data.draw(st.sampled_from(sorted(self.arrays)))
        known = self.arrays[job]
        if everything and known.open:
            return  # as the client does: all of it only once it has ended
        answer, count = self.driver.moves.retry_array(job, everything=everything)
        if answer is RetryAnswer.PENDING:
            again = set(known.ends) if everything else known.failed
            assert count == len(again)
            for index in again:
                del known.ends[index]
            known.open |= again

    @rule(data=st.data())
    def retry_a_task(self, data: st.DataObject) -> None:
        if not self.arrays:
            return
        job = data.draw(st.sampled_from(sorted(self.arrays)))
        known = self.arrays[job]
        index = data.draw(st.sampled_from(sorted(known.open | set(known.ends))))
        (answer,) = self.driver.moves.retry([f"{job}_{index}"])
        if answer is RetryAnswer.PENDING:
            del known.ends[index]
            known.open.add(index)

    # -- helpers ----------------------------------------------------------------------------------------------

    def take_away(self, channel: int, job: str) -> None:
        header = self.driver.header(job)
        self.driver.client.xdel(self.driver.keys.dispatch(self.channels[channel].incarnation), header.entry)

    def end_of(self, channel: int, job: str, outcome: Outcome) -> None:
        self.take_away(channel, job)
        assert self.driver.end(job, outcome) is Verdict.ACCEPTED
        self.note(job, outcome)

    def note(self, job: str, outcome: Outcome) -> None:
        array, separator, index = job.partition("_")
        if separator:
            self.arrays[array].end(int(index), outcome)

    def active(self, job: str) -> set[int]:
        return {
            int(task.id.partition("_")[2])
            for task in self.inspect.tasks(job)
            if not task.ended and not self.inspect.is_unstarted(job, int(task.id.partition("_")[2]))
        }

    # -- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def the_limit_holds_and_the_counts_are_right(self) -> None:
        for job, known in self.arrays.items():
            view = self.inspect.job(job)
            assert view is not None and view.counts is not None
            active = self.active(job)
            assert not known.limit or len(active) <= known.limit, "one more than the limit"
            assert view.counts.active == len(active)
            assert view.counts.not_started == len(known.open) - len(active)
            for outcome in Outcome:
                expected = sum(one is outcome for one in known.ends.values())
                assert not outcome or view.counts.outcomes.get(outcome.word, 0) == expected
            assert (view.header.state is State.DONE) == (not known.open)
            if not known.open:
                assert (view.outcome is Outcome.SUCCEEDED) == (not known.failed)

    @invariant()
    def every_task_is_what_the_model_says(self) -> None:
        for job, known in self.arrays.items():
            shown = {int(task.id.partition("_")[2]): task for task in self.inspect.tasks(job)}
            assert set(shown) == known.open | set(known.ends)
            for index, task in shown.items():
                assert task.outcome is known.ends.get(index, Outcome.NONE)

    def finish_everything(self) -> None:
        """The fleet goes on working: nothing may be left waiting for ever."""
        for _ in range(200):
            if all(not known.open for known in self.arrays.values()):
                break
            self.back_off_is_over()
            self.tell_tasks()
            for number, channel in enumerate(self.channels):
                self.driver.dispatch(channel, 5)
                for job in channel.jobs():
                    self.end_of(number, job, Outcome.SUCCEEDED)
        self.the_limit_holds_and_the_counts_are_right()
        for job, known in self.arrays.items():
            assert not known.open, f"array {job} never ended"


def test_arrays_behave_as_a_set_of_indices(redis_server: RedisServer) -> None:
    class Here(Life):
        server = redis_server

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
