"""The whole store against a simple model: whatever happens in whatever order, each job has one accepted end.

The model knows nothing of lists, streams or scripts: only what a submitter, a channel and a user were told, and
what the design promises about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from jobschedd.errors import NotTheLeader
from jobschedd.job import TRANSITIONS, Flag, Outcome, Result, State, encode
from jobschedd.store.moves import Assignment, CancelAnswer, HoldAnswer, RetryAnswer, Verb, Verdict
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel

ENDS = [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CANCELLED]


@dataclass
class Known:
    """What the model knows of a job."""

    job: str
    priority: int
    once: bool  # retry_on_loss: false
    ends: list[Outcome] = field(default_factory=list)  # accepted, one for each time it was (re)submitted
    lives: int = 1  # how often it was submitted or retried by a user
    attempt: int = 0
    cancelled: bool = False  # a channel was asked to
    held: bool = False  # a user holds it while it waits


@dataclass(frozen=True)
class Held:
    """An order that some channel received, perhaps long ago."""

    channel: int
    job: str
    attempt: int
    entry: str


class Life(RuleBasedStateMachine):
    """Rules are what may happen; the invariants are the promise."""

    server: RedisServer
    orders = Bundle("orders")
    reports = Bundle("reports")

    def __init__(self) -> None:
        super().__init__()
        self.server.wipe()
        self.driver = Driver(self.server)
        self.driver.lead()
        self.jobs: dict[str, Known] = {}
        self.channels: list[FakeChannel] = []
        self.dead: set[int] = set()
        self.old_fence = "m0:0"
        self.lasts: dict[str, State] = {}

    def teardown(self) -> None:
        self.finish_everything()
        self.driver.close()

    # -- what happens -----------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.channels = [self.driver.channel(str(number), window=3) for number in range(2)]

    @rule(count=st.integers(1, 4), priority=st.sampled_from([0, 0, 50]), once=st.booleans())
    def submit(self, count: int, priority: int, once: bool) -> None:
        for job in self.driver.submit(count, priority=priority, retry_on_loss=not once, retries=3):
            self.jobs[job] = Known(job, priority, once)

    @rule(target=orders, channel=st.integers(0, 1), priority=st.sampled_from([0, 50]), count=st.integers(1, 5))
    def dispatch(self, channel: int, priority: int, count: int) -> Any:
        receiver = self.channels[channel]
        before = set(receiver.jobs())
        answer = self.driver.dispatch(receiver, count, 1, priority)
        received = []
        for entry, fields in receiver.entries():
            job = fields[b"job"].decode()
            if job in before:
                continue
            known = self.jobs[job]
            attempt = int(fields[b"attempt"])
            assert attempt == known.attempt + 1, "attempts only grow, one by one"
            assert not known.held, "nobody has released it"
            assert known.priority == priority, "a stale place in another list is no place"
            known.attempt = attempt
            received.append(Held(channel, job, attempt, entry))
        assert answer.sent == len(received) <= count
        assert len(receiver.entries()) <= 3, "the window"
        if channel in self.dead:
            assert not received
        return multiple(*received)

    @rule(target=reports, order=orders, outcome=st.sampled_from(ENDS))
    def report(self, order: Held, outcome: Outcome) -> Any:
        """A channel hands a report in, in time or much too late; it is on the result stream or nowhere."""
        channel = self.channels[order.channel]
        if channel.report_entry(order.entry, order.job, order.attempt, outcome=outcome, cause="exit"):
            return multiple((order, outcome))
        return multiple()

    @rule(report=reports)
    def collect(self, report: tuple[Held, Outcome]) -> None:
        """The collector judges it; bundles keep what was drawn, so it does so again and again."""
        order, outcome = report
        result = encode(Result(outcome=outcome, cause="exit"))
        verdict, _ = self.driver.judge(Verb.DONE, order.job, order.attempt, order.entry, int(outcome), result, KEEP)
        if verdict is Verdict.ACCEPTED:
            self.accept(order.job, outcome)

    @rule(report=reports, delay=st.sampled_from([0, 0, 60_000]))
    def collect_as_a_retry(self, report: tuple[Held, Outcome], delay: int) -> None:
        order, _ = report
        verdict, _ = self.driver.judge(Verb.RETRY, order.job, order.attempt, order.entry, delay, 1, 0, KEEP)
        if verdict is Verdict.ACCEPTED and self.jobs[order.job].cancelled:
            self.accept(order.job, Outcome.CANCELLED)

    @rule(order=orders)
    def start(self, order: Held) -> None:
        self.driver.judge(Verb.START, order.job, order.attempt, order.entry)

    @rule(order=orders)
    def bring_back(self, order: Held) -> None:
        """Not started: the channel hands it back, if it still is its own."""
        channel = self.channels[order.channel]
        if channel.report_entry(order.entry, order.job, order.attempt, outcome=Outcome.NONE):
            verdict, _ = self.driver.judge(Verb.RETURN, order.job, order.attempt, order.entry, KEEP)
            assert verdict is Verdict.ACCEPTED, "whoever took the entry away speaks for it"
            if self.jobs[order.job].cancelled:
                self.accept(order.job, Outcome.CANCELLED)

    @rule(channel=st.integers(0, 1), left=st.booleans())
    def die(self, channel: int, left: bool) -> None:
        self.channels[channel].leave() if left else self.channels[channel].die()
        self.dead.add(channel)

    @rule(channel=st.integers(0, 1))
    def come_back(self, channel: int) -> None:
        self.channels[channel].register(3)
        self.dead.discard(channel)

    @rule(channel=st.integers(0, 1), most=st.integers(1, 4))
    def requeue(self, channel: int, most: int) -> None:
        dead = self.channels[channel]
        held = set(dead.jobs())
        answer = self.driver.requeue(dead, most=most)
        if channel not in self.dead:
            assert answer.reason == "alive" and not answer.jobs
        for job in answer.jobs:
            assert job in held
            known = self.jobs[job]
            if known.once and answer.reason == "lost":
                self.accept(job, Outcome.LOST)
            elif known.cancelled:
                self.accept(job, Outcome.CANCELLED)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.jobs:
            return
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        known = self.jobs[job]
        ((answer, outcome),) = self.driver.moves.cancel([job], KEEP)
        assert answer is not CancelAnswer.UNKNOWN
        if answer is CancelAnswer.CANCELLED:
            self.accept(job, Outcome.CANCELLED)
        elif answer is CancelAnswer.REQUESTED:
            known.cancelled = True
        else:
            assert outcome is known.ends[-1], "who cancels too late is told how it ended"

    @rule(data=st.data(), hold=st.booleans())
    def hold_or_release(self, data: st.DataObject, hold: bool) -> None:
        if not self.jobs:
            return
        known = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        waits = self.driver.state(known.job) in (State.PENDING, State.SCHEDULED)
        moves = self.driver.moves
        (answer,) = moves.hold([known.job], "", "") if hold else moves.release([known.job])
        assert (answer is HoldAnswer.DONE) == (waits if hold else known.held)
        known.held = waits if hold else False

    @rule(data=st.data(), priority=st.sampled_from([0, 50]))
    def prioritise(self, data: st.DataObject, priority: int) -> None:
        if not self.jobs:
            return
        known = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        waits = self.driver.state(known.job) in (State.PENDING, State.SCHEDULED)
        (answer,) = self.driver.moves.prioritise([known.job], priority)
        assert (answer is HoldAnswer.DONE) == waits
        if waits:
            known.priority = priority

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        if not self.jobs:
            return
        known = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        (answer,) = self.driver.moves.retry([known.job])
        if answer is RetryAnswer.PENDING:
            assert len(known.ends) == known.lives
            known.lives += 1
            known.cancelled = False
        else:
            assert len(known.ends) == known.lives - 1

    @rule()
    def another_master(self) -> None:
        self.driver.moves.release_lead(self.driver.fence.partition(":")[0])
        self.old_fence = self.driver.fence
        self.driver.lead(f"m{len(self.old_fence)}{self.old_fence[-1]}")

    @rule(order=orders)
    def the_former_master(self, order: Held) -> None:
        """Whatever it still tries is refused."""
        for move in (
            lambda: self.driver.moves.collect(
                self.old_fence, [Verb.DONE, order.job, order.attempt, order.entry, 1, b"", KEEP, "", ""]
            ),
            lambda: self.driver.moves.requeue(self.old_fence, self.channels[0].incarnation, 1, KEEP, 10),
            lambda: self.driver.moves.dispatch(
                self.old_fence, [Assignment(1, 0, self.channels[0].incarnation, 5)], KEEP
            ),
            lambda: self.driver.moves.promote(self.old_fence, KEEP, 10),
        ):
            with pytest.raises(NotTheLeader):
                move()

    @rule(forget=st.sampled_from(["scripts", "functions"]))
    def forgetful_server(self, forget: str) -> None:
        self.driver.client.script_flush() if forget == "scripts" else self.driver.client.function_flush()

    @rule(report=consumes(reports))
    def lose_sight_of(self, report: tuple[Held, Outcome]) -> None:
        """It is still on the result stream: ``finish_everything`` finds it."""

    # -- what must hold ---------------------------------------------------------------------------------------

    def accept(self, job: str, outcome: Outcome) -> None:
        known = self.jobs[job]
        known.ends.append(outcome)
        known.held = False
        assert len(known.ends) <= known.lives, f"job {job} ended twice"

    @invariant()
    def every_job_is_somewhere(self) -> None:
        waiting = {(job, priority) for priority in (0, 50) for job in self.driver.pending(1, priority)}
        lists = self.driver.survey.pending()
        marked = {job.decode() for job in self.driver.client.hkeys(self.driver.keys.held)}
        assert marked == {job for job, known in self.jobs.items() if known.held}
        held = {(job, entry) for channel in self.channels for entry, job in self.held_by(channel)}
        reported = {(report.job, report.entry) for report in self.driver.reports()}
        for job, known in self.jobs.items():
            header = self.driver.header(job)
            assert (Flag.HELD in header.flags) == known.held
            assert header.priority == known.priority
            if header.state is State.PENDING and Flag.PARKED in header.flags:
                assert known.held, "a release brings it back"
            elif header.state is State.PENDING:
                assert (job, known.priority) in waiting
                assert (1, known.priority) in lists
            elif header.state is State.SCHEDULED:
                assert self.driver.client.zscore(self.driver.keys.scheduled, job) is not None
            elif header.state in (State.DISPATCHED, State.RUNNING):
                assert (job, header.entry) in held | reported, "neither its channel nor the collector has it"
                assert header.attempt == known.attempt
            else:
                assert header.state is State.DONE
                assert known.ends[-1] is header.outcome
            assert (header.state is State.DONE) == (len(known.ends) == known.lives)

    @invariant()
    def only_legal_steps(self) -> None:
        """From one look to the next a job may have gone several steps; each must exist."""
        for job in self.jobs:
            now, before = self.driver.state(job), self.lasts.get(job)
            assert now in reachable(before), f"job {job}: {before} -> {now}"
            self.lasts[job] = now

    def held_by(self, channel: FakeChannel) -> list[tuple[str, str]]:
        return [(entry, fields[b"job"].decode()) for entry, fields in channel.entries()]

    def finish_everything(self) -> None:
        """The fleet goes on working: every job must reach its end."""
        driver = self.driver
        driver.moves.release([job for job, known in self.jobs.items() if known.held])
        for channel in self.channels:
            channel.register(3)
        for _ in range(200):
            for report in driver.reports():
                outcome = report.outcome or Outcome.FAILED
                verdict, _ = driver.judge(
                    Verb.DONE, report.job, report.attempt, report.entry, int(outcome), report.result, KEEP
                )
                if verdict is Verdict.ACCEPTED:
                    self.accept(report.job, outcome)
            if all(driver.state(job) is State.DONE for job in self.jobs):
                break
            scheduled = driver.client.zrange(driver.keys.scheduled, 0, -1)
            if scheduled:
                driver.client.zadd(driver.keys.scheduled, dict.fromkeys(scheduled, 1))
            driver.moves.promote(driver.fence, KEEP, 1000)
            for channel in self.channels:
                for priority in (50, 0):
                    driver.dispatch(channel, 5, 1, priority)
                for job in channel.jobs():
                    channel.report(job)
        for job, known in self.jobs.items():
            assert driver.state(job) is State.DONE, f"job {job} never ended"
            assert len(known.ends) <= known.lives


def reachable(before: State | None) -> set[State | None]:
    seen = {before}
    while more := {after for _, start, after in TRANSITIONS if start in seen} - seen:
        seen |= more
    return seen


@pytest.mark.timeout(300)  # sixty lives, each looked at after every step
def test_every_job_has_one_accepted_end(redis_server: RedisServer) -> None:
    class Here(Life):
        server = redis_server

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
