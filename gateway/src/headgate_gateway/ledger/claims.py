"""What an idempotency key that comes again means. May import book, refusals and wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import ClaimRow, Ended
from headgate_gateway.ledger.refusals import RETRY_ESTIMATE_MS, denied

CLAIM_US: Final = 24 * 3600 * 1_000_000
ANSWER_US: Final = 600 * 1_000_000
ANSWER_BYTES: Final = 64 * 1024

ONE_PASS: Final = frozenset({"embed", "rerank", "classify", "infer"})
RERUNS: Final = 3
RERUN_US: Final = 600 * 1_000_000


def earlier(
    op: wire.Admit,
    found: ClaimRow | None,
    now_us: int,
    answer_of: Callable[[str], bytes | None],
    how_ended: Callable[[str], Ended | None],
) -> wire.Denied | wire.Replayed | ClaimRow | str | None:
    """What an earlier use of a request's idempotency key means for it.

    Args:
        op: The request.
        found: The claim on the key, if there is one.
        now_us: The time.
        answer_of: The answer of a request, while it is kept.
        how_ended: How a request ended.

    Returns:
        An answer; or None: it was not used; or the id of the request that this one retries, because that one was
        billed nothing; or the claim itself, when a request that was billed may run again free of charge.
    """
    if found is None or found.forgotten(now_us):
        return None
    if found.fingerprint != op.fingerprint:
        return denied(
            op.n, "idempotency_mismatch", "the Idempotency-Key was used with another route or body",
            record_id=found.request_id,
        )  # fmt: skip
    if found.state == "open":
        return denied(
            op.n, "idempotency_in_progress", "the request with this Idempotency-Key is still running",
            retry_after_ms=RETRY_ESTIMATE_MS, record_id=found.request_id,
        )  # fmt: skip
    if found.state == "released":
        return found.request_id
    answer = answer_of(found.request_id) if found.state == "stored" else None
    ended = how_ended(found.request_id)
    if answer is not None and ended is not None:
        return wire.Replayed(op.n, found.request_id, answer, ended.cost, ended.price)
    since = now_us - (found.expires_us - CLAIM_US)
    if op.task in ONE_PASS and found.reruns < RERUNS and since < RERUN_US:
        return found
    return denied(
        op.n, "idempotency_consumed",
        "the request with this Idempotency-Key was answered and billed; its answer is no longer kept",
        record_id=found.request_id,
    )  # fmt: skip
