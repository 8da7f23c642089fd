"""One delivery of one event: a command on this machine, a webhook, or a job. It blocks, within bounds."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from jobschedd.config import HookConfig
from jobschedd.errors import InvalidJob, JobschedError
from jobschedd.store.moves import Moves, OperationSlot
from jobschedd.submission import submission
from jobschedd.version import VERSION

#: Who submits the jobs of hooks: their ends are no events, or a hook could set itself off for ever.
SUBMITTER = "hook:"
#: Bytes of a command's complaints, and of a webhook's answer, that are looked at.
_TAIL, _ANSWER = 500, 64 * 1024


class DeliveryFailed(JobschedError):
    """It was not taken; it may be another time."""


class Deliverer:
    """Of one hook. Used by one thread."""

    def __init__(self, hook: HookConfig, moves: Moves) -> None:
        self._hook = hook
        self._moves = moves
        self._slot = OperationSlot(secrets.token_hex(8))
        self._opener: urllib.request.OpenerDirector | None = None

    def deliver(self, event: str, payload: bytes) -> None:
        """Raises DeliveryFailed, and StoreUnavailable where a job cannot be submitted."""
        if self._hook.command:
            self._run(event, payload)
        elif self._hook.webhook is not None:
            self._post(self._hook.webhook.reveal(), event, payload)
        else:
            self._submit(event, payload)

    # -- a job ------------------------------------------------------------------------------------------------

    def _submit(self, event: str, payload: bytes) -> None:
        item: dict[str, Any] = {
            "command": list(self._hook.job),
            "name": f"hook-{self._hook.name}",
            "submitter": SUBMITTER + self._hook.name,
            "stdin": payload,
            "key": f"hook:{self._hook.name}:{event}",  # delivered twice, it is the same job
        }
        if self._hook.job_channel:
            item["channel"] = self._hook.job_channel
        self._slot.sequence += 1
        try:
            self._moves.submit([submission(item)], self._slot)
        except InvalidJob as error:
            raise DeliveryFailed(f"no such job can be: {error}") from error

    # -- a command --------------------------------------------------------------------------------------------

    def _run(self, event: str, payload: bytes) -> None:
        with open(os.memfd_create("event"), "w+b") as stdin:
            stdin.write(payload)
            stdin.seek(0)
            try:
                process = _spawn(self._hook.command, stdin.fileno(), event, self._hook.name)
            except OSError as error:
                raise DeliveryFailed(f"cannot start {self._hook.command[0]}: {error.strerror}") from error
        try:
            said = _complaints(process, time.monotonic() + self._hook.timeout)
        finally:
            # Whatever it started goes with it, and so does what did not end in time.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == -signal.SIGKILL and said is None:
            raise DeliveryFailed(f"it did not end within {self._hook.timeout:g} s")
        if process.returncode != 0:
            raise DeliveryFailed(f"it ended with {process.returncode}: {said or 'no word of why'}")

    # -- a webhook --------------------------------------------------------------------------------------------

    def _post(self, url: str, event: str, payload: bytes) -> None:
        """No redirects: what is not the endpoint that was configured is told nothing."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jobschedd/{VERSION}",
            "X-Jobsched-Event": event,
        } | self._authorization()
        host = urlsplit(url).hostname
        try:
            self._opener = self._opener or _opener(self._hook.ca_file)
            request = urllib.request.Request(url, payload, headers)  # noqa: S310 - http and https, as checked
            with self._opener.open(request, timeout=self._hook.timeout) as answer:
                answer.read(_ANSWER)
        except urllib.error.HTTPError as error:
            error.close()
            raise DeliveryFailed(f"{host} answered {error.code}") from None
        except (OSError, HTTPException, ValueError) as error:
            self._opener = None  # the next try reads the certificates anew
            raise DeliveryFailed(f"{host} cannot be reached: {_reason(error)}") from None

    def _authorization(self) -> dict[str, str]:
        if self._hook.token is not None:
            return {"Authorization": f"Bearer {self._hook.token.reveal()}"}
        if self._hook.token_file is None:
            return {}
        try:
            with open(self._hook.token_file, encoding="utf-8") as file:
                return {"Authorization": f"Bearer {file.readline().strip()}"}
        except (OSError, UnicodeDecodeError) as error:
            raise DeliveryFailed(f"cannot read {self._hook.token_file}: {type(error).__name__}") from None


def _opener(ca_file: str | None) -> urllib.request.OpenerDirector:
    """Certificates are verified. Reading all that are trusted takes a while, so it is kept."""
    context = ssl.create_default_context(cafile=ca_file)
    return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))


def _reason(error: Exception) -> str:
    """What the system or the TLS library says; not the error's other words, which may hold the URL, a secret."""
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "verify_message", "") or getattr(cause, "strerror", "") or type(cause).__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _spawn(command: tuple[str, ...], stdin: int, event: str, hook: str) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "JOBSCHED_EVENT": event,
        "JOBSCHED_HOOK": hook,
    }
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a child inherits it, and could not be terminated
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _complaints(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """The end of what it writes to its standard error, once it has ended; None where it does not in time."""
    assert process.stderr is not None
    said = b""
    with process.stderr as pipe:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return None
            said = (said + _read(pipe.fileno(), 0.1))[-_TAIL:]
        while more := _read(pipe.fileno(), 0.0):
            said = (said + more)[-_TAIL:]
    return said.decode(errors="replace").strip()


def _read(descriptor: int, patience: float) -> bytes:
    readable, _, _ = select.select([descriptor], [], [], patience)
    return os.read(descriptor, 65536) if readable else b""
