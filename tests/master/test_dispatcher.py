"""The dispatcher, turn by turn: what it notices, what it trusts, and what it leaves alone."""

from __future__ import annotations

import time

import pytest

from jobschedd.errors import NotTheLeader
from jobschedd.job import Outcome, ReportKind, State
from jobschedd.master.dispatcher import SPREAD_FOR
from jobschedd.store.bell import BELL_LIMIT
from store_driver import KEEP


class TestDispatching:
    def test_what_waited_before_it_led(self, driver, make_master):
        driver.lead("somebody")
        channel = driver.channel()
        ids = driver.submit(3)
        driver.moves.release_lead("somebody")
        make_master("m1").dispatch()
        assert channel.jobs() == ids

    def test_what_comes_while_it_leads(self, driver, master):
        channel = driver.channel()
        master.dispatch()
        ids = driver.submit(3)
        master.dispatch(1)
        assert channel.jobs() == ids

    def test_a_channel_that_comes_later(self, driver, master):
        ids = driver.submit(3)
        master.dispatch()
        channel = driver.channel()
        master.dispatch(1)
        assert channel.jobs() == ids

    def test_an_answer_makes_room_at_once(self, driver, master):
        channel = driver.channel(window=1)
        first, second = driver.submit(2)
        master.dispatch()
        channel.report(first)
        master.dispatch(1)
        assert channel.jobs() == [second]

    def test_a_wider_window_is_filled(self, driver, master):
        channel = driver.channel(window=1)
        ids = driver.submit(4)
        master.dispatch()
        channel.register(3)
        master.dispatch(1)
        assert channel.jobs() == ids[:3]

    def test_instant_jobs_go_in_packs_until_one_takes_its_time(self, driver, master):
        """Then those behind it come back, and are spread, for as long as this goes on."""
        channels = [driver.channel(str(number), window=513) for number in range(40)]
        driver.submit(80)
        master.dispatch()
        assert {len(channel.jobs()) for channel in channels} == {2}
        for channel in channels:
            _, late = channel.jobs()
            channel.report(late, ReportKind.RETURN)
        master.collect()
        master.dispatch(1)
        assert sorted({len(channel.jobs()) for channel in channels}) == [2], "one runs, and another comes to each"
        driver.submit(160)
        master.dispatch(1)
        spread = [len(channel.jobs()) for channel in channels]
        assert max(spread) - min(spread) <= 1
        master.clock.advance(SPREAD_FOR)
        driver.submit(1000)
        master.dispatch(1)
        packed = [len(channel.jobs()) for channel in channels]
        assert max(packed) - min(packed) > 1

    def test_what_waited_for_a_job_that_ended(self, driver, master):
        channel = driver.channel()
        (parent,) = driver.submit()
        (child,) = driver.submit(after=parent)
        (skipped,) = driver.submit(after=f"{child}:fail")
        master.dispatch()
        assert channel.jobs() == [parent]
        for job in (parent, child):
            channel.report(job)
            master.collect()
            master.dispatch(2)
        assert driver.outcome(skipped) is Outcome.SKIPPED
        assert driver.header(child).attempt == 1

    def test_what_waits_is_told_by_the_next_leader(self, driver, make_master):
        """The bell of an end rang for one who died."""
        driver.lead("somebody")
        (parent,) = driver.submit()
        (child,) = driver.submit(after=f"{parent}:any")
        driver.moves.cancel([parent], KEEP)
        driver.bell()
        driver.moves.release_lead("somebody")
        channel = driver.channel()
        make_master("m1").dispatch()
        assert channel.jobs() == [child]

    def test_many_dependents_take_many_turns(self, driver, master):
        (parent,) = driver.submit()
        children = driver.submit(2500, after=f"{parent}:any")
        master.dispatch()
        driver.moves.cancel([parent], KEEP)
        master.dispatch(1)
        assert len(driver.pending()) == 1000
        master.dispatch(3)
        assert driver.pending() == children

    def test_what_waits_in_vain_is_noticed(self, driver, master):
        channel = driver.channel()
        (parent,) = driver.submit(channel="absent")
        (child,) = driver.submit(after=f"{parent}:any")
        master.dispatch()
        driver.client.delete(driver.keys.job(parent))
        master.dispatch(3, advance=1.5)
        assert channel.jobs() == [child]

    def test_the_urgent_one_is_next(self, driver, master):
        channel = driver.channel(window=1)
        driver.submit(5)
        master.dispatch()
        (urgent,) = driver.submit(priority=100)
        (running,) = channel.jobs()
        channel.report(running)
        master.dispatch(1)
        assert channel.jobs() == [urgent]

    def test_a_job_for_an_absent_channel_waits_and_blocks_nobody(self, driver, master):
        channel = driver.channel("1")
        (waits,) = driver.submit(channel="absent", priority=100)
        (runs,) = driver.submit()
        master.dispatch()
        assert channel.jobs() == [runs]
        absent = driver.channel("absent")
        master.dispatch()
        assert absent.jobs() == [waits]

    def test_labels_and_nodes(self, driver, master):
        plain = driver.channel("1", window=1)
        gpu = driver.channel("2", node="n2", labels=("gpu",))
        (by_label,) = driver.submit(labels=["gpu"])
        (by_node,) = driver.submit(node="n1")
        master.dispatch()
        assert (plain.jobs(), gpu.jobs()) == ([by_node], [by_label])

    def test_many_in_few_turns(self, driver, master):
        channels = [driver.channel(str(number), window=400) for number in range(5)]
        driver.submit(1900)
        master.dispatch(2)
        assert sum(len(channel.entries()) for channel in channels) == 1900

    def test_two_classes_share_one_place(self, driver, master):
        """Each turn looks twice: once to give the place away, once to find that there is none."""
        channel = driver.channel(window=1)
        first, second = driver.submit(20), driver.submit(20, node="n1")
        got = {True: 0, False: 0}
        for _ in range(20):
            master.dispatch(1)
            (job,) = channel.jobs()
            got[job in first] += 1
            assert job in first or job in second
            channel.report(job)
        assert got == {True: 10, False: 10}

    def test_tombstones_hold_nothing_up(self, driver, master):
        channel = driver.channel()
        (first,) = driver.submit()
        driver.client.rpush(driver.keys.pending_list(1, 0), *["99999"] * 3000)
        (last,) = driver.submit()
        master.dispatch(2)
        assert channel.jobs() == [first, last]


