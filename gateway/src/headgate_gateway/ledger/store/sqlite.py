"""The store on SQLite: one connection, the only writer and the only checkpointer. May import schema and book.

SQLite up to 3.51.2 can lose committed writes when two connections write and checkpoint at once; with one writer
that cannot happen. Statements are built by SQLAlchemy Core once and run on the driver's connection, because a
batch is a few hundred plain tuples and nothing between them and the driver earns its time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as dialect

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.pricing import Terms
from headgate_gateway.ledger import cursors, rows, wire
from headgate_gateway.ledger.book import (
    ClaimRow,
    Ended,
    Loaded,
    Window,
    Writes,
)
from headgate_gateway.ledger.chain import next_link
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.personal import Place
from headgate_gateway.ledger.store import loading, recent, schema, sweeping
from headgate_gateway.ledger.store.contract import StoreBroken, StoreFailed, StoreRefused

HEAD: Final = "0006"
"""The schema revision that this code was written for."""

CHECKPOINT_PAGES: Final = 1000
"""Pages of WAL after which a commit also checkpoints: for 3 to 4 ms everybody waits (for 7 to 11 with 4,000)."""

BUSY_MS: Final = 5000

_DIALECT: Final = dialect.dialect(paramstyle="qmark")
_TERMS: Final = msgspec.json.Decoder(Terms)


def _sql(statement: sa.sql.ClauseElement) -> str:
    return str(statement.compile(dialect=_DIALECT))


def _insert(table: sa.Table, *, ignore: Iterable[str] = ()) -> str:
    return _sql(sa.insert(table).values({column.name: None for column in table.c if column.name not in ignore}))


def _upsert(table: sa.Table, changed: Iterable[str]) -> str:
    statement = dialect.insert(table).values({column.name: None for column in table.c})
    keys = [column.name for column in table.primary_key]
    return _sql(
        statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in changed}
        )
    )


_INSERT: Final = {
    name: _insert(schema.metadata.tables[name], ignore=("seq",) if name == "voids" else ())
    for name in (
        "accounts",
        "api_keys",
        "prices",
        "limits",
        "windows",
        "usage_records",
        "voids",
        "personal",
        "audit_log",
        "seals",
        "archives",
        "links",
        "answers",
    )
}
_WINDOW: Final = "UPDATE windows SET amount=?2, hard=?3, spent=?4, held=?5, cap=?6, version=?7 WHERE id=?1"
_RATES: Final = _upsert(schema.rates, ("requests_limit", "requests_tat", "tokens_limit", "tokens_tat"))
_HOLDS: Final = _upsert(schema.holds, ("packed",))
_CLAIMS: Final = _upsert(schema.claims, ("fingerprint", "request_id", "state", "expires_us", "reruns"))
_CLOSE: Final = "DELETE FROM holds WHERE request_id = ?"
_RECENT: Final = _upsert(schema.recent, ("changes",))
_REVOKE: Final = "UPDATE api_keys SET revoked_us = ? WHERE id = ?"
_SET_ASIDE: Final = (
    f"SELECT at_us, request_id FROM personal WHERE {schema.PRESENT} AND (at_us, request_id) IN "  # noqa: S608
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)
_EMPTY: Final = "salt = zeroblob(16), fields = zeroblob(length(fields))"
_ERASE: Final = f"UPDATE personal SET {_EMPTY} WHERE at_us = ? AND request_id = ?"  # noqa: S608 - our own words


class SqliteStore:
    """See `contract.Store`.

    Args:
        path: The file; made when it is missing.
        key: The chain's key, see `chain.chain_key`.
        head_file: Where the last link is noted outside the store, so that a cut tail shows.
    """

    def __init__(self, path: Path, key: bytes, head_file: Path | None = None) -> None:
        self._path = path
        self._key = key
        self._head_fd: int | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        prepare(path)
        if head_file is not None:
            self._head_fd = os.open(head_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._db = _open(path)
        with contextlib.suppress(sqlite3.Error):  # a long log that is left would hold up the first commit
            self._empty_log()
        self._head = loading.head(self._db)
        self._log_has_erased = True  # one of before may have been killed
        self._recent = recent.Recent(recent.Present(self._db).ring)  # `close` empties the ring into the tables

    # -- the contract

    def load(self) -> Loaded:
        """See `contract.Store`."""
        present = recent.Present(self._db)
        tabled = [row[0] for row in self._db.execute("SELECT request_id FROM holds")]
        self._recent = recent.Recent(present.ring, tabled)
        loaded = loading.load(self._db, present)
        self._head = replace(loaded.head)
        return loaded

    def commit(self, writes: Writes, at_us: int) -> None:
        """See `contract.Store`."""
        db = self._db
        head = self._head
        number = head.batch + 1
        digests = [row[-1] for table in rows.CHAINED for row in writes.rows.get(table, ())]
        recorded, voided = len(writes.rows.get("usage_records", ())), len(writes.rows.get("voids", ()))
        facts = (number, at_us, writes.admitted, writes.extended, recorded, voided)
        link = next_link(self._key, head.link, facts, digests)
        changes, due = recent.changes_of(number, writes), self._recent.due(number, writes)
        packed = pack(changes)
        try:
            db.execute("BEGIN IMMEDIATE")
            self._write(db, writes)
            self._hand_on(db, due)
            db.execute(_RECENT, (number % recent.SLOTS, packed))
            db.execute(_INSERT["links"], (*facts, link))
            reach("ledger.in_transaction")
            db.execute("COMMIT")
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError) as error:
            self._roll_back()
            raise StoreRefused(str(error)) from error
        except sqlite3.Error as error:
            self._roll_back()
            raise self._meaning(error) from error
        self._recent.add(changes, packed, due)
        self._log_has_erased = self._log_has_erased or bool(writes.erased)
        head.batch, head.link, head.at_us = number, link, at_us
        if self._head_fd is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._head_fd, f"{number:020d} {link.hex()}\n".encode(), 0)

    def claim(self, project: str, key: str) -> ClaimRow | None:
        """See `contract.Store`."""
        row = self._find(
            "SELECT project, key, fingerprint, request_id, state, expires_us, reruns FROM claims "
            "WHERE project = ? AND key = ?",
            project,
            key,
        )
        return None if row is None else ClaimRow(*row)

    def answer(self, request_id: str, now_us: int) -> bytes | None:
        """See `contract.Store`."""
        row = self._find("SELECT answer FROM answers WHERE request_id = ? AND expires_us > ?", request_id, now_us)
        return None if row is None else row[0]

    def ended(self, request_id: str) -> Ended | None:
        """See `contract.Store`."""
        row = self._find("SELECT cost, overrun, price FROM usage_records WHERE request_id = ?", request_id)
        if row is not None:
            return Ended(*row)
        void = self._find("SELECT 1 FROM voids WHERE request_id = ?", request_id)
        return None if void is None else Ended(0, 0, None)

    def set_aside(self, places: Collection[Place]) -> list[Place]:
        """See `contract.Store`."""
        try:
            return self._db.execute(_SET_ASIDE, (msgspec.json.encode(places).decode(),)).fetchall()
        except sqlite3.Error as error:
            raise self._meaning(error) from error

    def prune(self, now_us: int, limit: int) -> int:
        """See `contract.Store`; what was erased goes from the write-ahead log too, once nobody reads it."""
        db = self._db
        try:
            if self._log_has_erased:
                self._log_has_erased = not self._empty_log()
            db.execute("PRAGMA secure_delete = OFF")  # with it 100 long answers take 25 ms, not 2
            gone = db.execute(
                "DELETE FROM answers WHERE request_id IN "
                "(SELECT request_id FROM answers WHERE expires_us <= ? LIMIT ?)",
                (now_us, limit),
            ).rowcount
            gone += db.execute(
                "DELETE FROM claims WHERE (project, key) IN "
                "(SELECT project, key FROM claims WHERE expires_us <= ? AND state <> 'open' LIMIT ?)",
                (now_us, limit),
            ).rowcount
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        finally:
            db.execute("PRAGMA secure_delete = ON")
        return gone

    def sweep(self, limit: int) -> int:
        """See `contract.Store`."""
        try:
            return sweeping.sweep(self._db, limit, self._recent)
        except sqlite3.Error as error:
            raise self._meaning(error) from error

    def advance(self, op: wire.Advance, now_us: int) -> wire.Cursor:
        """See `contract.Store`."""
        try:
            return cursors.advance(self._db.execute, "?", op, now_us)
        except sqlite3.Error as error:
            raise self._meaning(error) from error

    def close(self) -> None:
        """See `contract.Store`."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("BEGIN IMMEDIATE")
            for due in self._recent.everything():
                self._hand_on(self._db, due)
            self._db.execute("DELETE FROM recent")
            self._db.execute("COMMIT")
        self._roll_back()
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        if self._head_fd is not None:
            os.close(self._head_fd)
            self._head_fd = None

    def _empty_log(self) -> bool:
        """Cut the write-ahead log to nothing; False where a reader is in the way, who is not waited for."""
        self._db.execute("PRAGMA busy_timeout = 0")
        try:
            return bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def _find(self, query: str, *given: object) -> tuple[Any, ...] | None:
        try:
            found: tuple[Any, ...] | None = self._db.execute(query, given).fetchone()
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        return found

    def _meaning(self, error: sqlite3.Error) -> StoreFailed | StoreBroken:
        """The error in the ledger's words."""
        code = error.sqlite_errorcode & 0xFF
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreBroken(f"{self._path}: {error}")
        return StoreFailed(f"{self._path}: {error}", full=code == sqlite3.SQLITE_FULL)

    # -- writing

    def _write(self, db: sqlite3.Connection, writes: Writes) -> None:
        for table in ("accounts", "api_keys", "personal", *rows.CHAINED):
            if new := writes.rows.get(table):
                db.executemany(_INSERT[table], new)
        if writes.erased:
            db.executemany(_ERASE, writes.erased)
        if writes.opened:
            new = [_window_row(window) for window in writes.windows.values() if window.id in writes.opened]
            db.executemany(_INSERT["windows"], new)
        if tabled := self._recent.tabled.intersection(writes.closed):
            db.executemany(_CLOSE, [(request_id,) for request_id in tabled])
        if writes.claims:
            db.executemany(
                _CLAIMS,
                [
                    (c.project, c.key, c.fingerprint, c.request_id, c.state, c.expires_us, c.reruns)
                    for c in writes.claims.values()
                ],
            )
        if writes.answers:
            kept = [(request_id, *answer) for request_id, answer in writes.answers.items()]
            db.executemany(_INSERT["answers"], kept)
        if writes.revoked:
            db.executemany(_REVOKE, writes.revoked)
        for consumer, move in writes.cursors.items():
            db.execute(*cursors.move("?", consumer, *move))

    def _hand_on(self, db: sqlite3.Connection, due: recent.Changes) -> None:
        """Write into the tables what the ring is about to forget."""
        if due.windows:
            db.executemany(_WINDOW, due.windows)
        if due.rates:
            db.executemany(_RATES, due.rates)
        if due.holds:
            db.executemany(_HOLDS, [(hold.request_id, pack(hold)) for hold in due.holds])

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute("PRAGMA cache_size = -65536")
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA secure_delete = ON")
    return db


def _window_row(window: Window) -> tuple[Any, ...]:
    return (
        window.id, window.account, window.kind, window.start_us, window.end_us, window.limit_id, window.limit,
        window.hard, window.spent, window.held, window.cap, window.version,
    )  # fmt: skip


def revision(path: Path) -> str | None:
    """The schema revision that a file has; None for an empty one."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone() is None:
            return None
        row = db.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def _copy(path: Path, to: Path) -> None:
    """Copy a store with what was committed and is not in the file itself yet, after a crash."""
    to.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(to)) as target:
        source.backup(target)


def prepare(path: Path) -> None:
    """Bring a file to the present schema, after a copy of what it was. Nothing else may be writing to it.

    Raises:
        StoreFailed: A later program has changed it.
    """
    found = revision(path)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise StoreFailed(
            f"{path} has schema {found}, and this program knows {HEAD} and those before: run the program that "
            f"wrote it, or restore a backup"
        )
    if found is not None:
        _copy(path, path.with_name(f"{path.name}.before-{HEAD}"))
    from alembic import command
    from alembic.config import Config

    engine = sa.create_engine(f"sqlite:///{path}")
    with resources.as_file(resources.files("headgate_gateway.ledger") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    engine.dispose()
