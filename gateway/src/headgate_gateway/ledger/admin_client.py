"""A client of the ledger that carries out commands and admits nothing. May import client and clock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from headgate_gateway.clock import SystemClock
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient


@contextlib.asynccontextmanager
async def admin_client(layout: Layout, *, actor: str) -> AsyncGenerator[LedgerClient]:
    """A connection to the running ledger until the block ends.

    Args:
        layout: Where its socket lies.
        actor: Named in the audit log for what is commanded.

    Raises:
        LedgerUnavailable: It does not answer.
    """
    client = LedgerClient(layout, worker=-1, clock=SystemClock(), actor=actor)
    await client.start()
    try:
        yield client
    finally:
        await client.close()
