"""Finding the request behind an idempotency key without admitting anything.

Asked between batches, when everything that was answered is in the store. May import domain, wire, state.
"""

from __future__ import annotations

from typing import Any, cast

from headgate_gateway.domain.admission import Refused, Traced
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Key
from headgate_gateway.ledger.state import Lookup, State


def trace(op: wire.Trace, state: State, lookup: Lookup) -> wire.Trail | wire.Denied:
    """What became of the request behind a key; who asks is checked as for any other use of it."""
    key = state.keys.get(op.key_id)
    if key is None or not state.alive(key):
        return _denied(op, "invalid_api_key", "the key is unknown, revoked or expired")
    if "inference" not in key.scopes:
        return _denied(op, "permission_denied", "the key may not run models")
    if key.models is not None and op.model not in key.models:
        return _denied(op, "permission_denied", f"the key may not use the model {op.model!r}")
    return _found(op, key, state, lookup)


def _found(op: wire.Trace, key: Key, state: State, lookup: Lookup) -> wire.Trail | wire.Denied:
    row = lookup.claim(key.path[1].id, op.claim)
    if row is None or row.forgotten(state.now_us):
        return wire.Trail(op.n, Traced(state="unknown"))
    if row.fingerprint != op.fingerprint:
        return _denied(
            op,
            "idempotency_mismatch",
            "the Idempotency-Key was used with another route or body",
            record_id=row.request_id,
        )
    if (hold := state.holds.get(row.request_id)) is not None:
        return wire.Trail(op.n, Traced(state="open", request_id=row.request_id, worker=hold.worker))
    ended = lookup.ended(row.request_id)
    traced = Traced(
        state=cast("Any", row.state),
        request_id=row.request_id,
        cost=ended.cost if ended is not None else 0,
        price=ended.price if ended is not None else None,
        answer=lookup.answer(row.request_id, state.now_us) if row.state == "stored" else None,
    )
    return wire.Trail(op.n, traced)


def _denied(op: wire.Trace, code: str, message: str, *, record_id: str | None = None) -> wire.Denied:
    return wire.Denied(op.n, Refused(code=cast("Any", code), message=message, record_id=record_id))
