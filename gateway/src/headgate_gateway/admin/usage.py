"""Usage queries: what may be asked about the record, and what is answered. May import domain, ledger, settings.

`sqlite_usage` and `postgres_usage` ask the stores, read-only, on threads, never on the event loop. Records lie in
an order that is also, nearly, that of the times they were finished at: a range of time is found by bisection, not
by an index that every settlement would pay for.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import msgspec
from headgate_plugin_api import DIMENSIONS, Attempt, Usage, UsageRecord

from headgate_gateway.domain.admission import Nano
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.personal import Place, tags_in
from headgate_gateway.settings import Settings, database

QUERY_S: Final = 10.0
"""A query that takes longer is stopped."""

PAGE: Final = 1000
"""Rows of a page at most."""

GROUPS: Final = 10_000
"""Groups of a total at most."""

GroupBy = Literal["model", "key", "project", "organization", "backend", "outcome"]
TAG: Final = "tag:"
"""`tag:NAME` groups by the value of a tag, which is empty for records without it."""

ENTRY: Final = "id, at_us, actor, action, target, detail"
"""Columns of the audit log as `_entries` gives them."""

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
_NAMED: Final = {"project_id": ("project", "prj_"), "organization_id": ("organization", "org_")}
"""Columns of ids whose accounts have names: their kind, and how their ids begin."""

_DETAIL: Final = msgspec.msgpack.Decoder(Detail)
_ATTEMPTS: Final = msgspec.msgpack.Decoder(tuple[Attempt, ...])

WITH_PERSONAL: Final = (
    "usage_records LEFT JOIN personal ON at_us = admitted_us AND personal.request_id = usage_records.request_id"
)
"""Records with the fields that were set aside of them."""

SET_ASIDE: Final = (
    "SELECT at_us, request_id, project, fields FROM personal WHERE (at_us, request_id) > ({0}, {0}) "
    "AND at_us < {0} AND {1} ORDER BY at_us, request_id LIMIT 2000"
)

AMOUNTS: Final = ("cost", "overrun")
"""Columns of money: a sum of them may be beyond the 64 bits that each of them has."""

SUMMED: Final = (*DIMENSIONS, *AMOUNTS)
"""Columns that totals add up."""


class QueryTooSlow(Exception):
    """A usage query was stopped after `QUERY_S`, or found more than `GROUPS` groups; ask for a shorter range."""


class UsageUnavailable(Exception):
    """The store cannot be asked now; the message says why."""


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


@dataclass(frozen=True)
class Span:
    """Which records a query is about.

    Attributes:
        after: Only records that come after this place.
        since: Only those finished then or later, microseconds UTC.
        until: Only those finished before; None for no end.
        columns: Exact values of columns; of projects and organizations an id or a name.
    """

    after: int
    since: int
    until: int | None
    columns: Mapping[str, str]

    def where(self, mark: str) -> str:
        """Conditions on the columns, as SQL with a mark for each value."""
        return "".join(f" AND {_condition(column, value, mark)}" for column, value in self.columns.items())


def _condition(column: str, value: str, mark: str) -> str:
    kind, prefix = _NAMED.get(column, ("", ""))
    if value.startswith(prefix):
        return f"{column} = {mark}"
    return f"{column} IN (SELECT id FROM accounts WHERE kind = '{kind}' AND name = {mark})"  # noqa: S608 - our words


@dataclass(frozen=True)
class Grouping:
    """How totals are grouped: by columns and tags (`tag:NAME`) in this order, and by microseconds of time."""

    fields: tuple[str, ...]
    bucket_us: int | None

    @property
    def bucket(self) -> str:
        """The start of a record's bucket, as SQL."""
        return f"finished_us / {self.bucket_us} * {self.bucket_us}" if self.bucket_us else "NULL"


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator, the config or the ledger itself did, and to what; times are microseconds UTC."""

    id: int
    at: int
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries in the order they were written; `after` is where the next page starts, None on the last."""

    entries: tuple[LogEntry, ...]
    after: int | None = None


