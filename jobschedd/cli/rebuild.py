"""``rebuild``: the way on after Redis has lost data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from jobschedd.cli.context import connect, connection_options, note
from jobschedd.errors import JobschedError, StoreUnavailable

if TYPE_CHECKING:
    from jobschedd.store.marks import Loss

#: Seconds that a master may take to do it; and to notice, where it did not yet.
PATIENCE = 60.0
_POLL = 0.1


class NotCarriedOut(JobschedError):
    """No master did what was ordered."""

    exit_code = 75


def ways_out(loss: Loss) -> str:
    """What an operator may do, in one line."""
    return (
        "restore Redis' data and restart it (all is well once they are back); or 'jobsched rebuild': brings back what "
        f"the nodes and the history of {loss.by} know; or 'jobsched rebuild --accept-loss': starts afresh without it"
    )


@click.command("rebuild", short_help="Go on after Redis has lost data.")
@click.option("--accept-loss", is_flag=True, help="Bring nothing back: start afresh.")
@connection_options
def rebuild_command(accept_loss: bool) -> None:
    """Go on after Redis has lost data: emptied, replaced, or gone back to an older copy ('jobsched doctor' tells).

    \b
    Comes back: jobs that run, that have ended on a node and were not collected, or that a node has received;
    what had ended is not run again; no id is given twice.
    Is lost: jobs that no node had yet (pending, scheduled), unless an older copy of the data still has them;
    how often a job had failed; drains.

    With --accept-loss nothing comes back: running jobs end, and their results stay in files on their nodes. What an
    older copy holds goes on from there, and may run again.
    """
    from jobschedd.store.marks import ACCEPT, REBUILD, Marks

    client = connect()
    client.session.reach()
    marks = Marks(client.session.inspect.client, client.session.keys)
    loss = marks.loss()
    if loss is None:
        raise JobschedError("nothing is lost, as far as the masters know: there is nothing to rebuild")
    marks.order(ACCEPT if accept_loss else REBUILD)
    _await_end(marks.loss, loss)
    if accept_loss:
        note("started afresh; ids go on above the highest that was known")
        return
    done = marks.restored()
    click.echo(f"{done.get('restored', '0')} jobs restored from nodes, {done.get('settled', '0')} known to have ended")


def _await_end(read: Callable[[], Loss | None], loss: Loss) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if read() is None:
                return
        except StoreUnavailable:
            pass  # the order is given; until the deadline Redis may come back
        time.sleep(_POLL)
    raise NotCarriedOut(
        f"ordered, but not carried out within {PATIENCE:.0f} s: is the master on {loss.by} up? It knows most"
    )
