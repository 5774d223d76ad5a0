"""Looks at the store twice a second and tells every delivery; measures how far consumers are behind.

Looking costs a few short queries, however many records there are. May import delivery and what the room may.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from headgate_gateway.admin.usage import QueryTooSlow, UsageReader, UsageUnavailable
from headgate_gateway.domain.clock import Clock
from headgate_gateway.ledger.lookout import Lookout, View
from headgate_gateway.ledger.store.contract import StoreFailed
from headgate_gateway.outbox.delivery import Delivery
from headgate_gateway.telemetry.consumption import Consumption

LOOK_EVERY_S: Final = 0.5
MEASURE_EVERY_S: Final = 5.0
SILENT_S: Final = 8.0
"""How long a look may take."""

_log = structlog.get_logger("headgate.outbox")


class Watch:
    """What all deliveries of a process share.

    Args:
        lookout: Looks.
        deliveries: Who is told.
    """

    def __init__(self, lookout: Lookout, deliveries: Sequence[Delivery]) -> None:
        self._lookout = lookout
        self._deliveries = deliveries
        self._names = [delivery.name for delivery in deliveries]
        self._failing = False

    async def run(self) -> None:
        """Look again and again."""
        while True:
            for delivery in self._deliveries:
                delivery.looking()
            view = await self._look()
            for delivery in self._deliveries:
                delivery.saw(view)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> View | None:
        look = asyncio.create_task(asyncio.to_thread(self._lookout.look, self._names))
        try:
            await asyncio.wait({look}, timeout=SILENT_S)
        finally:
            if not look.done():  # it takes too long, or the watch ends: nobody may close what a thread still uses
                self._lookout.hang_up()
                await asyncio.wait({look})
                look.exception()
        try:
            view = look.result()
        except StoreFailed as error:
            if not self._failing:
                _log.error("the store does not answer", error=str(error))
            self._failing = True
            return None
        self._failing = False
        return view


async def measure(reader: UsageReader, clock: Clock, consumption: Consumption) -> None:
    """Measure again and again how far consumers are behind."""
    while True:
        try:
            for consumer in await reader.consumers():
                oldest_at = consumer.oldest_at
                seconds = 0.0 if oldest_at is None else max(0.0, (clock.now_us() - oldest_at) / 1e6)
                consumption.lag(consumer.name, consumer.behind, seconds)
        except (QueryTooSlow, UsageUnavailable) as error:
            _log.debug("lag cannot be measured", error=str(error))
        await asyncio.sleep(MEASURE_EVERY_S)
