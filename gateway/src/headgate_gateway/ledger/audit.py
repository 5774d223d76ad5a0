"""The audit: derives the store's present from its append-only history, and names the first difference.

Read-only, while the ledger serves or offline. It begins at the last seal, or at the beginning. May import
derivation, history and chain.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field

import msgspec

from headgate_gateway.layout import Layout
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.derivation import Derivation
from headgate_gateway.ledger.history import SqliteHistory
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.store.read_only import open_readonly


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        ok: Everything re-derives.
        checked: How many of what were checked.
        first_difference: Where the store's present differs from its history; None when it does not.
        began: Where it began: `the beginning`, or a seal.
    """

    ok: bool
    checked: dict[str, int] = field(default_factory=dict[str, int])
    first_difference: str | None = None
    began: str = "the beginning"


def audit(layout: Layout, *, full: bool = False, pepper: bytes | None = None) -> AuditReport:
    """Check a deployment's store.

    Args:
        layout: Where it lies.
        full: Begin at the beginning, and check every seal on the way; else at the last seal that verifies.
        pepper: Keys the chain; the data folder's own when None.
    """
    if not layout.store.exists():
        return AuditReport(False, {}, f"there is no store at {layout.store}")
    try:
        secret = pepper if pepper is not None else layout.pepper.read_text(encoding="utf-8").strip().encode()
        with contextlib.closing(open_readonly(layout.store)) as db:
            key = chain_key(secret)
            return report(Derivation(SqliteHistory(db, key, layout.data_dir / "chain.head"), key), full=full)
    except (sqlite3.Error, OSError) as error:
        return AuditReport(False, {}, f"the store cannot be read: {error}")


def report(derivation: Derivation, *, full: bool) -> AuditReport:
    """What a derivation finds."""
    difference = None
    try:
        derivation.everything(full=full)
    except Differs as found:
        difference = str(found)
    except msgspec.DecodeError as error:
        difference = f"the store cannot be read: {error}"
    return AuditReport(difference is None, dict(derivation.checked), difference, derivation.began)
