from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from headgate_gateway.http.departure import Patience


async def test_a_piece_that_waits_too_long_ends_the_stream():
    with pytest.raises(TimeoutError):
        async with Patience(0.02) as patience:
            patience.since = monotonic()
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_waits_for_the_provider_is_left_alone():
    looks = 0

    class Counted(Patience):
        def _look(self) -> None:
            nonlocal looks
            looks += 1
            super()._look()

    async with Counted(0.004) as patience:
        patience.since = monotonic()
        patience.since = None
        while looks < 8:
            await asyncio.sleep(0)
