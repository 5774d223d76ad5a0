"""Usage queries: read-only SQL on the record, on threads, never on the event loop. May import domain and ledger.

Records are ordered by their number, which is also the order of the times they were finished at: a range of time
is found by bisection, not by an index that every settlement would pay for.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, cast

import msgspec
from headgate_plugin_api import DIMENSIONS, Usage

from headgate_gateway.domain.admission import Attempt, Nano
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.history import open_readonly

QUERY_S: Final = 10.0
"""A query that takes longer is stopped."""

PAGE: Final = 1000
"""Rows of a page at most."""

GROUPS: Final = 10_000
"""Groups of a total at most."""

GroupBy = Literal["model", "key", "project", "organization", "backend", "outcome"]
TAG: Final = "tag:"
"""`tag:NAME` groups by the value of a tag, which is empty for records without it."""

MOST_FIELDS: Final = 8
"""Fields that totals may be grouped by at once."""

Bucket = Literal["1m", "1h", "1d"]
_BUCKETS: Final[dict[Bucket, int]] = {"1m": 60_000_000, "1h": 3_600_000_000, "1d": 86_400_000_000}
_COLUMNS: Final[dict[GroupBy, str]] = {
    "model": "model",
    "key": "key_id",
    "project": "project_id",
    "organization": "organization_id",
    "backend": "backend",
    "outcome": "outcome",
}
_FILTERS: Final = {
    "model": "model",
    "key": "key_id",
    "project": "project_id",
    "organization": "organization_id",
    "outcome": "outcome",
}
_DETAIL: Final = msgspec.msgpack.Decoder(Detail)
_ATTEMPTS: Final = msgspec.msgpack.Decoder(tuple[Attempt, ...])

T = TypeVar("T")


class QueryTooSlow(Exception):
    """A usage query was stopped after `QUERY_S`; ask for a shorter range."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended. Times are microseconds UTC, money nano-units."""

    seq: int
    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    task: str
    backend: str
    outcome: str
    usage: Usage
    usage_source: str
    price: str | None
    held: Nano
    cost: Nano
    overrun: Nano
    billed: bool
    flagged: bool
    admitted_at: int
    first_byte_at: int | None
    finished_at: int
    idempotency_key: str | None
    retry_of: str | None
    tags: dict[str, str]
    attempts: tuple[Attempt, ...]


