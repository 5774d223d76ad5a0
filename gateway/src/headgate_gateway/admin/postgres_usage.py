"""Usage queries on PostgreSQL: read-only sessions, over every node's records. May import usage and the ledger.

Nodes commit side by side, so the order of records is that of their transactions' ids, `position`. A page ends
where transactions are still in progress: below them nothing can be added any more, and no page misses a record.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import Any, Final

import psycopg

from headgate_gateway.admin.usage import (
    AMOUNTS,
    ENTRY,
    GROUPS,
    MOST_BEHIND,
    QUERY_S,
    SET_ASIDE,
    SUMMED,
    TAG,
    WITH_PERSONAL,
    Grouping,
    QueryTooSlow,
    Span,
    UsageReader,
    UsageUnavailable,
    tag_of,
)
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.cursors import COLUMNS
from headgate_gateway.ledger.personal import Place
from headgate_gateway.ledger.postgres.history import DRIFT_US
from headgate_gateway.ledger.postgres.lookout import HORIZON, LAST
from headgate_gateway.ledger.postgres.read_only import TooLong, read_only
from headgate_gateway.ledger.store.contract import StoreFailed

END: Final = 2**62
FETCH: Final = 2000
"""Records that are fetched at once where they are added up here."""

_RECORD: Final = (
    ", ".join("position AS seq" if name == "seq" else f"usage_records.{name}" for name in rows.RECORD)
    + ", fields"
)


class PostgresUsage(UsageReader):
    """Answers from a database.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def _archived_until(self) -> int | None:
        with self._asking() as db:
            return _number(db, "SELECT coalesce(max(until_us), 0) FROM archives") or None

    def _entries(self, after: int, limit: int) -> Sequence[tuple[Any, ...]]:
        with self._asking() as db:
            sql = f"SELECT {ENTRY} FROM audit_log WHERE id > %s ORDER BY id LIMIT %s"  # noqa: S608
            return db.execute(sql.encode(), (after, limit)).fetchall()

    def _last(self) -> int:
        with self._asking() as db:
            return _number(db, LAST)

    def _consumers(self) -> Sequence[tuple[Any, ...]]:
        sql = (
            f"SELECT {COLUMNS}, (SELECT count(*) FROM (SELECT 1 FROM usage_records AS r "  # noqa: S608
            f"WHERE r.position > c.position LIMIT {MOST_BEHIND}) AS behind), (SELECT finished_us "
            "FROM usage_records AS r WHERE r.position > c.position ORDER BY r.position LIMIT 1) "
            'FROM cursors AS c ORDER BY consumer COLLATE "C"'
        )
        with self._asking() as db:
            return db.execute(sql.encode()).fetchall()

    def _page(self, span: Span, limit: int) -> Sequence[tuple[Any, ...]]:
        with self._asking() as db:
            where, values = _within(db, span, _number(db, HORIZON))
            sql = f"SELECT {_RECORD} FROM {WITH_PERSONAL} WHERE {where} ORDER BY position LIMIT %s"  # noqa: S608
            return db.execute(sql.encode(), (*values, limit)).fetchall()

    def _one(self, request_id: str) -> tuple[Any, ...] | None:
        with self._asking() as db:
            sql = f"SELECT {_RECORD} FROM {WITH_PERSONAL} WHERE usage_records.request_id = %s"  # noqa: S608
            return db.execute(sql.encode(), (request_id,)).fetchone()

    def set_aside(self, after: Place, before_us: int) -> Sequence[tuple[int, str, str, bytes]]:
        """See `UsageReader`."""
        with self._asking() as db:
            return db.execute(SET_ASIDE.format("%s", "true").encode(), (*after, before_us)).fetchall()

    def _sums(self, span: Span, grouping: Grouping) -> Sequence[tuple[Any, ...]]:
        tagged = any(field.startswith(TAG) for field in grouping.fields)
        with self._asking() as db:
            where, values = _within(db, span, END)
            add = _added_here if tagged else _added_there
            return add(db, grouping, where, values)

    @contextlib.contextmanager
    def _asking(self) -> Generator[psycopg.Connection]:
        try:
            with read_only(self._url, QUERY_S) as db:
                yield db
        except TooLong as error:
            raise QueryTooSlow(f"the query was stopped: {error}") from None
        except (StoreFailed, psycopg.Error) as error:
            raise UsageUnavailable(str(error).strip()) from error


