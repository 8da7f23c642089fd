"""Jobs that take several slots: the script that sends them takes all of their slots off the channel's window."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobschedd.errors import InvalidJob
from jobschedd.job import State
from jobschedd.limits import Limits, terms_of
from jobschedd.store.moves import Assignment, Dispatched
from jobschedd.submission import submission
from redis_server import RedisServer
from store_driver import KEEP, Driver, FakeChannel


def send(driver: Driver, channel: FakeChannel, job: str, count: int = 10) -> Dispatched:
    header = driver.header(job)
    target = driver.survey.classes()[header.job_class]
    terms = terms_of(target, Limits(), place=f"{channel.node}/{channel.name}", have=channel.info.resources).encoded()
    assignment = Assignment(header.job_class, header.priority, channel.incarnation, count, terms)
    (answer,) = driver.moves.dispatch(driver.fence, [assignment], KEEP)
    return answer


def window(driver: Driver, channel: FakeChannel) -> int:
    return int(driver.client.hget(driver.keys.lease(channel.incarnation), "window"))


def test_as_many_as_fit_and_all_of_their_slots_are_off_the_window(driver):
    channel = driver.channel(window=8)
    ids = driver.submit(4, slots=3)
    answer = send(driver, channel, ids[0])
    assert (answer.sent, answer.left, answer.entries, answer.window) == (2, 2, 2, 4)
    assert window(driver, channel) == 4, "two of the eight are left"
    (plain,) = driver.submit()
    assert send(driver, channel, plain).sent == 1


def test_they_hold_nothing_else(driver):
    channel = driver.channel(window=4)
    (job,) = driver.submit(slots=4)
    assert send(driver, channel, job).sent == 1
    assert not driver.client.exists(driver.keys.holds) and not driver.client.exists(driver.keys.used("n1/1"))


def test_beside_other_resources(driver):
    channel = driver.channel(window=8, resources={"cpus": 4000})
    ids = driver.submit(4, slots=2, cpus=2)
    answer = send(driver, channel, ids[0])
    assert (answer.sent, answer.bound, answer.window) == (2, "used:n1/1", 6)
    channel.report(ids[0])
    driver.end(ids[0])
    channel.register(8 - 1)
    assert send(driver, channel, ids[2]).sent == 1, "its slots are not counted twice"


def test_tasks_of_an_array_take_theirs(driver):
    channel = driver.channel(window=8)
    (array,) = driver.submit(array="1-9", slots=3)
    assert send(driver, channel, array).sent == 2
    assert window(driver, channel) == 4


def test_nothing_is_taken_off_a_lease_that_is_gone(driver):
    channel = driver.channel(window=8)
    (job,) = driver.submit(slots=2)
    channel.die()
    assert send(driver, channel, job).sent == 0
    assert not driver.client.exists(driver.keys.lease(channel.incarnation))


def test_one_slot_is_an_ordinary_job(driver):
    for one in ({"slots": 1}, {"resources": ["slots=1"]}):
        assert submission({"command": ["true"], **one}) == submission({"command": ["true"]})


@pytest.mark.parametrize("slots", [0, -1, 1025, "2", True, 1.5])
def test_what_is_no_number_of_slots(slots):
    with pytest.raises(InvalidJob, match="slots"):
        submission({"command": ["true"], "slots": slots})


class Slots(RuleBasedStateMachine):
    """The model: a channel of so many slots that says its window now and then, after it has read its orders.

    What it has been sent may never take more slots than it has; where nothing is left, all of them are free again.
    """

    server: RedisServer
    SLOTS = 5

    def __init__(self) -> None:
        super().__init__()
        self.server.wipe()
        self.driver = Driver(self.server)
        self.driver.lead()
        self.asked: dict[str, int] = {}

    def teardown(self) -> None:
        for job in self.channel.jobs():
            self.end_job(job)
        self.say()
        assert window(self.driver, self.channel) == self.SLOTS
        self.driver.close()

    @initialize()
    def begin(self) -> None:
        self.channel = self.driver.channel(window=self.SLOTS, slots=self.SLOTS)

    def say(self) -> None:
        taken = sum(self.asked[job] - 1 for job in self.channel.jobs())
        self.driver.client.hset(self.driver.keys.lease(self.channel.incarnation), "window", self.SLOTS - taken)

    def end_job(self, job: str) -> None:
        self.channel.report(job)
        self.driver.end(job)

    @rule(slots=st.integers(1, 5), count=st.integers(1, 3))
    def submit(self, slots: int, count: int) -> None:
        self.asked |= dict.fromkeys(self.driver.submit(count, slots=slots, retries=3), slots)

    @rule(data=st.data(), count=st.integers(1, 9))
    def dispatch(self, data: st.DataObject, count: int) -> None:
        if waiting := [job for job in self.asked if self.driver.state(job) is State.PENDING]:
            before = sum(self.asked[job] for job in self.channel.jobs())
            job = data.draw(st.sampled_from(waiting))
            said = window(self.driver, self.channel) - len(self.channel.jobs())
            answer = send(self.driver, self.channel, job, count)
            alike = [one for one in waiting if self.asked[one] == self.asked[job]]
            assert answer.sent == min(count, len(alike), said // self.asked[job])
            assert answer.window == window(self.driver, self.channel) and before <= self.SLOTS

    @rule(data=st.data(), what=st.sampled_from(["end", "return", "again"]), says=st.booleans())
    def go_on(self, data: st.DataObject, what: str, says: bool) -> None:
        if jobs := self.channel.jobs():
            job = data.draw(st.sampled_from(jobs))
            self.channel.report(job)
            if what == "end":
                self.driver.end(job)
            elif what == "return":
                self.driver.bring_back(job)
            else:
                self.driver.again(job)
        if says:
            self.say()

    @rule(left=st.booleans())
    def channel_dies(self, left: bool) -> None:
        self.channel.leave() if left else self.channel.die()
        self.driver.requeue(self.channel)
        self.begin()

    @rule()
    def another_master(self) -> None:
        self.driver.moves.release_lead(self.driver.fence.partition(":")[0])
        self.driver.lead(f"m{self.driver.now_ms()}")

    @invariant()
    def never_oversubscribed(self) -> None:
        if hasattr(self, "channel"):
            assert sum(self.asked[job] for job in self.channel.jobs()) <= self.SLOTS


def test_never_more_slots_than_there_are(redis_server: RedisServer) -> None:
    class Here(Slots):
        server = redis_server

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
