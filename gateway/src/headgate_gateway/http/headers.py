"""Every header name that we read or write.

May import domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Final

from litestar.types import Scope

from headgate_gateway.domain.admission import Granted, LimitState

Pairs = list[tuple[bytes, bytes]]

FIRSTS: Final = "headgate.headers"
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
EXPECT: Final = b"expect"
HOST: Final = b"host"
TRANSFER_ENCODING: Final = b"transfer-encoding"
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
_FELT: Final = {
    kind: (
        b"x-ratelimit-limit-" + kind.encode(),
        b"x-ratelimit-remaining-" + kind.encode(),
        b"x-ratelimit-reset-" + kind.encode(),
    )
    for kind in ("requests", "tokens")
}
_CHALLENGE: Final = (b"www-authenticate", b"Bearer")


def firsts(scope: Scope) -> dict[bytes, bytes]:
    """The first value of each of a request's headers; names are lower case in ASGI."""
    try:
        return scope[FIRSTS]  # type: ignore[typeddict-item, no-any-return]
    except KeyError:
        found = scope[FIRSTS] = dict(reversed(list(scope["headers"])))  # type: ignore[typeddict-unknown-key]
        return found


def find(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a request's header."""
    return firsts(scope).get(name)


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
    felt: dict[str, LimitState] = {}
    rates: list[bytes] = []
    policies: list[bytes] = []
    for state in states:
        kind, left = state.kind, state.remaining
        if kind == "concurrency":
            continue
        form, policy = _lasting(kind, state.scope, state.limit, state.window_s)
        rates.append(form % (max(0, left), -(-state.reset_ms // 1000)))
        policies.append(policy)
        if kind not in felt or left < felt[kind].remaining:
            felt[kind] = state
    if not rates:
        return []
    pairs = [(b"ratelimit", b", ".join(rates)), (b"ratelimit-policy", b", ".join(policies))]
    for state in felt.values():
        limit, remaining, reset = _FELT[state.kind]
        milliseconds = state.reset_ms
        # As OpenAI writes it: `12ms`, `1.5s`.
        wait = b"%dms" % milliseconds if milliseconds < 1000 else b"%gs" % (milliseconds / 1000)
        pairs += ((limit, b"%d" % state.limit), (remaining, b"%d" % state.remaining), (reset, wait))
    return pairs


def of_granted(granted: Granted) -> Pairs:
    """What an admission says of the budgets and limits that it was under."""
    pairs = of_limits(granted.limits)
    if granted.over:
        pairs.append((b"headgate-over-budget", ", ".join(granted.over).encode()))
    return pairs


@lru_cache(maxsize=1024)
def _lasting(kind: str, scope: str, limit: int, window_s: int) -> tuple[bytes, bytes]:
    """What stays the same about a limit: the form of its state, and its policy."""
    name = f"{kind}-{scope}".encode("ascii", "replace")
    return b'"%b";r=%%d;t=%%d' % name.replace(b"%", b"%%"), b'"%b";q=%d;w=%d' % (name, limit, window_s)
