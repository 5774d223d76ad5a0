"""What was archived leaves the store on SQLite, a little at a time. May import schema and recent.

The last row of each table stays, because what comes next is numbered from it.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Final

from headgate_gateway.crashpoints import reach
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.store import schema
from headgate_gateway.ledger.store.recent import Recent

_SWEEPS: Final = [
    f"DELETE FROM {table} WHERE {number} IN (SELECT {number} FROM {table} ORDER BY {number} LIMIT ?) "  # noqa: S608
    f"AND {schema.batch_of(table)} <= ? AND {number} < (SELECT max({number}) FROM {table})"
    for table, number in zip(rows.LEAVING, ("seq", "seq", "id", "rowid", "number"), strict=True)
]
"""Delete the oldest rows that were archived; links last, so that whoever finds none knows that all went."""

_WINDOWS: Final = (
    "SELECT id FROM windows WHERE end_us <= ? AND held = 0 AND id < (SELECT max(id) FROM windows) LIMIT ?"
)


def sweep(db: sqlite3.Connection, limit: int, ring: Recent) -> int:
    """Delete at most so many rows; returns how many went.

    Args:
        db: The ledger's connection.
        limit: How many.
        ring: Knows which windows have changes that are not in their table yet.
    """
    until, until_us = db.execute("SELECT coalesce(max(until), 0), max(until_us) FROM archives").fetchone()
    for oldest in _SWEEPS if until else ():
        reach("ledger.in_sweep")
        if gone := db.execute(oldest, (limit, until)).rowcount:
            reach("ledger.swept")
            return gone
    if not until:
        return 0
    ended = [id_ for (id_,) in db.execute(_WINDOWS, (until_us - rows.LATE_US, limit)) if not ring.awaits(id_)]
    if ended:  # as one statement: each is a transaction, which is synced
        db.execute("DELETE FROM windows WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ended),))
    return len(ended)
