"""Time and chance as the client sees them, injected, so that tests own them."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """A moment as operators' commands take it: microseconds UTC. One without a zone is local time."""
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _utc() -> datetime:
    return datetime.now(UTC)


async def _sleep_async(seconds: float) -> None:
    # Imported here: a sync client starts a tenth faster without it.
    import asyncio

    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Clock:
    """What measures, waits and rolls for a client.

    Attributes:
        monotonic: Seconds that never go back.
        utc: The wall clock.
        sleep: Blocks for some seconds.
        sleep_async: Waits for some seconds without blocking.
        roll: A number in [0, 1).
    """

    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], datetime] = _utc
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = _sleep_async
    roll: Callable[[], float] = random.random


SYSTEM = Clock()
