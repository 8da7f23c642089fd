"""The warm runner: a process of its own that calls the functions of one slot, one after another.

It is executed, not forked, so that nothing of the channel process (connections, secrets, half-held locks) is in
it, and it imports little, so that it starts fast. Whatever a function does to it, only the job that runs is
charged: the channel sees the process end, takes the other orders back and starts a fresh one.

Between two jobs stay: modules and their globals (that is what warm means), threads (their output goes to the job
that runs), signal handlers other than SIGTERM's. Everything else is undone, see ``surroundings``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from setproctitle import setproctitle

from jobschedd.failpoints import failpoint
from jobschedd.job import Cause, Outcome
from jobschedd.slave.exchange import Answer, Inbox, Page, Task, decode_task, encode, send
from jobschedd.slave.processtree import become_subreaper
from jobschedd.slave.register import map_slot, write_start
from jobschedd.slave.surroundings import Output, Surroundings, silence, sweep

if TYPE_CHECKING:
    import json

#: Descriptors that the channel leaves open for the runner: orders and answers, the shared page, the channel's
#: "go on" after it read a job's output, the start register, and the count of orders that it has not heard of.
ORDERS, PAGE, GO, REGISTER, BELL = 3, 4, 5, 6, 7
PR_SET_PDEATHSIG: Final = 1
#: Characters of an error that are kept, and frames of each exception in it.
LONGEST_ERROR: Final = 16 * 1024
MOST_FRAMES: Final = 60
#: Seconds in which no function starts and awaits a process, so that nobody need ask for its children's CPU time.
SHORT: Final = 0.0002
#: Modules whose frames come before the function's own.
_MACHINERY: Final = frozenset(
    {
        __name__,
        "importlib",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "asyncio.runners",
        "asyncio.base_events",
    }
)

_LITERALS: Final = {None: b"null", True: b"true", False: b"false"}
_arguments: Final = msgspec.json.Decoder(list[Any])
_keywords: Final = msgspec.json.Decoder(dict[str, Any])


class Ending(NamedTuple):
    """How a function ended."""

    outcome: Outcome
    cause: Cause
    exit_code: int | None = None
    error: str = ""
    value: bytes = b""


class Failed(Exception):
    """The job failed for a reason other than its function's own error."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.ending = Ending(Outcome.FAILED, cause, error=message)