class RecordPage(msgspec.Struct, frozen=True, kw_only=True):
    """Records in the order they were written; `after` is where the next page starts, None on the last."""

    records: tuple[UsageRecord, ...]
    after: int | None = None


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of a group's records, in one bucket of time where buckets were asked for.

    `group` has one value for each field that was grouped by, in that order.
    """

    group: tuple[str, ...]
    bucket_at: int | None
    records: int
    usage: Usage
    cost: Nano
    overrun: Nano


class UsageReader:
    """Answers usage queries from the store of a data folder.

    Args:
        layout: Where it lies.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.store

    async def records(
        self,
        after: int = 0,
        limit: int = 100,
        filters: Mapping[str, str] | None = None,
        since: int = 0,
        until: int | None = None,
    ) -> RecordPage:
        """Records numbered above `after`, oldest first.

        Args:
            after: A number, from the page before.
            limit: At most 1,000.
            filters: Exact values by `model`, `key`, `project`, `organization`, `outcome` (ids, not names).
            since: Only records finished then or later, microseconds UTC.
            until: Only records finished before.

        Raises:
            ValueError: A filter of another name.
            QueryTooSlow: It took too long.
        """
        limit = max(1, min(limit, PAGE))
        where, values = _where(filters or {})
        sql = (
            f"SELECT {', '.join(rows.RECORD)} FROM usage_records "  # noqa: S608
            f"WHERE seq > ? AND seq < ?{where} ORDER BY seq LIMIT ?"
        )

        def query(db: sqlite3.Connection) -> RecordPage:
            start = max(after, _first_at(db, since) - 1) if since else after
            end = _first_at(db, until) if until is not None else 2**62
            found = db.execute(sql, (start, end, *values, limit + 1)).fetchall()
            page = tuple(_record(row) for row in found[:limit])
            return RecordPage(records=page, after=page[-1].seq if len(found) > limit else None)

        return await self._run(query, RecordPage(records=()))

    async def record(self, request_id: str) -> UsageRecord | None:
        """The record of a request, None while it is open or when there never was one."""
        sql = f"SELECT {', '.join(rows.RECORD)} FROM usage_records WHERE request_id = ?"  # noqa: S608

        def query(db: sqlite3.Connection) -> UsageRecord | None:
            row = db.execute(sql, (request_id,)).fetchone()
            return None if row is None else _record(row)

        return await self._run(query, None)

    async def totals(
        self,
        group_by: str | Sequence[str],
        since: int = 0,
        until: int | None = None,
        bucket: Bucket | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> tuple[Total, ...]:
        """Sums by group, a field or several at once, over records finished in [since, until), microseconds UTC.

        Args:
            group_by: `GroupBy` fields, and `tag:NAME` for the values of a tag.
            since: From then on.
            until: Before then.
            bucket: Totals for each of these.
            filters: As for `records`.

        Raises:
            ValueError: An unknown, missing or repeated group, an unknown bucket or filter.
            QueryTooSlow: It took too long.
        """
        groups = (group_by,) if isinstance(group_by, str) else tuple(group_by)
        check_groups(groups)
        if bucket is not None and bucket not in _BUCKETS:
            raise ValueError(f"bucket must be one of {', '.join(_BUCKETS)}, got {bucket!r}")
        where, values = _where(filters or {})
        start = f"finished_us / {_BUCKETS[bucket]} * {_BUCKETS[bucket]}" if bucket else "NULL"
        sums = ", ".join(f"sum({name})" for name in (*DIMENSIONS, "cost", "overrun"))
        names = [group.removeprefix(TAG) for group in groups if group not in _COLUMNS]
        fields = [_COLUMNS.get(cast("GroupBy", group), "tag(detail, ?)") for group in groups]
        selected = ", ".join(f"{field} AS g{number}" for number, field in enumerate(fields))
        columns = ", ".join(f"g{number}" for number in range(len(fields)))
        sql = (
            f"SELECT {start} AS bucket, count(*), {sums}, {selected} FROM usage_records "  # noqa: S608
            f"WHERE seq >= ? AND seq < ?{where} GROUP BY bucket, {columns} "
            f"ORDER BY bucket, {columns} LIMIT {GROUPS}"
        )

        def query(db: sqlite3.Connection) -> tuple[Total, ...]:
            db.create_function("tag", 2, _tag_of, deterministic=True)
            first = _first_at(db, since)
            last = _first_at(db, until) if until is not None else 2**62
            return tuple(
                Total(
                    group=row[13:], bucket_at=row[0], records=row[1],
                    usage=Usage(**dict(zip(DIMENSIONS, row[2:11], strict=True))), cost=row[11], overrun=row[12],
                )
                for row in db.execute(sql, (*names, first, last, *values))
            )  # fmt: skip

        return await self._run(query, ())

    async def _run(self, query: Callable[[sqlite3.Connection], T], empty: T) -> T:
        return await asyncio.to_thread(self._query, query, empty)

    def _query(self, query: Callable[[sqlite3.Connection], T], empty: T) -> T:
        if not self._path.exists():
            return empty
        until = time.monotonic() + QUERY_S
        with contextlib.closing(open_readonly(self._path)) as db:
            db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
            try:
                return query(db)
            except sqlite3.OperationalError as error:
                if "interrupted" in str(error):
                    raise QueryTooSlow(f"the query took longer than {QUERY_S:g} s") from None
                raise


def check_groups(groups: Sequence[str]) -> None:
    """Check what totals are to be grouped by.

    Raises:
        ValueError: A field that is unknown, nameless or there twice, none at all, or too many.
    """
    known = all(group in _COLUMNS or (group.startswith(TAG) and group != TAG) for group in groups)
    if not known or not 1 <= len(set(groups)) == len(groups) <= MOST_FIELDS:
        expected = f"one to {MOST_FIELDS} of {', '.join(_COLUMNS)}, {TAG}NAME, each once"
        raise ValueError(f"group_by: expected {expected}, with commas between them")


def _tag_of(detail: bytes, name: str) -> str:
    """A tag of a record, for SQLite."""
    return _DETAIL.decode(detail).tags.get(name, "")


def _where(filters: Mapping[str, str]) -> tuple[str, list[str]]:
    clauses, values = "", []
    for name, value in filters.items():
        if name not in _FILTERS:
            raise ValueError(f"filters may be {', '.join(_FILTERS)}, got {name!r}")
        clauses += f" AND {_FILTERS[name]} = ?"
        values.append(value)
    return clauses, values


def _first_at(db: sqlite3.Connection, moment: int) -> int:
    """The number of the first record finished at a moment or after it."""
    low, high = 1, (db.execute("SELECT max(seq) FROM usage_records").fetchone()[0] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = db.execute("SELECT finished_us FROM usage_records WHERE seq = ?", (middle,)).fetchone()
        if row is not None and row[0] < moment:
            low = middle + 1
        else:
            high = middle
    return low


def _record(values: tuple[Any, ...]) -> UsageRecord:
    row = dict(zip(rows.RECORD, values, strict=True))
    detail = _DETAIL.decode(row["detail"])
    return UsageRecord(
        **{name: row[name] for name in (
            "seq", "request_id", "organization_id", "project_id", "key_id", "model", "task", "backend", "outcome",
            "price", "held", "cost", "overrun",
        )},
        usage=Usage(**{name: row[name] for name in DIMENSIONS}),
        usage_source=row["source"], billed=bool(row["billed"]), flagged=bool(row["flagged"]),
        admitted_at=row["admitted_us"], first_byte_at=row["first_byte_us"], finished_at=row["finished_us"],
        idempotency_key=row["claim"], retry_of=detail.retry_of, tags=detail.tags,
        attempts=_ATTEMPTS.decode(detail.attempts) if detail.attempts else (),
    )  # fmt: skip
