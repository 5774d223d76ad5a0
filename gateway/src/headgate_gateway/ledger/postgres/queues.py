"""What waits for a lane: urgent operations first, admissions after them, commands one by one. May import wire."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from headgate_engine import ipc

from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Speaker

Peer = ipc.Connection[wire.ToLedger]


class Entry(NamedTuple):
    """An operation, and who is told what became of it: a client, something of this process, or nobody."""

    to: Peer | asyncio.Future[wire.Reply] | None
    speaker: Speaker
    op: wire.Op


class Queue:
    """The operations that wait for one lane."""

    def __init__(self) -> None:
        self._urgent: Final[deque[Entry]] = deque()
        self._admits: Final[deque[Entry]] = deque()
        self._some = asyncio.Event()
        self.busy = False
        """A batch was taken and is not answered yet."""

    def put(self, entry: Entry) -> None:
        """Let an operation wait."""
        (self._admits if isinstance(entry.op, wire.Admit) else self._urgent).append(entry)
        self._some.set()

    @property
    def admits(self) -> int:
        """Admissions that wait."""
        return len(self._admits)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being carried out."""
        return not (self.busy or self._urgent or self._admits)

    async def batch(self) -> list[Entry]:
        """What is to be carried out next: requests, at most `BATCH` of them, or one command."""
        self.busy = False
        while not (self._urgent or self._admits):
            self._some.clear()
            await self._some.wait()
        self.busy = True
        taken: list[Entry] = []
        while self._urgent and len(taken) < BATCH:
            if isinstance(self._urgent[0].op, wire.Run):
                return taken or [self._urgent.popleft()]
            taken.append(self._urgent.popleft())
        while self._admits and len(taken) < BATCH:
            taken.append(self._admits.popleft())
        return taken
