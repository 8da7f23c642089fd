"""Limits against a simple model: whatever happens in whatever order, never one too many, and nobody counts for ever."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobschedd.job import Flag, Outcome, State
from jobschedd.limits import terms_of
from jobschedd.store.moves import Assignment
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel

KINDS = [
    {"limit_keys": ["db=2"]},
    {"limit_keys": ["db=2", "disk=1"]},
    {"limit_keys": ["disk=1"], "group": "g", "retry_on_loss": False},
    {"group": "g"},
    {},
]
WITH_A_CHANNEL = (State.DISPATCHED, State.RUNNING)


class Holders(RuleBasedStateMachine):
    """The model: who counts is who is with a channel and asks for the key. Nothing else is remembered."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.server.wipe()
        self.driver = Driver(self.server)
        self.driver.lead()
        self.kinds: dict[str, dict] = {}
        self.channels: list[FakeChannel] = []
        self.group = 2
        self.most_in_group = 2  # lowering a limit stops nobody: as many as were there before may remain

    def teardown(self) -> None:
        self.nobody_counts_for_ever()
        self.driver.close()

    @initialize()
    def begin(self) -> None:
        self.channels = [self.driver.channel(str(number), window=3) for number in range(2)]
        self.driver.moves.set_limit("group:g", 2)

    @rule(kind=st.sampled_from(KINDS), count=st.integers(1, 3))
    def submit(self, kind: dict, count: int) -> None:
        for job in self.driver.submit(count, retries=5, **kind):
            self.kinds[job] = kind

    @rule(number=st.integers(0, 3))
    def set_limit(self, number: int) -> None:
        self.driver.moves.set_limit("group:g", number)
        self.group = number
        self.most_in_group = max(number, len(self.counting("group:g")))

    @rule(channel=st.integers(0, 1), count=st.integers(1, 4))
    def dispatch(self, channel: int, count: int) -> None:
        limits, classes = self.driver.survey.limits(), self.driver.survey.classes()
        before = len(self.counting("group:g"))
        for job_class, priority in self.driver.survey.pending():
            terms = terms_of(classes[job_class], limits).encoded()
            assignment = Assignment(job_class, priority, self.channels[channel].incarnation, count, terms)
            self.driver.moves.dispatch(self.driver.fence, [assignment], KEEP)
        assert len(self.counting("group:g")) <= max(before, self.group)

    def active(self) -> list[str]:
        return [job for job in self.kinds if self.driver.state(job) in WITH_A_CHANNEL]

    @rule(data=st.data(), what=st.sampled_from(["start", "end", "fail", "again", "later", "return", "cancel"]))
    def go_on(self, data: st.DataObject, what: str) -> None:
        active = self.active()
        if not active:
            return
        job = data.draw(st.sampled_from(active))
        match what:
            case "start":
                self.driver.start(job)
            case "end":
                self.driver.end(job)
            case "fail":
                self.driver.end(job, Outcome.FAILED)
            case "again":
                self.driver.again(job)
            case "later":
                self.driver.again(job, 60_000)
            case "return":
                self.driver.bring_back(job)
            case "cancel":
                self.driver.moves.cancel([job], KEEP)

    @rule(data=st.data())
    def user_retry(self, data: st.DataObject) -> None:
        if self.kinds:
            self.driver.moves.retry([data.draw(st.sampled_from(sorted(self.kinds)))])

    @rule(channel=st.integers(0, 1), left=st.booleans())
    def channel_dies(self, channel: int, left: bool) -> None:
        self.channels[channel].leave() if left else self.channels[channel].die()
        self.driver.requeue(self.channels[channel])
        self.channels[channel] = self.driver.channel(str(channel), window=3)

    @rule()
    def another_master(self) -> None:
        self.driver.moves.release_lead(self.driver.fence.partition(":")[0])
        self.driver.lead(f"m{self.driver.now_ms()}")
        assert self.driver.moves.heal(self.driver.fence, 0, 1000) == (0, 0), "nothing was to be healed"

    # -- what must hold ---------------------------------------------------------------------------------------

    def counting(self, key: str) -> set[str]:
        return {job for job in self.active() if key in self.keys_of(job)}

    def keys_of(self, job: str) -> set[str]:
        kind = self.kinds[job]
        keys = {text.partition("=")[0] for text in kind.get("limit_keys", ())}
        return keys | ({f"group:{kind['group']}"} if "group" in kind else set())

    @invariant()
    def never_one_too_many(self) -> None:
        assert len(self.counting("db")) <= 2
        assert len(self.counting("disk")) <= 1
        assert len(self.counting("group:g")) <= self.most_in_group

    @invariant()
    def those_who_count_are_those_who_are_with_a_channel(self) -> None:
        for key in ("db", "disk", "group:g"):
            holders = {job.decode() for job in self.driver.client.smembers(self.driver.keys.limit(key))}
            assert holders == self.counting(key), key
        held = {job.decode() for job in self.driver.client.hkeys(self.driver.keys.holds)}
        assert held == {job for job in self.active() if self.keys_of(job)}
        for job in self.kinds:
            assert (Flag.HOLDS in self.driver.header(job).flags) == (job in held)

    def nobody_counts_for_ever(self) -> None:
        for job in self.active():
            self.driver.end(job)
        self.those_who_count_are_those_who_are_with_a_channel()
        assert not self.driver.client.exists(self.driver.keys.holds)


def test_never_one_too_many_and_always_let_go(redis_server: RedisServer) -> None:
    class Here(Holders):
        server = redis_server

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
