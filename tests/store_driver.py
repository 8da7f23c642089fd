"""Drives the store's moves one by one against a real server: a submitter, a leader and channels, without daemons."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import redis

from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import RedisConfig
from jobschedd.job import (
    Header,
    Outcome,
    Record,
    Report,
    ReportKind,
    Result,
    State,
    decode_record,
    decode_report,
    decode_result,
    encode,
)
from jobschedd.store.channel import ChannelStore
from jobschedd.store.connect import blocking, connect
from jobschedd.store.keys import Keys
from jobschedd.store.moves import Assignment, Dispatched, Moves, OperationSlot, Requeued, Verb, Verdict
from jobschedd.store.results import ResultStream
from jobschedd.store.survey import ChannelInfo, Survey
from jobschedd.submission import submission
from redis_server import RedisServer

BLOCK = 1.0
KEEP = 60_000
LEASE = 15_000


class Driver:
    """One namespace of one server. ``lead`` first."""

    def __init__(self, server: RedisServer, namespace: str = "test") -> None:
        self.server = server
        self.config = RedisConfig(url=server.url)
        self.client: Any = connect(self.config, "test")
        self.keys = Keys(namespace)
        self.moves = Moves(self.client, self.keys)
        self.survey = Survey(self.client, self.keys)
        self.fence = ""
        self._slots: dict[str, OperationSlot] = {}
        self._channels: list[FakeChannel] = []

    def close(self) -> None:
        """Drop every connection."""
        for channel in self._channels:
            channel.store.close()
        self.client.close()

    def lead(self, instance: str = "m1", lease_ms: int = 60_000) -> str:
        """Become (or stay) the leader; the fence."""
        epoch, holder = self.moves.acquire_lead(instance, lease_ms, 1)
        assert epoch is not None, f"{holder} leads"
        self.fence = f"{instance}:{epoch}"
        return self.fence

    # -- the submitter ----------------------------------------------------------------------------------------

    def submit(self, count: int = 1, waiter: int = 0, **item: Any) -> list[str]:
        """Ids of ``count`` equal jobs (``true`` unless told otherwise)."""
        return self.submit_items([item] * count, waiter)

    def submit_items(self, items: Sequence[dict[str, Any]], waiter: int = 0, client: str = "c") -> list[str]:
        """One call for many."""
        slot = self._slots.setdefault(client, OperationSlot(client))
        slot.sequence += 1
        jobs = [submission({"command": ["true"]} | item if "function" not in item else item) for item in items]
        return self.moves.submit(jobs, slot, waiter)

    # -- what is there ----------------------------------------------------------------------------------------

    def record(self, job: str) -> Record:
        """The record of a job."""
        data = self.client.get(self.keys.job(job))
        assert data is not None, f"job {job} has no record"
        return decode_record(data)

    def header(self, job: str) -> Header:
        """Its header."""
        return self.record(job).header

    def state(self, job: str) -> State:
        """Its state."""
        return self.header(job).state

    def outcome(self, job: str) -> Outcome:
        """Its outcome; it must have ended."""
        header = self.header(job)
        assert header.state is State.DONE
        return header.outcome

    def cause(self, job: str) -> str:
        """The cause in its result."""
        return decode_result(self.record(job).result).cause

    def pending(self, job_class: int = 1, priority: int = 0) -> list[str]:
        """The ids of one list, first to last."""
        return [job.decode() for job in self.client.lrange(self.keys.pending_list(job_class, priority), 0, -1)]

    def ended_messages(self) -> list[str]:
        """The jobs that the result stream says ended without a report."""
        entries = self.client.xrange(self.keys.results)
        return [fields[b"ended"].decode() for _, fields in entries if b"ended" in fields]

    def reports(self) -> list[Report]:
        """The reports in the result stream."""
        stream = ResultStream(blocking(self.config, "test", BLOCK), self.keys)
        entries = iter(lambda: stream.read(0.001), [])
        return [decode_report(report) for some in entries for entry in some for report in entry.reports]

    def bell(self) -> list[str]:
        """What has rung, and silence."""
        rung = [message.decode() for message in self.client.lrange(self.keys.bell, 0, -1)]
        self.client.delete(self.keys.bell)
        return rung

    def all_keys(self) -> set[str]:
        """Every key of the namespace, without the common beginning."""
        return {key.decode().removeprefix(self.keys.base) for key in self.client.keys(self.keys.base + "*")}

    def now_ms(self) -> int:
        """The server's clock."""
        seconds, micro = self.client.time()
        return int(seconds) * 1000 + int(micro) // 1000

    def wait_ms(self, until: int) -> None:
        """Wait until the server's clock has passed ``until``."""
        while (left := until - self.now_ms()) >= 0:
            time.sleep((left + 1) / 1000)

    # -- channels and the leader's moves ----------------------------------------------------------------------

    def channel(self, name: str = "1", *, node: str = "n1", window: int = 10, **more: Any) -> FakeChannel:
        """Register one."""
        channel = FakeChannel(self, node, name, window, **more)
        self._channels.append(channel)
        return channel

    def dispatch(
        self, channel: FakeChannel | str, count: int = 1, job_class: int = 1, priority: int = 0, keep: int = KEEP
    ) -> Dispatched:
        """One assignment."""
        incarnation = channel if isinstance(channel, str) else channel.incarnation
        (answer,) = self.moves.dispatch(self.fence, [Assignment(job_class, priority, incarnation, count)], keep)
        return answer

    def dispatched(self, channel: FakeChannel, **item: Any) -> tuple[str, str]:
        """Submit one and dispatch it: (job, entry)."""
        (job,) = self.submit(**item)
        header = self.header(job)
        assert self.dispatch(channel, 1, header.job_class, header.priority).sent == 1
        return job, self.header(job).entry

    def judge(self, verb: str, job: str, attempt: int, entry: str, *rest: Any) -> tuple[Verdict, bytes | None]:
        """One report."""
        (verdict,) = self.moves.collect(self.fence, [verb, job, attempt, entry, *rest, *[""] * (5 - len(rest))])
        return verdict

    def start(self, job: str) -> Verdict:
        """Say that the current attempt runs."""
        header = self.header(job)
        return self.judge(Verb.START, job, header.attempt, header.entry)[0]

    def end(
        self, job: str, outcome: Outcome = Outcome.SUCCEEDED, keep: int = KEEP, result: bytes | None = None
    ) -> Verdict:
        """Have the current attempt end the job."""
        header = self.header(job)
        result = result or encode(Result(outcome=outcome, cause="exit", exit_code=0))
        return self.judge(Verb.DONE, job, header.attempt, header.entry, int(outcome), result, keep)[0]

    def again(self, job: str, delay_ms: int = 0, tries: int = 1, crashes: int = 0) -> Verdict:
        """Have the current attempt fail and another one follow."""
        header = self.header(job)
        return self.judge(Verb.RETRY, job, header.attempt, header.entry, delay_ms, tries, crashes, KEEP)[0]

    def bring_back(self, job: str) -> Verdict:
        """Have the current attempt returned unstarted."""
        header = self.header(job)
        return self.judge(Verb.RETURN, job, header.attempt, header.entry, KEEP)[0]

    def requeue(self, channel: FakeChannel, missing_since: int = 1, most: int = 500) -> Requeued:
        """Take back what a dead incarnation has. ``missing_since`` 1: for as long as one likes; 0: it left."""
        return self.moves.requeue(self.fence, channel.incarnation, missing_since, KEEP, most)


