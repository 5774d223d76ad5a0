"""The socket at which commands and workers ask the supervisor to start or end a model's engines.

May import models.control, ipc and layout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from headgate_engine import ipc

from headgate_gateway.layout import Layout
from headgate_gateway.models.control import Ask, Told

Answer = Callable[[Ask], Awaitable[Told]]


class Control:
    """Answers whoever asks.

    Args:
        layout: Where the socket lies.
        answer: Does what is asked.
    """

    def __init__(self, layout: Layout, answer: Answer) -> None:
        self._path = layout.control_socket
        self._answer = answer
        self._codec: ipc.Codec[Ask] = ipc.Codec(Ask)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await ipc.listen(self._path, lambda: ipc.Connection(self._codec, self._on_ask))

    async def close(self) -> None:
        """Listen no more; who still waits is left without an answer."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_ask(self, connection: ipc.Connection[Ask], ask: Ask) -> None:
        task = asyncio.create_task(self._tell(connection, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, connection: ipc.Connection[Ask], ask: Ask) -> None:
        try:
            told = await self._answer(ask)
            with contextlib.suppress(ipc.ConnectionLost):
                connection.send(told)
        finally:
            connection.close()
