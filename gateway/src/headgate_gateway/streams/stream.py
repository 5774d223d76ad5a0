"""One resumable stream: its events, whoever reads them, and how long it runs on when nobody does.

Whoever makes the stream adds events and asks `wanted` before making the next one. While somebody reads, that is
once the reader has handed over all there is: what is made is then what was delivered, as for any other stream.
While nobody reads, it goes on as long as there is room. May import frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from headgate_gateway.streams.frames import Ahead, Frames

MAX_BYTES: Final = 1024 * 1024
"""Of one stream's events that are kept; what nobody has read yet is never dropped, the stream waits instead."""

Head = list[tuple[bytes, bytes]]


class NotKept(Exception):
    """There is no such stream here, or no longer the events that were asked for."""


class Busy(Exception):
    """Somebody reads the stream."""


class Superseded(Exception):
    """The client came back on another connection, which has the stream now."""


class OwnerLost(Exception):
    """The worker that makes the stream has gone."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Events that came since the piece before; `last` says that nothing follows."""

    data: bytes
    last: bool


class Reading(Protocol):
    """A client's place in a stream, here or at another worker."""

    @property
    def head(self) -> Head:
        """The headers that the stream began with."""
        ...

    async def next(self) -> Piece:
        """What follows; waits for it. What was given before counts as handed to the transport.

        Raises:
            Superseded: The client reads on elsewhere.
            OwnerLost: Nothing follows any more.
        """
        ...

    def close(self) -> None:
        """Nobody reads on here. Idempotent."""
        ...


class KeptStream:
    """One stream.

    Args:
        request_id: Whose answer it is.
        head: The headers that it began with.
        seconds: How long it runs on, and then is kept, while nobody reads.
        grown: Told by how many bytes it grew; answers whether all streams together have room.
        gone: Called once when nobody can read it any more.
    """

    def __init__(
        self,
        request_id: str,
        head: Head,
        seconds: float,
        *,
        grown: Callable[[int], bool],
        gone: Callable[[KeptStream], None],
    ) -> None:
        self.request_id = request_id
        self.head = head
        self.frames = Frames(request_id)
        self.ended = False
        self._seconds = seconds
        self._grown = grown
        self._gone = gone
        self._handed = 0
        self._reader: Reader | None = None
        self._asked = asyncio.Event()
        self._making: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replayable = False
        self._forgotten = False
        self._changed = asyncio.Event()

    @property
    def is_read(self) -> bool:
        """Whether somebody reads it."""
        return self._reader is not None

    # -- the side that makes it

    def made_by(self, task: asyncio.Task[Any]) -> None:
        """Which task makes it: cancelled when nobody comes back in time."""
        self._making = task

    async def wanted(self) -> None:
        """Wait until the next event is to be made."""
        while not self._may_go_on():
            self._asked.clear()
            await self._asked.wait()

    def _may_go_on(self) -> bool:
        if self._reader is not None:
            return self._reader.waits
        return self.frames.size <= MAX_BYTES and self._grown(0)

    def add(self, data: bytes) -> None:
        """Take events."""
        room = self._grown(self.frames.add(data))
        while self.frames.first < self._handed and (self.frames.size > MAX_BYTES or not room):
            room = self._grown(-self.frames.drop())
        if self._reader is not None:
            self._reader.wake()

    def end(self, data: bytes, *, replayable: bool) -> None:
        """Take the closing events.

        Args:
            data: They.
            replayable: Whether the ledger keeps an answer from which the stream can be continued as well.
        """
        self.ended = True
        self._replayable = replayable
        self.add(data)
        if self._reader is None and replayable:
            self.give_up()
        self._changed.set()

    @property
    def busy(self) -> bool:
        """Whether it is being made or read."""
        return not self.ended or self.is_read

    async def changed(self) -> None:
        """Wait until it may not be busy any more."""
        self._changed.clear()
        await self._changed.wait()

    # -- the side that reads it

    def attach(self, after: int, *, steal: bool = True) -> Reader:
        """Read on behind an event; whoever read before is superseded.

        Args:
            after: Number of the last event that the client has, -1 for none.
            steal: Whether to take it from whoever reads it.

        Raises:
            NotKept: Events behind that one are not kept any more; the stream is given up.
            Ahead: There has been no such event yet.
            Busy: Somebody reads it, and it was not to be taken from them.
        """
        if self._reader is not None and not steal:
            raise Busy
        if after >= self.frames.next:
            raise Ahead
        if after + 1 < self.frames.first:
            self.give_up()
            raise NotKept
        before, self._reader = self._reader, Reader(self, after + 1)
        if before is not None:
            before.wake()
        self._disarm()
        return self._reader

    def handed(self, number: int) -> None:
        """Events before this number were given to a reader."""
        self._handed = max(self._handed, number)

    def asked(self) -> None:
        """The reader waits for more."""
        self._asked.set()

    def detach(self, reader: Reader) -> None:
        """A reader has left."""
        if self._reader is not reader:
            return
        self._reader = None
        self._changed.set()
        if self.ended and self._replayable:
            self.give_up()
            return
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self.give_up)
        self._asked.set()

    def is_of(self, reader: Reader) -> bool:
        """Whether the stream is still this reader's."""
        return self._reader is reader

    def give_up(self) -> None:
        """Nobody can or will read on: stop making it, and forget it."""
        self._disarm()
        if self._forgotten:
            return
        self._forgotten = True
        self._changed.set()
        before, self._reader = self._reader, None
        if before is not None:
            before.wake()
        if not self.ended and self._making is not None:
            self._making.cancel()
        self._gone(self)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Reader:
    """A client's place in a stream of this worker; see `Reading`."""

    def __init__(self, stream: KeptStream, position: int) -> None:
        self._stream = stream
        self._position = position
        self._news = asyncio.Event()
        self.waits = False

    @property
    def head(self) -> Head:
        """See `Reading`."""
        return self._stream.head

    def wake(self) -> None:
        """Something has changed: until it has been looked at, nothing more is wanted."""
        self.waits = False
        self._news.set()

    async def next(self) -> Piece:
        """See `Reading`."""
        stream = self._stream
        while stream.is_of(self):
            if self._position < stream.frames.next or stream.ended:
                data = stream.frames.since(self._position)
                self._position = stream.frames.next
                stream.handed(self._position)
                return Piece(data, stream.ended)
            self._news.clear()
            self.waits = True
            stream.asked()
            try:
                await self._news.wait()
            finally:
                self.waits = False
        raise Superseded

    def close(self) -> None:
        """See `Reading`."""
        self._stream.detach(self)
