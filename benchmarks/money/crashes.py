"""Dies at every named crash point of Headgate in turn, under one load that never stops.

Each point is a life of the whole gateway: it is started with `HEADGATE_CRASH_AT`, must be seen to die there, is
then killed as a whole, and the next life begins with what it left behind, with the next order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headgate_gateway.crashpoints import POINTS, Point

from benchmarks.money.clients import Load
from benchmarks.money.headgate import Headgate
from benchmarks.money.plan import operations
from benchmarks.money.results import Result, conclude

DIED_S: Final = 30.0
"""How long a point may take to be passed often enough."""

KILL_AFTER_S: Final = 2.0
"""When nobody has died by then of whom that is wanted, a worker is killed."""

AFTER_S: Final = 0.4
"""Load between a death and the end of that life: whoever was restarted recovers under it, and may die again."""


async def die_everywhere(
    headgate: Headgate, truth: Path, *, seed: int, points: Sequence[Point] = POINTS, clients: int = 24
) -> Result:
    """Visit every point once and compare what is left.

    Raises:
        TimeoutError: A point was never passed.
    """
    draw = random.Random(seed)
    load = Load(headgate.urls, headgate.keys, clients=clients)
    began = time.monotonic()
    asked = asyncio.create_task(load.run(operations(seed, len(headgate.keys), headgate.tight)))
    deaths: Counter[str] = Counter()
    try:
        for point in points:
            await _live_and_die(headgate, point, draw)
            deaths[point] += 1
        await asyncio.to_thread(headgate.start)
        load.stop()
        await asked
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    return await conclude(headgate, load, truth, time.monotonic() - began, deaths)


async def _live_and_die(headgate: Headgate, point: Point, draw: random.Random) -> None:
    victim = point.partition(".")[0]
    before = len(headgate.deaths())
    headgate.launch(HEADGATE_CRASH_AT=f"{point}:{_passing(point, headgate.workers, draw)}")
    until = time.monotonic() + DIED_S
    kill_at = time.monotonic() + KILL_AFTER_S
    while not any(child.startswith(victim) for child in headgate.deaths()[before:]):
        if time.monotonic() > until:
            raise TimeoutError(f"nothing died at {point} in {DIED_S:g} s: {headgate.log()[-3000:]}")
        if point in ("ledger.after_welcome", "ledger.in_recovery") and time.monotonic() > kill_at:
            # Passed when a worker comes back, and when one has died in the middle of its work.
            headgate.kill("worker")
            kill_at += KILL_AFTER_S
        await asyncio.sleep(0.05)
    await asyncio.sleep(AFTER_S)
    headgate.kill_everything()


def _passing(point: Point, workers: int, draw: random.Random) -> int:
    """The passing at which to die: late enough that a life gets something done."""
    if point == "ledger.in_recovery":
        return 1
    if point == "ledger.after_welcome":
        return workers + 1
    return draw.randint(3, 60)
