"""A ledger for the moment: what the command line uses when no gateway runs. May import process and client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from headgate_gateway.clock import SystemClock
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.process import AlreadyServed, locked, serving
from headgate_gateway.settings import Settings


class AdminClient(LedgerClient):
    """A client that carries out commands and admits nothing."""

    def __init__(self, layout: Layout, *, actor: str = "cli") -> None:
        super().__init__(layout, worker=-1, clock=SystemClock(), actor=actor)


@contextlib.asynccontextmanager
async def momentary_ledger(settings: Settings, layout: Layout) -> AsyncIterator[AdminClient]:
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
        client = AdminClient(layout)
        await client.start()
        stack.push_async_callback(client.close)
        yield client
