"""Learns from an engine's socket how far its model is. May import ipc and wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from headgate_engine.ipc import Codec, Connection, connect
from headgate_engine.wire import FromEngine, State

RETRY_S: Final = 0.1
"""Between two tries to connect: an engine's socket appears while it starts."""


class EngineWatch:
    """Follows one engine's state for as long as it is wanted, over any number of its lives.

    Attributes:
        state: The last thing it said; None while nobody listens there.
        failure: Why its last load failed; None once a load succeeded.
    """

    def __init__(self, socket: Path, on_change: Callable[[], None]) -> None:
        self.state: State | None = None
        self.failure: str | None = None
        self._socket = socket
        self._on_change = on_change
        self._codec: Codec[Any] = Codec(FromEngine)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._follow(), name=f"watch {self._socket.name}")

    async def stop(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                connection = await connect(self._socket, lambda: Connection(self._codec, self._heard))
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await connection.closed()
            finally:
                connection.close()
            self.state = None
            self._on_change()
            await asyncio.sleep(RETRY_S)

    def _heard(self, _connection: Connection[Any], message: Any) -> None:
        if isinstance(message, State):
            self.state = message
            if message.state == "failed":
                self.failure = message.reason
            elif message.state == "ready":
                self.failure = None
            self._on_change()
