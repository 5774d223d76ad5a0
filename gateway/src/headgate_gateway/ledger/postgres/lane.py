"""A lane: one connection, one chain, one transaction after another. May import slices, writing, session, state.

A batch is two round trips. The first begins the transaction, claims the batch's number, locks the organizations
in the order of their ids and reads the slice; statements see what was committed when they run, so what follows
the locks reads what the locks protect. The second writes and commits.

When the connection breaks under COMMIT nobody knows whether it took effect. The same operations then run again
under the same number: the database makes that wait for the old transaction's end, and if that one had committed
the number is taken, with the token of the attempt whose replies hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psycopg

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.clock import Clock
from headgate_gateway.ledger import rows, wire
from headgate_gateway.ledger.book import Head
from headgate_gateway.ledger.chain import next_link
from headgate_gateway.ledger.postgres import arrays, schema
from headgate_gateway.ledger.postgres.node import Node
from headgate_gateway.ledger.postgres.session import ConnectionLost, Line, meaning
from headgate_gateway.ledger.postgres.slices import (
    Directory,
    Prices,
    Slice,
    Wanted,
    organizations,
)
from headgate_gateway.ledger.postgres.writing import Statement, write, write_link
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.store.contract import StoreBroken, StoreFailed

ATTEMPTS: Final = 3
"""How often a batch is tried whose connection broke before COMMIT."""

UNSURE_S: Final = 10.0
"""How long the outcome of a COMMIT is asked for; then the process must end, and its successor asks."""

RECONNECT_S: Final = 0.1

WINDOW_BLOCK: Final = 65536
"""Numbers of windows that a lane reserves at once; the sequence's increment."""

WINDOWS_A_BATCH: Final = 4096
"""More than one batch can open: 64 operations, three accounts each, seven kinds of budget."""

_log = logging.getLogger(__name__)

Rules = Callable[[State], list[wire.Reply]]
Prepare = Callable[[psycopg.Connection], Wanted]


class Fenced(StoreBroken):
    """Another process took this node's place, or others gave it up for lost."""


class _Unsure(Exception):
    """The connection broke under COMMIT."""


@dataclass
class _Attempt:
    """What a COMMIT of unknown outcome would have made true."""

    replies: list[wire.Reply]
    head: Head


