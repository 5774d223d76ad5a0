"""Reading a stream that another worker makes: a socket of each worker, one connection for each reader.

The reader asks for each piece (`More`) once it has handed the one before to its client, so that a stream is made
no faster than it is read, wherever that is. Only this deployment's processes can open the socket, and whoever
asks has had the ledger check the client's key. May import stream, keeper, layout, ipc.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Literal

import msgspec
from headgate_engine import ipc

from headgate_gateway.layout import Layout
from headgate_gateway.streams.frames import Ahead
from headgate_gateway.streams.keeper import Streams
from headgate_gateway.streams.stream import (
    Busy,
    Head,
    NotKept,
    OwnerLost,
    Piece,
    Reader,
    Reading,
    Superseded,
)

ANSWER_S: Final = 5.0
"""How long a sibling may take to say whether it has a stream."""


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First message: read on behind an event; see `KeptStream.attach`."""

    request_id: str
    after: int
    steal: bool


class More(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The piece before was handed over; the next one, please."""


class Attached(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Read on. The headers that the stream began with."""

    head: Head


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """No such stream, or somebody reads it, or the client reads on elsewhere."""

    why: Literal["not_kept", "ahead", "busy", "superseded"]


class Given(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """A piece."""

    piece: Piece


Asked = Attach | More
Answered = Attached | Refused | Given
_ERRORS: Final = {"not_kept": NotKept, "ahead": Ahead, "busy": Busy, "superseded": Superseded}


class Siblings:
    """The streams of all workers of a deployment, as one worker sees them.

    Args:
        layout: Where the sockets lie.
        worker: This one's number.
        streams: Its own streams.
    """

    def __init__(self, layout: Layout, worker: int, streams: Streams) -> None:
        self._layout = layout
        self._worker = worker
        self._streams = streams
        self._codec: ipc.Codec[Asked] = ipc.Codec(Asked)
        self._serving: dict[ipc.Connection[Asked], _Serving] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen for the others."""
        self._server = await ipc.listen(self._layout.worker_socket(self._worker), self._accept)

    async def close(self) -> None:
        """Read for nobody any more."""
        if self._server is not None:
            self._server.close()
            self._layout.worker_socket(self._worker).unlink(missing_ok=True)
        for connection, serving in list(self._serving.items()):
            serving.close()
            connection.close()

    async def attach(self, worker: int | None, request_id: str, after: int, *, steal: bool = True) -> Reading:
        """Read a stream on.

        Args:
            worker: Who makes it; None asks everyone.
            request_id: Whose answer it is.
            after: Number of the last event that the client has.
            steal: Whether to take it from whoever reads it.

        Raises:
            NotKept: Nobody has it, or no longer the events behind that one.
            Ahead: There has been no such event yet.
            Busy: Somebody reads it, and it was not to be taken from them.
        """
        own = self._streams.find(request_id)
        if own is not None:
            return own.attach(after, steal=steal)
        others = self._others() if worker is None else [worker]
        for other in others:
            if other == self._worker:
                continue
            with contextlib.suppress(NotKept):
                return await self._attach(other, Attach(request_id, after, steal))
        raise NotKept

    def _others(self) -> list[int]:
        names = (path.stem[1:] for path in self._layout.worker_socket(0).parent.glob("w*.sock"))
        return sorted(int(name) for name in names if name.isdecimal())

    async def _attach(self, worker: int, ask: Attach) -> Reading:
        reading = _RemoteReading()
        try:
            async with asyncio.timeout(ANSWER_S):
                await reading.open(self._layout, worker, ask)
        except BaseException as error:
            reading.close()
            if isinstance(error, OSError | TimeoutError | OwnerLost):
                raise NotKept from None
            raise
        return reading

    # -- reading for others

    def _accept(self) -> ipc.Connection[Asked]:
        return ipc.Connection(self._codec, self._on_message, self._on_close)

    def _on_message(self, connection: ipc.Connection[Asked], message: Asked) -> None:
        serving = self._serving.get(connection)
        if isinstance(message, Attach):
            if serving is None:
                self._on_attach(connection, message)
        elif serving is not None:
            serving.more.set()

    def _on_attach(self, connection: ipc.Connection[Asked], ask: Attach) -> None:
        stream = self._streams.find(ask.request_id)
        try:
            if stream is None:
                raise NotKept
            reader = stream.attach(ask.after, steal=ask.steal)
        except NotKept:
            _say(connection, Refused("not_kept"))
        except Ahead:
            _say(connection, Refused("ahead"))
        except Busy:
            _say(connection, Refused("busy"))
        else:
            self._serving[connection] = _Serving(connection, reader)
            _say(connection, Attached(reader.head))

    def _on_close(self, connection: ipc.Connection[Asked], _error: Exception | None) -> None:
        if (serving := self._serving.pop(connection, None)) is not None:
            serving.close()


class _Serving:
    """A reader of ours whose client is a sibling's."""

    def __init__(self, connection: ipc.Connection[Asked], reader: Reader) -> None:
        self.more = asyncio.Event()
        self._connection = connection
        self._reader = reader
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        last = False
        try:
            while not last:
                await self.more.wait()
                self.more.clear()
                piece = await self._reader.next()
                last = piece.last
                _say(self._connection, Given(piece))
        except Superseded:
            _say(self._connection, Refused("superseded"))
        finally:
            self._reader.close()

    def close(self) -> None:
        self._task.cancel()
        self._reader.close()


def _say(connection: ipc.Connection[Asked], message: Answered) -> None:
    with contextlib.suppress(ipc.ConnectionLost):
        connection.send(message)


class _RemoteReading:
    """A client's place in a stream of another worker; see `Reading`."""

    def __init__(self) -> None:
        self._connection: ipc.Connection[Answered] | None = None
        self._answers: asyncio.Queue[Answered | None] = asyncio.Queue()
        self.head: Head = []

    async def open(self, layout: Layout, worker: int, ask: Attach) -> None:
        """Connect and say what is wanted."""
        codec: ipc.Codec[Answered] = ipc.Codec(Answered)
        self._connection = await ipc.connect(
            layout.worker_socket(worker),
            lambda: ipc.Connection(codec, lambda _, message: self._answers.put_nowait(message), self._on_close),
        )
        self._connection.send(ask)
        answer = await self._answer()
        assert isinstance(answer, Attached)
        self.head = answer.head

    async def next(self) -> Piece:
        """See `Reading`."""
        assert self._connection is not None
        with contextlib.suppress(ipc.ConnectionLost):  # what it sent before it closed is in the queue
            self._connection.send(More())
        answer = await self._answer()
        assert isinstance(answer, Given)
        return answer.piece

    def close(self) -> None:
        """See `Reading`."""
        if self._connection is not None:
            self._connection.close()

    def _on_close(self, _connection: ipc.Connection[Answered], _error: Exception | None) -> None:
        self._answers.put_nowait(None)

    async def _answer(self) -> Answered:
        answer = await self._answers.get()
        if answer is None:
            self._answers.put_nowait(None)
            raise OwnerLost
        if isinstance(answer, Refused):
            raise _ERRORS[answer.why]
        return answer
