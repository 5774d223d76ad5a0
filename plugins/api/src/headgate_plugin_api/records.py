"""What is written down of a request that has ended: usage records, as `headgate_usage_recorded` is given them.

May import usage.
"""

from __future__ import annotations

import msgspec

from headgate_plugin_api.usage import Usage


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one target. Times are microseconds UTC."""

    backend: str
    target: str
    outcome: str
    started_us: int
    ended_us: int
    usage: Usage | None = None


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended. Times are microseconds UTC, money whole nano-units (1e-9).

    Attributes:
        seq: Its place in the order that pages and consumers follow; on PostgreSQL it has gaps, and counts anew
            where a dump is restored. What names a record for good is `request_id`.
        outcome: `ok`, or what went wrong.
        usage_source: Who counted.
        price: The version that it was charged by; None where the model was free.
        held: What was held for it.
        cost: What the customer pays.
        overrun: What went beyond the hold and is the house's.
        billed: Whether anybody pays for it.
        flagged: It wants reconciliation: what is known is a lower bound.
        retry_of: The request that this one ran again.
        tags: What the client sent along.
        erased: It had tags, which were erased.
    """

    seq: int
    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    task: str
    backend: str
    outcome: str
    usage: Usage
    usage_source: str
    price: str | None
    held: int
    cost: int
    overrun: int
    billed: bool
    flagged: bool
    admitted_at: int
    first_byte_at: int | None
    finished_at: int
    idempotency_key: str | None
    retry_of: str | None
    tags: dict[str, str]
    attempts: tuple[Attempt, ...]
    erased: bool = False
