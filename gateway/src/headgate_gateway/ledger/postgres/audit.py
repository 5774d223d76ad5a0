"""The audit on PostgreSQL: the same derivation, over every node's chains. May import history and read_only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

from headgate_gateway.ledger.audit import AuditReport, report
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.derivation import ArchivedMeanwhile
from headgate_gateway.ledger.postgres.history import PostgresHistory
from headgate_gateway.ledger.postgres.pepper import check as check_pepper
from headgate_gateway.ledger.postgres.read_only import TooLong, read_only
from headgate_gateway.ledger.store.contract import StoreFailed

AUDIT_S: Final = 6 * 3600.0
"""A long history takes minutes; only a database that has stopped answering takes longer than this."""


def audit(
    url: str, folder: Path, *, pepper: bytes, full: bool = False, archived: Path | None = None
) -> AuditReport:
    """Check everything that is in a database.

    Args:
        url: The database.
        folder: A node's data folder; the heads that it noted are compared with its chains.
        pepper: Keys the chains.
        full: Begin at the end of the archive, or at the beginning where there is none, and check every seal that
            follows; else begin at the last seal that verifies.
        archived: With `full`: where the archived files lie; begin with them.
    """
    key = chain_key(pepper)
    try:
        with read_only(url, AUDIT_S) as db:
            check_pepper(db, key)
            return report(PostgresHistory(db, key, folder), key, full=full, archived=archived)
    except ArchivedMeanwhile:
        return audit(url, folder, pepper=pepper, full=full, archived=archived)
    except (psycopg.Error, StoreFailed, TooLong, OSError) as error:
        return AuditReport(False, {}, f"the store cannot be read: {str(error).strip()}")
