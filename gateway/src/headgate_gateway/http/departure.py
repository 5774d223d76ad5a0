"""Noticing that a client has left while its answer is made, or takes nothing of it any more.

May import nothing of ours but bodies.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from types import TracebackType
from typing import Final, Self

from litestar.types import Receive

from headgate_gateway.http.bodies import ClientGone

SOON_S: Final = 0.05
"""Most answers are done before this, and need no watch at all."""

STALL_S: Final = 60.0
"""A client that takes nothing of its stream for so long has left."""


class Departure:
    """Cancels the current task when the client closes its connection; the `with` then ends with `ClientGone`.

    Args:
        receive: The request's, its body read.
        after_s: Seconds until the watch begins.
    """

    def __init__(self, receive: Receive, *, after_s: float = SOON_S) -> None:
        self._receive = receive
        self._after_s = after_s
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(self._after_s, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._gone:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                raise ClientGone from None

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                self._task.cancel()
                return


class Patience:
    """Ends a `with` by `TimeoutError` when a piece has waited for its client too long.

    Looked at now and then: a timer that is set and cleared around each piece costs more than handing it on.

    Args:
        seconds: How long a piece may wait; it is noticed after a quarter more at the latest.

    Attributes:
        since: When the piece that waits began to, in monotonic seconds; None while none does.
    """

    def __init__(self, seconds: float = STALL_S) -> None:
        self.since: float | None = None
        self._seconds = seconds
        self._watch = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._watch.__aexit__(kind, error, traceback)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if self.since is not None and monotonic() - self.since >= self._seconds:
            self._watch.reschedule(loop.time())
        else:
            self._timer = loop.call_later(self._seconds / 4, self._look)
