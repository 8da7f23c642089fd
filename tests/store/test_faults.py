"""A full, emptied, refusing or foreign server; and nothing that stays behind."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from jobschedd.config import RedisConfig
from jobschedd.errors import JobschedError, QueueFull, StoreRefused, StoreUnavailable
from jobschedd.job import Outcome, ReportKind, State
from jobschedd.store.connect import blocking, check_server, connect
from jobschedd.store.errors import translated
from jobschedd.store.keys import Keys
from jobschedd.store.moves import Moves, OperationSlot, Verdict
from jobschedd.store.scripts import CHANNEL_LIBRARY, MOVES, REPORT, moves_library
from jobschedd.submission import submission
from redis_server import wait_until
from store_driver import KEEP, Driver

JOB = submission({"command": ["true"]})


@pytest.fixture
def channel(driver):
    return driver.channel()


class TestFull:
    """At maxmemory nothing new comes in; everything that was promised goes on."""

    @pytest.fixture
    def full(self, driver, channel):
        jobs = [driver.dispatched(channel)[0] for _ in range(8)]
        (self.waiting,) = driver.submit()
        (self.scheduled,) = driver.submit(delay="1ms")
        driver.moves.leader()
        driver.client.config_set("maxmemory", 1)
        yield jobs
        driver.client.config_set("maxmemory", 0)

    def test_submit_and_a_users_retry_are_refused(self, driver, full):
        with pytest.raises(QueueFull):
            driver.submit()
        driver.end(full[0])
        with pytest.raises(QueueFull):
            driver.moves.retry([full[0]])

    def test_results_are_reported_and_collected(self, driver, channel, full):
        assert channel.report(full[0])
        assert driver.end(full[0]) is Verdict.ACCEPTED
        assert driver.start(full[1]) is Verdict.ACCEPTED
        assert driver.bring_back(full[2]) is Verdict.ACCEPTED
        assert driver.again(full[3], 5000) is Verdict.ACCEPTED

    def test_leases_are_renewed_and_channels_come_and_go(self, driver, channel, full):
        assert driver.client.pexpire(driver.keys.lease(channel.incarnation), 20_000)
        channel.register(5)
        driver.channel("2").leave()
        assert driver.lead("m1")

    def test_lost_work_is_taken_back(self, driver, channel, full):
        channel.die()
        driver.moves.reap(driver.fence, [channel.incarnation])
        assert driver.requeue(channel).requeued == 8

    def test_users_can_cancel_wait_and_follow(self, driver, full):
        driver.moves.cancel([full[0], self.waiting], KEEP)
        assert driver.outcome(self.waiting) is Outcome.CANCELLED
        driver.moves.await_end(7, [full[1]])
        assert driver.moves.follow(full[1]) is State.DISPATCHED

    def test_time_goes_on(self, driver, full):
        driver.wait_ms(driver.header(self.scheduled).since)
        assert driver.moves.promote(driver.fence, KEEP, 10)[0] == 1

    def test_dispatch_goes_on(self, driver, channel, full):
        assert driver.dispatch(channel).sent == 1


class TestForgetfulServer:
    """Scripts and functions are gone (a failover, a FLUSH): nobody notices."""

    @pytest.mark.parametrize("rights", [["+@all"], ["+@all", "-fcall"], ["+@all", "-function"]])
    def test_moves(self, driver, channel, rights):
        driver.client.acl_setuser("m", enabled=True, nopass=True, reset=True, keys="*", channels="*", commands=rights)
        driver.moves.client = connect(RedisConfig(url=driver.server.url, username="m"), "test")
        for _ in range(3):
            driver.client.script_flush()
            driver.client.function_flush()
            job, _ = driver.dispatched(channel)
            driver.client.script_flush()
            driver.client.function_flush()
            driver.end(job)
            assert driver.outcome(job) is Outcome.SUCCEEDED
        calls = driver.client.info("commandstats")
        evaluated = calls.get("cmdstat_evalsha", {"calls": 0})["calls"]
        assert (evaluated > 0) == (len(rights) > 1)
        driver.moves.client.close()

    def test_functions(self, driver, channel):
        job, _ = driver.dispatched(channel)
        driver.client.function_flush()
        assert channel.report(job)

    def test_the_master_loads_them_once(self, driver):
        driver.client.function_flush()
        for _ in range(2):
            driver.moves.load_functions()
        assert _libraries(driver) == {CHANNEL_LIBRARY, moves_library()[0]}

    def test_moves_of_other_versions_are_dropped(self, driver):
        driver.client.function_load(f"#!lua name={MOVES}0123\nredis.register_function('{MOVES}0123_f', function() end)")
        driver.client.function_load("#!lua name=theirs\nredis.register_function('theirs', function() end)")
        driver.moves.load_functions()
        assert _libraries(driver) == {"theirs", CHANNEL_LIBRARY, moves_library()[0]}

    def test_another_text_under_the_same_name_is_replaced(self, driver, channel):
        driver.client.function_flush()
        driver.client.function_load(
            f"#!lua name={CHANNEL_LIBRARY}\nredis.register_function('{REPORT}', function() return 'old' end)"
        )
        driver.moves.load_functions()
        job, _ = driver.dispatched(channel)
        assert channel.report(job, ReportKind.STARTED)

    def test_a_slave_that_may_not_load_waits_for_the_master(self, driver):
        driver.client.function_flush()
        driver.client.acl_setuser(
            "slave", enabled=True, nopass=True, reset=True, keys="*", commands=["+@all", "-function|load"]
        )
        slave = Driver(driver.server)
        slave.client = connect(RedisConfig(url=driver.server.url, username="slave"), "slave")
        with pytest.raises(StoreUnavailable, match="no master has loaded"):
            slave.channel()
        driver.moves.load_functions()
        slave.channel("2")
        slave.close()


def _libraries(driver: Driver) -> set[str]:
    return {library[library.index(b"library_name") + 1].decode() for library in driver.client.function_list()}


def attempt(config: RedisConfig) -> JobschedError:
    """The error of a submit; it must be one of ours, with one line to read."""
    with pytest.raises(JobschedError) as caught, contextlib.closing(connect(config, "test")) as client:
        Moves(client, Keys("test")).submit([JOB], OperationSlot("c"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return caught.value


class TestErrors:
    def test_nobody_is_there(self, tmp_path):
        assert type(attempt(RedisConfig(url=f"unix://{tmp_path}/none.sock"))) is StoreUnavailable
        assert attempt(RedisConfig(url="redis://127.0.0.1:1/0")).exit_code == 69

    def test_a_name_that_nobody_knows(self):
        assert type(attempt(RedisConfig(url="redis://no-such-host.invalid:6379/0"))) is StoreUnavailable

    def test_wrong_and_missing_password(self, redis_server, tmp_path):
        with redis_server.client() as client:
            client.acl_setuser("u", enabled=True, passwords=["+right"], keys="*", commands=["+@all"])
        (tmp_path / "password").write_text("wrong\n")
        error = attempt(RedisConfig(url=redis_server.url, username="u", password_file=str(tmp_path / "password")))
        assert type(error) is StoreRefused
        assert "invalid username-password pair" in str(error)
        (tmp_path / "password").write_text("right\n")
        client = connect(
            RedisConfig(url=redis_server.url, username="u", password_file=str(tmp_path / "password")), "test"
        )
        assert client.ping()
        client.close()
        error = attempt(RedisConfig(url=redis_server.url, password_file=str(tmp_path / "none")))
        assert type(error) is StoreRefused and "none" in str(error)

    def test_a_missing_right(self, redis_server):
        with redis_server.client() as client:
            client.acl_setuser("u", enabled=True, nopass=True, keys="*", commands=["+@all", "-fcall", "-evalsha"])
        error = attempt(RedisConfig(url=redis_server.url, username="u"))
        assert type(error) is StoreRefused and "evalsha" in str(error)

    def test_a_missing_right_inside_a_script(self, redis_server):
        with redis_server.client() as client:
            client.acl_setuser("u", enabled=True, nopass=True, keys="*", commands=["+@all", "-set"])
        assert type(attempt(RedisConfig(url=redis_server.url, username="u"))) is StoreRefused

    def test_a_replica(self, redis_server, start_redis):
        with redis_server.client() as client:
            client.config_set("repl-diskless-sync-delay", 0)
        replica = start_redis("--replicaof", "127.0.0.1", str(redis_server.port), aof=False)
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 20, "the replica is in sync")
            with pytest.raises(StoreUnavailable), translated():
                client.set("x", 1)
        assert type(attempt(RedisConfig(url=replica.url))) is StoreUnavailable

    def test_not_enough_replicas(self, redis_server):
        with redis_server.client() as client:
            client.config_set("min-replicas-to-write", 1)
            try:
                assert type(attempt(RedisConfig(url=redis_server.url))) is StoreUnavailable
            finally:
                client.config_set("min-replicas-to-write", 0)

    def test_busy_with_a_script(self, redis_server):
        with redis_server.client() as client:
            client.config_set("busy-reply-threshold", 20)

            def spin():
                with redis_server.client() as other, contextlib.suppress(Exception):
                    other.eval("while true do end", 0)

            thread = threading.Thread(target=spin)
            thread.start()
            try:

                def is_busy():
                    try:
                        client.ping()
                    except Exception as error:  # noqa: BLE001 - whatever it is called
                        return "BUSY" in str(error).upper()

                wait_until(is_busy, 10, "the server is busy")
                error = attempt(RedisConfig(url=redis_server.url))
            finally:
                client.script_kill()
                thread.join(10)
            assert type(error) is StoreUnavailable

    @pytest.mark.parametrize(
        "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$999999999999\r\n", b"\x15\x03\x01\x00\x02", b"SSH-2.0-x\r\n"]
    )
    def test_not_redis(self, answer):
        with foreign(answer) as port:
            assert attempt(RedisConfig(url=f"redis://127.0.0.1:{port}/0")).exit_code == 69

    def test_a_silent_server(self):
        with (
            foreign(b"") as port,
            contextlib.closing(connect(RedisConfig(url=f"redis://127.0.0.1:{port}/0"), "test", timeout=0.1)) as client,
            pytest.raises(StoreUnavailable),
        ):
            Moves(client, Keys("test")).submit([JOB], OperationSlot("c"))

    def test_a_paused_server(self, redis_server):
        client = connect(RedisConfig(url=redis_server.url), "test", timeout=0.1)
        client.ping()
        redis_server.pause()
        try:
            with pytest.raises(StoreUnavailable):
                Moves(client, Keys("test")).leader()
        finally:
            redis_server.resume()
        client.close()

    def test_another_type_under_our_key(self, driver):
        driver.client.set(driver.keys.pending, "x")
        with pytest.raises(StoreRefused):
            driver.submit()


@contextlib.contextmanager
def foreign(answer: bytes):
    """A server that says one thing to everybody."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve():
        listener.settimeout(0.05)
        held = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                held.append(peer)
                if answer:
                    peer.sendall(answer)
        for peer in held:
            peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(5)
        listener.close()


