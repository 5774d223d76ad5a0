"""The audit: derives the store's present from its append-only history, and names the first difference.

Read-only, while the ledger serves or offline. May import archive, derivation, history and chain.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headgate_gateway.layout import Layout
from headgate_gateway.ledger import archive
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.derivation import ArchivedMeanwhile, Derivation
from headgate_gateway.ledger.history import History, SqliteHistory
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.store.read_only import open_readonly


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        ok: Everything re-derives.
        checked: How many of what were checked.
        first_difference: Where the store's present differs from its history; None when it does not.
        began: Where it began: `the beginning`, a seal, or the end of the archive.
    """

    ok: bool
    checked: dict[str, int] = field(default_factory=dict[str, int])
    first_difference: str | None = None
    began: str = "the beginning"


def audit(
    layout: Layout, *, full: bool = False, archived: Path | None = None, pepper: bytes | None = None
) -> AuditReport:
    """Check a deployment's store.

    Args:
        layout: Where it lies.
        full: Begin at the end of the archive, or at the beginning where there is none, and check every seal that
            follows; else begin at the last seal that verifies.
        archived: With `full`: where the archived files lie; begin with them.
        pepper: Keys the chain; the data folder's own when None.
    """
    if not layout.store.exists():
        return AuditReport(False, {}, f"there is no store at {layout.store}")
    try:
        secret = pepper if pepper is not None else layout.pepper.read_text(encoding="utf-8").strip().encode()
        with contextlib.closing(open_readonly(layout.store)) as db:
            key = chain_key(secret)
            history = SqliteHistory(db, key, layout.chain_head)
            return report(history, key, full=full, archived=archived)
    except ArchivedMeanwhile:
        return audit(layout, full=full, archived=archived, pepper=pepper)
    except (sqlite3.Error, OSError) as error:
        return AuditReport(False, {}, f"the store cannot be read: {error}")


def report(history: History, key: bytes, *, full: bool, archived: Path | None) -> AuditReport:
    """What a derivation finds; see `audit` for the arguments.

    Raises:
        ArchivedMeanwhile: It must begin again.
    """
    derivation, difference = Derivation(history, key), None
    try:
        files = None if archived is None else archive.files(history, archived)
        derivation.everything(full=full, files=files)
    except Differs as found:
        difference = str(found)
    except msgspec.DecodeError as error:
        difference = f"the store cannot be read: {error}"
    return AuditReport(difference is None, dict(derivation.checked), difference, derivation.began)
