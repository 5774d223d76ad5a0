"""Every header name that we read or write.

May import domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from operator import attrgetter
from typing import Final

from litestar.types import Scope

from headgate_gateway.domain.admission import Granted, LimitState

Pairs = list[tuple[bytes, bytes]]

_FIRSTS: Final = "headgate.headers"
"""Stands in the scope of a request whose headers have been looked at: the first value of each."""

AUTHORIZATION: Final = b"authorization"
KEYS: Final = (b"x-api-key", b"api-key", b"x-goog-api-key")
IDEMPOTENCY_KEY: Final = b"idempotency-key"
TAGS: Final = b"headgate-tags"
DEADLINE: Final = b"headgate-deadline-ms"
ATTEMPT: Final = b"headgate-attempt"
RESUMABLE: Final = b"headgate-resumable"
LAST_EVENT_ID: Final = b"last-event-id"
BINARY: Final = b"inference-header-content-length"
CONTENT_ENCODING: Final = b"content-encoding"
CONTENT_LENGTH: Final = b"content-length"
ORIGIN: Final = b"origin"
REQUEST_METHOD: Final = b"access-control-request-method"
REQUEST_HEADERS: Final = b"access-control-request-headers"
EXPOSED: Final = (
    b"x-request-id, headgate-version, headgate-cost, headgate-price, headgate-backend, headgate-attempts, "
    b"headgate-overhead-ms, headgate-fingerprint, headgate-resumable, headgate-over-budget, retry-after, "
    b"retry-after-ms, x-should-retry, idempotency-replayed, ratelimit, ratelimit-policy, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
"""What a web page may read of an answer."""

JSON: Final = (b"content-type", b"application/json")
EVENT_STREAM: Final[Pairs] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last one keeps nginx from collecting the stream."""

RELEASE: Final = version("headgate-gateway")
VERSION: Final = (b"headgate-version", RELEASE.encode())
REPLAYED: Final = (b"idempotency-replayed", b"true")
CLOSE: Final = (b"connection", b"close")
_FINAL: Final = (b"x-should-retry", b"false")
_FELT: Final = tuple(
    (kind, tuple(b"x-ratelimit-%b-%b" % (what, kind.encode()) for what in (b"limit", b"remaining", b"reset")))
    for kind in ("requests", "tokens")
)
_CHALLENGE: Final = (b"www-authenticate", b"Bearer")


def find(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a request's header; names are lower case in ASGI."""
    known: dict[bytes, bytes] | None = scope.get(_FIRSTS)  # type: ignore[assignment]
    if known is None:
        known = scope[_FIRSTS] = dict(reversed(list(scope["headers"])))  # type: ignore[typeddict-unknown-key]
    return known.get(name)


def of_request(request_id: str) -> Pairs:
    """What every answer carries."""
    return [(b"x-request-id", request_id.encode()), VERSION]


def of_problem(*, retry_after_ms: int | None, final: bool, close: bool, code: str) -> Pairs:
    """Whether and when to come again."""
    pairs: Pairs = []
    if retry_after_ms is not None:
        pairs.append((b"retry-after", b"%d" % -(-retry_after_ms // 1000)))
        pairs.append((b"retry-after-ms", b"%d" % retry_after_ms))
    if final:
        pairs.append(_FINAL)
    if close:
        pairs.append(CLOSE)
    if code == "invalid_api_key":
        pairs.append(_CHALLENGE)
    return pairs


def of_cost(cost: str) -> tuple[bytes, bytes]:
    """What a request costs, as a decimal string."""
    return (b"headgate-cost", cost.encode())


def of_answer(
    *, cost: str | None, price: str | None, backend: str, attempts: int, overhead_ms: float, fingerprint: str = ""
) -> Pairs:
    """How a request was answered. A stream's headers leave before its cost is known (see its last chunk)."""
    pairs: Pairs = [
        (b"headgate-backend", backend.encode("latin-1", "replace")),
        (b"headgate-attempts", b"%d" % attempts),
        (b"headgate-overhead-ms", b"%.3f" % overhead_ms),
    ]
    if cost is not None:
        pairs.append(of_cost(cost))
    if price is not None:
        pairs.append((b"headgate-price", price.encode("latin-1", "replace")))
    if fingerprint:
        pairs.append((b"headgate-fingerprint", fingerprint.encode("latin-1", "replace")))
    return pairs


def of_limits(states: Sequence[LimitState]) -> Pairs:
    """Rate limits, in OpenAI's words and in those of the IETF's RateLimit draft.

    OpenAI's headers know one limit of a kind: the scope with the least left is the one that is felt.
    """
    if not states:
        return []
    pairs: Pairs = []
    for kind, names in _FELT:
        of_kind = [state for state in states if state.kind == kind]
        if of_kind:
            felt = of_kind[0] if len(of_kind) == 1 else min(of_kind, key=attrgetter("remaining"))
            values = (b"%d" % felt.limit, b"%d" % felt.remaining, _duration(felt.reset_ms))
            pairs += zip(names, values, strict=True)
    rates = [state for state in states if state.kind != "concurrency"]
    if rates:
        pairs.append((b"ratelimit", b", ".join(map(_state, rates))))
        pairs.append((b"ratelimit-policy", b", ".join(map(_policy, rates))))
    return pairs


def of_granted(granted: Granted) -> Pairs:
    """What an admission says of the budgets and limits that it was under."""
    pairs = of_limits(granted.limits)
    if granted.over:
        pairs = [*pairs, (b"headgate-over-budget", ", ".join(granted.over).encode())]
    return pairs


@lru_cache
def _name(kind: str, scope: str) -> bytes:
    return f"{kind}-{scope}".encode("ascii", "replace")


def _state(state: LimitState) -> bytes:
    name = _name(state.kind, state.scope)
    return b'"%s";r=%d;t=%d' % (name, max(0, state.remaining), -(-state.reset_ms // 1000))


def _policy(state: LimitState) -> bytes:
    return b'"%s";q=%d;w=%d' % (_name(state.kind, state.scope), state.limit, state.window_s)


def _duration(milliseconds: int) -> bytes:
    """As OpenAI writes it: `12ms`, `1.5s`."""
    return b"%dms" % milliseconds if milliseconds < 1000 else b"%gs" % (milliseconds / 1000)