class TestDrains:
    @pytest.mark.parametrize("name", ["n1", "1", "n1/1"])
    def test_a_drained_channel_gets_nothing_until_it_is_resumed(self, driver, master, name):
        channel, other = driver.channel("1"), driver.channel("2", node="n2")
        master.dispatch()
        driver.moves.drain(name, "because", "me")
        ids = driver.submit(4)
        master.dispatch()
        assert (channel.jobs(), other.jobs()) == ([], ids)
        driver.moves.resume(name)
        (later,) = driver.submit(channel="n1/1")
        master.dispatch()
        assert channel.jobs() == [later]

    def test_a_drain_from_before_it_led(self, driver, make_master):
        driver.lead("somebody")
        channel = driver.channel("1")
        driver.moves.drain("1", "", "")
        driver.submit()
        driver.moves.release_lead("somebody")
        make_master("m1").dispatch()
        assert channel.jobs() == []


class TestTrust:
    """Nobody's silence means anything before Redis has answered us, without a gap, for one whole lease."""

    @pytest.fixture
    def lost(self, driver, master):
        channel = driver.channel()
        (self.job,) = driver.submit()
        master.dispatch()
        assert channel.jobs() == [self.job]
        return channel

    def test_not_before_a_lease_has_passed(self, driver, master, lost):
        lost.die()
        for _ in range(7):
            master.dispatch(1, advance=2.1)
            assert driver.state(self.job) is State.DISPATCHED
        master.dispatch(2, advance=2.1)
        assert driver.state(self.job) is State.PENDING
        assert driver.survey.channels() == {}

    def test_once_trusted_within_one_scan(self, driver, master, lost):
        master.dispatch(10, advance=2.1)
        lost.die()
        master.dispatch(1, advance=2.1)
        assert driver.state(self.job) is State.PENDING

    def test_a_stall_starts_it_anew(self, driver, master, lost):
        master.dispatch(10, advance=2.1)
        lost.die()  # Redis stood still, and every lease with it
        master.dispatch(1, advance=5.2)
        for _ in range(7):
            master.dispatch(1, advance=2.0)
            assert driver.state(self.job) is State.DISPATCHED
        master.dispatch(2, advance=2.0)
        assert driver.state(self.job) is State.PENDING

    def test_a_channel_that_is_back_in_time_keeps_its_job(self, driver, master, lost):
        lost.die()
        master.dispatch(5, advance=2.1)
        lost.register(10)
        master.dispatch(10, advance=2.1)
        assert driver.state(self.job) is State.DISPATCHED

    def test_a_suspect_gets_nothing_new(self, driver, master, lost):
        lost.die()
        master.dispatch(2, advance=2.1)
        (job,) = driver.submit()
        master.dispatch(2)
        assert driver.state(job) is State.PENDING
        other = driver.channel("2")
        master.dispatch(2)
        assert other.jobs() == [job]

    def test_a_new_leader_waits_as_long(self, driver, master, make_master, lost):
        master.dispatch(10, advance=2.1)
        lost.die()
        driver.moves.release_lead("m1")
        heir = make_master("m2")
        for _ in range(7):
            heir.dispatch(1, advance=2.0)
            assert driver.state(self.job) is State.DISPATCHED
        heir.dispatch(2, advance=2.0)
        assert driver.state(self.job) is State.PENDING

    def test_who_said_goodbye_is_believed_at_once(self, driver, master, lost):
        lost.leave()
        other = driver.channel("2")
        master.dispatch(2)
        assert other.jobs() == [self.job]
        assert lost.incarnation not in driver.survey.channels()

    def test_one_whose_description_nobody_can_read_is_waited_for_too(self, driver, master, lost):
        driver.client.hset(driver.keys.channels, lost.incarnation, "{")
        lost.die()
        master.restart_dispatcher()
        for _ in range(7):
            master.dispatch(1, advance=2.0)
            assert driver.state(self.job) is State.DISPATCHED
        master.dispatch(2, advance=2.0)
        assert driver.state(self.job) is State.PENDING

    def test_lost_after_is_waited_for(self, driver, master):
        channel = driver.channel()
        (job,) = driver.submit(lost_after="1h")
        master.dispatch(10, advance=2.1)
        channel.die()
        master.dispatch(10, advance=2.1)
        assert driver.state(job) is State.DISPATCHED
        driver.client.hset(driver.keys.suspects, channel.incarnation, driver.now_ms() - 3_600_001)
        master.dispatch(2, advance=2.1)
        assert driver.state(job) is State.PENDING

    def test_more_than_one_call_takes(self, driver, master):
        channel = driver.channel(window=1200)
        ids = driver.submit(1200)
        master.dispatch(10, advance=2.1)
        assert len(channel.entries()) == 1200
        driver.moves.cancel(ids[:600], KEEP)
        channel.leave()
        master.dispatch(4)
        assert channel.entries() == []
        assert [driver.state(job) for job in ids[600:]] == [State.PENDING] * 600
        assert driver.survey.channels() == {}


