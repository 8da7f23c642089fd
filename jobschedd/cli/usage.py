"""``usage``: what uses how much, in Redis and in the history."""

from __future__ import annotations

from collections.abc import Iterator

import click

from jobschedd.cli.context import connect, connection_options, json_option, note, print_json
from jobschedd.cli.render import print_table, size

#: Keys that one answer draws: enough for a percent or two.
_DRAWS, _ROUNDS = 1000, 5


@click.command("usage", short_help="Show what uses how much memory.")
@json_option
@connection_options
def usage_command(as_json: bool) -> None:
    """Show what uses how much in Redis, by kind, the budgets that are set, and how large the history is.

    \b
    Kinds: waiting, blocked (they wait for other jobs), active, finished (records of jobs; of these, finished-succeeded
    and finished-failed), output (live output), others by the name of their keys; foreign: keys of other namespaces
    and programs. Numbers of keys and bytes are estimates from samples.
    """
    from jobschedd.store.memory import Memory

    client = connect()
    memory = Memory(client.inspect.client, client.session.keys)
    used, maxmemory = memory.limits()
    measured = memory.usage()
    samples = [memory.sample(_DRAWS) for _ in range(_ROUNDS)]
    names = sorted({kind for sample in samples for kind in sample.kinds})
    kinds = {
        name: {
            "keys": round(sum(sample.keys_of(name) for sample in samples) / _ROUNDS),
            "bytes": round(sum(sample.bytes_of(name) for sample in samples) / _ROUNDS),
        }
        for name in names
    }
    if as_json:
        document = {
            "used": used,
            "maxmemory": maxmemory or None,
            "keys": samples[-1].keys,
            "kinds": kinds,
            "budgets": {name: number or None for name, number in measured.budgets.items()} if measured else {},
            "full": measured.full or None if measured else None,
            "history": measured.history or None if measured else None,
            "history_bytes": measured.history_bytes if measured else None,
        }
        print_json(document)
        return
    budgets = measured.budgets if measured else {}
    print_table(("KIND", "KEYS", "BYTES", "BUDGET"), _rows(kinds, budgets))
    limit = f" of {size(maxmemory)} (maxmemory)" if maxmemory else ", no maxmemory"
    click.echo(f"Redis: {size(used)} in use{limit}")
    if measured and measured.history:
        click.echo(f"history: {size(measured.history_bytes)} in {measured.history}")
    if measured and measured.full:
        note(f"queue full: {measured.full}")


def _rows(kinds: dict[str, dict[str, int]], budgets: dict[str, int]) -> Iterator[tuple[str, ...]]:
    for name, row in sorted(kinds.items(), key=lambda item: -item[1]["bytes"]):
        limit = budgets.get("pending" if name == "waiting" else name.removeprefix("finished-"), 0)
        yield name, str(row["keys"]), size(row["bytes"]), size(limit) if limit else ""
