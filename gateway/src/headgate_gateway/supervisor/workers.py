"""The workers of one supervisor: started together, replaced one by one. May import child and children."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from headgate_gateway.supervisor.child import HURRIED_S, Child, ChildFailed

READY_S: Final = 60.0
EXTRA_S: Final = 5.0
"""On top of `server.drain_s`: a worker bounds its drain itself."""

_log = structlog.get_logger()


class Workers:
    """Every worker of one supervisor, by the number that names its flight file and socket.

    Args:
        start: Starts the one of a number.
        drain_s: How long the requests in one may take to end.
    """

    def __init__(self, start: Callable[[int], Child], drain_s: float) -> None:
        self.drain_s = drain_s
        self._start = start
        self._running: dict[int, Child] = {}

    @property
    def running(self) -> dict[int, Child]:
        """Those that were started and not ended, as of now."""
        return dict(sorted(self._running.items()))

    @property
    def grace_s(self) -> float:
        """How long one that is told to stop may take."""
        return self.drain_s + EXTRA_S

    async def start(self, count: int) -> None:
        """Start the first ones, all at once, and wait until they serve."""
        self._running = {number: self._start(number) for number in range(count)}
        await asyncio.gather(*(worker.ready(READY_S) for worker in self._running.values()))

    async def replace(self, wanted: int, leaving: dict[int, Child]) -> None:
        """One new worker at a time, ready before the old one is told to drain.

        A new one takes the lowest free number: the flight file of the one it replaces is still locked.
        """
        for _ in range(wanted):
            number = next(n for n in range(len(self._running) + 1) if n not in self._running)
            worker = self._running[number] = self._start(number)
            try:
                await worker.ready(READY_S)
            except ChildFailed:
                del self._running[number]
                await worker.stop(HURRIED_S)
                raise
            if leaving:
                await self._drop(leaving.popitem()[0])
        while leaving:
            await self._drop(leaving.popitem()[0])

    async def put_back(self, before: dict[int, Child]) -> None:
        """Workers that have moved already move back. Those that are too many go first: something is short."""
        moved = {number: worker for number, worker in self._running.items() if before.get(number) is not worker}
        missing = len(before) - (len(self._running) - len(moved))
        try:
            while len(moved) > max(missing, 1):
                await self._drop(moved.popitem()[0])
            await self.replace(missing, moved)
        except (ChildFailed, OSError) as error:
            _log.error("not all workers could be put back; restart", reason=str(error))

    async def _drop(self, number: int) -> None:
        await self._running[number].stop(self.grace_s)
        del self._running[number]
