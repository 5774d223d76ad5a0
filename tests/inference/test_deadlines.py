"""One timer for all that may be late."""

from __future__ import annotations

import asyncio
from typing import Any

from headgate_gateway.inference.deadlines import Deadlines


class Work:
    """Notes that it is late."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told
        self.was_told = asyncio.Event()

    def late(self) -> None:
        self.told.append(self.name)
        self.was_told.set()


async def test_whoever_is_late_is_told_once_and_in_time() -> None:
    told: list[str] = []
    deadlines, now = Deadlines(), asyncio.get_running_loop().time()
    never, last, first, over = (Work(name, told) for name in ("never", "last", "first", "over"))
    for work, seconds in ((never, 600), (last, 0.1), (first, 0.02), (over, 0.02)):
        deadlines.watch(work, now + seconds)
    deadlines.forget(over)
    async with asyncio.timeout(10):
        await last.was_told.wait()
    assert told == ["first", "last"]
    assert asyncio.get_running_loop().time() >= now + 0.1 - 0.001
    deadlines.forget(last)  # what was told may still say that it is over


async def test_a_passed_deadline_is_told_soon_and_not_at_once() -> None:
    told: list[str] = []
    deadlines = Deadlines()
    work = Work("work", told)
    deadlines.watch(work, asyncio.get_running_loop().time() - 1)
    assert not told
    async with asyncio.timeout(10):
        await work.was_told.wait()
    assert told == ["work"]


async def test_many_deadlines_have_one_timer() -> None:
    loop, told = asyncio.get_running_loop(), []
    timers: list[float] = []

    def call_at(when: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return plain(when, callback, *arguments)

    plain, loop.call_at = loop.call_at, call_at  # type: ignore[method-assign]
    deadlines, now = Deadlines(), loop.time()
    works = [Work(str(number), told) for number in range(100)]
    for number, work in enumerate(works):
        deadlines.watch(work, now + 600 + number)
    for work in works:
        deadlines.forget(work)
    loop.call_at = plain  # type: ignore[method-assign]
    assert timers == [now + 600]