MOST_BEHIND: Final = 100_000
"""Records behind a consumer that are counted."""


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer of usage records, and how far it has come.

    Attributes:
        name: Its plugin's.
        position: The place of the last record that it has taken.
        behind: How many records it has not; at most `MOST_BEHIND` are counted.
        oldest_at: When the oldest of these was finished, microseconds UTC; None where there is none.
        error: Why it comes no further at present.
    """

    name: str
    position: int
    behind: int
    oldest_at: int | None
    error: str


class UsageReader(ABC):
    """Answers usage queries, who has taken which records, and what was done by whom."""

    async def records(
        self,
        after: int = 0,
        limit: int = 100,
        filters: Mapping[str, str] | None = None,
        since: int = 0,
        until: int | None = None,
    ) -> RecordPage:
        """Records that come after `after`, oldest first.

        Args:
            after: A place, from the page before.
            limit: At most 1,000.
            filters: Exact values by `GroupBy` fields: ids, of projects and organizations also names.
            since: Only records finished then or later, microseconds UTC.
            until: Only records finished before.

        Raises:
            ValueError: A filter of another name.
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        limit = max(1, min(limit, PAGE))
        span = Span(after, since, until, _columns(filters))
        found = await asyncio.to_thread(self._page, span, limit + 1) if _can_be(*span.columns.values()) else ()
        page = tuple(_record(row) for row in found[:limit])
        return RecordPage(records=page, after=page[-1].seq if len(found) > limit else None)

    async def record(self, request_id: str) -> UsageRecord | None:
        """The record of a request, None while it is open or when there never was one.

        Raises:
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        row = await asyncio.to_thread(self._one, request_id) if _can_be(request_id) else None
        return None if row is None else _record(row)

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
            QueryTooSlow: It took too long, or there are too many groups.
            UsageUnavailable: The store cannot be asked.
        """
        groups = (group_by,) if isinstance(group_by, str) else tuple(group_by)
        check_groups(groups)
        if bucket is not None and bucket not in _BUCKETS:
            raise ValueError(f"bucket must be one of {', '.join(_BUCKETS)}, got {bucket!r}")
        fields = tuple(_COLUMNS.get(cast("GroupBy", group), group) for group in groups)
        grouping = Grouping(fields, _BUCKETS[bucket] if bucket else None)
        span = Span(0, since, until, _columns(filters))
        if not _can_be(*span.columns.values()):
            return ()
        totals = tuple(_total(row) for row in await asyncio.to_thread(self._sums, span, grouping))
        if len(totals) > GROUPS:
            raise QueryTooSlow(f"there are more than {GROUPS} groups: ask for a shorter range or fewer fields")
        return totals

    async def last(self) -> int:
        """The place of the last record that pages reach, 0 before the first.

        Raises:
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        return await asyncio.to_thread(self._last)

    async def consumers(self) -> tuple[Consumer, ...]:
        """Consumers of records, by name.

        Raises:
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        return tuple(
            Consumer(name=name, position=position, error=error, behind=behind, oldest_at=oldest_at)
            for name, position, error, behind, oldest_at in await asyncio.to_thread(self._consumers)
        )

    async def log(self, after: int = 0, limit: int = 100) -> LogPage:
        """Entries of the audit log numbered above `after`, oldest first, at most 1,000.

        Raises:
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        limit = max(1, min(limit, PAGE))
        found = await asyncio.to_thread(self._entries, after, limit + 1)
        entries = tuple(
            LogEntry(id=id_, at=at, actor=actor, action=action, target=target, detail=msgspec.json.decode(detail))
            for id_, at, actor, action, target, detail in found[:limit]
        )
        return LogPage(entries=entries, after=entries[-1].id if len(found) > limit else None)

    async def archived_until(self) -> int | None:
        """Microseconds UTC: records finished by then lie in the archive and not here; None for no archive.

        Asked after a query, it says from when on what was found is whole.

        Raises:
            QueryTooSlow: It took too long.
            UsageUnavailable: The store cannot be asked.
        """
        return await asyncio.to_thread(self._archived_until)

    @abstractmethod
    def _archived_until(self) -> int | None:
        """See `archived_until`."""

    @abstractmethod
    def _entries(self, after: int, limit: int) -> Sequence[tuple[Any, ...]]:
        """Rows of `ENTRY` numbered above `after`, in order."""

    @abstractmethod
    def _last(self) -> int:
        """The place of the last record."""

    @abstractmethod
    def _consumers(self) -> Sequence[tuple[Any, ...]]:
        """Rows of `cursors.COLUMNS`, how many records come after them, when the first of these was finished."""

    @abstractmethod
    def _page(self, span: Span, limit: int) -> Sequence[tuple[Any, ...]]:
        """Rows of `rows.RECORD` and the fields of `personal`, in order; `seq` is the place."""

    @abstractmethod
    def _one(self, request_id: str) -> tuple[Any, ...] | None:
        """The row of a request."""

    @abstractmethod
    def set_aside(self, after: Place, before_us: int) -> Sequence[tuple[int, str, str, bytes]]:
        """A slice of `personal` (`at_us`, `request_id`, `project`, `fields`): what was admitted before a time.

        Not for event loops; it raises what the queries do.
        """

    @abstractmethod
    def _sums(self, span: Span, grouping: Grouping) -> Iterable[tuple[Any, ...]]:
        """Rows of the bucket's start, how many records, `SUMMED`, the fields; `GROUPS` and one at most."""


