"""Dispatcher and collector of the classic wire protocol: what differs from the stream transport, and nothing else.

A channel is a name in the configuration. Our own slaves announce themselves as ever; by that the dispatcher knows
which node serves a name, with which labels and slots. Of a foreign subscriber it knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger
from jobschedd.master.collector import Collector
from jobschedd.master.dispatcher import Dispatcher
from jobschedd.master.placement import ChannelView, Demand
from jobschedd.store.moves import Assignment, Dispatched
from jobschedd.store.publishing import AnswerStream, Publication, Published, Publishing

log = get_logger(__name__)

#: Ids that a subscriber we know nothing about may have to answer at a time.
FOREIGN_WINDOW = 100
#: Seconds for which nothing is published to a channel where nobody was subscribed.
PAUSE = 0.2
#: Seconds for which such a channel gets only jobs that no other may have.
DOUBT = 5.0
#: Seconds until we look again whether our collector listens.
BREATH = 0.05


@dataclass
class Wire(ChannelView):
    """A channel of the configuration; ``incarnation`` is its name. ``server``: the incarnation of our own slave."""

    server: str = ""
    silent_until: float = 0.0  # boot time
    doubted_until: float = 0.0  # boot time
    told_of: bool = False  # that nobody is subscribed

    @property
    def entries_key(self) -> str:
        return f"sent:{self.name}"


class Publisher(Dispatcher):
    """As ``Dispatcher``. ``channels``: where to publish; ``resend``: what reached nobody is tried again."""

    def __init__(
        self, *, publishing: Publishing, channels: Sequence[str], result_timeout: float, resend: bool, **common: Any
    ) -> None:
        """``result_timeout`` in seconds; ``common`` as for ``Dispatcher``."""
        super().__init__(**common)
        self._publishing = publishing
        self._result_timeout_ms = max(1, round(result_timeout * 1000))
        self._resend = resend
        self._wires = {name: Wire(name, "", name, window=FOREIGN_WINDOW) for name in channels}
        self._doubtful = False  # whether this pass is about channels where nobody was subscribed
        self._cadences.add(common["reap_scan"], self._give_up_unanswered)

    # -- what changed -----------------------------------------------------------------------------------------

    def _look_at_everything(self) -> None:
        super()._look_at_everything()
        self._publishing.announce(self._leadership.fence, list(self._wires))
        self._count_unanswered()

    def _say_goodbye(self, incarnation: str) -> None:
        super()._say_goodbye(incarnation)
        self._open_and_close()

    def _open_and_close(self) -> None:
        super()._open_and_close()
        for wire in self._wires.values():
            self._learn_servers(wire)
            wire.open = not self._draining.of(wire)

    def _learn_servers(self, wire: Wire) -> None:
        """Who of ours serves this name. Several get every message, so that only what they share can be promised."""
        servers = [view for view in self._channels.values() if view.name == wire.name and view.window >= 0]
        if len(servers) > 0 and servers[-1].incarnation != wire.server:
            wire.silent_until = wire.doubted_until = 0.0
        wire.server = servers[-1].incarnation if servers else ""
        nodes = {view.node for view in servers}
        wire.node = nodes.pop() if len(nodes) == 1 else ""
        wire.labels = frozenset.intersection(*(view.labels for view in servers)) if servers else frozenset()
        wire.slots = servers[-1].slots if servers else 1
        wire.window = wire.slots if servers else FOREIGN_WINDOW

    def _all_channels(self) -> Iterable[ChannelView]:
        return self._wires.values()

    def _view_of(self, incarnation: str) -> ChannelView | None:
        return self._wires.get(incarnation) or super()._view_of(incarnation)

    # -- duties -----------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        super()._reap()
        self._count_unanswered()

    def _count_unanswered(self) -> None:
        for name, count in self._publishing.unanswered(list(self._wires)).items():
            self._wires[name].entries = count

    def _give_up_unanswered(self) -> None:
        lost = self._publishing.give_up(self._leadership.fence, self._result_timeout_ms)
        if lost:
            log.warning("no answer in time: lost", jobs=" ".join(lost[:20]), count=len(lost))

    # -- dispatching ------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """First where nothing speaks against it, then what only those can have where nobody was subscribed."""
        self._doubtful = False
        super()._dispatch()
        if not self._more_to_do and any(map(self._is_doubted, self._wires.values())):
            self._doubtful = True
            super()._dispatch()

    def _offer(self) -> None:
        """What is published is heard by whoever listens: nobody can be promised a channel."""

    def _is_doubted(self, wire: Wire) -> bool:
        return self._clock.boottime() < wire.doubted_until

    def _candidates(self) -> Iterable[ChannelView]:
        now = self._clock.boottime()
        wires = self._wires.values()
        return [wire for wire in wires if now >= wire.silent_until and self._is_doubted(wire) == self._doubtful]

    def _demands(self) -> list[Demand]:
        demands = super()._demands()
        if not self._doubtful:
            return demands
        trusted = [wire for wire in self._wires.values() if wire.open and not self._is_doubted(wire)]
        return [
            demand
            for demand in demands
            if not any(demand.target.admits(wire.node, wire.name, wire.labels) for wire in trusted)
        ]

    def _send(self, assignments: Sequence[Assignment]) -> list[Dispatched]:
        publications = []
        for a in assignments:
            wire = self._wires[a.incarnation]
            publications.append(
                Publication(a.job_class, a.priority, wire.name, wire.window, a.count, wire.server, a.terms)
            )
        failpoint("publisher.publish.before")
        answers = self._publishing.publish(self._leadership.fence, publications, self._keep_ms, self._resend)
        failpoint("publisher.publish.after")
        if not answers:
            return self._wait_for_collector(assignments)
        for publication, answer in zip(publications, answers, strict=True):
            self._note_receivers(self._wires[publication.channel], answer)
        return [
            Dispatched(answer.sent, answer.left, answer.unanswered, publication.window, answer.bound, answer.wait_ms)
            for publication, answer in zip(publications, answers, strict=True)
        ]

    def _wait_for_collector(self, assignments: Sequence[Assignment]) -> list[Dispatched]:
        """It does not listen yet, or not at the moment: what a foreign slave answered now would go unheard."""
        for wire in self._wires.values():
            wire.silent_until = self._clock.boottime() + BREATH
        left = [self._pending.get((a.job_class, a.priority), 0) for a in assignments]
        return [
            Dispatched(0, count, self._wires[a.incarnation].entries - a.count, self._wires[a.incarnation].window)
            for a, count in zip(assignments, left, strict=True)
        ]

    def _note_receivers(self, wire: Wire, answer: Published) -> None:
        if answer.nobody:
            if self._resend:
                now = self._clock.boottime()
                wire.silent_until, wire.doubted_until = now + PAUSE, now + DOUBT
            tell = log.debug if wire.told_of else log.warning
            jobs = " ".join(answer.nobody[:20])
            what = "sent again later" if self._resend else "failed"
            tell("dispatch failed: nobody is subscribed", channel=wire.name, jobs=jobs, then=what)
            wire.told_of = True
        elif answer.sent and wire.told_of:
            wire.told_of, wire.doubted_until = False, 0.0
            log.notice("somebody is subscribed again", channel=wire.name)


class AnswerCollector(Collector):
    """As ``Collector``, with a result stream that is fed from the result channel."""

    def __init__(self, *, results: AnswerStream, **common: Any) -> None:
        super().__init__(results=results, **common)
        self._answers = results

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object], beat: Callable[[str], None]) -> None:
        try:
            super().run(stopping, wait, beat)
        finally:
            self._answers.rest()

    def step(self, wait: Callable[[float], object]) -> str:
        if not self._fence:
            self._answers.rest()
        return f"{super().step(wait)}, {self._answers.ignored} foreign ids ignored"

    def _begin(self) -> bool:
        if not super()._begin():
            return False
        self._answers.lead(self._fence)
        return True
