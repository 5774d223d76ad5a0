"""The audit of a deployment's store, whichever it is. May import settings and the ledger's audits."""

from __future__ import annotations

from pathlib import Path

from headgate_gateway.ledger.audit import AuditReport
from headgate_gateway.settings import Settings, database, pepper


def audit(settings: Settings, *, full: bool = False, archived: Path | None = None) -> AuditReport:
    """Derive a store's present from its history and name the first difference; read-only, also while nodes serve.

    Args:
        settings: Whose store; on PostgreSQL every node's chains are checked, and the heads that this one noted.
        full: Begin at the end of the archive, or at the beginning where there is none, not at the last seal.
        archived: With `full`: the folder of the archived files; begin with them, at the beginning.

    Raises:
        SecretError: The pepper or the database's address cannot be read.
    """
    url = database(settings)
    if url is None:
        from headgate_gateway.ledger.audit import audit as audit_sqlite

        return audit_sqlite(settings.layout, full=full, archived=archived, pepper=pepper(settings))
    from headgate_gateway.ledger.postgres.audit import audit as audit_postgres

    return audit_postgres(url, settings.layout.data_dir, pepper=pepper(settings), full=full, archived=archived)
