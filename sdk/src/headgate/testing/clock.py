"""A clock that only moves when somebody waits."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

from headgate._core.clock import Clock

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Time and chance of a fake gateway.

    Attributes:
        now: Seconds since the beginning.
        pauses: Every pause that a client took.
    """

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._random = random.Random(seed)  # noqa: S311  chance for tests

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def utc(self) -> datetime:
        """The wall clock."""
        return _BEGINNING + timedelta(seconds=self.now)

    def as_clock(self) -> Clock:
        """What the client is given."""
        return Clock(
            monotonic=lambda: self.now,
            utc=self.utc,
            sleep=self._sleep,
            sleep_async=self._sleep_async,
            roll=self._random.random,
        )

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.advance(seconds)

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)
        await asyncio.sleep(0)
