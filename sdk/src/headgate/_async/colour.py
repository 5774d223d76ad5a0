"""What only the async colour has: its retry loop, doing several things at once. Written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from headgate._core.clock import Clock
from headgate._core.forks import inherited
from headgate._core.observing import is_async
from headgate._core.retry import Rules
from headgate.errors import ConfigurationError

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

T = TypeVar("T")


def retrying(clock: Clock, rules: Rules, paused: Callable[[RetryCallState], None]) -> AsyncRetrying:
    """The retry loop of this colour around the pure rules; its library is loaded with the first failure."""
    from tenacity import AsyncRetrying

    return AsyncRetrying(
        sleep=clock.sleep_async,
        retry=rules.retry,
        wait=rules.wait,
        stop=rules.stop,
        before_sleep=paused,
        reraise=True,
    )


async def sleep(clock: Clock, seconds: float) -> None:
    """Let time pass."""
    await clock.sleep_async(seconds)


class Turn:
    """One at a time, in each event loop."""

    def __init__(self) -> None:
        self.forked()
        inherited(self)

    def forked(self) -> None:
        """In a forked child nobody has it."""
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    def lock(self) -> asyncio.Lock:
        """To be held for the turn."""
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def check(middleware: object) -> None:
    """Refuse middleware of the other colour.

    Raises:
        ConfigurationError: It is a plain function.
    """
    if not is_async(middleware):
        raise ConfigurationError(f"middleware of AsyncHeadgate is `async def`; {middleware!r} is not")


async def gather(tasks: Sequence[Callable[[], Awaitable[T]]], *, at_once: int) -> list[T]:
    """Results in order, at most so many at once; the first failure cancels the rest."""
    gate = asyncio.Semaphore(at_once)

    async def run(task: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await task()

    running = [asyncio.ensure_future(run(task)) for task in tasks]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
