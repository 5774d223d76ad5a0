"""Learns from an engine's socket how far its model is, and whether it hangs. May import ipc and wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from headgate_engine.ipc import Codec, Connection, connect
from headgate_engine.wire import Beat, FromEngine, State

RETRY_S: Final = 0.1
"""Between two tries to connect: an engine's socket appears while it starts."""

LOOK_S: Final = 5.0
"""How often to see when a model was last heard of."""


class EngineWatch:
    """Follows one engine's state for as long as it is wanted, over any number of its lives.

    Args:
        socket: Where it listens.
        on_change: It said something.
        most_s: A ready engine hangs when it is silent, or its model is in one pass, for longer than this.
        on_hanging: It does; is told why.

    Attributes:
        state: The last thing it said; None while nobody listens there.
        failure: Why its last load failed; None once a load succeeded.
    """

    def __init__(
        self,
        socket: Path,
        on_change: Callable[[], None],
        *,
        most_s: float,
        on_hanging: Callable[[str], object],
        look_s: float = LOOK_S,
    ) -> None:
        self.state: State | None = None
        self.failure: str | None = None
        self._socket = socket
        self._on_change = on_change
        self._most_s = most_s
        self._on_hanging = on_hanging
        self._look_s = look_s
        self._silent_s = 0.0
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
            self._silent_s = 0.0
            looking = asyncio.create_task(self._look())
            try:
                await connection.closed()
            finally:
                looking.cancel()
                connection.close()
            self.state = None
            self._on_change()
            await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        """Count the silence in looks, not by the clock: while this process stood still it heard nobody."""
        while True:
            await asyncio.sleep(self._look_s)
            self._silent_s += self._look_s
            if self._silent_s > self._most_s:
                self._hangs(f"it was silent for {self._most_s:g} s")

    def _hangs(self, because: str) -> None:
        """One that loads may take its time."""
        if self.state is not None and self.state.state == "ready":
            self._on_hanging(because)

    def _heard(self, _connection: Connection[Any], message: Any) -> None:
        self._silent_s = 0.0
        if isinstance(message, Beat) and message.stalled_ms > self._most_s * 1000:
            self._hangs(f"its model was in one pass for {self._most_s:g} s")
        if isinstance(message, State):
            self.state = message
            if message.state == "failed":
                self.failure = message.reason
            elif message.state == "ready":
                self.failure = None
            self._on_change()
