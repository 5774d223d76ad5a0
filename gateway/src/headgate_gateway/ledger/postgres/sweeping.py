"""What was archived leaves the database, a little at a time. May import schema and psycopg.

The last row of each table and chain stays, because what comes next is numbered and placed from it. Windows are
numbered by a sequence, and no batch reads one that has ended and holds nothing.
"""

from __future__ import annotations

from typing import Final

import psycopg

from headgate_gateway.crashpoints import reach
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.postgres import schema

_COVERED: Final = "WITH covered AS (SELECT covers, max(until) AS until FROM archives GROUP BY covers), "


def _of_chains(table: str, number: str, batch: str) -> bytes:
    """The oldest rows of each chain."""
    first = f"SELECT chain, {number} AS number, {batch} AS batch FROM {table} WHERE chain = covers"  # noqa: S608
    return (
        f"{_COVERED} due AS (SELECT r.* FROM covered, LATERAL ({first} ORDER BY {number} LIMIT %s) AS r "  # noqa: S608
        f"WHERE r.batch <= until) DELETE FROM {table} AS t USING due "
        f"WHERE t.chain = due.chain AND t.{number} = due.number "
        f"AND t.{number} < (SELECT max({number}) FROM {table} WHERE chain = due.chain)"
    ).encode()


def _of_all(table: str, number: str) -> bytes:
    """The oldest rows of all chains together."""
    return (
        f"{_COVERED} due AS (SELECT {number} AS number FROM {table} ORDER BY {number} LIMIT %s) "  # noqa: S608
        f"DELETE FROM {table} AS t USING due, covered WHERE t.{number} = due.number AND t.chain = covers "
        f"AND t.batch <= until AND t.{number} < (SELECT max({number}) FROM {table})"
    ).encode()


_SWEEPS: Final = (
    _of_chains("usage_records", "seq", "batch"),
    _of_chains("voids", "seq", "batch"),
    _of_all("audit_log", "id"),
    _of_all("seals", "seq"),
    _of_chains("links", "number", "number"),  # last of history: whoever finds none knows that all went
    (
        b"DELETE FROM windows WHERE id IN (SELECT id FROM windows WHERE held = 0 AND end_us <= "
        b"(SELECT max(until_us) FROM archives) - %d ORDER BY id LIMIT %%s)" % rows.LATE_US
    ),
)


def sweep(db: psycopg.Connection, limit: int) -> int:
    """Delete at most so many rows of a chain, oldest first; returns how many went. One node at a time does."""
    if db.execute("SELECT FROM archives LIMIT 1").fetchone() is None:
        return 0
    for statement in _SWEEPS:
        with db.transaction():
            alone = db.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", schema.SWEEP_LOCK).fetchone()
            if alone != (True,):
                return 0
            gone = db.execute(statement, (limit,)).rowcount
            reach("ledger.in_sweep")
        if gone:
            reach("ledger.swept")
            return gone
    return 0
