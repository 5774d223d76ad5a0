"""What is read without locks: answers that no money depends on. May import this room's modules.

Who a key speaks for, what became of an idempotency key, which prices are in force, what is open, what other nodes
changed. A reader has a session of its own and is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import psycopg

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Head
from headgate_gateway.ledger.core import principal_of
from headgate_gateway.ledger.postgres import arrays
from headgate_gateway.ledger.postgres.session import ConnectionLost, Line, meaning
from headgate_gateway.ledger.postgres.slices import Directory, Gap, Prices, Slice, Wanted
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.store.contract import StoreFailed
from headgate_gateway.ledger.tracing import trace

ENTRIES: Final = 1000
"""Entries of the audit log that are looked at at once."""

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What an entry of the audit log tells other nodes."""

    action: str
    target: str


class Reader:
    """Asks the database.

    Args:
        url: The database.
        node: Whose open requests `of_incarnation` and `incarnations` look for.
        clock: For waits. With `local_time` it also stands in for the database's clock.
        local_time: Take the time from `clock`, so that a test can move it.
    """

    def __init__(self, url: str, node: str, clock: Clock, *, local_time: bool = False) -> None:
        self.line = Line(url, clock)
        self._node = node
        self._clock = clock
        self._local_time = local_time
        self._prices = Prices()
        self.directory = Directory()

    def close(self) -> None:
        """End the session."""
        self.line.close()

    def read(self, read: Callable[[psycopg.Connection], T]) -> T:
        """Ask the database, once more when the connection turns out to be dead.

        Raises:
            StoreFailed: It cannot be asked.
        """
        for again in (True, False):
            try:
                db = self.line.connection()
                with self.line.asking():
                    try:
                        return read(db)
                    except psycopg.Error as error:
                        raise meaning(error, db) from error
            except ConnectionLost as error:
                if not again:
                    raise StoreFailed(f"the connection to PostgreSQL broke: {error}") from error
        raise AssertionError

    # -- what workers ask

    def identify(self, digest: bytes) -> tuple[Principal | None, int | None]:
        """Who a digest speaks for now, and until when.

        Raises:
            StoreFailed: The database cannot be asked.
        """

        def read(db: psycopg.Connection) -> tuple[Principal | None, int | None]:
            row = db.execute("SELECT id FROM api_keys WHERE digest = %s", (digest,)).fetchone()
            if row is None:
                return None, None
            state, _ = self._view(db, Wanted(keys={row[0]}))
            key = state.keys.get(row[0])
            if key is None or not state.alive(key):
                return None, None
            return principal_of(key), key.ends_us

        return self.read(read)

    def trace(self, op: wire.Trace) -> wire.Trail | wire.Denied:
        """What became of the request behind an idempotency key.

        Raises:
            StoreFailed: The database cannot be asked.
        """

        def read(db: psycopg.Connection) -> wire.Trail | wire.Denied:
            wanted = Wanted(keys={op.key_id})
            self.directory.learn(db, wanted.keys)
            path = self.directory.path(op.key_id)
            if len(path) > 1:
                row = db.execute(
                    "SELECT request_id FROM claims WHERE project = %s AND key = %s", (path[1], op.claim)
                ).fetchone()
                if row is not None:
                    wanted.requests.add(row[0])
                    wanted.keys |= set(_keys_of(db, [row[0]]).values())
            state, gap = self._view(db, wanted)
            return trace(op, state, gap)

        return self.read(read)

    def prices(self) -> list[PriceVersion]:
        """Every price in force, and what is planned.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        return self.read(lambda db: self._view(db, Wanted()))[0].prices.ahead

    # -- what the process itself asks

    def now_us(self) -> int:
        """The ledger's time."""
        return self.read(lambda db: self._view(db, Wanted()))[0].now_us

    def keys_of(self, requests: Iterable[str]) -> dict[str, str]:
        """The keys of open requests."""
        wanted = list(requests)
        return self.read(lambda db: _keys_of(db, wanted))

    def learn(self, ids: Iterable[str]) -> None:
        """Teach the directory these accounts."""
        wanted = list(ids)
        self.read(lambda db: self.directory.learn(db, wanted))

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of one of this node's workers."""
        return self.first(
            "SELECT request_id FROM holds WHERE node = %s AND incarnation = %s", self._node, incarnation
        )

    def incarnations(self) -> set[str]:
        """Lives of this node's workers that have open requests."""
        return set(self.first("SELECT DISTINCT incarnation FROM holds WHERE node = %s", self._node))

    def first(self, sql: str, *given: object) -> list[str]:
        """The first column of what a query finds."""
        return self.read(lambda db: [row[0] for row in db.execute(sql.encode(), given)])

    def last_entry(self) -> int:
        """The number of the newest entry of the audit log. Numbers have no gaps, whoever wrote them."""
        (number,) = self.first("SELECT coalesce(max(id), 0)::text FROM audit_log")
        return int(number)

    def entries(self, after: int, chains: Iterable[int]) -> tuple[int, list[Entry]]:
        """Entries that follow `after` and were written by others than `chains`, and the number they reach to."""
        own = set(chains)
        rows = self.read(
            lambda db: db.execute(
                "SELECT id, chain, action, target FROM audit_log WHERE id > %s ORDER BY id LIMIT %s",
                (after, ENTRIES),
            ).fetchall()
        )
        last = rows[-1][0] if rows else after
        return last, [Entry(action, target) for _, chain, action, target in rows if chain not in own]

    def _view(self, db: psycopg.Connection, wanted: Wanted) -> tuple[State, Gap]:
        """A slice without locks."""
        self.directory.learn(db, wanted.keys)
        with db.pipeline():
            part = Slice(db, wanted, self.directory, self._prices)
            now = db.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        row = now.fetchone()
        assert row is not None
        state = part.state(Head())
        state.begin(self._clock.now_us() if self._local_time else row[0])
        return state, part.gap


def _keys_of(db: psycopg.Connection, requests: Iterable[str]) -> dict[str, str]:
    return dict(
        db.execute(
            "SELECT request_id, key_id FROM holds WHERE request_id = ANY(%s::text[])", (arrays.texts(requests),)
        ).fetchall()
    )