def usage_reader(settings: Settings) -> UsageReader:
    """What reads the record of a deployment.

    Raises:
        SecretError: The address of its database cannot be read.
    """
    url = database(settings)
    if url is None:
        from headgate_gateway.admin.sqlite_usage import SqliteUsage

        return SqliteUsage(settings.layout)
    from headgate_gateway.admin.postgres_usage import PostgresUsage

    return PostgresUsage(url)


def tag_of(detail: bytes, fields: bytes | None, name: str) -> str:
    """A tag of a record; empty when it has none of the name, or none any more."""
    tags = _DETAIL.decode(detail).tags if fields is None else tags_in(fields)
    return tags.get(name, "")


def check_groups(groups: Sequence[str]) -> None:
    """Check what totals are to be grouped by.

    Raises:
        ValueError: A field that is unknown, nameless or there twice, none at all, or too many.
    """
    known = all(group in _COLUMNS or (group.startswith(TAG) and group != TAG) for group in groups)
    if not known or not 1 <= len(set(groups)) == len(groups) <= MOST_FIELDS:
        expected = f"one to {MOST_FIELDS} of {', '.join(_COLUMNS)}, {TAG}NAME, each once"
        raise ValueError(f"group_by: expected {expected}, with commas between them")


def _can_be(*values: str) -> bool:
    """Whether a record could have these at all: no store keeps a NUL or half a character."""
    try:
        return not any(b"\0" in value.encode() for value in values)
    except UnicodeEncodeError:
        return False


def _columns(filters: Mapping[str, str] | None) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name, value in (filters or {}).items():
        if name not in _COLUMNS:
            raise ValueError(f"filters may be {', '.join(_COLUMNS)}, got {name!r}")
        columns[_COLUMNS[name]] = value
    return columns


def _total(row: tuple[Any, ...]) -> Total:
    bucket_at, records, *sums = row[: 2 + len(SUMMED)]
    *counts, cost, overrun = sums
    usage = Usage(**dict(zip(DIMENSIONS, counts, strict=True)))
    group = tuple(row[2 + len(SUMMED) :])
    return Total(
        group=group, bucket_at=bucket_at, records=records, usage=usage, cost=int(cost), overrun=int(overrun)
    )


def _record(values: tuple[Any, ...]) -> UsageRecord:
    *record, fields = values
    row = dict(zip(rows.RECORD, record, strict=True))
    detail = _DETAIL.decode(row["detail"])
    return UsageRecord(
        **{name: row[name] for name in (
            "seq", "request_id", "organization_id", "project_id", "key_id", "model", "task", "backend", "outcome",
            "price", "held", "cost", "overrun",
        )},
        usage=Usage(**{name: row[name] for name in DIMENSIONS}),
        usage_source=row["source"], billed=bool(row["billed"]), flagged=bool(row["flagged"]),
        admitted_at=row["admitted_us"], first_byte_at=row["first_byte_us"], finished_at=row["finished_us"],
        idempotency_key=row["claim"], retry_of=detail.retry_of,
        tags=detail.tags if fields is None else tags_in(fields),
        erased=detail.personal is not None and fields is None,
        attempts=_ATTEMPTS.decode(detail.attempts) if detail.attempts else (),
    )  # fmt: skip
