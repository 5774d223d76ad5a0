"""Answers become typed errors: the table of codes, Retry-After in its three forms, documents of all kinds."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from headgate import errors
from headgate._core.outcome import error_for, error_of_event, is_success, parse_problem, retry_after

NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


def problem(**members: Any) -> bytes:
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind", "retryable"),
    [
        (401, "invalid_api_key", errors.Unauthenticated, False),
        (403, "permission_denied", errors.Forbidden, False),
        (404, "model_not_found", errors.NotFound, False),
        (429, "rate_limit_exceeded", errors.RateLimited, True),
        (429, "budget_in_flight", errors.BudgetInFlight, True),
        (402, "budget_exhausted", errors.QuotaExceeded, False),
        (402, "request_exceeds_budget", errors.QuotaExceeded, False),
        (429, "insufficient_quota", errors.QuotaExceeded, False),
        (409, "idempotency_in_progress", errors.IdempotencyInProgress, True),
        (409, "idempotency_consumed", errors.IdempotencyConsumed, False),
        (409, "stream_lost", errors.StreamLost, False),
        (409, None, errors.Conflict, False),
        (422, "idempotency_mismatch", errors.IdempotencyMismatch, False),
        (422, None, errors.InvalidRequest, False),
        (413, "invalid_request", errors.TooLarge, False),
        (408, "invalid_request", errors.InvalidRequest, True),
        (400, "invalid_request", errors.InvalidRequest, False),
        (418, None, errors.InvalidRequest, False),
        (502, "upstream_error", errors.BackendFailed, True),
        (504, "upstream_timeout", errors.BackendFailed, True),
        (503, "overloaded", errors.ModelOverloaded, True),
        (503, "ledger_unavailable", errors.ModelOverloaded, True),
        (529, None, errors.ModelOverloaded, True),
        (500, "internal_error", errors.ServerError, True),
        (599, None, errors.ServerError, True),
    ],
)
def test_the_table(status: int, code: str | None, kind: type[errors.StatusError], retryable: bool) -> None:
    error = error_for(status, {"x-request-id": "req_1"}, problem(code=code, detail="why") if code else b"why")
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.status == status
    assert error.code == code
    assert error.request_id == "req_1"
    assert "why" in str(error)


def test_a_quota_error_says_all_about_the_money() -> None:
    error = error_for(
        402,
        {"headgate-cost": "0"},
        problem(
            code="request_exceeds_budget",
            detail="too much",
            scope="key",
            limit="1.5",
            spent="1.4",
            held="0.05",
            resets_at="2026-12-01T00:00:00Z",
            largest_max_tokens=12,
        ),
    )
    assert isinstance(error, errors.QuotaExceeded)
    assert (error.scope, str(error.limit), str(error.spent), str(error.held)) == ("key", "1.5", "1.4", "0.05")
    assert error.resets_at == datetime(2026, 12, 1, tzinfo=UTC)
    assert error.largest_max_tokens == 12


def test_odd_members_are_none_and_no_crash() -> None:
    error = error_for(402, {}, problem(scope=3, limit=[1], resets_at="soon", largest_max_tokens=True))
    assert isinstance(error, errors.QuotaExceeded)
    assert (error.scope, error.limit, error.resets_at, error.largest_max_tokens) == (None, None, None, None)
    assert error_for(402, {}, problem(resets_at=5)).resets_at is None  # type: ignore[attr-defined]


def test_conflicts_carry_the_record() -> None:
    consumed = error_for(409, {}, problem(code="idempotency_consumed", record_id="req_9"))
    lost = error_for(409, {}, problem(code="stream_lost", record="req_8", cost="0.1"))
    assert isinstance(consumed, errors.IdempotencyConsumed)
    assert consumed.record == "req_9"
    assert isinstance(lost, errors.StreamLost)
    assert isinstance(lost, errors.StreamInterrupted)
    assert (lost.record, str(lost.cost), lost.partial) == ("req_8", "0.1", "")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "nan", "retry-after": "4"}, 4.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds


def test_a_pace_is_a_moment_too() -> None:
    error = error_for(429, {"retry-after-ms": "1500"}, b"", now=NOW)
    assert error.retry_at == NOW + timedelta(seconds=1.5)
    assert error_for(429, {}, b"", now=NOW).retry_at is None
    assert error_for(429, {"retry-after": "1e300"}, b"", now=NOW).retry_at is None


def test_retry_after_without_a_clock_uses_the_wall_clock() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("FALSE", False), ("maybe", None), ("", None)])
def test_should_retry(value: str, expected: bool | None) -> None:
    assert error_for(500, {"x-should-retry": value}, b"").should_retry is expected


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error": {"message": "no", "code": "x"}}', "x", "no (400 x)"),
        (b'{"error": "plain"}', None, "plain (400)"),
        (b'{"error": "plain", "detail": "d", "code": "c"}', "c", "d (400 c)"),
        (b'{"title": "T"}', None, "T (400)"),
        (b"[1]", None, "the gateway answered 400: [1]"),
        (b"", None, "the gateway answered 400"),
        (b"\xff<html>", None, "the gateway answered 400: \ufffd<html>"),
    ],
)
def test_bodies_of_all_kinds(body: bytes, code: str | None, message: str) -> None:
    error = error_for(400, {}, body)
    assert (error.code, error.message) == (code, message)


def test_the_path_of_a_bad_field_is_kept() -> None:
    assert error_for(400, {}, problem(path="messages[1].content")).path == "messages[1].content"
    assert error_for(400, {}, b'{"error": {"param": "model"}}').path == "model"


def test_error_events() -> None:
    assert isinstance(error_of_event('{"code": "upstream_error"}', {}), errors.BackendFailed)
    assert isinstance(error_of_event('{"status": 503, "code": "x"}', {}), errors.ModelOverloaded)
    assert isinstance(error_of_event("rubbish", {}), errors.ServerError)


def test_an_error_that_consumed_work_says_its_cost() -> None:
    assert str(error_for(502, {"headgate-cost": "0.5"}, b"").cost) == "0.5"


def test_success() -> None:
    assert is_success(200)
    assert is_success(201)
    assert not is_success(302)
    assert parse_problem(b"nope") == {}
