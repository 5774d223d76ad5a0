"""A ledger for the moment: what the command line uses when none serves. May import process and admin_client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from headgate_gateway.layout import Layout
from headgate_gateway.ledger.admin_client import admin_client
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.process import AlreadyServed, locked, serving
from headgate_gateway.settings import Settings


@contextlib.asynccontextmanager
async def momentary_ledger(settings: Settings, layout: Layout) -> AsyncGenerator[LedgerClient]:
    """A client of the running ledger, or of one started in this process until the block ends.

    Raises:
        LedgerUnavailable: A ledger holds the folder but does not answer.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(locked(layout, wait_s=0))
        except AlreadyServed:
            pass
        else:
            await stack.enter_async_context(serving(settings, layout))
        yield await stack.enter_async_context(admin_client(layout, actor="cli"))
