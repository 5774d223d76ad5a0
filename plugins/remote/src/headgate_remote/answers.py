"""What a provider's refusal means for us. Statuses are read here and never leave this module's room.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec
from headgate_plugin_api import (
    BackendError,
    InvalidRequest,
    JsonValue,
    Overloaded,
    UpstreamFailed,
    UpstreamTimeout,
)

MESSAGE_LENGTH: Final = 500
"""Characters of a provider's message that are passed on."""

ERROR_BODY: Final = 64 * 1024
"""Bytes of an error's body that are read."""

RETRY_MAX_S: Final = 3600.0
"""The longest wait that a provider can ask for."""

_THE_CALLERS = frozenset({400, 413, 422})
_THE_OPERATORS = frozenset({401, 403})
_TOO_SLOW = frozenset({408, 504})
_BUSY = frozenset({429, 503, 529})


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, *, target: str, secret: str | None
) -> BackendError:
    """The error that a provider's status and body stand for.

    Args:
        status: The provider's status, not 2xx.
        headers: Names in lower case.
        body: What came of the body.
        target: Names the provider in messages.
        secret: The credential, which no message may repeat.
    """
    message, path = _explained(body, secret)
    if status in _THE_CALLERS:
        return InvalidRequest(message or f"{target} refused the request", path=path)
    if status in _THE_OPERATORS:
        # The provider's own words are left out: some repeat the credential, or parts of it.
        return UpstreamFailed(f"{target} refused the operator's credential", upstream_status=status)
    if status in _TOO_SLOW:
        return UpstreamTimeout(f"{target} took too long")
    if status in _BUSY:
        return Overloaded(f"{target} is busy: {message or 'no reason given'}", retry_after_s=retry_after(headers))
    return UpstreamFailed(
        f"{target} answered {status}: {message or 'no reason given'}",
        retryable=status >= 500 or status == 404,
        upstream_status=status,
    )


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a provider asks to wait: milliseconds, seconds or a date against its own clock; at least 1."""
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        else:
            wait = _seconds(headers.get("retry-after", "1"), headers.get("date"))
    except ValueError:
        wait = 1.0
    return min(max(wait, 1.0), RETRY_MAX_S) if wait == wait else 1.0


def _seconds(value: str, date: str | None) -> float:
    try:
        return float(value)
    except ValueError:
        if date is None:
            return 1.0
        return (parsedate_to_datetime(value) - parsedate_to_datetime(date)).total_seconds()


def _explained(body: bytes, secret: str | None) -> tuple[str, str | None]:
    """Message and path of an error body, both bounded, on one line, without the credential."""
    try:
        document: JsonValue = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "", None
    error = document.get("error", document) if isinstance(document, dict) else None
    if isinstance(error, str):
        return _clean(error, secret), None
    if not isinstance(error, dict):
        return "", None
    message = error.get("message") or error.get("detail")
    path = error.get("param") or error.get("path")
    return (
        _clean(message, secret) if isinstance(message, str) else "",
        _clean(path, secret) if isinstance(path, str) else None,
    )


def _clean(text: str, secret: str | None) -> str:
    if secret:
        text = text.replace(secret, "***")
    return " ".join(text.split())[:MESSAGE_LENGTH]
