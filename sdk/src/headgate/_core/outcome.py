"""What an answer means: status and problem document become a typed error. The only module with status numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, cast

from headgate import errors
from headgate._core.money import Cost

_BY_CODE: Mapping[str, type[errors.StatusError]] = {
    "invalid_api_key": errors.Unauthenticated,
    "permission_denied": errors.Forbidden,
    "model_not_found": errors.NotFound,
    "rate_limit_exceeded": errors.RateLimited,
    "budget_in_flight": errors.BudgetInFlight,
    "budget_exhausted": errors.QuotaExceeded,
    "request_exceeds_budget": errors.QuotaExceeded,
    "unpriced_model": errors.QuotaExceeded,
    # What a provider says behind a plain proxy: quota in the clothes of a rate limit.
    "insufficient_quota": errors.QuotaExceeded,
    "idempotency_in_progress": errors.IdempotencyInProgress,
    "idempotency_mismatch": errors.IdempotencyMismatch,
    "idempotency_consumed": errors.IdempotencyConsumed,
    "stream_lost": errors.StreamLost,
    "overloaded": errors.ModelOverloaded,
    "ledger_unavailable": errors.ModelOverloaded,
    "model_loading": errors.ModelOverloaded,
    "upstream_error": errors.BackendFailed,
    "upstream_timeout": errors.BackendFailed,
}

_BY_STATUS: Mapping[int, type[errors.StatusError]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    402: errors.QuotaExceeded,
    403: errors.Forbidden,
    404: errors.NotFound,
    408: errors.InvalidRequest,
    409: errors.Conflict,
    413: errors.TooLarge,
    422: errors.InvalidRequest,
    429: errors.RateLimited,
    502: errors.BackendFailed,
    503: errors.ModelOverloaded,
    504: errors.BackendFailed,
    529: errors.ModelOverloaded,
}

_TIMEOUT = 408


def is_success(status: int) -> bool:
    """Whether a status says that the answer is one."""
    return 200 <= status < 300


def error_for(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime | None = None
) -> errors.StatusError:
    """The typed error of an answer that is not a success.

    Args:
        status: The HTTP status.
        headers: Of the answer, names in lower case.
        body: A problem document, an OpenAI error object or anything at all.
        now: The wall clock, for Retry-After given as a date.
    """
    problem = parse_problem(body)
    code = problem.get("code")
    kind = _BY_CODE.get(code) if isinstance(code, str) else None
    if kind is None:
        kind = _BY_STATUS.get(status) or (errors.ServerError if status >= 500 else errors.InvalidRequest)
    message = _message(status, problem, body)
    error = kind(message, status=status, problem=problem, headers=headers)
    if status == _TIMEOUT:
        # A slow body was never worked on; the same bytes may arrive in time next time.
        error.failure = errors.Failure.REFUSED
    error.should_retry = _flag(headers.get("x-should-retry"))
    now = now or datetime.now(UTC)
    error.retry_after = retry_after(headers, now=now)
    if error.retry_after is not None:
        with suppress(OverflowError):  # a pace beyond all calendars
            error.retry_at = now + timedelta(seconds=error.retry_after)
    cost = headers.get("headgate-cost")
    if error.cost is None and cost is not None:
        error.cost = Cost.parse(cost)
    return error


def error_of_event(data: str, headers: Mapping[str, str]) -> errors.StatusError:
    """The typed error of an SSE `error` event; its status is what the code would have had."""
    body = data.encode()
    problem = parse_problem(body)
    status = problem.get("status")
    if not isinstance(status, int):
        status = 502 if problem.get("code") == "upstream_error" else 500
    return error_for(status, headers, body)


def parse_problem(body: bytes) -> dict[str, Any]:
    """The problem document of a body, flattened with its OpenAI-style `error` object; `{}` if there is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    problem = cast("dict[str, Any]", document)
    inner = problem.get("error")
    if isinstance(inner, dict):
        return {**inner, **{name: value for name, value in problem.items() if name != "error"}}
    if isinstance(inner, str):
        problem.setdefault("detail", inner)
    return problem


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, then Retry-After as seconds, then as a date."""
    exact = _number(headers.get("retry-after-ms"))
    if exact is not None:
        return exact / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def _number(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _flag(value: str | None) -> bool | None:
    return {"true": True, "false": False}.get(value.strip().lower()) if value else None


def _message(status: int, problem: Mapping[str, Any], body: bytes) -> str:
    for name in ("detail", "message", "title"):
        value = problem.get(name)
        if isinstance(value, str) and value:
            code = problem.get("code")
            return f"{value} ({status} {code})" if isinstance(code, str) else f"{value} ({status})"
    text = body[:200].decode("utf-8", "replace").strip()
    return f"the gateway answered {status}" + (f": {text}" if text else "")