class Runner:
    """Takes orders until there are no more, or until it is worn out."""

    def __init__(
        self, page: Page, orders: socket.socket, bell: int | None, go: int, note_start: Callable[[str], None]
    ) -> None:
        """``bell``: None under a channel of an older version, which rings none."""
        self._page = page
        self._setup = page.setup()
        self._socket = orders
        self._inbox = Inbox(orders, socket.MSG_DONTWAIT)
        self._bell = bell
        self._any_order = select.poll()
        self._any_order.register(orders, select.POLLIN)
        self._go = go
        self._note_start = note_start
        self._functions: dict[str, Callable[..., Any]] = {}
        self._surroundings = Surroundings(self._setup)
        self._output = Output(page)
        self._usage = Usage(page)
        self._taken = 0
        self._usual_memory = 0
        self._is_fork = False
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def serve(self) -> None:
        """Run what comes, strictly one after another."""
        self._page.counts[Page.READY] = 1
        while self._run_what_is_there(self._hear()):
            pass

    def _hear(self) -> int:
        """How many orders were sent since the last time; waits for one. A signal that is handled does not end this."""
        if self._bell is None:
            self._any_order.poll()
            return 1
        return int.from_bytes(os.read(self._bell, 8), sys.byteorder)

    def _run_what_is_there(self, count: int) -> bool:
        """Up to so many orders; some may have been taken back. Whether there can be more."""
        for _ in range(count):
            try:
                message = self._inbox.receive()
            except BlockingIOError:
                break
            if not message or self._run(decode_task(message)):
                return False
        return True

    def _run(self, task: Task) -> bool:
        started, began = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        self._note(task, began)
        ending = self._call(task)
        if self._is_fork:
            _end_fork(ending)
        ended = time.clock_gettime(time.CLOCK_BOOTTIME)
        clean = sweep()
        self._surroundings.leave()
        self._output.settle()
        self._taken += 1
        cpu, peak_rss = self._usage.since_last(ended - began)
        last = not clean or self._taken >= self._setup.recycle or self._has_grown(peak_rss)
        printed = self._output.written()
        self._send(Answer(task.serial, *ending, started, ended, ended - began, cpu, peak_rss, printed, last))
        return last

    def _note(self, task: Task, began: float) -> None:
        failpoint("runner.start.before")
        if task.entry:
            self._note_start(task.entry)
        self._page.times[Page.STARTED] = began
        self._page.counts[Page.RUNNING] = task.serial
        failpoint("runner.start.registered")

    def _call(self, task: Task) -> Ending:
        try:
            function, args, kwargs = self._prepare(task)
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = _await(value)
            return Ending(Outcome.SUCCEEDED, Cause.EXIT, 0, "", self._encoded(value))
        except Failed as failed:
            return failed.ending
        except SystemExit as error:
            return _exited(error.code)
        except MemoryError as error:
            return Ending(Outcome.FAILED, Cause.OOM, error=describe(error))
        except BaseException as error:  # noqa: BLE001  also KeyboardInterrupt: nobody else's can arrive here
            return Ending(Outcome.FAILED, Cause.EXCEPTION, error=describe(error))

    def _prepare(self, task: Task) -> tuple[Callable[..., Any], list[Any] | tuple[()], dict[str, Any]]:
        try:
            self._surroundings.enter(task)
        except OSError as error:
            raise Failed(Cause.CWD, f"{error.filename}: cannot be entered: {error.strerror}") from None
        except ValueError as error:
            raise Failed(Cause.ARGV, f"its environment or directory cannot be: {error}") from None
        function = self._functions.get(task.function) or self._find(task.function)
        try:
            args = _arguments.decode(task.args) if task.args else ()
            kwargs = _keywords.decode(task.kwargs) if task.kwargs else {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f"its arguments are no JSON array and JSON object: {error}"
            raise Failed(Cause.UNREADABLE, message) from None
        return function, args, kwargs

    def _find(self, name: str) -> Callable[..., Any]:
        module, _, path = name.partition(":")
        if not module or not path:
            raise Failed(Cause.IMPORT, f"{name!r} is not of the form module:function")
        try:
            found: Any = import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001  a module may raise anything, SystemExit included
            invalidate_caches()  # so that the next attempt sees what is installed by then
            raise Failed(Cause.IMPORT, describe(error)) from None
        if not callable(found):
            raise Failed(Cause.IMPORT, f"{name} cannot be called: it is of type {type(found).__name__}")
        self._functions[name] = found
        return found  # type: ignore[no-any-return]

    def _encoded(self, value: object) -> bytes:
        if value is None or value is True or value is False:  # as frequent as cheap
            return _LITERALS[value]
        text = as_json(value)
        size, limit = len(text), self._setup.max_payload
        if size > limit:
            message = f"the return value has {size} bytes as JSON; at most {limit} are accepted (max_payload)"
            raise Failed(Cause.RESULT_TOO_LARGE, message)
        return text

    def _has_grown(self, peak: int) -> bool:
        if not self._usual_memory:
            self._usual_memory = _memory()  # after the first job: its modules are in
        if peak - self._usual_memory <= self._setup.memory:
            return False
        return _memory() - self._usual_memory > self._setup.memory

    def _send(self, answer: Answer) -> None:
        failpoint("runner.result.before")
        try:
            send(self._socket, encode(answer))
        except OSError as error:
            message = f"the runner cannot hand its result over: {error.strerror}"
            send(self._socket, encode(_without_value(answer, message)))
        failpoint("runner.result.after")
        if answer.printed and not os.read(self._go, 1):
            os._exit(0)  # the channel is gone, and nobody reads what an orderly end would print

    def _leave_to_parent(self) -> None:
        # A fork that returns from the function must neither answer for it nor take the next order.
        self._is_fork = True
        self._socket.close()
        if self._bell is not None:
            os.close(self._bell)
        os.close(self._go)


class Usage:
    """CPU time and memory of this process, job by job."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._own = _cpu(resource.getrusage(resource.RUSAGE_SELF))
        self._children = 0.0
        page.times[Page.SPENT] = self._own

    def since_last(self, duration: float) -> tuple[float, int]:
        """CPU seconds since the last question, finished children included, and the peak of resident bytes."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        own, spent = _cpu(usage), 0.0
        if duration > SHORT:
            children = _cpu(resource.getrusage(resource.RUSAGE_CHILDREN))
            spent, self._children = children - self._children, children
        spent += own - self._own
        self._own = own
        self._page.times[Page.SPENT] = own + self._children
        return spent, usage.ru_maxrss * 1024


def as_json(value: object) -> bytes:
    """What json.dumps makes of ``value``, but without NaN and infinities, which no JSON has. Raises Failed."""
    try:
        return _json_encoder().encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        kind = type(value).__name__
        raise Failed(Cause.RESULT_TYPE, f"the return value ({kind}) is not JSON: {error}") from None


def describe(error: BaseException) -> str:
    """The traceback as text, from the function's first frame on; of a long one the end."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _MACHINERY:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames, limit=-MOST_FRAMES))
    except Exception as second:  # noqa: BLE001  user code runs in there: __str__, __repr__, a loader's get_source
        text = f"{type(error).__name__} (it cannot be shown: {type(second).__name__})"
    text = text.encode("utf-8", "backslashreplace").decode().rstrip("\n")
    if len(text) <= LONGEST_ERROR:
        return text
    end = text[-LONGEST_ERROR:]
    end = end[end.find("\n") + 1 :]  # whole lines
    return f"({len(text) - len(end)} characters are left out)\n{end}"


_encoder: json.JSONEncoder | None = None


def _json_encoder() -> json.JSONEncoder:
    global _encoder
    if _encoder is None:
        import json

        _encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
    return _encoder


def _await(coroutine: CoroutineType[Any, Any, Any]) -> object:
    import asyncio

    return asyncio.run(coroutine)


def _exited(code: object) -> Ending:
    if code is None:
        code = 0
    if not isinstance(code, int):  # Python prints anything else and exits 1
        return Ending(Outcome.FAILED, Cause.EXIT, 1, error=describe(SystemExit(code)).removeprefix("SystemExit: "))
    if code & 0xFF == 0:
        return Ending(Outcome.SUCCEEDED, Cause.EXIT, 0, value=b"null")
    return Ending(Outcome.FAILED, Cause.EXIT, code & 0xFF)


def _end_fork(ending: Ending) -> None:
    """End a child that the function forked and that came back from it, as a script would end there."""
    try:
        sys.stdout.flush()
        sys.stderr.write(f"{ending.error}\n" if ending.error else "")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # closed by the function
    os._exit(ending.exit_code if ending.exit_code is not None else 1)


def _without_value(answer: Answer, message: str) -> Answer:
    return msgspec.structs.replace(
        answer, outcome=Outcome.FAILED, cause=Cause.RESOURCE, exit_code=None, error=message, value=b""
    )


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _memory() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _die_with(parent: int) -> None:
    """Be killed when the channel dies: nobody would read our answers."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def main() -> None:
    """``python -m jobschedd.slave.runner CHANNEL-PID REGISTER-OFFSET``, with the descriptors above open."""
    parent, offset = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would raise in whatever runs
    # The package may be newer than the channel that runs: it was upgraded, and the daemon not reloaded yet.
    bell = BELL if os.path.exists(f"/proc/self/fd/{BELL}") else None
    for fd in filter(None, (ORDERS, PAGE, GO, REGISTER, bell)):
        os.set_inheritable(fd, False)
    become_subreaper()
    page = Page(PAGE)
    setup = page.setup()
    os.umask(setup.umask)
    os.environ.pop("JOBSCHED_FAILPOINTS", None)  # they were for us, not for what functions start
    sys.path[:0] = setup.python_path
    sys.argv[1:] = []
    setproctitle(f"jobschedd: runner {setup.slot} of channel {setup.channel}")
    region = map_slot(REGISTER, offset)
    orders = socket.socket(fileno=ORDERS)
    runner = Runner(page, orders, bell, GO, lambda entry: write_start(region, 0, entry))
    faulthandler.enable()  # a segfault says where
    runner.serve()
    silence()


if __name__ == "__main__":
    main()