class TestCheck:
    def test_a_good_server(self, redis_server):
        with redis_server.client() as client:
            check_server(client)

    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    def test_one_that_would_throw_jobs_away(self, redis_server, policy):
        with redis_server.client() as client:
            client.config_set("maxmemory-policy", policy)
            with pytest.raises(StoreRefused, match="noeviction"):
                check_server(client)

    def test_one_in_cluster_mode(self, start_redis):
        server = start_redis("--cluster-enabled", "yes", aof=False)
        with server.client() as client, pytest.raises(StoreRefused, match="cluster"):
            check_server(client)


def test_a_blocking_client_waits_longer_than_it_blocks(redis_server):
    client = blocking(RedisConfig(url=redis_server.url), "test", 0.3)
    assert client.blpop(["nothing"], 0.3) is None
    client.close()


class TestLeftovers:
    FIXED = frozenset(
        {"identity", "leader", "together", "epoch", "next-id", "next-client", "classes", "next-class", "owners"}
    )

    def test_only_the_fixed_keys_remain(self, driver):
        """A life of every kind; once all ended and retention is over, nothing of it is left."""
        driver.survey.identity("abc")
        keep = 30
        channel = driver.channel()
        client = driver.moves.next_client()

        def one(**item):
            return driver.dispatched(channel, **item)[0]

        driver.end(one(), keep=keep)
        driver.end(one(key="k", expires="1h"), Outcome.FAILED, keep=keep)
        cancelled = one()
        for number in (client, client + 1, client + 2):
            driver.moves.await_end(number, [cancelled])
        driver.moves.cancel([cancelled], keep)
        driver.end(cancelled, Outcome.CANCELLED, keep=keep)
        (pending,) = driver.submit(channel="absent", key="j")
        (scheduled,) = driver.submit(delay="1h", expires="2h")
        driver.moves.cancel([pending, scheduled], keep)
        (late,) = driver.submit(expires="1ms", channel="absent")
        retried = one()
        driver.again(retried, delay_ms=1)
        driver.wait_ms(max(driver.header(retried).since, driver.header(late).expires))
        driver.moves.promote(driver.fence, keep, 100)
        driver.dispatch(channel, 5)
        driver.end(retried, keep=keep)
        lost = one(retry_on_loss=False)
        channel.die()
        driver.moves.reap(driver.fence, [channel.incarnation])
        driver.moves.requeue(driver.fence, channel.incarnation, 1, keep, 100)
        assert driver.outcome(lost) is Outcome.LOST
        driver.moves.delete_collected([entry for entry, _ in driver.client.xrange(driver.keys.results)])
        driver.bell()
        for key in [*driver.client.keys(driver.keys.base + "inbox:*"), driver.keys.operation("c")]:
            assert driver.client.pttl(key) > 0, f"{key} would stay for ever"
            driver.client.delete(key)
        assert driver.client.xlen(driver.keys.results) == 0
        driver.client.delete(driver.keys.results)
        with contextlib.suppress(pytest.fail.Exception):
            wait_until(lambda: driver.all_keys() <= self.FIXED, 2, "only the fixed keys remain")
        assert driver.all_keys() - self.FIXED == set()

    def test_every_key_is_documented(self, driver):
        import jobschedd.store.keys as keys

        self.test_only_the_fixed_keys_remain(driver)
        for name in self.FIXED:
            assert f"\n{name}" in (keys.__doc__ or "")