class Lane:
    """Runs batches of some organizations, one at a time.

    Args:
        url: The database.
        node: Whose lane it is.
        number: Which of the node's lanes.
        key: The chain's key, see `chain.chain_key`.
        prices: Price versions as this lane has read them; not shared between threads.
        directory: Immutable facts; the same.
        clock: For waits. With `local_time` it also stands in for the database's clock.
        head_file: Where the chain's last link is noted outside the database.
        heads: The last links of all the node's chains, as far as they were noted; shared by its lanes.
        salt: See `State`.
        local_time: Take the time from `clock`, so that a test can move it.
    """

    def __init__(
        self, url: str, node: Node, number: int, key: bytes, clock: Clock, head_file: Path,
        heads: dict[int, tuple[int, bytes]], salt: Callable[[], bytes], *, local_time: bool = False,
    ) -> None:  # fmt: skip
        self.line = Line(url, clock)
        self.node = node
        self._chain = node.chains[number]
        self._key = chain_key_of(key, self._chain)
        self._clock = clock
        self._salt = salt
        self._local_time = local_time
        self._heads = heads
        self._head_fd = os.open(head_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._head: Head | None = None
        self._session: psycopg.Connection | None = None
        self._last_window = 0
        self._unsure: dict[str, _Attempt] = {}
        self._pause = threading.Event()
        self.failing = False
        """Whether the last batch could not be taken."""
        self.prices = Prices()
        self.directory = Directory()

    def close(self) -> None:
        """End the session."""
        self.line.close()
        os.close(self._head_fd)

    # -- batches

    def run(self, prepare: Prepare, rules: Rules, *, admin: bool = False) -> list[wire.Reply]:
        """Run rules on a slice and commit what they change.

        Args:
            prepare: Says what the slice must have, after teaching the directory.
            rules: Changes the state; runs again from a fresh slice when an attempt came to nothing.
            admin: Take the lock of administration first, and number limits and audit entries.

        Raises:
            StoreFailed: Nothing was committed, nothing of it can be at present.
            StoreRefused: Nothing of it was committed nor ever can be.
            StoreBroken: Nobody can say whether it was committed, or the node was shut out.
        """
        until = self._clock.monotonic() + UNSURE_S
        tries = 0
        while True:
            try:
                return self._attempt(prepare, rules, admin=admin)
            except (_Unsure, StoreFailed, ConnectionLost) as error:
                self.prices.forget()
                if not self._unsure:
                    tries += 1
                    if isinstance(error, StoreFailed):
                        raise
                    if tries >= ATTEMPTS:
                        raise StoreFailed(f"the connection to PostgreSQL broke: {error}") from error
                elif self.line.ended or self._clock.monotonic() > until:
                    raise StoreBroken(f"whether a batch was committed cannot be found out: {error}") from error
                self._pause.wait(RECONNECT_S)
            except Exception as error:
                self.prices.forget()
                if self._unsure and not isinstance(error, StoreBroken):
                    raise StoreBroken(f"whether a batch was committed cannot be found out: {error}") from error
                raise

    def _attempt(self, prepare: Prepare, rules: Rules, *, admin: bool) -> list[wire.Reply]:
        db = self.line.connection()
        with self.line.asking():
            return self._ask(db, prepare, rules, admin=admin)

    def _ask(self, db: psycopg.Connection, prepare: Prepare, rules: Rules, *, admin: bool) -> list[wire.Reply]:
        try:
            head = self._read_head(db)
            wanted = prepare(db)
            token = secrets.token_hex(8)
            try:
                part, head = self._begin(db, head, wanted, token, admin=admin)
            except psycopg.errors.UniqueViolation:
                return self._taken(db, head)
            self._unsure.clear()
            state = part.state(head, self._salt)
            state.begin(head.at_us)
            state.wall_us = self._clock.now_us()
            replies = rules(state)
            self._last_window = state.head.windows
        except psycopg.Error as error:
            raise meaning(error, db) from error
        except BaseException:
            self._roll_back(db)
            raise
        if not state.writes:
            self._roll_back(db)
            return replies
        self._commit(db, state, part, wanted, _Attempt(replies, state.head), token)
        return replies

    def _begin(
        self, db: psycopg.Connection, head: Head, wanted: Wanted, token: str, *, admin: bool
    ) -> tuple[Slice, Head]:
        node, number = self.node, head.batch + 1
        locked = arrays.texts(sorted(organizations(self.directory, wanted)))
        latest = None
        with db.pipeline():
            db.execute("BEGIN", prepare=False)
            if admin:
                db.execute("SELECT pg_advisory_xact_lock(%s, %s)", schema.ADMIN_LOCK)
            if wanted.prices:
                db.execute("SELECT pg_advisory_xact_lock(%s, %s)", schema.PRICE_LOCK)
                latest = db.execute("SELECT coalesce(max(at_us), 0) FROM organizations")
            locks = (schema.NODE_LOCK, node.number, *schema.PRICE_LOCK)
            db.execute(_CLAIM, (self._chain, number, token, *locks))
            organization_rows = db.execute(
                "SELECT at_us FROM organizations WHERE id = ANY(%s::text[]) ORDER BY id FOR NO KEY UPDATE",
                (locked,),
            )
            part = Slice(db, wanted, self.directory, self.prices)
            facts = db.execute(
                "SELECT epoch, lost, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM nodes "
                "WHERE id = %s",
                (node.id,),
            )
            numbers = db.execute(_NUMBERS) if admin else None
        found = facts.fetchone()
        if found is None or found[0] != node.epoch or found[1]:
            raise Fenced(f"node {node.id} goes on elsewhere or was given up for lost; this process must end")
        now = self._clock.now_us() if self._local_time else found[2]
        times = [at for (at,) in (*organization_rows, *(latest or ()))]
        head = replace(head, at_us=max(now, head.at_us, *times))
        if numbers is not None:
            head.limits, head.entries = numbers.fetchone() or (0, 0)
        head.windows = self._window_numbers(db)
        return part, head

    def _commit(
        self, db: psycopg.Connection, state: State, part: Slice, wanted: Wanted, outcome: _Attempt, token: str
    ) -> None:  # fmt: skip
        writes, head = state.writes, state.head
        number = head.batch + 1
        digests = [row[-1] for table in rows.CHAINED for row in writes.rows.get(table, ())]
        recorded, voided = len(writes.rows.get("usage_records", ())), len(writes.rows.get("voids", ()))
        facts = (number, state.now_us, writes.admitted, writes.extended, recorded, voided)
        link = next_link(self._key, head.link, facts, digests)
        head.batch, head.link, head.at_us = number, link, state.now_us
        reach("ledger.before_commit")
        try:
            with db.pipeline():
                changes = Statement()
                write(changes, state, before=part.before, chain=self._chain, node=self.node.id)
                changes.execute(
                    b"UPDATE organizations SET at_us = %s WHERE id = ANY(%s::text[])",
                    (state.now_us, arrays.texts(organizations(self.directory, wanted))),
                )
                write_link(changes, self._chain, facts, link)
                changes.run(db)
                if number % 64 == 0:
                    db.execute("DELETE FROM batches WHERE chain = %s AND number < %s", (self._chain, number - 1))
                reach("ledger.in_transaction")
                self._unsure[token] = outcome
                ended = db.execute("COMMIT", prepare=False)
        except psycopg.Error as error:
            found = meaning(error, db)
            if isinstance(found, ConnectionLost):
                raise _Unsure(str(found)) from error
            self._unsure.clear()
            raise found from error
        except BaseException:
            self._unsure.clear()
            db.close()
            raise
        self._unsure.clear()
        if (
            ended.statusmessage != "COMMIT"
        ):  # an aborted transaction answers COMMIT with ROLLBACK, without an error
            raise StoreFailed(f"PostgreSQL answered COMMIT with {ended.statusmessage}")
        reach("ledger.after_commit")
        self._note(head)

    def _taken(self, db: psycopg.Connection, head: Head) -> list[wire.Reply]:
        """The batch's number is taken: by an attempt of our own that had committed, or by a stranger."""
        self._roll_back(db)
        row = db.execute(
            "SELECT token FROM batches WHERE chain = %s AND number = %s", (self._chain, head.batch + 1)
        ).fetchone()
        outcome = self._unsure.get(row[0]) if row is not None else None
        if outcome is None:
            raise Fenced(f"another process writes the chain of node {self.node.id}; this process must end")
        _log.warning("batch %d had been committed when the connection broke", outcome.head.batch)
        self._unsure.clear()
        self._note(outcome.head)
        return outcome.replies

    # -- where the chain stands

    def _read_head(self, db: psycopg.Connection) -> Head:
        if self._session is not db:
            self._check_nothing_lost(db)
            self._session = db
        if self._head is None:
            row = db.execute(
                "SELECT number, link, at_us FROM links WHERE chain = %s ORDER BY number DESC LIMIT 1",
                (self._chain,),
            ).fetchone()
            head = Head(*row) if row else Head()
            found = db.execute(
                "SELECT coalesce(max(seq), 0) FROM usage_records WHERE chain = %s", (self._chain,)
            ).fetchone()
            head.records = found[0] if found else 0
            self._head = head
        return self._head

    def _check_nothing_lost(self, db: psycopg.Connection) -> None:
        """While no session was there a database can go back, and with it all lanes: nothing may follow on that.

        Raises:
            StoreFailed: It was restored, or a copy took its place that had not followed.
        """
        known = dict(self._heads)
        found = {chain: (number, link) for chain, number, link in db.execute(_ENDS, (list(known),))}
        for chain, (number, link) in known.items():
            there = found.get(chain, (0, b""))
            if there[0] < number or (there[0] == number and there[1] != link):
                raise StoreFailed(
                    f"the database has lost what this node committed: it knows chain {chain} up to link "
                    f"{there[0]}, this node up to {number}; see docs/operating.md"
                )

    def _note(self, head: Head) -> None:
        self._head = head
        self._heads[self._chain] = (head.batch, head.link)
        with contextlib.suppress(OSError):
            os.pwrite(self._head_fd, f"{head.batch:020d} {head.link.hex()}\n".encode(), 0)

    def _window_numbers(self, db: psycopg.Connection) -> int:
        """The number after which a batch may number its windows; lanes and nodes take them in blocks."""
        if self._last_window == 0 or self._last_window % WINDOW_BLOCK > WINDOW_BLOCK - WINDOWS_A_BATCH:
            row = db.execute("SELECT nextval('window_ids')").fetchone()
            assert row is not None
            self._last_window = row[0] - row[0] % WINDOW_BLOCK + 1
        return self._last_window

    def _roll_back(self, db: psycopg.Connection) -> None:
        if not db.closed:
            try:
                db.execute("ROLLBACK", prepare=False)
            except psycopg.Error:
                db.close()


_CLAIM: Final = (
    "INSERT INTO batches SELECT %s::integer, %s::bigint, %s "
    "FROM (SELECT pg_advisory_xact_lock_shared(%s, %s), pg_advisory_xact_lock_shared(%s, %s)) AS in_force"
)
"""Takes the node's lock and that of prices, so that nobody fences it or makes a price meanwhile, and then the
batch's number."""

_ENDS: Final = (
    "SELECT chain, number, link FROM unnest(%s::integer[]) AS known (chain) CROSS JOIN LATERAL "
    "(SELECT number, link FROM links WHERE links.chain = known.chain ORDER BY number DESC LIMIT 1) AS ends"
)

_NUMBERS: Final = "SELECT (SELECT coalesce(max(id), 0) FROM limits), (SELECT coalesce(max(id), 0) FROM audit_log)"


def chain_key_of(key: bytes, chain: int) -> bytes:
    """Each chain has a key of its own, so that no link of one fits another."""
    return next_link(key, b"", (chain,), ())
