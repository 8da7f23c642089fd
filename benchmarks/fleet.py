"""``python -m benchmarks.fleet URL CHANNELS WINDOW``: so many channels in one process, which run nothing.

Each has two connections, a lease that it renews and a blocking read, as the real ones, and answers whatever comes with
a success at once. So what a fleet costs Redis and the master is seen on one machine. Says "ready", runs until SIGTERM.
"""

from __future__ import annotations

import secrets
import select
import sys
import time

import msgspec

from jobschedd.clock import SYSTEM_CLOCK
from jobschedd.config import RedisConfig
from jobschedd.job import Outcome, Report, ReportKind, Result, encode
from jobschedd.store.channel import ChannelStore, OrderEntry
from jobschedd.store.connect import blocking
from jobschedd.store.keys import Keys
from jobschedd.store.pipe import Pipe
from jobschedd.store.survey import ChannelInfo

LEASE, RENEW, BLOCK = 15_000, 5.0, 1.0
#: Seconds between two looks at whose lease is to be renewed.
LOOK = 0.2
PER_NODE = 4


class Channel:
    """One of them."""

    def __init__(self, url: str, number: int, window: int) -> None:
        self.incarnation = secrets.token_hex(8)
        self.node, self.name = f"node-{number // PER_NODE}", str(number % PER_NODE + 1)
        self._client = blocking(RedisConfig(url=url), "fleet", BLOCK)
        self.store = ChannelStore(self._client, Keys("main"), SYSTEM_CLOCK, self.incarnation, BLOCK)
        info = ChannelInfo(node=self.node, channel=self.name, incarnation=self.incarnation, pid=1)
        self.store.register(f"{self.node}/{self.name}", msgspec.json.encode(info), window, LEASE, self.node)
        self._client.close()
        # The leases of a fleet end at all times, not all at once.
        self._renew_at = time.monotonic() + RENEW * secrets.randbelow(1000) / 1000
        self.store.watch("", 0)
        self.store.read_orders(self._received)
        result = Result(outcome=Outcome.SUCCEEDED, cause="returned", node=self.node, channel=self.name)
        self._result = encode(result)

    def renew(self, now: float) -> None:
        """When it is time."""
        if now >= self._renew_at:
            self._renew_at = now + RENEW
            self.store.renew(LEASE, lambda held: None)

    def _received(self, orders: list[OrderEntry], _hints: object) -> None:
        if orders:
            self.store.report([self._done(order) for order in orders], None, lambda answers: None)
        self.store.read_orders(self._received)

    def _done(self, order: OrderEntry) -> tuple[str, bytes]:
        report = Report(
            kind=ReportKind.RESULT,
            job=order.fields[b"job"].decode(),
            attempt=int(order.fields[b"attempt"]),
            entry=order.id,
            incarnation=self.incarnation,
            outcome=Outcome.SUCCEEDED,
            cause="returned",
            result=self._result,
        )
        return order.id, encode(report)


class Fleet:
    """All of them, served by one loop."""

    def __init__(self) -> None:
        self._waiting = select.epoll()
        self._pipes: dict[int, Pipe] = {}
        self._channels: list[Channel] = []
        self._looked = time.monotonic()

    def add(self, channel: Channel) -> None:
        """One more."""
        self._channels.append(channel)
        for pipe in channel.store.pipes:
            self._pipes[pipe.fileno()] = pipe
            self._waiting.register(pipe.fileno(), select.EPOLLIN)

    def serve(self, patience: float) -> None:
        """Answer what has come; renew what is due."""
        for fd, _ in self._waiting.poll(patience):
            self._pipes[fd].write()
            self._pipes[fd].read()
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            for channel in self._channels:
                channel.renew(now)
                for pipe in channel.store.pipes:
                    pipe.write()


def main(url: str, count: int, window: int) -> None:
    """Until SIGTERM. The first ones are served while the last ones are made."""
    fleet = Fleet()
    for number in range(count):
        fleet.add(Channel(url, number, window))
        if number % 20 == 0:
            fleet.serve(0)
    print("ready", flush=True)
    while True:
        fleet.serve(LOOK)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
