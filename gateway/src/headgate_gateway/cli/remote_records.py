"""Usage and audit of a gateway elsewhere, as `UsageReader` and `audit` give them here. May import admin, domain.

Times come with milliseconds only; all else is as it stands in the store there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec
from headgate_plugin_api import DIMENSIONS, Attempt, Usage, UsageRecord

from headgate_gateway.admin.usage import Bucket, Consumer, LogEntry, LogPage, RecordPage, Total
from headgate_gateway.cli.remote_administration import RemoteAdmin
from headgate_gateway.ledger.audit import AuditReport

AUDIT_S: Final = 600.0
"""An audit reads every record; so long may it take."""

_IDS: Final = ("organization", "project", "key")


class RemoteUsage:
    """Usage queries over HTTP, with the operator's rights."""

    def __init__(self, admin: RemoteAdmin) -> None:
        self._admin = admin

    async def records(
        self, after: int = 0, limit: int = 100, filters: Mapping[str, str] | None = None
    ) -> RecordPage:
        """As `UsageReader.records`."""
        page = self._admin.get("/usage", {"after": after, "limit": limit, **(filters or {})})
        records = tuple(_record(document) for document in page["data"])
        return RecordPage(records=records, after=None if page["after"] is None else int(page["after"]))

    async def archived_until(self) -> int | None:
        """As `UsageReader.archived_until`."""
        until: int | None = self._admin.get("/usage", {"limit": 1}).get("archived_until")
        return until

    async def record(self, request_id: str) -> UsageRecord:
        """As `UsageReader.record`; ends the program when there is none."""
        return _record(self._admin.get(f"/usage/{quote(request_id, safe='')}", {}))

    async def consumers(self) -> tuple[Consumer, ...]:
        """As `UsageReader.consumers`."""
        page = self._admin.get("/consumers", {})
        return tuple(msgspec.convert(document, Consumer) for document in page["data"])

    async def log(self, after: int = 0, limit: int = 100) -> LogPage:
        """As `UsageReader.log`."""
        page = self._admin.get("/log", {"after": after, "limit": limit})
        entries = tuple(msgspec.convert(entry, LogEntry) for entry in page["data"])
        return LogPage(entries=entries, after=None if page["after"] is None else int(page["after"]))

    async def totals(
        self,
        group_by: Sequence[str],
        since: int = 0,
        until: int | None = None,
        bucket: Bucket | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> tuple[Total, ...]:
        """As `UsageReader.totals`."""
        query = {"group_by": ",".join(group_by), "since": _stated(since or None), "until": _stated(until)}
        page = self._admin.get("/usage", {**query, "bucket": bucket, **(filters or {})})
        return tuple(_total(document, group_by) for document in page["data"])


def remote_audit(admin: RemoteAdmin, *, full: bool) -> AuditReport:
    """As `audit`, done there."""
    return msgspec.convert(admin.get("/audit", {"full": str(full).lower()}, timeout_s=AUDIT_S), AuditReport)


def _stated(moment_us: int | None) -> str | None:
    return None if moment_us is None else datetime.fromtimestamp(moment_us / 1_000_000, UTC).isoformat()


def _total(document: Mapping[str, Any], groups: Sequence[str]) -> Total:
    return Total(
        group=tuple(document[group] for group in groups),
        bucket_at=document.get("bucket"),
        records=document["requests"],
        usage=_usage(document["usage"]),
        cost=document["cost"],
        overrun=document["overrun"],
    )


def _record(document: Mapping[str, Any]) -> UsageRecord:
    found = {f"{name}_id" if name in _IDS else name: value for name, value in document.items()}
    found["admitted_at"] = found.pop("created_at")
    found["usage"] = _usage(document["usage"])
    found["attempts"] = tuple(
        Attempt(
            backend=attempt["backend"],
            target=attempt["target"],
            outcome=attempt["outcome"],
            started_us=attempt["started_at"],
            ended_us=attempt["ended_at"],
        )
        for attempt in document["attempts"]
    )
    return msgspec.convert(found, UsageRecord)


def _usage(document: Mapping[str, int]) -> Usage:
    return Usage(**{name: count for name, count in document.items() if name in DIMENSIONS})
