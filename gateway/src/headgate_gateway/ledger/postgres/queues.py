"""What waits for the lanes, and which batch begins next. May import wire and the core's batch size.

Organizations are divided among the lanes. An organization is in one batch at a time, because a second one would
only wait for its lock. A batch has a cost of its own, so that lanes which share out little work among many small
batches lose by it: one lane takes what waits in all of them, and another begins only for a whole batch.
"""

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


class _Queue:
    """The operations of one lane's organizations: what ends requests goes before what begins them."""

    def __init__(self) -> None:
        self.urgent: Final[deque[Entry]] = deque()
        self.admits: Final[deque[Entry]] = deque()
        self.since = 0
        """When it was empty last or had its turn, counted in operations and batches."""

    def __len__(self) -> int:
        return len(self.urgent) + len(self.admits)

    @property
    def commanded(self) -> bool:
        """Whether a command is next; it has a batch of its own."""
        return bool(self.urgent) and isinstance(self.urgent[0].op, wire.Run)

    @property
    def whole(self) -> bool:
        """Whether it has a batch by itself."""
        return len(self) >= BATCH or self.commanded


class Queues:
    """The operations that wait, by lane.

    Args:
        lanes: How many batches may be carried out at the same time.
    """

    def __init__(self, lanes: int) -> None:
        self._queues = [_Queue() for _ in range(lanes)]
        self._running: dict[int, list[_Queue]] = {}
        """Lanes that carry out a batch, with the queues that it was taken from."""
        self._count = 0

    def put(self, lane: int, entry: Entry) -> None:
        """Let an operation wait."""
        queue = self._queues[lane]
        self._count += 1
        if not queue:
            queue.since = self._count
        (queue.admits if isinstance(entry.op, wire.Admit) else queue.urgent).append(entry)

    def drop(self, to: Peer) -> list[Entry]:
        """Let the admissions that a client asked for wait no more; returns them."""
        dropped: list[Entry] = []
        for queue in self._queues:
            dropped += [entry for entry in queue.admits if entry.to is to]
            kept = [entry for entry in queue.admits if entry.to is not to]
            queue.admits.clear()
            queue.admits.extend(kept)
        return dropped

    @property
    def admits(self) -> int:
        """Admissions that wait."""
        return sum(len(queue.admits) for queue in self._queues)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being carried out."""
        return not (self._running or any(self._queues))

    def take(self, *, freed: bool = False) -> tuple[int, list[Entry]] | None:
        """The next batch and the lane that is to carry it out, None when none is to begin now.

        Args:
            freed: A lane has just ended its batch, and may go on with whatever waits longest.
        """
        held = [queue for queues in self._running.values() for queue in queues]
        ready = sorted(
            (queue for queue in self._queues if queue and queue not in held), key=lambda queue: queue.since
        )
        if self._running and not freed:
            ready = [queue for queue in ready if queue.whole]
        if not ready:
            return None
        first = ready[0]
        ready = [first] if first.whole else [queue for queue in ready if not queue.whole]
        lane = self._queues.index(first)
        self._running[lane] = ready
        return lane, self._batch(ready)

    def ended(self, lane: int) -> None:
        """A lane has carried its batch out."""
        del self._running[lane]

    def _batch(self, queues: list[_Queue]) -> list[Entry]:
        """Requests, at most `BATCH` of them, or one command."""
        self._count += 1
        for queue in queues:
            queue.since = self._count
        if queues[0].commanded:
            return [queues[0].urgent.popleft()]
        taken: list[Entry] = []
        for queue in queues:
            while queue.urgent and not queue.commanded and len(taken) < BATCH:
                taken.append(queue.urgent.popleft())
        for queue in queues:
            while queue.admits and len(taken) < BATCH:
                taken.append(queue.admits.popleft())
        return taken
