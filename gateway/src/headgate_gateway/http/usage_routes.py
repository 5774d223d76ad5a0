"""Routes that read the books: usage records and totals, limits, the audit.

A key sees the records of its project; the admin key sees everyone's. May import the rest of this room, admin and
the ledger's client.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast, get_args

import msgspec
from headgate_plugin_api import DIMENSIONS, Usage
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Scope

from headgate_gateway.admin.usage import Bucket, GroupBy, QueryTooSlow, Total, UsageRecord
from headgate_gateway.domain import commands
from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.money import format_amount
from headgate_gateway.http.credentials import authorize
from headgate_gateway.http.problems import Problem, timestamp
from headgate_gateway.http.queries import MAX_PAGE, read_query, read_time
from headgate_gateway.http.replies import document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.shown import page_of, shown
from headgate_gateway.ledger.audit import AuditReport, audit
from headgate_gateway.settings import pepper

_FILTERS: Final = ("model", "key", "project", "organization", "outcome")
_QUERY: Final = ("since", "until", "group_by", "bucket", "after", "limit", *_FILTERS)


def usage_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers."""
    return [*_client_routes(rooms), *_operator_routes(rooms)]


def _client_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    @get("/v1/usage", name="usage")
    async def usage(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authorize(rooms, request.scope, "usage")
        return document(await _query(rooms, request.scope, principal))

    @get("/v1/usage/{request_id:str}", name="usage-record")
    async def record(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authorize(rooms, request.scope, "usage")
        return document(await _record(rooms, request.path_params["request_id"], principal))

    @get("/v1/limits", name="limits")
    async def limits(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authorize(rooms, request.scope, "usage")
        return document(await _limits(rooms, principal))

    return [usage, record, limits]


def _operator_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    @get("/admin/v1/usage", name="admin-usage")
    async def usage(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(await _query(rooms, request.scope, None))

    @get("/admin/v1/usage/{request_id:str}", name="admin-usage-record")
    async def record(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(await _record(rooms, request.path_params["request_id"], None))

    @get("/admin/v1/audit", name="admin-audit")
    async def audited(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        full = read_query(request.scope, "full").get("full", "false") == "true"
        return document(shown(await asyncio.to_thread(_audited, rooms, full=full)))

    return [usage, record, audited]


def _audited(rooms: Rooms, *, full: bool) -> AuditReport:
    return audit(rooms.layout, full=full, pepper=pepper(rooms.settings))


async def _query(rooms: Rooms, scope: Scope, principal: Principal | None) -> dict[str, Any]:
    """A page of records, or totals where `group_by` or `bucket` is given. Without a principal: of everyone."""
    query = read_query(scope, *_QUERY)
    filters: dict[str, str] = {name: query[name] for name in _FILTERS if name in query}
    if principal is not None and not principal.admin:
        own = principal.project_id
        if filters.setdefault("project", own) != own:
            raise Problem("permission_denied", "a key sees the usage of its own project only")
    since, until = read_time(query, "since"), read_time(query, "until")
    try:
        if "group_by" in query or "bucket" in query:
            group_by = cast("GroupBy", _one_of(query, "group_by", GroupBy, "model"))
            bucket = cast("Bucket | None", _one_of(query, "bucket", Bucket, None))
            totals = await rooms.usage.totals(group_by, since or 0, until, bucket, filters)
            return page_of([_total_document(total, group_by) for total in totals], None)
        limit = _number(query, "limit", 100, most=MAX_PAGE)
        page = await rooms.usage.records(_number(query, "after", 0, most=2**62), limit, filters)
    except QueryTooSlow as error:
        raise Problem("invalid_request", str(error), path="since") from None
    records = [
        record
        for record in page.records
        if (since or 0) <= record.finished_at < (until if until is not None else 2**62)
    ]
    # Records come in the order that they were finished in: past `until` there is nothing more to find.
    past = until is not None and bool(page.records) and page.records[-1].finished_at >= until
    after = None if past or page.after is None else str(page.after)
    return page_of([_record_document(record) for record in records], after)


async def _record(rooms: Rooms, request_id: str, principal: Principal | None) -> dict[str, Any]:
    record = await rooms.usage.record(request_id)
    hidden = principal is not None and not principal.admin
    if record is None or (hidden and principal is not None and record.project_id != principal.project_id):
        raise Problem("not_found", f"there is no record of {request_id[:64]!r}; it may still be open")
    return _record_document(record)


def _one_of(query: dict[str, str], name: str, choices: Any, default: str | None) -> str | None:
    value = query.get(name, default)
    if value is not None and value not in get_args(choices):
        raise Problem("invalid_request", f"{name}: expected one of {', '.join(get_args(choices))}", path=name)
    return value


def _number(query: dict[str, str], name: str, default: int, *, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or not int(name == "limit") <= int(text[:20]) <= most:
        raise Problem("invalid_request", f"{name}: expected a number of at most {most}", path=name)
    return int(text)


def _record_document(record: UsageRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "organization": record.organization_id,
        "project": record.project_id,
        "key": record.key_id,
        "model": record.model,
        "task": record.task,
        "backend": record.backend,
        "outcome": record.outcome,
        "usage": _usage_document(record.usage),
        "usage_source": record.usage_source,
        "cost": format_amount(record.cost),
        "price": record.price,
        "billed": record.billed,
        "flagged": record.flagged,
        "created_at": timestamp(record.admitted_at),
        "first_byte_at": None if record.first_byte_at is None else timestamp(record.first_byte_at),
        "finished_at": timestamp(record.finished_at),
        "idempotency_key": record.idempotency_key,
        "retry_of": record.retry_of,
        "tags": record.tags,
        "attempts": [
            {
                "backend": attempt.backend,
                "target": attempt.target,
                "outcome": attempt.outcome,
                "started_at": timestamp(attempt.started_us),
                "ended_at": timestamp(attempt.ended_us),
            }
            for attempt in record.attempts
        ],
    }


def _total_document(total: Total, group_by: str) -> dict[str, Any]:
    found = {
        group_by: total.group,
        "requests": total.records,
        "cost": format_amount(total.cost),
        "usage": _usage_document(total.usage),
    }
    if total.bucket_at is not None:
        found["bucket"] = timestamp(total.bucket_at)
    return found


def _usage_document(usage: Usage) -> dict[str, int]:
    """The dimensions that are not zero, and the two sums that people ask for."""
    counts = msgspec.structs.asdict(usage)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        **{name: counts[name] for name in DIMENSIONS if counts[name]},
    }


async def _limits(rooms: Rooms, principal: Principal) -> dict[str, Any]:
    """Budgets and rate limits of the key, its project and its organization."""
    budgets: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    for account_id in (principal.key_id, principal.project_id, principal.organization_id):
        account = await _account(rooms, account_id) if account_id else None
        if account is None:
            continue
        budgets += [
            {
                "scope": account.kind,
                "account": account.id,
                **shown(budget),
                "remaining": format_amount(max(0, budget.limit - budget.spent - budget.held)),
            }
            for budget in account.budgets
        ]
        per_kind = {
            "requests": account.requests_per_minute,
            "tokens": account.tokens_per_minute,
            "concurrency": account.concurrency,
        }
        limits += [
            {"scope": account.kind, "account": account.id, "kind": kind, "limit": limit}
            for kind, limit in per_kind.items()
            if limit is not None
        ]
    return {"object": "limits", "budgets": budgets, "limits": limits}


async def _account(rooms: Rooms, account_id: str) -> commands.AccountInfo | None:
    """One account: the first that a list has after everything that sorts before its id."""
    before = account_id[:-1] + chr(ord(account_id[-1]) - 1) + "~"
    result = await rooms.ledger.command(commands.ListAccounts(after=before, limit=1))
    if not isinstance(result, commands.AccountPage):
        raise Problem("ledger_unavailable", "the ledger did not answer")
    return next((account for account in result.accounts if account.id == account_id), None)
