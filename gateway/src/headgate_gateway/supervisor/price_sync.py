"""Tells the ledger what the config says models cost.

May import the ledger's admin_client, settings, price_list.
"""

from __future__ import annotations

import msgspec

from headgate_gateway.domain.commands import PricesSet, Rejected
from headgate_gateway.ledger.admin_client import admin_client
from headgate_gateway.price_list import configured_prices
from headgate_gateway.settings import Settings


async def sync_prices(settings: Settings) -> PricesSet:
    """Make new price versions of what changed; what did not change keeps its version.

    On a shared database one node's config does not change what others charge: there, only prices of models that
    are new are taken.

    Raises:
        LedgerUnavailable: The ledger does not answer.
        ValueError: It refuses a price; the message says which and why.
    """
    async with admin_client(settings.layout, actor="config") as client:
        command = configured_prices(settings)
        command = msgspec.structs.replace(command, only_new=settings.store.shared)
        result = await client.command(command)
    if isinstance(result, Rejected):
        raise ValueError(result.message)  # noqa: TRY004  not a type error
    if not isinstance(result, PricesSet):
        raise ValueError(f"the ledger refuses the config's prices: {result}")  # noqa: TRY004  not a type error
    return result
