"""Connections to PostgreSQL, and what their errors mean. May import the store's contract.

A node that freezes between a lock and COMMIT must not freeze the others: every session bounds how long it waits
for a lock, how long a statement runs, how long a transaction may stand idle and how long TCP may stay silent.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from headgate_gateway.ledger.store.contract import StoreFailed, StoreRefused

CONNECT_S: Final = 5

_OPTIONS: Final = (
    "-c synchronous_commit=on -c lock_timeout=2s -c statement_timeout=5s "
    "-c idle_in_transaction_session_timeout=2s -c timezone=UTC -c client_encoding=UTF8 "
    "-c default_transaction_isolation=read\\ committed -c jit=off"
)
_TCP: Final[dict[str, Any]] = {
    "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 1, "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}  # fmt: skip


class ConnectionLost(Exception):
    """The connection broke under a statement; whether it took effect depends on the statement."""


def connect(url: str, bounds: str = _OPTIONS) -> psycopg.Connection:
    """A session with its bounds set, in autocommit: transactions are begun and ended in words.

    Raises:
        StoreFailed: The database cannot be reached.
    """
    try:
        db = psycopg.connect(
            url, autocommit=True, connect_timeout=CONNECT_S, application_name="headgate", options=bounds, **_TCP
        )
    except psycopg.Error as error:
        raise StoreFailed(f"PostgreSQL cannot be reached: {_text(error)}") from error
    db.prepare_threshold = 0
    return db


def meaning(error: psycopg.Error, db: psycopg.Connection) -> Exception:
    """The error in the ledger's words; the connection is back outside any transaction, or closed."""
    if not db.closed:
        try:
            db.execute("ROLLBACK", prepare=False)
        except psycopg.Error:
            db.close()
    if isinstance(error, psycopg.IntegrityError | psycopg.DataError) and not db.closed:
        return StoreRefused(_text(error))
    if db.closed or error.sqlstate is None or error.sqlstate[:2] in ("57", "08"):
        if error.sqlstate == "57014" and not db.closed:  # a statement that took too long
            return StoreFailed(_text(error))
        db.close()
        return ConnectionLost(_text(error))
    return StoreFailed(f"PostgreSQL: {_text(error)}")


def _text(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0]