class TestLead:
    def test_a_standby_does_nothing_and_says_so(self, driver, master, make_master):
        channel = driver.channel()
        driver.submit()
        standby = make_master("m2")
        assert standby.dispatch() == "standing by"
        assert standby.waited == [0.25] * 3
        assert channel.jobs() == []

    def test_it_takes_over_from_one_that_stops_in_order(self, driver, master, make_master):
        channel = driver.channel()
        standby = make_master("m2")
        standby.dispatch(1)
        (job,) = driver.submit()
        stops = iter([False, True])
        master.dispatcher.run(lambda: next(stops), master.waited.append, lambda said: None)
        driver.submit()
        assert standby.dispatch(2).startswith("leading")
        assert driver.moves.leader() == "m2:2"
        assert job in channel.jobs() and len(channel.jobs()) == 2

    def test_a_leader_that_slept_too_long_moves_nothing(self, driver, master, make_master):
        channel = driver.channel()
        master.dispatch()
        driver.client.delete(driver.keys.leader)  # its lease ended while it slept
        heir = make_master("m2")
        heir.dispatch()
        driver.submit()
        with pytest.raises(NotTheLeader):
            master.dispatch(1)
        assert channel.jobs() == []

    def test_what_it_heard_in_its_sleep_is_rung_again(self, driver, master, make_master):
        channel = driver.channel()
        master.dispatch()
        driver.client.delete(driver.keys.leader)
        heir = make_master("m2")
        heir.dispatch()
        (job,) = driver.submit()
        turns = iter([False, False, True])
        said = []
        master.dispatcher.run(lambda: next(turns), master.waited.append, said.append)
        assert said == ["standing by"]
        heir.dispatch(1)
        assert channel.jobs() == [job]

    def test_what_another_heard_in_its_sleep_is_seen(self, driver, master, make_master, clock):
        """Another led and is gone again before it wakes: under its new epoch it looks at everything."""
        driver.client.delete(driver.keys.leader)
        heir = make_master("m2")
        heir.dispatch()
        channel = driver.channel()
        heir.dispatch()
        assert driver.client.llen(driver.keys.bell) == 0
        driver.moves.release_lead("m2")
        clock.advance(20)  # the lead lasts ten seconds
        (job,) = driver.submit()
        assert master.dispatch(1).startswith("leading")
        assert driver.moves.leader() == "m1:3"
        assert channel.jobs() == [job]

    def test_a_turn_over_a_slow_line_keeps_the_lead(self, driver, make_master, clock):
        """It takes longer than the lead lasts and its supervisor is patient: between two calls it sees to both."""
        driver.channel()
        driver.submit(3)
        left = []

        def four_seconds_pass(doing):
            left.append(driver.client.pttl(driver.keys.leader))
            driver.client.pexpire(driver.keys.leader, 5000)
            clock.advance(4)

        turns = iter([False, True])
        make_master("m1").dispatcher.run(lambda: next(turns), lambda seconds: None, four_seconds_pass)
        assert len(left) > 5 and min(left[:-1]) > 5000  # the last is said at the end of the turn

    def test_a_restarted_dispatcher_goes_on_at_once(self, driver, master):
        channel = driver.channel()
        (job,) = driver.submit()
        master.restart_dispatcher()
        master.dispatch(1)
        assert channel.jobs() == [job]
        assert driver.moves.leader() == "m1:1"

    def test_the_leader_loads_the_functions_of_channels(self, driver, make_master):
        driver.client.function_flush()
        make_master("m1").dispatch(1)
        assert driver.client.function_list()

    def test_one_that_may_not_load_them_leads_all_the_same(self, driver, make_master):
        driver.client.acl_setuser("master", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-function|load"])
        driver.client.execute_command("AUTH", "master", "")
        driver.client.function_flush()
        assert make_master("m1").dispatch(1).startswith("leading")

    def test_without_redis_it_waits_and_then_goes_on(self, driver, master):
        channel = driver.channel()
        master.dispatch()
        driver.server.kill()
        said, turns = [], iter([False] * 3 + [True])
        master.dispatcher._leadership.release = lambda: None  # type: ignore[method-assign]
        master.dispatcher.run(lambda: next(turns), master.waited.append, said.append)
        assert all(one.startswith("waiting for Redis") for one in said) and len(said) == 3
        driver.server.start()
        (job,) = driver.submit()
        master.dispatch(2)
        assert channel.jobs() == [job]


class TestBell:
    def test_a_lost_message_costs_a_survey(self, driver, master):
        channel = driver.channel()
        master.dispatch()
        (job,) = driver.submit()
        driver.bell()  # somebody took it
        master.dispatch(2)
        assert channel.jobs() == []
        master.dispatch(7, advance=4.5)
        assert channel.jobs() == [job]

    def test_a_full_bell_means_look_at_everything(self, driver, master):
        channel = driver.channel()
        master.dispatch()
        (job,) = driver.submit()
        driver.client.delete(driver.keys.bell)
        driver.client.rpush(driver.keys.bell, *["s"] * BELL_LIMIT)
        master.dispatch(1)
        assert channel.jobs() == [job]

    @pytest.mark.parametrize(
        "noise",
        [
            *(b"", b"p", b"p:x:y:z", b"p:1:0:", b"r:nobody:many", b"w:nobody:5", b"c:nobody", b"l:nobody"),
            *(b"\xff\xfe:::", b"zz:top", b"p:1:0:5:6", b"a:b", b"w:" + b"9" * 5000 + b":1:1"),
        ],
    )
    def test_noise_is_ignored(self, driver, master, noise):
        channel = driver.channel()
        driver.client.rpush(driver.keys.bell, noise)
        (job,) = driver.submit()
        master.dispatch(2)
        assert channel.jobs() == [job]

    def test_false_news_of_a_list_do_no_harm(self, driver, master):
        channel = driver.channel()
        driver.client.rpush(driver.keys.bell, "p:1:0:500", "p:77:3:9", f"r:{channel.incarnation}:-100")
        (job,) = driver.submit()
        master.dispatch(3)
        assert channel.jobs() == [job]


class TestForeignChannels:
    @pytest.mark.parametrize("slots", [0, -1])
    def test_no_slots_are_one(self, driver, master, slots):
        channel = driver.channel(slots=slots)
        (job,) = driver.submit()
        master.dispatch(2)
        assert channel.jobs() == [job]

    def test_a_damaged_lease_blocks_nobody(self, driver, master):
        bad, good = driver.channel("1"), driver.channel("2")
        driver.client.hset(driver.keys.lease(bad.incarnation), "window", "much")
        (job,) = driver.submit()
        master.dispatch(3)
        assert (bad.jobs(), good.jobs()) == ([], [job])

    @pytest.mark.parametrize("description", [b"{", b"\xff", b"[]", b'{"node": 1}', b"7", b""])
    def test_a_description_that_nobody_can_read_blocks_nobody(self, driver, master, description):
        bad, good = driver.channel("1"), driver.channel("2")
        driver.client.hset(driver.keys.channels, bad.incarnation, description)
        (job,) = driver.submit()
        master.restart_dispatcher()
        master.dispatch(2)
        assert (bad.jobs(), good.jobs()) == ([], [job])


class TestTime:
    def test_what_is_due_goes_out(self, driver, master):
        channel = driver.channel()
        (job,) = driver.submit(delay="30ms")
        master.dispatch(2)
        assert channel.jobs() == []
        driver.wait_ms(driver.header(job).since)
        master.dispatch(2, advance=0.04)
        assert channel.jobs() == [job]

    def test_what_expired_ends_though_nobody_could_run_it(self, driver, master):
        (job,) = driver.submit(channel="absent", expires="30ms")
        master.dispatch(2)
        driver.wait_ms(driver.header(job).expires)
        master.dispatch(1, advance=0.04)
        assert driver.outcome(job) is Outcome.EXPIRED

    def test_it_does_not_spin_while_nothing_is_due(self, driver, master):
        driver.submit(delay="1h")
        driver.submit(channel="absent")
        master.dispatch(3)
        begin = time.monotonic()
        master.dispatch(20)
        assert time.monotonic() - begin > 20 * 0.002, "each turn waits at the bell"

    def test_open_cancels_are_hinted_at_again(self, driver, master):
        channel = driver.channel()
        (job,) = driver.submit()
        master.dispatch()
        driver.moves.cancel([job], KEEP)
        assert len(channel.hints()) == 1
        master.dispatch(2, advance=2.1)
        assert len(channel.hints()) == 3
