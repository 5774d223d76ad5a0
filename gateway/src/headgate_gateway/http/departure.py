"""Noticing that a client has left while its answer is made, or takes nothing of it any more.

May import nothing of ours but bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from headgate_gateway.http.bodies import CLIENT, Client, ClientGone

STALL_S: Final = 60.0
"""A client that takes nothing of its stream for so long has left."""


class Departure:
    """Cancels the current task when the client closes its connection; the `with` then ends with `ClientGone`.

    Args:
        scope: The request's, its body read.
    """

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._client: Client = scope[CLIENT]
        self._gone = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._client.watch(self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.left = None
        if self._gone:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                raise ClientGone from None

    def _leave(self) -> None:
        self._gone = True
        self._task.cancel()


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
