"""What is asked of the ledger for one request, and what it answers. May import money, pricing, usage."""

from __future__ import annotations

from typing import Literal

import msgspec
from headgate_plugin_api import Attempt, Usage, UsageSource

Nano = int
"""Money: signed 64-bit nano-units (1e-9) of the deployment's currency."""

RefusalCode = Literal[
    "invalid_api_key",
    "permission_denied",
    "rate_limit_exceeded",
    "budget_in_flight",
    "budget_exhausted",
    "request_exceeds_budget",
    "unpriced_model",
    "idempotency_in_progress",
    "idempotency_mismatch",
    "idempotency_consumed",
    "ledger_unavailable",
    "overloaded",
]

Outcome = Literal[
    "ok",
    "client_gone",
    "budget_stop",
    "gateway_stop",
    "upstream_error",
    "timeout",
    "gateway_crash",
    "engine_crash",
    "lost_power",
    "lost_node",
]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a key speaks for, from the worker's snapshot. `models` None allows all.

    Attributes:
        key_id: `key_...`; the admin key is the principal with `admin` True and no key_id.
        project_id: `prj_...`.
        organization_id: `org_...`.
        scopes: What the key may do: `inference`, `usage`, `admin`.
        models: Model ids that it may ask for.
        max_output: The key's own limit on output tokens.
        budgeted: Whether any hard budget or credit applies on its key, project or organization: then a model
            without a price is refused instead of free.
    """

    key_id: str
    project_id: str
    organization_id: str
    scopes: frozenset[str] = frozenset({"inference", "usage"})
    models: frozenset[str] | None = None
    max_output: int | None = None
    budgeted: bool = False
    admin: bool = False


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """An Idempotency-Key and the fingerprint (sha256) of the route and body that it came with."""

    key: str
    fingerprint: bytes


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker asks to be admitted; the ledger's client turns it into amounts.

    Attributes:
        request_id: `req_` and a UUIDv7; every later word about this request names it.
        model: Configured model id.
        bound: The most of every dimension but `output` that it may consume.
        least_output: Output tokens (all choices together) below which it is not worth running. 0 for tasks
            without output.
        most_output: Output tokens that it may make at most, and up to which a hold may be extended. Of a whole
            answer all of it is held at once; of a stream the ledger holds a first step.
        stream: Whether the hold may be extended while it runs.
        claim: Idempotency, when the client sent a key.
        tags: At most 16 pairs for usage queries.
        deadline_ms: The admission is worthless after this many milliseconds and is then dropped unexecuted.
        waive: Nobody pays for an answer that a crash of the gateway breaks off: the model's policy.
    """

    request_id: str
    principal: Principal
    model: str
    task: str
    bound: Usage
    least_output: int = 0
    most_output: int = 0
    stream: bool = False
    claim: Claim | None = None
    tags: dict[str, str] = {}
    deadline_ms: int = 5_000
    waive: bool = False


class LimitState(msgspec.Struct, frozen=True, kw_only=True):
    """One rate limit as headers show it. `reset_ms` is the time until it is whole again."""

    kind: Literal["requests", "tokens", "concurrency"]
    scope: str
    limit: int
    remaining: int
    reset_ms: int
    window_s: int = 60


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """Admitted: the hold stands on disk.

    Attributes:
        output: Output tokens that the hold covers, at least `least_output`.
        held: The amount.
        price: The pinned price version, None when the model is free for this key.
        limits: State of request and token limits after this admission, for RateLimit headers.
        over: Soft budgets that are spent already, as `key:month`: they refuse nothing, but somebody should know.
    """

    request_id: str
    output: int
    held: Nano
    price: str | None
    limits: tuple[LimitState, ...] = ()
    retry_of: str | None = None
    over: tuple[str, ...] = ()


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The same key and body were answered before; here is that answer, free of charge.

    `answer` is what the worker stored: an encoded document of its own making.
    """

    request_id: str
    answer: bytes
    cost: Nano
    price: str | None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Not admitted; nothing was held.

    Attributes:
        code: Why.
        message: The same for people.
        scope: Which account's limit: `key`, `project` or `organization`, and which kind.
        limit: The limit, in nano-units or units of the rate.
        spent: Captured in the window.
        held: Held in the window by requests in flight.
        resets_at: When the window ends, microseconds UTC; None for totals.
        retry_after_ms: When the same request fits: exact for rates, an estimate otherwise.
        largest_output: For `request_exceeds_budget`: output tokens that would fit.
        record_id: For idempotency refusals: the request that used the key.
    """

    code: RefusalCode
    message: str
    scope: str | None = None
    limit: int | None = None
    spent: int | None = None
    held: int | None = None
    resets_at: int | None = None
    retry_after_ms: int | None = None
    largest_output: int | None = None
    record_id: str | None = None


Answer = Granted | Replay | Refused


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the request behind an idempotency key, for a client that goes on with its stream.

    Attributes:
        state: `unknown` (never seen, or forgotten), `open`, or how the claim ended.
        request_id: The request; empty where it is unknown.
        worker: Which worker works on an open one; None otherwise.
        cost: What was captured for one that ended.
        price: Its pinned price version.
        answer: What was stored to be replayed, while it is kept.
    """

    state: Literal["unknown", "open", "stored", "released", "spent"]
    request_id: str = ""
    worker: int | None = None
    cost: Nano = 0
    price: str | None = None
    answer: bytes | None = None


def shown_target(name: str) -> str:
    """`backend:model` of `backend:model@host`: where a provider is reached is the operator's to know."""
    shown, _, _ = name.rpartition("@")
    return shown if ":" in shown else name


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How an admitted request ended.

    Attributes:
        usage: What was delivered, by dimension; priced by the ledger with the pinned price.
        billed: False records the usage and captures nothing (waived, failed before the first byte).
        answer: The document to replay for the idempotency claim, at most 64 KiB; None leaves the claim spent,
            or released where nothing is captured.
    """

    request_id: str
    usage: Usage
    usage_source: UsageSource
    outcome: Outcome
    backend: str
    attempts: tuple[Attempt, ...] = ()
    billed: bool = True
    answer: bytes | None = None
    first_byte_us: int | None = None


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The record is on disk.

    Attributes:
        cost: What the customer pays: min(actual, hold).
        overrun: What went beyond the hold and is the house's.
    """

    request_id: str
    cost: Nano
    overrun: Nano = 0
    price: str | None = None


class Extended(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to an extension: output tokens that the hold now covers in all; unchanged when nothing fits."""

    request_id: str
    output: int
    held: Nano
