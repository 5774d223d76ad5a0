"""Proof that comes too late: a node that was given up for lost returns and says what it had delivered.

The customer has paid nothing for such a request and never will. What it delivered is the house's cost: an entry
`proof.late` in the audit log for each, once. May import the ledger's own modules and psycopg.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import psycopg
from headgate_plugin_api import DIMENSIONS

from headgate_gateway.domain.money import format_amount
from headgate_gateway.domain.pricing import DENOMINATOR, half_even, numerator
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.postgres import arrays
from headgate_gateway.ledger.state import State

ACTION: Final = "proof.late"
ACTOR: Final = "ledger"

_LOST: Final = (
    "SELECT request_id, price FROM usage_records r WHERE request_id = ANY(%s::text[]) AND outcome = 'lost_node' "
    "AND NOT EXISTS (SELECT FROM audit_log WHERE action = %s AND target = r.request_id)"
)


def unbooked(db: psycopg.Connection, requests: Collection[str]) -> dict[str, str | None]:
    """Which of these requests ended with their node and have no late proof yet, and the prices they pin."""
    return dict(db.execute(_LOST, (arrays.texts(requests), ACTION)).fetchall())


def book(state: State, proof: wire.Settle, price: str | None) -> None:
    """Add the entry of one request; the batch must number entries, as commands do."""
    version = state.prices.versions[price] if price is not None else None
    cost = half_even(numerator(proof.usage, version), DENOMINATOR) if version is not None else 0
    used = {name: count for name, count in zip(DIMENSIONS, proof.usage, strict=True) if count}
    detail = {
        "usage": used, "cost": format_amount(cost), "price": price, "outcome": proof.outcome,
        "backend": proof.backend, "source": proof.source,
    }  # fmt: skip
    state.note(ACTOR, ACTION, proof.request_id, detail)
