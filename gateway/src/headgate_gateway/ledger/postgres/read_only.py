"""Sessions that only read: for usage queries and audits, beside the ledger's. May import session and schema."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Generator
from typing import Final

import psycopg

from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.session import connect

GRACE_S: Final = 2.0
"""How much longer than its own limit a session may be silent: then the server itself is frozen."""


class TooLong(Exception):
    """What was read took longer than its session lasts."""


@contextlib.contextmanager
def read_only(url: str, limit_s: float) -> Generator[psycopg.Connection]:
    """A read-only session in autocommit, for at most `limit_s` seconds.

    Raises:
        StoreFailed: The database cannot be reached.
        WrongSchema: It was not migrated, or is not for this program.
        TooLong: The limit was reached.
        psycopg.Error: Anything else that the database does not like.
    """
    limit_ms = int(limit_s * 1000)
    bounds = (
        "-c default_transaction_read_only=on -c timezone=UTC -c client_encoding=UTF8 -c jit=off "
        f"-c statement_timeout={limit_ms} -c lock_timeout={limit_ms} "
        f"-c idle_in_transaction_session_timeout={limit_ms}"
    )
    with contextlib.closing(connect(url, bounds)) as db, _hung_up_after(db, limit_s + GRACE_S) as hung_up:
        try:
            schema.check(db)
            yield db
        except psycopg.errors.QueryCanceled:
            raise TooLong(f"it took longer than {limit_s:g} s") from None
        except psycopg.OperationalError:
            if hung_up.is_set():
                raise TooLong(f"the database was silent for {limit_s:g} s") from None
            raise


@contextlib.contextmanager
def _hung_up_after(db: psycopg.Connection, seconds: float) -> Generator[threading.Event]:
    """Break the connection when it is still in use by then: a frozen server keeps no limit itself."""
    wire = socket.socket(fileno=os.dup(db.fileno()))
    hung_up = threading.Event()

    def hang_up() -> None:
        hung_up.set()
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield hung_up
    finally:
        timer.cancel()
        timer.join()
        wire.close()
