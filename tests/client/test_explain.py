"""explain: for every reason that a job may have to wait, one true sentence, on a real store in that very situation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobschedd.client import Client
from jobschedd.client.facts import Fleet
from jobschedd.client.why import REASONS, waiting_code
from jobschedd.job import Outcome, State
from jobschedd.limits import terms_of
from jobschedd.store.marks import Marks
from jobschedd.store.moves import Assignment, Verb
from jobschedd.store.survey import Kept
from redis_server import RedisServer
from store_driver import KEEP, Driver


@pytest.fixture
def driver(redis_server: RedisServer) -> Iterator[Driver]:
    driver = Driver(redis_server)
    driver.lead()
    yield driver
    driver.close()


@pytest.fixture
def client(driver: Driver) -> Iterator[Client]:
    with Client(driver.server.url, driver.keys.namespace) as client:
        yield client


@pytest.fixture
def told(client: Client):
    """(code, sentence); a listing gives the same code to a job that waits."""

    def tell(job: str) -> tuple[str, str]:
        explanation = client.explain(job)
        if explanation.state in ("pending", "scheduled", "waiting"):
            assert waiting_code(Fleet(client.inspect), client.read(job)) == explanation.reason
        assert explanation.sentence.endswith(".") and "\n" not in explanation.sentence
        return explanation.reason, explanation.sentence

    return tell


class TestNobodyDispatches:
    def test_no_master(self, driver, told):
        driver.channel()
        (job,) = driver.submit()
        driver.moves.release_lead("m1")
        assert told(job) == (
            "no_master",
            "It waits: no master leads; it goes on once a daemon with role master runs.",
        )

    def test_data_lost(self, driver, told):
        (job,) = driver.submit()
        driver.client.hset(driver.keys.loss, mapping={"what": "emptied", "by": "m1", "since": "1", "next_id": "5"})
        code, sentence = told(job)
        assert code == "data_lost"
        assert Marks(driver.client, driver.keys).loss().story in sentence and "'jobsched rebuild'" in sentence


class TestUsersSayStop:
    def test_held(self, driver, told):
        driver.channel()
        (job,) = driver.submit()
        driver.moves.hold([job], "backup first", "root")
        code, sentence = told(job)
        assert code == "held"
        assert "(backup first, by root)" in sentence and f"'jobsched release {job}' lets it go on" in sentence

    def test_a_held_one_whose_time_has_not_come(self, driver, told):
        (job,) = driver.submit(delay=60)
        driver.moves.hold([job], "", "")
        assert told(job)[0] == "held"

    @pytest.mark.parametrize("name", ["n1", "1", "n1/1"])
    def test_drained(self, driver, told, name):
        driver.channel()
        (job,) = driver.submit()
        driver.moves.drain(name, "new kernel", "root")
        expected = f"It waits: {name} is drained (new kernel, by root); 'jobsched resume {name}' lets it go on."
        assert told(job) == ("drained", expected)

    def test_drained_with_a_deadline(self, driver, told):
        driver.channel()
        (job,) = driver.submit()
        driver.moves.drain("n1", "", "", within=3600, then="requeue")
        code, sentence = told(job)
        assert code == "drained"
        assert "n1 is drained until 20" in sentence and ", then its jobs run elsewhere," in sentence

    def test_paused(self, driver, told):
        driver.channel()
        driver.channel("2", node="n2").die()
        (job,) = driver.submit()
        driver.moves.drain("1", "lunch", "", pause=True)
        assert told(job) == ("paused", "It waits: 1 is paused (lunch); 'jobsched resume 1' lets it go on.")

    def test_a_paused_group(self, driver, told):
        driver.channel()
        science, other = driver.submit(group="science"), driver.submit(group="other")
        driver.moves.drain("group:science", "audit", "root", pause=True)
        assert told(*science) == (
            "paused",
            "It waits: its group science is paused (audit, by root); 'jobsched resume --group science' lets it go on.",
        )
        assert told(*other)[0] == "starting"

    def test_a_running_array_of_a_paused_group(self, driver, told):
        channel = driver.channel(window=1)
        (array,) = driver.submit(array="1-2", group="science")
        driver.dispatch(channel)
        driver.moves.drain("group:science", "", "", pause=True)
        assert told(array)[0] == "paused" and told(f"{array}_2")[0] == "paused"
        driver.dispatch(driver.channel("2"))
        assert told(array)[0] == "array", "all of its tasks are out"

    def test_another_channel_is_not_drained(self, driver, told):
        driver.channel()
        driver.channel("2")
        (job,) = driver.submit()
        driver.moves.drain("1", "", "")
        assert told(job) == ("starting", "It is about to be dispatched: n1/2 has a free slot.")


class TestOthersComeFirst:
    def test_a_dependency(self, driver, told):
        (first,) = driver.submit(name="first")
        (second,) = driver.submit()
        (job,) = driver.submit(after=[first, f"{second}:any"])
        assert told(job) == (
            "dependency",
            f"It waits for 2 of 2 jobs: it goes on when job {first} (first) has succeeded (it is pending) and "
            f"job {second} has ended (it is pending).",
        )
        driver.moves.cancel([second], 60_000)
        driver.moves.unblock(driver.fence, 60_000, 10)
        assert told(job)[1].startswith(f"It waits for 1 of 2 jobs: it goes on when job {first} (first) has succeeded")

    def test_many_dependencies_a_time_and_a_hold(self, driver, told):
        ids = driver.submit(10)
        (job,) = driver.submit(after=[f"{one}:fail" for one in ids], delay="1h", hold=True)
        code, sentence = told(job)
        assert code == "dependency"
        assert "has ended without success (it is pending) and 7 more jobs have ended as it asks" in sentence
        assert ", but not before 20" in sentence and sentence.endswith(
            f", and is held then until 'jobsched release {job}'."
        )

    def test_what_it_waited_for_has_come(self, driver, told):
        (first,) = driver.submit()
        (job,) = driver.submit(after=f"{first}:any")
        driver.client.delete(f"{driver.keys.base}awaits:{job}")
        assert told(job) == ("dependency", "What it waited for has come: a master lets it go on in a moment.")


class TestNobodyCouldRunIt:
    def test_a_name_that_was_never_there(self, driver, told):
        driver.channel()
        (job,) = driver.submit(channel="web-07/gpu")
        code, sentence = told(job)
        assert code == "no_channel"
        assert "no channel has ever been seen that is web-07/gpu;" in sentence

    def test_a_label_that_nobody_has(self, driver, told):
        driver.channel(labels=("ssd", "gpu"))
        (job,) = driver.submit(labels=["tpu"])
        code, sentence = told(job)
        assert code == "no_label"
        assert "has the label tpu (there are gpu, ssd)" in sentence

    def test_a_channel_that_is_silent(self, driver, told):
        driver.channel().die()
        (job,) = driver.submit(channel="1")
        code, sentence = told(job)
        assert code == "offline"
        assert "the only channel that could run it is not there (n1/1 is silent, its lease has ended)" in sentence

    def test_a_channel_that_is_gone(self, driver, told):
        channel = driver.channel()
        channel.leave()
        driver.requeue(channel, 0)
        (job,) = driver.submit(channel="1")
        code, sentence = told(job)
        assert code == "offline"
        assert "(n1/1 is down); it goes on once one is back" in sentence


class TestItsTurn:
    def test_all_slots_busy(self, driver, told):
        channel = driver.channel(window=1)
        running, _ = driver.dispatched(channel)
        (job,) = driver.submit()
        assert told(job) == (
            "busy",
            f"It waits: the slot of n1/1 is busy (with job {running}); it is the next in line, "
            "and it starts when a slot is free.",
        )

    def test_others_ahead_in_line(self, driver, told):
        channel = driver.channel(window=1)
        driver.dispatched(channel)
        first, second, third, job = driver.submit(4)
        driver.moves.cancel([second], 1000)  # a tombstone is not ahead of anybody
        driver.moves.prioritise([third], -5)
        code, sentence = told(job)
        assert code == "busy"
        assert "; 1 job is ahead of it in line, and" in sentence
        assert driver.state(first) is State.PENDING

    def test_higher_priority_ahead(self, driver, told):
        channel = driver.channel(window=1)
        driver.dispatched(channel)
        driver.submit(3, priority=50)
        driver.submit(2, priority=50, channel="elsewhere")
        (job,) = driver.submit()
        code, sentence = told(job)
        assert code == "priority"
        assert sentence.startswith("It waits: 3 jobs of higher priority are ahead for the same channels")

    def test_about_to_start(self, driver, told):
        driver.channel()
        (job,) = driver.submit()
        assert told(job) == ("starting", "It is about to be dispatched: n1/1 has a free slot.")


class TestItsTime:
    def test_scheduled(self, driver, told):
        (job,) = driver.submit(delay=3600)
        code, sentence = told(job)
        assert code == "scheduled"
        assert sentence.startswith("It waits until it is due, at 20")

    def test_back_off(self, driver, told):
        channel = driver.channel()
        job, _ = driver.dispatched(channel, retries=3)
        driver.again(job, delay_ms=60_000)
        code, sentence = told(job)
        assert code == "retry_back_off"
        assert sentence.endswith("attempt 1 failed (1 of 3 retries used).")


class TestWithAChannel:
    def test_dispatched(self, driver, told):
        job, _ = driver.dispatched(driver.channel())
        code, sentence = told(job)
        assert code == "dispatched"
        assert sentence.startswith("It was handed to n1/1 at 20")

    def test_a_suspect(self, driver, told):
        channel = driver.channel()
        driver.dispatched(channel)
        job, _ = driver.dispatched(channel)
        driver.again(job, crashes=1)
        driver.dispatch(channel)
        code, sentence = told(job)
        assert code == "suspect"
        assert "until nothing else runs there" in sentence and "(1 of 2 crashes)" in sentence

    def test_a_silent_channel_has_it(self, driver, told):
        channel = driver.channel()
        job, _ = driver.dispatched(channel, lost_after="5m")
        channel.die()
        code, sentence = told(job)
        assert code == "channel_silent"
        assert "n1/1, which has it, is silent" in sentence and "5m more" in sentence

    def test_running(self, driver, told):
        job, _ = driver.dispatched(driver.channel(), timeout="2h")
        driver.start(job)
        code, sentence = told(job)
        assert code == "running"
        assert sentence.startswith("It runs on n1/1, attempt 1, since 20") and sentence.endswith("ended after 2h.")

    def test_being_cancelled(self, driver, told):
        job, _ = driver.dispatched(driver.channel())
        driver.start(job)
        driver.moves.cancel([job], 1000)
        assert told(job)[0] == "cancelling"


class TestItsEnd:
    def test_ended(self, driver, told):
        job, _ = driver.dispatched(driver.channel())
        driver.end(job)
        code, sentence = told(job)
        assert code == "ended"
        assert sentence.startswith("It has succeeded")

    def test_the_allow_list_said_no(self, driver, told):
        from jobschedd.job import Result, encode

        job, entry = driver.dispatched(driver.channel())
        why = "the allow list of n1 has no command rm"
        result = encode(Result(outcome=Outcome.FAILED, cause="denied", error=why, node="n1", channel="1"))
        driver.judge(Verb.DONE, job, 1, entry, int(Outcome.FAILED), result, 60_000)
        code, sentence = told(job)
        assert code == "ended"
        assert "It has failed (denied) on n1/1, at 20" in sentence and sentence.endswith(f": {why}.")

    def test_never_submitted(self, driver, told):
        assert told("7")[1] == "There never was a job 7 in this namespace: no job has been submitted yet."
        driver.submit(2)
        code, sentence = told("7")
        assert code == "never_submitted"
        assert "ids up to 2 have been given so far" in sentence

    def test_its_record_has_expired(self, driver, told):
        (job,) = driver.submit()
        driver.client.delete(driver.keys.job(job))
        assert told(job)[0] == "record_expired"


def test_the_documentation_lists_every_code(request):
    """As far as the codes are written in the functions themselves."""
    import inspect
    import re

    from jobschedd.client import restraints, why

    codes = set(re.findall(r'Reason\(\s*"(\w+)"', inspect.getsource(why) + inspect.getsource(restraints))) | {
        "drained",
        "paused",
    }
    codes |= {"never_submitted", "record_expired"}
    text = (request.config.rootpath / "docs" / "json.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", text.split("| reason | the job |")[1].split("\n## ")[0], re.M))
    assert codes == listed
    assert all(REASONS[state] for state in State)


class TestRestraints:
    """Channels are up, and still it waits."""

    def bounded(self, driver, channel, job, count=1):
        """One dispatch with the terms of the job's class."""
        header = driver.header(job)
        target = driver.survey.classes()[header.job_class]
        place = f"{channel.node}/{channel.name}"
        terms = terms_of(target, driver.survey.limits(), place=place, have=channel.info.resources).encoded()
        assignment = Assignment(header.job_class, header.priority, channel.incarnation, count, terms)
        driver.moves.dispatch(driver.fence, [assignment], KEEP)

    def test_a_limit_and_who_holds_it(self, driver, told):
        channel = driver.channel()
        first, second = driver.submit(2, limit_keys=["db=1"])
        self.bounded(driver, channel, first)
        assert told(second) == (
            "limit",
            f"It waits: the limit db is reached, 1 at a time (as the job asked), held by job {first}; "
            "it goes on when one of them has ended.",
        )

    def test_a_limit_of_nothing(self, driver, told):
        driver.channel()
        driver.moves.set_limit("group:g", 0)
        (job,) = driver.submit(group="g")
        code, sentence = told(job)
        assert code == "limit" and "group:g is 0 (by jobsched limit set)" in sentence

    def test_a_rate_and_when_the_next_may_start(self, driver, told):
        channel = driver.channel()
        first, second = driver.submit(2, rates=["api=1/h"])
        self.bounded(driver, channel, first)
        code, sentence = told(second)
        assert code == "rate" and "api is used up, 1/h (as the job asked); the next may start in " in sentence

    def test_a_limit_of_the_node(self, driver, told):
        channel = driver.channel()
        driver.dispatched(channel)
        driver.moves.set_limit("node:n1", 1)
        (job,) = driver.submit()
        code, sentence = told(job)
        assert code == "limit" and "node:n1 (1 at a time)" in sentence

    def test_too_large_for_all(self, driver, told):
        driver.channel(resources={"cpus": 4000})
        (job,) = driver.submit(cpus=8)
        assert told(job) == (
            "too_large",
            "It waits: it asks for cpus 8, and no channel that is known has so much (the most is cpus 4); "
            "it goes on once one has.",
        )

    def test_more_slots_than_any_channel_has(self, driver, told):
        driver.channel(slots=2)
        driver.channel("2", slots=3)
        (job,) = driver.submit(slots=4)
        code, sentence = told(job)
        assert code == "too_large"
        assert "it asks for slots 4, and no channel that is known has so much (the most is slots 3)" in sentence

    def test_slots_that_are_not_free_at_once(self, driver, told):
        busy, fuller = driver.channel(slots=4, window=4), driver.channel("2", slots=4, window=4)
        driver.channel("3", slots=2, window=2)
        driver.submit(5)
        driver.dispatch(busy, 2)
        driver.dispatch(fuller, 3)
        (job,) = driver.submit(slots=3)
        assert told(job) == (
            "slots",
            "It waits: it takes 3 slots of one channel at once, and nowhere are so many free (the most is 2 of 4, on "
            "n1/1); it goes on when enough jobs there have ended.",
        )
        busy.report(busy.jobs()[0])
        assert told(job)[0] == "starting"

    def test_a_channel_that_is_kept_for_others(self, driver, told):
        channel = driver.channel(slots=4, window=4)
        small = driver.submit(3)
        driver.dispatch(channel, 2)
        first, second = driver.submit(2, slots=3)
        job_class, now = driver.header(first).job_class, driver.now_ms() / 1000
        driver.moves.keep(driver.fence, [Kept(channel.incarnation, job_class, 0, first, now - 120)])
        assert told(first)[0] == told(second)[0] == "slots"
        assert "; n1/1 has been kept for it for 2m" in told(first)[1]
        assert f"; n1/1 has been kept for job {first}, the first of those like it, for 2m" in told(second)[1]
        code, sentence = told(small[2])
        assert code == "kept"
        assert (
            "n1/1 has room, but has been kept for 2m" in sentence and f"for job {first}, which needs much" in sentence
        )
        (urgent,) = driver.submit(priority=1)
        assert told(urgent)[0] == "starting"
        driver.channel("2")
        assert told(small[2])[0] == "starting"

    def test_resources_in_use(self, driver, told):
        channel = driver.channel(resources={"cpus": 4000, "gpus": 1})
        first, second = driver.submit(2, gpus=1, cpus=1)
        self.bounded(driver, channel, first)
        code, sentence = told(second)
        assert code == "resources" and "other jobs use the gpus of n1/1" in sentence

    def test_another_node_than_the_last(self, driver, told):
        driver.channel(node="n1")
        busy = driver.channel(node="n2", window=1)
        driver.dispatched(busy)
        job, _ = driver.dispatched(driver.channel("2"), avoid_failed=True)
        header = driver.header(job)
        again = [Verb.RETRY, job, header.attempt, header.entry, 0, 1, 0, KEEP, "/?x:n1"]
        driver.moves.collect(driver.fence, again)
        code, sentence = told(job)
        assert code == "avoids_node" and "It waits for n2: it failed on n1" in sentence

    def test_the_turn_of_its_group(self, driver, told):
        channel = driver.channel(window=1)
        driver.dispatched(channel)
        driver.submit(2, group="web")
        (job,) = driver.submit(group="science")
        code, sentence = told(job)
        assert code == "groups" and "web (2)" in sentence
