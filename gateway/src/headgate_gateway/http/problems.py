"""What a failure means on the wire: the one place with status numbers, and the table that clients rely on.

Whatever goes wrong, in our rooms or in the framework, becomes a `Problem` here and leaves as RFC 9457 members
plus the `error` object of the dialect that was asked in. May import domain, inference, the plugin API, litestar's
exceptions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import msgspec
import structlog
from headgate_plugin_api import (
    BackendError,
    Cancelled,
    InvalidRequest,
    LoadFailed,
    NotReady,
    Overloaded,
    UpstreamFailed,
    UpstreamTimeout,
)
from litestar.exceptions import HTTPException, NotFoundException

from headgate_gateway.domain.admission import LimitState, Refused
from headgate_gateway.domain.money import format_amount
from headgate_gateway.http import headers
from headgate_gateway.inference.errors import NotAllowed, Rejected, UnknownModel, WrongTask
from headgate_gateway.ledger.line import LedgerUnavailable

OK: Final = 200
CREATED: Final = 201
NO_CONTENT: Final = 204
SERVICE_UNAVAILABLE: Final = 503

PROBLEM_TYPE: Final = "application/problem+json"
_URN: Final = "urn:headgate:problem:"
_MONEY: Final = frozenset({"budget_in_flight", "budget_exhausted", "request_exceeds_budget"})
_WAIT_MS: Final = 1_000
"""Retry-After of a 503 where nothing better is known."""

_log = structlog.get_logger("headgate.http")


class Row(msgspec.Struct, frozen=True):
    """A line of the table.

    `kind` is `error.type` as OpenAI's clients know it; `final` says that the same request will fail again.
    """

    status: int
    title: str
    kind: str
    final: bool = False


TABLE: Final[Mapping[str, Row]] = {
    "invalid_request": Row(400, "The request is invalid", "invalid_request_error"),
    "invalid_api_key": Row(401, "The API key is missing, wrong or revoked", "authentication_error"),
    "budget_exhausted": Row(402, "The budget is spent", "insufficient_quota", final=True),
    "request_exceeds_budget": Row(402, "The request is more than what is left", "insufficient_quota", final=True),
    "unpriced_model": Row(402, "The model has no price for this key", "insufficient_quota", final=True),
    "permission_denied": Row(403, "Not allowed", "permission_error", final=True),
    "model_not_found": Row(404, "The model does not exist", "invalid_request_error", final=True),
    "not_found": Row(404, "Not found", "invalid_request_error", final=True),
    "method_not_allowed": Row(405, "The method is not allowed here", "invalid_request_error", final=True),
    "idempotency_in_progress": Row(409, "A request with this key is in progress", "conflict_error"),
    "idempotency_consumed": Row(409, "The answer of this key is not kept", "conflict_error", final=True),
    "stream_lost": Row(409, "The stream cannot be continued", "conflict_error", final=True),
    "idempotency_mismatch": Row(422, "The key was used with another body", "invalid_request_error", final=True),
    "rate_limit_exceeded": Row(429, "A rate limit is reached", "rate_limit_error"),
    "budget_in_flight": Row(429, "The budget is held by requests in flight", "rate_limit_error"),
    "internal_error": Row(500, "The gateway failed", "server_error"),
    "upstream_error": Row(502, "The upstream failed", "server_error"),
    "overloaded": Row(503, "Overloaded", "server_error"),
    "ledger_unavailable": Row(503, "The ledger is not available", "server_error"),
    "model_loading": Row(503, "The model is not ready", "server_error"),
    "upstream_timeout": Row(504, "The upstream took too long", "server_error"),
}

_MOST_DETAIL: Final = 2_000
_MOST_PATH: Final = 500
"""Characters: what a client sent is not sent back at any length, however long a name it made up."""

_BODY_STATUSES: Final = {"too_large": 413, "too_slow": 408, "headers_too_large": 431}


class Problem(Exception):
    """A failure as clients see it.

    Args:
        code: A code of the table.
        detail: What happened, for people.
        path: The field at fault.
        retry_after_ms: When another try makes sense.
        status: Another status than the table's (body too large, too slow).
        close: Whether the connection cannot be used any further.
        members: Further members of the problem document.
        limits: Rate limits that stand in the way.
        final: Whether the same request will fail again; the table's answer when None.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        path: str | None = None,
        retry_after_ms: int | None = None,
        status: int | None = None,
        close: bool = False,
        members: Mapping[str, Any] | None = None,
        limits: Sequence[LimitState] = (),
        final: bool | None = None,
    ) -> None:
        super().__init__(detail)
        self.row = TABLE[code]
        self.code = code
        self.detail = _cut(detail, _MOST_DETAIL)
        self.path = None if path is None else _cut(path, _MOST_PATH)
        self.status = status or self.row.status
        self.close = close
        self.limits = limits
        self.final = self.row.final if final is None else final
        self.members = members or {}
        self.retry_after_ms = retry_after_ms
        if retry_after_ms is None and self.status == SERVICE_UNAVAILABLE:
            self.retry_after_ms = _WAIT_MS

    def document(self, request_id: str, *, route: str) -> dict[str, Any]:
        """The body: problem members, then the `error` of the dialect that `route` belongs to."""
        document: dict[str, Any] = {
            "type": _URN + self.code,
            "title": self.row.title,
            "status": self.status,
            "detail": self.detail,
            "instance": request_id,
            "code": self.code,
        }
        if self.path is not None:
            document["path"] = self.path
        if self.retry_after_ms is not None:
            document["retry_after_ms"] = self.retry_after_ms
        document.update(self.members)
        document["error"] = self.detail if route.startswith("/v2") else self.error()
        return document

    def error(self) -> dict[str, Any]:
        """The `error` object as OpenAI's clients read it."""
        return {"message": self.detail, "type": self.row.kind, "param": self.path, "code": self.code}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that say whether and when to come again."""
        return [
            *headers.of_problem(
                retry_after_ms=self.retry_after_ms, final=self.final, close=self.close, code=self.code
            ),
            *headers.of_limits(self.limits),
        ]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def body_problem(kind: str, detail: str) -> Problem:
    """A body that is too large, comes too slowly, or stands under headers that are too large."""
    return Problem("invalid_request", detail, status=_BODY_STATUSES[kind], close=kind != "too_large")


def raw_answer(problem: Problem, request_id: str) -> bytes:
    """A whole HTTP answer, for connections on which no request could be read."""
    body = msgspec.json.encode(problem.document(request_id, route=""))
    lines = [b"HTTP/1.1 %d %s" % (problem.status, problem.row.title.encode())]
    pairs = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (headers.CONTENT_LENGTH, b"%d" % len(body)),
        *problem.headers(),
        *headers.of_request(request_id),
    ]
    lines += [b"%s: %s" % pair for pair in pairs]
    return b"\r\n".join([*lines, b"", body])


def of_refusal(refused: Refused) -> Problem:
    """What the ledger refused, with its numbers: money as decimal strings, times as RFC 3339."""
    members: dict[str, Any] = {}
    shown = format_amount if refused.code in _MONEY else int
    for name in ("limit", "spent", "held"):
        if (value := getattr(refused, name)) is not None:
            members[name] = shown(value)
    if refused.scope is not None:
        members["scope"] = refused.scope
    if refused.resets_at is not None:
        members["resets_at"] = timestamp(refused.resets_at)
    if refused.largest_output is not None:
        members["largest_max_tokens"] = refused.largest_output
    if refused.record_id is not None:
        members["record_id"] = refused.record_id
    return Problem(
        refused.code,
        refused.message,
        retry_after_ms=refused.retry_after_ms,
        members=members,
        limits=_rates_reached(refused),
        # A request that is more than the limit by itself fits at no time.
        final=True if refused.code == "rate_limit_exceeded" and refused.retry_after_ms is None else None,
    )


def _rates_reached(refused: Refused) -> list[LimitState]:
    """The rate that refused, for the RateLimit headers: nothing is left of it until the request fits."""
    scope, _, kind = (refused.scope or "").partition(":")
    if refused.code != "rate_limit_exceeded" or kind not in {"requests", "tokens"} or refused.limit is None:
        return []
    reset_ms = refused.retry_after_ms or 0
    rate = cast("Literal['requests', 'tokens']", kind)
    return [LimitState(kind=rate, scope=scope, limit=refused.limit, remaining=0, reset_ms=reset_ms)]


def timestamp(microseconds: int, precision: Literal["milliseconds", "microseconds"] = "milliseconds") -> str:
    """Microseconds UTC as RFC 3339; what is finer than the precision is cut off."""
    seconds, fraction = divmod(microseconds, 1_000_000)
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC).replace(microsecond=fraction)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def of_error(error: Exception, request_id: str) -> Problem:
    """Any exception as a problem. What nobody foresaw is logged and says nothing of itself to the client."""
    problem = _foreseen(error)
    if problem is None:
        _log.error("request failed", request_id=request_id, exc_info=error)
        return Problem("internal_error", "the gateway failed; its log says more under this request id")
    return problem


def _foreseen(error: Exception) -> Problem | None:
    if isinstance(error, Problem):
        return error
    if isinstance(error, Rejected):
        return of_refusal(error.refused)
    if isinstance(error, BackendError):
        return _of_backend(error)
    if isinstance(error, UnknownModel):
        return Problem("model_not_found", error.message, path="model")
    if isinstance(error, WrongTask):
        return Problem("invalid_request", error.message, path="model")
    if isinstance(error, NotAllowed):
        return Problem("permission_denied", error.message)
    if isinstance(error, LedgerUnavailable):
        return Problem("ledger_unavailable", str(error) or "the ledger did not answer in time")
    if isinstance(error, HTTPException):
        return _of_framework(error)
    return None


def _of_backend(error: BackendError) -> Problem:
    if isinstance(error, InvalidRequest):
        # Most clients show the text alone.
        named = error.path is None or error.path in error.message
        detail = error.message if named else f"{error.path}: {error.message}"
        return Problem("invalid_request", detail, path=error.path)
    if isinstance(error, Overloaded):
        return Problem("overloaded", error.message, retry_after_ms=_milliseconds(error.retry_after_s))
    if isinstance(error, NotReady):
        return Problem("model_loading", error.message, retry_after_ms=_milliseconds(error.retry_after_s))
    if isinstance(error, LoadFailed):
        return Problem("model_loading", error.message)
    if isinstance(error, UpstreamTimeout):
        return Problem("upstream_timeout", error.message)
    if isinstance(error, UpstreamFailed):
        return Problem("upstream_error", error.message)
    if isinstance(error, Cancelled):
        return Problem("overloaded", error.message or "the server is stopping")
    return Problem("upstream_error", error.message)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _of_framework(error: HTTPException) -> Problem | None:
    if isinstance(error, NotFoundException):
        return Problem("not_found", "there is nothing at this address")
    if error.status_code < 500:
        return Problem("invalid_request", error.detail, status=error.status_code)
    return None
