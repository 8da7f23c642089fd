"""The supervisor: keeps a set of child processes running, and is itself as small and dull as can be.

One thread, one loop, no connection to anything. Signal handlers only record, the loop acts. Each step of the
loop is one duty and may run at any time; what a step needs to know is in the fields, not in the order of events.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobschedd import logs
from jobschedd.clock import SYSTEM_CLOCK, Clock
from jobschedd.errors import ConfigError, JobschedError
from jobschedd.failpoints import failpoint
from jobschedd.logs import get_logger, one_line
from jobschedd.node import handover
from jobschedd.node.child import Child, ChildSpec, describe_end, start_child
from jobschedd.node.context import StopLevel
from jobschedd.node.notify import Notifier
from jobschedd.node.orphans import Orphans
from jobschedd.node.prctl import set_title
from jobschedd.node.restart import RestartLimits
from jobschedd.node.service import Service
from jobschedd.node.signals import HANDLED, SignalInbox, blocked
from jobschedd.node.status import summary

log = get_logger(__name__)

#: An upper bound for one sleep of the loop: no duty is ever later than this, whatever was miscalculated.
_LONGEST_SLEEP = 5.0
#: Seconds between two beats of a child, at most: each wakes us up.
_LONGEST_BEAT = 1.5
_READY_POLL = 0.05


@dataclass(frozen=True)
class Timing:
    """All times of the supervisor, in seconds; tests run them divided by ten.

    ``liveness_timeout``: a ready child silent for so long is killed. ``start_timeout``: how long later stages
    wait for a child to become ready. ``kill_margin``: added to a child's drain_timeout before SIGKILL, since it
    kills its own work at drain_timeout. ``now_timeout``: from SIGINT to SIGKILL. ``reload_pause``: the shortest
    time between two reloads. ``extend_every``: how often a drain asks the service manager for more time.
    """

    liveness_timeout: float = 10.0
    start_timeout: float = 10.0
    kill_margin: float = 2.0
    now_timeout: float = 5.0
    reload_pause: float = 1.0
    extend_every: float = 5.0
    restart: RestartLimits = field(default_factory=RestartLimits)


class Supervisor:
    """Runs the children that ``load`` describes until it is told to stop.

    ``load`` is called at the start and on each SIGHUP; when it raises, the old set stays. ``name`` is shown in
    the process title. ``notifier``: default from the environment. ``on_ready``: called once, when every child
    is ready, has been given up or has had its start timeout. ``build_changed``: asked on SIGHUP; true means that
    the installed program is another one than this, and the supervisor re-executes itself.
    """

    def __init__(
        self,
        load: Callable[[], Sequence[ChildSpec]],
        *,
        name: str,
        clock: Clock = SYSTEM_CLOCK,
        timing: Timing | None = None,
        notifier: Notifier | None = None,
        on_ready: Callable[[], None] = lambda: None,
        build_changed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._load = load
        self._name = name
        self._clock = clock
        self._timing = timing or Timing()
        self._notifier = notifier or Notifier.from_environment()
        self._on_ready = on_ready
        self._build_changed = build_changed
        self._inbox = SignalInbox(HANDLED)
        self._selector = selectors.DefaultSelector()
        self._services: dict[str, Service] = {}
        self._children: dict[int, Child] = {}
        self._level = StopLevel.RUN
        self._exit_code = 0
        self._ready_told = False
        self._reload_at: float | None = None
        self._reload_allowed_at = 0.0
        self._reload_problem = ""
        self._round_began = clock.boottime()
        self._watchdog_at = 0.0
        self._extend_at = 0.0

    def run(self) -> int:
        """Supervise until all is over; the exit code for the process: 0, or 1 when every child was given up.

        Raises what ``load`` raises at the first start. Must be called in a process without threads.
        """
        set_title(f"jobschedd: supervisor ({self._name})")
        logs.set_process_name("supervisor")
        with self._inbox, self._selector:
            self._selector.register(self._inbox.fileno(), selectors.EVENT_READ)
            self._take_over()
            self._load_at_start()
            while not self._all_over():
                self._wait()
                self._obey_signals()
                self._hear_children()
                self._bury_the_dead()
                self._reload_if_asked()
                self._kill_the_silent()
                self._start_what_is_due()
                self._give_up_when_all_did()
                self._advance_the_stop()
                self._tell_the_service_manager()
        handover.forget("supervisor")
        log.notice("stopped", exit_code=self._exit_code)
        return self._exit_code

    # The start

    def _take_over(self) -> None:
        left: dict[str, Any] | None = handover.take("supervisor")
        self._orphans = Orphans(left["foreign"] if left else None)
        if left:
            self._ready_told = True
            for state in left["children"]:
                self._watch(Child.from_json(state))
            self._orphans.kill(known=self._children)
            log.notice("took over from the former build", children=len(self._children))
        handover.leave("supervisor", self._legacy)

    def _legacy(self) -> tuple[dict[str, Any], Iterable[int]]:
        children = list(self._children.values())
        state = {"children": [child.to_json() for child in children], "foreign": sorted(self._orphans.foreign)}
        return state, [child.status_fd for child in children]

    def _load_at_start(self) -> None:
        if not self._children:
            self._want(self._load())
            return
        # Inherited children do their work whether or not we can read the file: keep them.
        self._reload(self._load)

    def _want(self, specs: Sequence[ChildSpec]) -> None:
        """Make ``specs`` the wanted set: start the new, drain the removed, replace the changed, keep the others."""
        duplicates = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
        if duplicates:
            raise ValueError(f"several children are named {', '.join(duplicates)}")
        before, self._services = self._services, {}
        for spec in specs:
            self._services[spec.name] = self._kept(before.get(spec.name), spec) or self._new_service(spec)
        kept = {service.child.pid for service in self._services.values() if service.child is not None}
        for child in self._children.values():
            if child.pid not in kept and child.told == StopLevel.RUN:
                log.notice("draining a child that is no longer wanted so", child=child.name, pid=child.pid)
                self._dismiss(child, StopLevel.DRAIN)

    def _new_service(self, spec: ChildSpec) -> Service:
        service = Service(spec, self._timing.restart, self._clock.boottime())
        if spec.program is not None:
            # An inherited program is none of our build: as long as it is the same program, it stays.
            for child in self._children.values():
                if (child.name, child.spec.fingerprint, child.spec.program, child.told) == (
                    spec.name,
                    spec.fingerprint,
                    spec.program,
                    StopLevel.RUN,
                ):
                    child.spec = spec
                    service.adopt(child)
        return service

    def _kept(self, service: Service | None, spec: ChildSpec) -> Service | None:
        if service is None or service.given_up is not None or service.spec.fingerprint != spec.fingerprint:
            return None
        service.spec = spec
        if service.child is not None:
            service.child.spec = spec
        return service

    # Waiting and hearing

    def _wait(self) -> None:
        last_round, now = self._round_began, self._clock.boottime()
        sleep = min([_LONGEST_SLEEP, *(max(0.0, at - now) for at in self._deadlines())])
        self._selector.select(sleep)
        self._round_began = self._clock.boottime()
        if self._round_began - last_round > sleep + self._timing.liveness_timeout / 2:
            # The machine was suspended, or we were stopped or slow: the children may have been, too.
            log.debug("a late round; the children get a fresh liveness timeout", late=self._round_began - last_round)
            for child in self._children.values():
                child.last_beat = self._round_began

    def _deadlines(self) -> Iterator[float]:
        # What was due before this round has been acted on, or waits for an event (a death, a message).
        return (at for at in self._all_deadlines() if at is not None and at > self._round_began)

    def _all_deadlines(self) -> Iterator[float | None]:
        yield self._reload_at if self._reload_at is None else max(self._reload_at, self._reload_allowed_at)
        if self._notifier.watchdog_interval is not None:
            yield self._watchdog_at
        if self._level > StopLevel.RUN:
            yield self._extend_at
        for service in self._services.values():
            yield service.settle_by
            if service.child is None and service.given_up is None:
                yield service.next_start
        for child in self._children.values():
            yield child.kill_at
            if child.beats:
                yield child.last_beat + self._timing.liveness_timeout
            if child.ready_at is None and child.spec.ready_check is not None:
                yield self._clock.boottime() + _READY_POLL

    def _obey_signals(self) -> None:
        came = self._inbox.take()
        terms = came[signal.SIGTERM] + (self._level >= StopLevel.DRAIN)
        if came[signal.SIGINT] or came[signal.SIGQUIT] or (came[signal.SIGTERM] and terms > 1):
            self._stop(StopLevel.NOW)
        elif came[signal.SIGTERM]:
            self._stop(StopLevel.DRAIN)
        if came[signal.SIGHUP] and self._level == StopLevel.RUN:
            self._reload_at = self._clock.boottime()
        if came[signal.SIGUSR1]:
            logs.reopen()
            self._forward(signal.SIGUSR1)
        if came[signal.SIGUSR2]:
            self._dump_state()
            self._forward(signal.SIGUSR2)

    def _forward(self, signum: signal.Signals) -> None:
        for child in self._children.values():
            if child.spec.program is None:
                child.send(signum)

    def _dump_state(self) -> None:
        now = self._clock.boottime()
        log.notice("state", status=self._status(), stop=self._level, log_lines_dropped=logs.dropped_lines())
        for service in self._services.values():
            log.notice("state of a child", child=service.name, state=service.state, reason=service.given_up)
        for child in self._children.values():
            log.notice(
                "state of a process",
                child=child.name,
                pid=child.pid,
                up=now - child.started,
                silent=now - child.last_beat if child.beats else None,
                told=child.told,
                kill_in=None if child.kill_at is None else child.kill_at - now,
                status=child.status or None,
            )

    def _hear_children(self) -> None:
        now = self._clock.boottime()
        for child in self._children.values():
            if child.hear(now) or self._passes_ready_check(child, now):
                log.info("ready", child=child.name, pid=child.pid, after=now - child.started)
                service = self._services.get(child.name)
                if service is not None and service.child is child:
                    service.became_ready()
            if child.mute:
                self._stop_listening(child)  # a pipe at its end is readable for ever

    def _passes_ready_check(self, child: Child, now: float) -> bool:
        check = child.spec.ready_check
        if child.ready_at is not None or child.spec.program is None:
            return False
        try:
            if check is not None and not check():
                return False
        except Exception as error:  # noqa: BLE001 - not ready, whatever the reason; it is asked again
            log.debug("ready check failed", child=child.name, cause=error)
            return False
        child.ready_at = now
        return True

    # Deaths

    def _bury_the_dead(self) -> None:
        died = False
        for pid, status in _reaped():
            died = True
            child = self._children.pop(pid, None)
            if child is None:
                self._orphans.buried(pid)
            else:
                self._bury(child, status)
        if died:
            failpoint("supervisor.bury.after")
            self._orphans.kill(known=self._children)

    def _bury(self, child: Child, status: int) -> None:
        now = self._clock.boottime()
        service = self._services.get(child.name)
        if child.hear(now) and service is not None and service.child is child:
            service.became_ready()
        self._unwatch(child)
        end = describe_end(status)
        if max(child.told, self._level) > StopLevel.RUN:  # Ctrl-C reaches it without us
            log.info("stopped", child=child.name, pid=child.pid, end=end)
        elif service is None or service.child is not child:
            log.error("died, and cannot be started again before a reload", child=child.name, pid=child.pid, end=end)
        else:
            self._mourn(service, child, end, now)

    def _mourn(self, service: Service, child: Child, end: str, now: float) -> None:
        delay = service.died(child, child.error or end, now)
        if delay is None:
            log.error(
                "GIVEN UP: it keeps dying before it is ready; mend it and reload (SIGHUP)",
                child=child.name,
                end=end,
                failures=service.failures,
                cause=child.error or None,
            )
            return
        log.warning("died", child=child.name, pid=child.pid, end=end, cause=child.error or None, restart_in=delay)

    def _kill_the_silent(self) -> None:
        now = self._clock.boottime()
        for child in self._children.values():
            if child.killed:
                continue
            if child.kill_at is not None and now >= child.kill_at:
                log.warning("killed: it did not stop in time", child=child.name, pid=child.pid)
                child.kill()
            elif child.beats and self._round_began - child.last_beat >= self._timing.liveness_timeout:
                # Measured at the time when we last listened: a slow step of ours is no silence of theirs.
                silent = self._round_began - child.last_beat
                log.error("killed: it hangs", child=child.name, pid=child.pid, silent=silent)
                child.kill()

    # Starts

    def _start_what_is_due(self) -> None:
        if self._level > StopLevel.RUN:
            return
        now = self._clock.boottime()
        for service in sorted(self._services.values(), key=lambda each: each.spec.stage):
            due = service.child is None and service.given_up is None and now >= service.next_start
            if due and self._may_start(service, now):
                self._start(service, now)

    def _may_start(self, service: Service, now: float) -> bool:
        earlier = (each for each in self._services.values() if each.spec.stage < service.spec.stage)
        # A program holds its socket and files: its successor waits. Our own children run side by side.
        follows_program = service.spec.program is not None and any(
            child.name == service.name for child in self._children.values()
        )
        return not follows_program and all(each.settled(now) for each in earlier)

    def _start(self, service: Service, now: float) -> None:
        beat_interval = min(_LONGEST_BEAT, self._timing.liveness_timeout / 4)
        try:
            child = start_child(service.spec, now, self._private_fds(), beat_interval)
        except OSError as error:
            delay = service.refused(now)
            log.error("cannot fork", child=service.name, cause=error, restart_in=delay)
            return
        self._watch(child)
        service.started(child, self._timing.start_timeout)
        log.info("started", child=child.name, pid=child.pid)

    def _watch(self, child: Child) -> None:
        self._children[child.pid] = child
        self._selector.register(child.status_fd, selectors.EVENT_READ, child)

    def _unwatch(self, child: Child) -> None:
        self._stop_listening(child)
        child.close()

    def _stop_listening(self, child: Child) -> None:
        if child.status_fd in self._selector.get_map():
            self._selector.unregister(child.status_fd)

    def _private_fds(self) -> list[int]:
        assert isinstance(self._selector, selectors.EpollSelector)
        children = [child.status_fd for child in self._children.values() if child.status_fd >= 0]
        return [self._selector.fileno(), *self._inbox.descriptors(), *children]

    def _give_up_when_all_did(self) -> None:
        if self._level > StopLevel.RUN:
            return
        workers = [service for service in self._services.values() if service.spec.program is None]
        # Without a readable file and without inherited children there is nothing left to do either.
        unloaded = not self._services and self._reload_problem and not self._children
        if unloaded or (workers and all(service.given_up is not None for service in workers)):
            log.error("no child is left that could be started: ending")
            self._exit_code = 1
            self._stop(StopLevel.DRAIN)

    # Reload

    def _reload_if_asked(self) -> None:
        now = self._clock.boottime()
        if self._reload_at is None or now < self._reload_allowed_at or self._level > StopLevel.RUN:
            return
        self._reload_at, self._reload_allowed_at = None, now + self._timing.reload_pause
        self._reload(self._load_or_replace_myself)

    def _reload(self, load: Callable[[], Sequence[ChildSpec]]) -> None:
        self._notifier.reloading()
        try:
            wanted = load()
            failpoint("supervisor.reload.loaded")
            self._want(wanted)
            failpoint("supervisor.reload.after")
        except Exception as error:  # noqa: BLE001 - all or nothing: even a defect must not cost the running jobs
            self._refuse_reload(error)
        else:
            self._reload_problem = ""
            log.notice("reloaded", children=len(self._services))
        self._notifier.ready(self._status())

    def _refuse_reload(self, error: Exception) -> None:
        self._reload_problem = one_line(error)
        if isinstance(error, ConfigError):
            for problem in error.problems:
                log.error("reload refused, everything goes on as before", problem=str(problem))
        elif isinstance(error, JobschedError):
            log.error("reload refused, everything goes on as before", problem=error)
        else:
            log.exception("reload failed, everything goes on as before")

    def _load_or_replace_myself(self) -> Sequence[ChildSpec]:
        specs = self._load()  # first: a successor with a bad file would have nothing to fall back on
        if self._build_changed():
            self._replace_myself()
        return specs

    def _replace_myself(self) -> None:
        log.notice("the installed build has changed: re-executing")
        try:
            with blocked():  # they reach the successor, which unblocks them
                handover.replace_process(self._notifier.environment())
        except OSError as error:
            log.error("cannot re-execute; going on with the old build", cause=error)

    # The stop

    def _stop(self, level: StopLevel) -> None:
        if level <= self._level:
            return
        self._level = level
        self._services.clear()
        self._extend_at = 0.0
        log.notice("draining" if level == StopLevel.DRAIN else "stopping now", processes=len(self._children))
        self._notifier.stopping(self._status())

    def _advance_the_stop(self) -> None:
        if self._level == StopLevel.RUN or not self._children:
            return
        # What must go on working until the others are done (an embedded server) has a lower stage.
        last = max(child.spec.stage for child in self._children.values())
        for child in self._children.values():
            if child.spec.stage == last and child.told < self._level:
                self._dismiss(child, self._level)
                failpoint("supervisor.stop.told")

    def _dismiss(self, child: Child, level: StopLevel) -> None:
        timing = self._timing
        patience = timing.now_timeout if level == StopLevel.NOW else child.spec.drain_timeout + timing.kill_margin
        child.told = level
        if not child.killed:
            child.kill_at = self._clock.boottime() + patience
        # A program knows SIGTERM as the orderly way; only our own children know two levels.
        urgent = level == StopLevel.NOW and child.spec.program is None
        child.send(signal.SIGINT if urgent else signal.SIGTERM)

    def _all_over(self) -> bool:
        return self._level > StopLevel.RUN and not self._children and not self._orphans.any_left()

    # What the service manager sees

    def _tell_the_service_manager(self) -> None:
        now = self._clock.boottime()
        self._tell_ready(now)
        self._notifier.status(self._status())
        if self._notifier.watchdog_interval is not None and now >= self._watchdog_at:
            self._watchdog_at = now + self._notifier.watchdog_interval
            if all(now - child.last_beat < self._timing.liveness_timeout for child in self._beating()):
                self._notifier.watchdog()
        if self._level > StopLevel.RUN and now >= self._extend_at:
            self._extend_at = now + self._timing.extend_every
            self._notifier.extend_timeout(self._timing.extend_every * 4)

    def _beating(self) -> Iterator[Child]:
        return (child for child in self._children.values() if child.beats)

    def _tell_ready(self, now: float) -> None:
        if self._ready_told or self._level > StopLevel.RUN:
            return
        if all(service.settled(now) for service in self._services.values()):
            self._ready_told = True
            log.notice("ready", status=self._status())
            self._notifier.ready(self._status())
            self._on_ready()

    def _status(self) -> str:
        return summary(self._level, self._services.values(), self._children.values(), self._reload_problem)


def _reaped() -> Iterator[tuple[int, int]]:
    """All children that have died, pid and wait status: one SIGCHLD may stand for many."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
