"""What is new for consumers, and whose turn it is, among nodes, to hand it over. May import lookout and session.

A turn is an advisory lock of a session that only reads: it goes to another node when its holder ends, is cut off,
or says nothing for `SILENT_S`. Then two may hand the same records over for a moment, which consumers must bear
anyway; where a consumer has come to is the cursor's to say, never the turn's.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Final

import psycopg

from headgate_gateway.domain.clock import Clock
from headgate_gateway.ledger.lookout import CURSORS, View
from headgate_gateway.ledger.postgres.schema import POSITION_FROM
from headgate_gateway.ledger.postgres.session import ConnectionLost, Line, meaning
from headgate_gateway.ledger.store.contract import StoreFailed, StoreRefused

SILENT_S: Final = 15
"""After how long without a word the server ends a session, and with it its turns."""

HORIZON: Final = f"SELECT ({POSITION_FROM}) + pg_snapshot_xmin(pg_current_snapshot())::text::bigint * 256"
"""Before this place nothing can be added any more: the oldest transaction in progress comes after it."""

LAST: Final = f"SELECT coalesce(max(position), 0) FROM usage_records WHERE position < ({HORIZON})"  # noqa: S608
"""The place of the last record before that."""

_TURN: Final = 0x48_49
"""First half of the advisory locks of turns; the second is a digest of the consumer's name."""

_BOUNDS: Final = (
    "-c default_transaction_read_only=on -c timezone=UTC -c client_encoding=UTF8 -c jit=off "
    "-c statement_timeout=5s"
)
_END_WHEN_SILENT: Final = (
    "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = 'idle_session_timeout'"
)
"""Servers before version 14 cannot."""


class PostgresLookout:
    """See `lookout.Lookout`. Its turns are those of the process.

    Args:
        url: The database.
        clock: Tells how long an answer has been awaited.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._line = Line(url, clock, _BOUNDS)
        self._session: psycopg.Connection | None = None
        self._mine: set[str] = set()

    def look(self, consumers: Collection[str]) -> View:
        """See `lookout.Lookout`; takes the turns that are free."""
        try:
            db = self._line.connection()
            with self._line.asking():
                try:
                    return self._look(db, consumers)
                except psycopg.Error as error:
                    raise meaning(error, db) from error
        except (ConnectionLost, StoreRefused) as error:
            raise StoreFailed(str(error)) from error

    def _look(self, db: psycopg.Connection, consumers: Collection[str]) -> View:
        if db is not self._session:
            self._session = db
            self._mine.clear()
            db.execute(_END_WHEN_SILENT, (f"{SILENT_S}s",))
        for consumer in consumers:
            if consumer not in self._mine:
                lock = (_TURN, zlib.crc32(consumer.encode()) - 2**31)
                if db.execute("SELECT pg_try_advisory_lock(%s, %s)", lock).fetchone() == (True,):
                    self._mine.add(consumer)
        cursors = {name: (position, epoch) for name, position, epoch in db.execute(CURSORS)}
        (last,) = db.execute(LAST.encode()).fetchone() or (0,)
        return View(last, cursors, frozenset(self._mine))

    def hang_up(self) -> None:
        """See `lookout.Lookout`: a frozen server keeps no limit itself."""
        self._line.hang_up(0.0)

    def close(self) -> None:
        """See `lookout.Lookout`."""
        self._line.close()