def _added_there(
    db: psycopg.Connection, grouping: Grouping, where: str, values: Sequence[int | str]
) -> Sequence[tuple[Any, ...]]:
    """Totals as the database adds them up."""
    sums = ", ".join(f"sum({name}){'' if name in AMOUNTS else '::bigint'}" for name in SUMMED)
    names = ", ".join(f'{field} COLLATE "C"' for field in grouping.fields)
    sql = (
        f"SELECT {grouping.bucket}::bigint AS bucket, count(*), {sums}, {names} FROM usage_records "  # noqa: S608
        f"WHERE {where} GROUP BY bucket, {names} ORDER BY bucket, {names} LIMIT {GROUPS + 1}"
    )
    return db.execute(sql.encode(), values).fetchall()


def _added_here(
    db: psycopg.Connection, grouping: Grouping, where: str, values: Sequence[int | str]
) -> Sequence[tuple[Any, ...]]:
    """Totals by tags, which lie packed."""
    until = time.monotonic() + QUERY_S
    columns = [field for field in grouping.fields if not field.startswith(TAG)]
    selected = ", ".join((f"{grouping.bucket}::bigint", "detail", "fields", *SUMMED, *columns))
    sql = f"SELECT {selected} FROM {WITH_PERSONAL} WHERE {where}"  # noqa: S608
    totals: dict[tuple[Any, ...], list[int]] = {}
    with db.transaction(), db.cursor("records") as cursor:
        cursor.itersize = FETCH
        for number, (bucket, detail, fields, *found) in enumerate(cursor.execute(sql.encode(), values)):
            if number % FETCH == 0 and time.monotonic() > until:
                raise TooLong(f"it took longer than {QUERY_S:g} s")
            stated = iter(found[len(SUMMED) :])
            group = tuple(
                tag_of(detail, fields, field.removeprefix(TAG)) if field.startswith(TAG) else next(stated)
                for field in grouping.fields
            )
            sums = totals.setdefault((bucket, *group), [0] * (1 + len(SUMMED)))
            sums[0] += 1
            for place, value in enumerate(found[: len(SUMMED)], start=1):
                sums[place] += value
            if len(totals) > GROUPS:
                break
    return [(bucket, *sums, *group) for (bucket, *group), sums in sorted(totals.items())]


def _within(db: psycopg.Connection, span: Span, end: int) -> tuple[str, list[int | str]]:
    """Conditions on records before a place, and their values."""
    where, values = "position > %s AND position < %s", list[int | str]((span.after, end))
    if span.since:
        where += " AND position >= %s AND finished_us >= %s"
        values += (_place(db, span.since - DRIFT_US), span.since)
    if span.until is not None:
        where += " AND position < %s AND finished_us < %s"
        values += (_place(db, span.until + DRIFT_US), span.until)
    return where + span.where("%s") + _not_archived(db), [*values, *span.columns.values()]


def _not_archived(db: psycopg.Connection) -> str:
    """The condition that leaves out what was archived and is still being deleted."""
    archived = db.execute("SELECT covers, max(until) FROM archives GROUP BY covers").fetchall()
    if not archived:
        return ""
    whens = " ".join(f"WHEN {int(chain)} THEN {int(until)}" for chain, until in archived)
    return f" AND batch > CASE chain {whens} ELSE 0 END"


def _place(db: psycopg.Connection, moment: int) -> int:
    """Where a moment lies in the order of records, as nearly as that can be said.

    What comes before is finished earlier than `DRIFT_US` after the moment, the rest no earlier than `DRIFT_US`
    before it: times along the order are not quite sorted, and each step relies only on how far they are from it.
    """
    low, high = 0, _number(db, "SELECT coalesce(max(position), 0) + 1 FROM usage_records")
    probe = "SELECT position, finished_us FROM usage_records WHERE position >= %s ORDER BY position LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        row = db.execute(probe, (middle,)).fetchone()
        if row is not None and row[1] < moment:
            low = row[0] + 1
        else:
            high = middle
    return low


def _number(db: psycopg.Connection, sql: str) -> int:
    (number,) = db.execute(sql.encode()).fetchone() or (0,)
    return int(number)
