"""Dependencies against a simple model: whatever happens in whatever order, nobody starts too early or waits for ever.

The model tells everybody of an end at once; the store does it when the dispatcher comes to it, in pieces. So while
ends are still to be told a job may wait that need not any more; once all are told, both agree on every job.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobschedd.job import Outcome, State
from jobschedd.store.moves import CancelAnswer, RetryAnswer
from redis_server import RedisServer
from store_driver import KEEP, Driver

CONDITIONS = st.sampled_from(["ok", "ok", "any", "fail"])
OUTCOMES = st.sampled_from([Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.LOST])


@dataclass
class Known:
    """What the model knows of a job. ``open``: what it waits for still."""

    after: dict[str, str]
    open: set[str] = field(default_factory=set)
    outcome: Outcome = Outcome.NONE
    started: bool = False


def holds(condition: str, outcome: Outcome) -> bool:
    good = outcome is Outcome.SUCCEEDED
    return condition == "any" or good == (condition == "ok")


class Shape(RuleBasedStateMachine):
    """Rules are what may happen; the invariant is the promise."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.server.wipe()
        self.driver = Driver(self.server)
        self.driver.lead()
        self.jobs: dict[str, Known] = {}

    def teardown(self) -> None:
        self.tell_everybody()
        while any(not known.outcome for known in self.jobs.values()):
            assert self.driver.pending(), "somebody waits for ever"
            self.run_next(Outcome.SUCCEEDED)
            self.tell_everybody()
        left = {key for key in self.driver.all_keys() if key.startswith(("awaits", "depend", "unblocking", "waiting"))}
        assert left == set()
        self.driver.close()

    # -- what happens -----------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.channel = self.driver.channel(window=1000)
        self.submit_one({})

    def submit_one(self, after: dict[str, str]) -> None:
        (job,) = self.driver.submit(after=[f"{parent}:{condition}" for parent, condition in after.items()])
        self.jobs[job] = Known(after)
        self.wait_for(job)

    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        newest = sorted(self.jobs, key=int)[-6:]
        self.submit_one(data.draw(st.dictionaries(st.sampled_from(newest), CONDITIONS, max_size=3)))

    @rule(outcome=OUTCOMES)
    def run_next(self, outcome: Outcome) -> None:
        """The channel takes the first that is pending, and it ends."""
        if not self.driver.dispatch(self.channel, 1).sent:
            return
        (job,) = self.channel.jobs()
        known = self.jobs[job]
        assert not known.open and not known.outcome, f"job {job} started too early"
        known.started = True
        self.driver.end(job, outcome)
        self.channel.report(job)
        self.driver.client.delete(self.driver.keys.results)
        self.end(job, outcome)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        ((answer, _),) = self.driver.moves.cancel([job], KEEP)
        if answer is CancelAnswer.CANCELLED:
            # Where the model has skipped it already, nobody was told anything else.
            told = bool(self.jobs[job].outcome)
            self.jobs[job].outcome = Outcome.CANCELLED
            if not told:
                self.end(job, Outcome.CANCELLED)

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        (answer,) = self.driver.moves.retry([job])
        if answer in (RetryAnswer.PENDING, RetryAnswer.WAITING):
            self.jobs[job].outcome = Outcome.NONE
            if not self.jobs[job].started:
                self.wait_for(job)

    @rule(most=st.integers(1, 3))
    def tell_some(self, most: int) -> None:
        self.driver.moves.unblock(self.driver.fence, KEEP, most)

    @rule()
    def look_again(self) -> None:
        assert self.driver.moves.recheck(self.driver.fence, 1000)[1] == 0, "nothing was lost: nothing is to be mended"

    @rule()
    def another_master(self) -> None:
        self.driver.moves.release_lead(self.driver.fence.partition(":")[0])
        self.driver.lead(f"m{self.driver.fence.replace(':', '')[-6:]}x")

    @rule()
    def tell_everybody(self) -> None:
        while self.driver.moves.unblock(self.driver.fence, KEEP, 7).left:
            pass
        for job, known in self.jobs.items():
            header = self.driver.header(job)
            if known.outcome:
                assert header.outcome is known.outcome, f"job {job}"
            else:
                expected = State.WAITING if known.open else State.PENDING
                assert header.state is expected, f"job {job}: {known}"

    # -- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_early(self) -> None:
        for job, known in self.jobs.items():
            if self.driver.state(job) is State.PENDING:
                assert not known.open, f"job {job}: {known}"

    # -- the model --------------------------------------------------------------------------------------------

    def wait_for(self, job: str) -> None:
        known = self.jobs[job]
        known.open = {parent for parent in known.after if not self.jobs[parent].outcome}
        met = all(
            holds(condition, self.jobs[parent].outcome)
            for parent, condition in known.after.items()
            if parent not in known.open
        )
        if not met:
            self.end(job, Outcome.SKIPPED)

    def end(self, job: str, outcome: Outcome) -> None:
        self.jobs[job].outcome, self.jobs[job].open = outcome, set()
        for child, known in self.jobs.items():
            if not known.outcome and job in known.open:
                known.open.discard(job)
                if not holds(known.after[job], outcome):
                    self.end(child, Outcome.SKIPPED)


def test_nobody_starts_too_early_or_waits_for_ever(redis_server: RedisServer) -> None:
    class Here(Shape):
        server = redis_server

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
