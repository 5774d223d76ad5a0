"""Usage queries on SQLite: read-only connections to the store's file. May import usage and the ledger."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from headgate_plugin_api import DIMENSIONS

from headgate_gateway.admin.usage import (
    AMOUNTS,
    ENTRY,
    GROUPS,
    MOST_BEHIND,
    QUERY_S,
    SET_ASIDE,
    TAG,
    WITH_PERSONAL,
    Grouping,
    QueryTooSlow,
    Span,
    UsageReader,
    UsageUnavailable,
    tag_of,
)
from headgate_gateway.domain.money import UNIT
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.cursors import COLUMNS
from headgate_gateway.ledger.personal import Place
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.ledger.store.schema import PRESENT

T = TypeVar("T")

_TABLES: Final = f"{WITH_PERSONAL} AND {PRESENT}"
_RECORD: Final = ", ".join(f"usage_records.{name}" for name in rows.RECORD) + ", fields"


class SqliteUsage(UsageReader):
    """Answers from the store of a data folder; an empty one answers with nothing.

    Args:
        layout: Where it lies.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.store

    def _archived_until(self) -> int | None:
        return self._ask(lambda db: _archived(db)[1], None)

    def _entries(self, after: int, limit: int) -> Sequence[tuple[Any, ...]]:
        sql = f"SELECT {ENTRY} FROM audit_log WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
        return self._ask(lambda db: db.execute(sql, (after, limit)).fetchall(), [])

    def _last(self) -> int:
        sql = "SELECT coalesce(max(seq), 0) FROM usage_records"
        (last,) = self._ask(lambda db: db.execute(sql).fetchone(), (0,))
        return int(last)

    def _consumers(self) -> Sequence[tuple[Any, ...]]:
        sql = (
            f"SELECT {COLUMNS}, (SELECT count(*) FROM (SELECT 1 FROM usage_records WHERE seq > position "  # noqa: S608
            f"LIMIT {MOST_BEHIND})), (SELECT finished_us FROM usage_records WHERE seq > position "
            "ORDER BY seq LIMIT 1) FROM cursors ORDER BY consumer"
        )
        return self._ask(lambda db: db.execute(sql).fetchall(), [])

    def _page(self, span: Span, limit: int) -> Sequence[tuple[Any, ...]]:
        def query(db: sqlite3.Connection) -> Sequence[tuple[Any, ...]]:
            where, values = _within(db, span)
            sql = f"SELECT {_RECORD} FROM {_TABLES} WHERE {where} ORDER BY seq LIMIT ?"  # noqa: S608
            return db.execute(sql, (*values, limit)).fetchall()

        return self._ask(query, [])

    def _one(self, request_id: str) -> tuple[Any, ...] | None:
        def query(db: sqlite3.Connection) -> tuple[Any, ...] | None:
            sql = f"SELECT {_RECORD} FROM {_TABLES} WHERE usage_records.request_id = ?"  # noqa: S608
            found: tuple[Any, ...] | None = db.execute(sql, (request_id,)).fetchone()
            return found

        return self._ask(query, None)

    def set_aside(self, after: Place, before_us: int) -> Sequence[tuple[int, str, str, bytes]]:
        """See `UsageReader`."""
        return self._ask(
            lambda db: db.execute(SET_ASIDE.format("?", PRESENT), (*after, before_us)).fetchall(), []
        )

    def _sums(self, span: Span, grouping: Grouping) -> Sequence[tuple[Any, ...]]:
        tags = [field.removeprefix(TAG) for field in grouping.fields if field.startswith(TAG)]
        fields = ["tag(detail, fields, ?)" if field.startswith(TAG) else field for field in grouping.fields]
        selected = ", ".join(f"{field} AS g{number}" for number, field in enumerate(fields))
        names = ", ".join(f"g{number}" for number in range(len(fields)))
        counts = ", ".join(f"sum({name})" for name in DIMENSIONS)
        amounts = ", ".join(f"sum({name} / {UNIT}), sum({name} % {UNIT})" for name in AMOUNTS)
        table = _TABLES if tags else "usage_records"

        def query(db: sqlite3.Connection) -> Sequence[tuple[Any, ...]]:
            db.create_function("tag", 3, tag_of, deterministic=True)
            where, values = _within(db, span)
            sql = (
                f"SELECT {grouping.bucket} AS bucket, count(*), {counts}, {amounts}, {selected} "  # noqa: S608
                f"FROM {table} WHERE {where} GROUP BY bucket, {names} ORDER BY bucket, {names} LIMIT {GROUPS + 1}"
            )
            first = 2 + len(DIMENSIONS)
            return [
                (
                    *row[:first],
                    row[first] * UNIT + row[first + 1],
                    row[first + 2] * UNIT + row[first + 3],
                    *row[first + 4 :],
                )
                for row in db.execute(sql, (*tags, *values))
            ]

        return self._ask(query, [])

    def _ask(self, query: Callable[[sqlite3.Connection], T], empty: T) -> T:
        if not self._path.exists():
            return empty
        until = time.monotonic() + QUERY_S
        try:
            with contextlib.closing(open_readonly(self._path)) as db:
                db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
                return query(db)
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise QueryTooSlow(f"the query took longer than {QUERY_S:g} s") from None
            raise UsageUnavailable(f"{self._path}: {error}") from error


def _within(db: sqlite3.Connection, span: Span) -> tuple[str, list[int | str]]:
    """Conditions on records, and their values."""
    first, _ = _archived(db)
    start = max(span.after + 1, first)
    if span.since:
        start = max(start, _first_at(db, first, span.since))
    end = _first_at(db, first, span.until) if span.until is not None else 2**62
    return "seq >= ? AND seq < ?" + span.where("?"), [start, end, *span.columns.values()]


def _archived(db: sqlite3.Connection) -> tuple[int, int | None]:
    """The number of the first record that was not archived, and the time until which all were."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'archives'").fetchone() is None:
        return 1, None  # a store of before, which the next start migrates
    until, until_us = db.execute("SELECT coalesce(max(until), 0), max(until_us) FROM archives").fetchone()
    if until_us is None:
        return 1, None
    low, high = db.execute("SELECT min(seq), max(seq) + 1 FROM usage_records").fetchone()
    if low is None:
        return 1, until_us
    while low < high:
        middle = (low + high) // 2
        row = db.execute("SELECT batch FROM usage_records WHERE seq = ?", (middle,)).fetchone()
        low, high = (middle + 1, high) if row is None or row[0] <= until else (low, middle)
    return low, until_us


def _first_at(db: sqlite3.Connection, first: int, moment: int) -> int:
    """The number of the first record, from one on, that was finished at a moment or after it."""
    low, high = first, (db.execute("SELECT max(seq) FROM usage_records").fetchone()[0] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = db.execute("SELECT finished_us FROM usage_records WHERE seq = ?", (middle,)).fetchone()
        if row is not None and row[0] < moment:
            low = middle + 1
        else:
            high = middle
    return low
