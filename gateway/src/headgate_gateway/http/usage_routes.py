"""Routes that read the books: usage records and totals, limits, the audit.

A key sees the records of its project; the admin key sees everyone's. May import the rest of this room, admin and
the ledger's client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Literal, cast, get_args

import msgspec
from headgate_plugin_api import DIMENSIONS, Usage, UsageRecord
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Scope

from headgate_gateway.admin.audit import audit
from headgate_gateway.admin.usage import (
    Bucket,
    GroupBy,
    QueryTooSlow,
    Total,
    UsageUnavailable,
    check_groups,
)
from headgate_gateway.domain import commands
from headgate_gateway.domain.admission import Principal, shown_target
from headgate_gateway.domain.money import format_amount
from headgate_gateway.http.credentials import authorize
from headgate_gateway.http.problems import Problem, timestamp
from headgate_gateway.http.queries import MAX_PAGE, read_query, read_time
from headgate_gateway.http.replies import document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.shown import page_of, shown

_log = logging.getLogger(__name__)

_FILTERS: Final = get_args(GroupBy)
_QUERY: Final = ("since", "until", "group_by", "bucket", "after", "limit", *_FILTERS)


def usage_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers for clients."""

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


def operator_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers for operators."""

    @get("/admin/v1/usage", name="admin-usage")
    async def usage(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(await _query(rooms, request.scope, None))

    @get("/admin/v1/usage/{request_id:str}", name="admin-usage-record")
    async def record(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(await _record(rooms, request.path_params["request_id"], None))

    @get("/admin/v1/log", name="admin-log")
    async def log(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        query = read_query(request.scope, "after", "limit")
        after = _number(query, "after", 0, most=2**62)
        try:
            page = await rooms.usage.log(after, _number(query, "limit", 100, most=MAX_PAGE))
        except QueryTooSlow as error:
            raise Problem("invalid_request", str(error), path="limit") from None
        entries = [{**msgspec.to_builtins(entry), "at": timestamp(entry.at)} for entry in page.entries]
        return document(page_of(entries, None if page.after is None else str(page.after)))

    @get("/admin/v1/audit", name="admin-audit")
    async def audited(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        full = _one_of(read_query(request.scope, "full"), "full", Literal["true", "false"], "false")
        return document(await asyncio.to_thread(audit, rooms.settings, full=full == "true"))

    return [usage, record, log, audited]


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
            groups = _groups(query)
            bucket = cast("Bucket | None", _one_of(query, "bucket", Bucket, None))
            totals = await rooms.usage.totals(groups, since or 0, until, bucket, filters)
            data = [_total_document(total, groups, operator=principal is None) for total in totals]
            return {**page_of(data, None), **await _archived(rooms)}
        limit = _number(query, "limit", 100, most=MAX_PAGE)
        after = _number(query, "after", 0, most=2**62)
        page = await rooms.usage.records(after, limit, filters, since or 0, until)
        archived = await _archived(rooms)
    except QueryTooSlow as error:
        raise Problem("invalid_request", str(error), path="since") from None
    except UsageUnavailable as error:
        raise _unavailable(error) from None
    records = [_record_document(record, operator=principal is None) for record in page.records]
    return {**page_of(records, None if page.after is None else str(page.after)), **archived}


async def _archived(rooms: Rooms) -> dict[str, str | None]:
    """Until when records are in the archive and not in what was found."""
    until = await rooms.usage.archived_until()
    return {"archived_until": None if until is None else timestamp(until, "microseconds")}


async def _record(rooms: Rooms, request_id: str, principal: Principal | None) -> dict[str, Any]:
    try:
        record = await rooms.usage.record(request_id)
    except (QueryTooSlow, UsageUnavailable) as error:
        raise _unavailable(error) from None
    hidden = principal is not None and not principal.admin
    if record is None or (hidden and principal is not None and record.project_id != principal.project_id):
        raise Problem("not_found", f"there is no record of {request_id[:64]!r}; it may still be open")
    return _record_document(record, operator=principal is None)


def _unavailable(error: Exception) -> Problem:
    _log.error("usage cannot be read: %s", error)
    return Problem("ledger_unavailable", "the store of the records does not answer now")


def _groups(query: dict[str, str]) -> list[str]:
    groups = query.get("group_by", "model").split(",")
    try:
        check_groups(groups)
    except ValueError as error:
        raise Problem("invalid_request", str(error), path="group_by") from None
    return groups


def _one_of(query: dict[str, str], name: str, choices: Any, default: str | None) -> str | None:
    value = query.get(name, default)
    if value is not None and value not in get_args(choices):
        raise Problem("invalid_request", f"{name}: expected one of {', '.join(get_args(choices))}", path=name)
    return value


def _number(query: dict[str, str], name: str, default: int, *, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    least = int(name == "limit")
    if not (text.isascii() and text.isdigit()) or not least <= int(text[:20]) <= most:
        raise Problem("invalid_request", f"{name}: expected a number from {least} to {most}", path=name)
    return int(text)


def _record_document(record: UsageRecord, *, operator: bool) -> dict[str, Any]:
    """A record; operators also see its number, what was held, and what the house bore of it."""
    found: dict[str, Any] = {
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
        "erased": record.erased,
        "attempts": [
            {
                "backend": attempt.backend,
                "target": attempt.target if operator else shown_target(attempt.target),
                "outcome": attempt.outcome,
                "started_at": timestamp(attempt.started_us),
                "ended_at": timestamp(attempt.ended_us),
            }
            for attempt in record.attempts
        ],
    }
    if operator:
        found["seq"] = record.seq
        found["held"] = format_amount(record.held)
        found["overrun"] = format_amount(record.overrun)
    return found


def _total_document(total: Total, groups: Sequence[str], *, operator: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        **dict(zip(groups, total.group, strict=True)),
        "requests": total.records,
        "cost": format_amount(total.cost),
        "usage": _usage_document(total.usage),
    }
    if total.bucket_at is not None:
        found["bucket"] = timestamp(total.bucket_at)
    if operator:
        found["overrun"] = format_amount(total.overrun)
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
        if not account_id:  # the admin key is under no account
            continue
        account = await _account(rooms, account_id)
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


async def _account(rooms: Rooms, account_id: str) -> commands.AccountInfo:
    result = await rooms.ledger.command(commands.GetAccount(id=account_id))
    if not isinstance(result, commands.AccountFound):
        raise Problem("ledger_unavailable", "the ledger did not answer")
    return result.account
