"""Messages to the service manager (sd_notify), with nothing but a socket; without one, all of it is silent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

from jobschedd.logs import get_logger, printable

log = get_logger(__name__)

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Speaks to the service manager that started this process, if there is one.

    ``watchdog_interval`` is how often (seconds) ``watchdog()`` should be called; None: no watchdog wanted.
    """

    def __init__(self, address: str | None = None, watchdog_usec: int | None = None) -> None:
        self._address = address
        self._watchdog_usec = watchdog_usec
        self._failing = False
        self._status = ""
        self.watchdog_interval = watchdog_usec / 1_000_000 / 3 if watchdog_usec else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take the variables out of the environment: no child or job may ever speak in our name."""
        address, usec, pid = (environment.pop(name, "") for name in _VARIABLES)
        ours = not pid or pid == str(os.getpid())
        return cls(address or None, int(usec) if ours and usec.isdecimal() and int(usec) else None)

    def environment(self) -> dict[str, str]:
        """The variables again, for a process that takes our place under the same pid."""
        if self._address is None:
            return {}
        usec = {"WATCHDOG_USEC": str(self._watchdog_usec)} if self._watchdog_usec else {}
        return {"NOTIFY_SOCKET": self._address, **usec, **({"WATCHDOG_PID": str(os.getpid())} if usec else {})}

    def ready(self, status: str) -> None:
        self._status = status
        self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """Must be followed by ``ready``; the time lets the manager match the two."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}", _status_line("reloading"))

    def stopping(self, status: str) -> None:
        self._status = status
        self._send("STOPPING=1", _status_line(status))

    def status(self, status: str) -> None:
        """Show ``status`` in ``systemctl status``; repeated equal ones are not sent."""
        if status != self._status:
            self._status = status
            self._send(_status_line(status))

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for ``seconds`` from now before the stop counts as hung."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # "@name" stands for the abstract socket "\0name".
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            # One socket a message: nothing to preserve across forks, closed descriptors and a re-exec.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode("utf-8", "replace"), address)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("cannot reach the service manager", socket=self._address, cause=error)
            self._failing = True


def _status_line(status: str) -> str:
    return f"STATUS={printable(status)}"
