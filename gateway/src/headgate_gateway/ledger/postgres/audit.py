"""The audit on PostgreSQL: the same derivation, over every node's chains. May import history and schema."""

from __future__ import annotations

from pathlib import Path

import psycopg

from headgate_gateway.ledger.audit import AuditReport, report
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.derivation import Derivation
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.history import PostgresHistory, connect_readonly


def audit(url: str, folder: Path, *, pepper: bytes, full: bool = False) -> AuditReport:
    """Check everything that is in a database.

    Args:
        url: The database.
        folder: A node's data folder; the heads that it noted are compared with its chains.
        pepper: Keys the chains.
        full: Begin at the beginning, and check every seal on the way; else at the last seal that verifies.
    """
    try:
        with connect_readonly(url) as db:
            schema.check(db)
            key = chain_key(pepper)
            return report(Derivation(PostgresHistory(db, key, folder), key), full=full)
    except (psycopg.Error, schema.WrongSchema, OSError) as error:
        return AuditReport(False, {}, f"the store cannot be read: {error}")
