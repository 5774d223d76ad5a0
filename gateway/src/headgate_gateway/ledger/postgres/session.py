"""Connections to PostgreSQL, and what their errors mean. May import the store's contract and schema.

A node that freezes between a lock and COMMIT must not freeze the others: every session bounds how long it waits
for a lock, how long a statement runs, how long a transaction may stand idle and how long TCP may stay silent.
Where the server itself is frozen none of its bounds runs; then whoever watches a `Line` hangs it up from outside.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator
from typing import Any, Final

import psycopg

from headgate_gateway.domain.clock import Clock
from headgate_gateway.ledger.postgres import schema
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


class Line:
    """One session, opened when it is first needed and again when it broke. Used by one thread at a time.

    Args:
        url: The database.
        clock: Tells how long an answer has been awaited.
        bounds: What the session is opened with.
    """

    def __init__(self, url: str, clock: Clock, bounds: str = _OPTIONS) -> None:
        self._url = url
        self._bounds = bounds
        self._clock = clock
        self._db: psycopg.Connection | None = None
        self._asked_at: float | None = None
        self.ended = False
        """No session will be opened any more."""

    def connection(self) -> psycopg.Connection:
        """The session.

        Raises:
            StoreFailed: The database cannot be reached.
            ConnectionLost: It could, and then could not any more.
            WrongSchema: It has another schema than this code.
        """
        if self.ended:
            raise StoreFailed("the ledger is stopping")
        if self._db is None or self._db.closed:
            self._db = connect(self._url, self._bounds)
            with self.asking():
                try:
                    schema.check(self._db)
                except psycopg.Error as error:
                    raise meaning(error, self._db) from error
        return self._db

    @contextlib.contextmanager
    def asking(self) -> Generator[None]:
        """While this lasts, an answer is awaited."""
        self._asked_at = self._clock.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    def hang_up(self, after_s: float) -> None:
        """Break the session, from another thread, when an answer has been awaited for longer than `after_s`."""
        db, asked_at = self._db, self._asked_at
        if db is None or asked_at is None or self._clock.monotonic() - asked_at < after_s:
            return
        # Whoever waits may close the session meanwhile: then there is nothing left to break.
        with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(db.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Break the session, from another thread, and open none any more."""
        self.ended = True
        self.hang_up(0.0)

    def close(self) -> None:
        """End the session."""
        if self._db is not None:
            self._db.close()
