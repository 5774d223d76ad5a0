"""Tells the ledger's audit log what operators had done to models.

May import the ledger's admin_client and client, models.control, settings.
"""

from __future__ import annotations

import structlog

from headgate_gateway.domain.keeping import NoteModel
from headgate_gateway.ledger.admin_client import admin_client
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.models.control import Ask, Told
from headgate_gateway.settings import Settings

_log = structlog.get_logger("headgate.supervisor")


async def note_model(settings: Settings, model: str, ask: Ask, told: Told) -> None:
    """Have it noted that a model was loaded or unloaded, or could not be.

    What was done stays done when the ledger does not answer; then this log is the only one that says so.
    """
    failed = told.message if told.code == "failed" else ""
    try:
        async with admin_client(settings.layout, actor=ask.actor) as client:
            await client.command(NoteModel(model=model, action=ask.action, failed=failed))
    except LedgerUnavailable as error:
        _log.warning("not_in_audit_log", model=model, action=ask.action, error=str(error))