class FakeChannel:
    """A channel incarnation that registers and reports, and runs nothing."""

    def __init__(
        self,
        driver: Driver,
        node: str,
        name: str,
        window: int,
        lease: int = LEASE,
        home: str = "home",
        labels: tuple[str, ...] = (),
        slots: int = 1,
        resources: dict[str, int] | None = None,
    ) -> None:
        self.driver = driver
        self.node = node
        self.name = name
        self.incarnation = secrets.token_hex(8)
        self.store = ChannelStore(driver.client, driver.keys, SYSTEM_CLOCK, self.incarnation, 0.05, may_record=True)
        self.info = ChannelInfo(
            node=node,
            channel=name,
            incarnation=self.incarnation,
            labels=labels,
            slots=slots,
            pid=1,
            resources=resources or {},
            most_slots=slots,
        )
        self.home = home
        self.register(window, lease)

    def register(self, window: int, lease: int = LEASE) -> None:
        """Announce it."""
        import msgspec

        info = msgspec.json.encode(self.info)
        self.store.register(f"{self.node}/{self.name}", info, window, lease, self.home)

    def entries(self) -> list[tuple[str, dict[bytes, bytes]]]:
        """What is in its dispatch stream: (entry, fields)."""
        found = self.driver.client.xrange(self.driver.keys.dispatch(self.incarnation))
        return [(entry.decode(), fields) for entry, fields in found]

    def jobs(self) -> list[str]:
        """The jobs in its dispatch stream."""
        return [fields[b"job"].decode() for _, fields in self.entries()]

    def hints(self) -> list[dict[bytes, bytes]]:
        """What its control stream says."""
        return [fields for _, fields in self.driver.client.xrange(self.driver.keys.control(self.incarnation))]

    def die(self) -> None:
        """Its lease ends."""
        self.driver.client.delete(self.driver.keys.lease(self.incarnation))

    def leave(self) -> None:
        """It says goodbye."""
        self.store.leave()

    def report(self, job: str, kind: ReportKind = ReportKind.RESULT, **fields: Any) -> bool:
        """Report on the job that it has; whether the entry was still its own."""
        entry, attempt = next((e, int(f[b"attempt"])) for e, f in self.entries() if f[b"job"] == job.encode())
        return self.report_entry(entry, job, attempt, kind, **fields)

    def report_entry(
        self, entry: str, job: str, attempt: int, kind: ReportKind = ReportKind.RESULT, **fields: Any
    ) -> bool:
        """The same where the entry may be gone."""
        report = self.packed(entry, job, attempt, kind, **fields)
        key = "" if kind is ReportKind.STARTED else entry
        return self.store.report_of(self.incarnation, [(key, report)])[0]

    def packed(self, entry: str, job: str, attempt: int, kind: ReportKind = ReportKind.RESULT, **fields: Any) -> bytes:
        """What such a report looks like on the wire."""
        if kind is ReportKind.RESULT:
            fields.setdefault("outcome", Outcome.SUCCEEDED)
            fields.setdefault("cause", "exit")
            result = Result(outcome=fields["outcome"], cause=fields["cause"], node=self.node, channel=self.name)
            fields.setdefault("result", encode(result))
        return encode(Report(kind=kind, job=job, attempt=attempt, entry=entry, incarnation=self.incarnation, **fields))


def raw(server: RedisServer) -> redis.Redis:
    """A client that knows nothing of us."""
    return server.client()
