# Generated from headgate/_async/stream.py by sdk/scripts/unasync.py. Do not edit.
"""A stream as the caller holds it: iterate it, or its text, or ask for the whole."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel

from headgate._core.money import Cost
from headgate._core.stream import StreamState
from headgate._transport.types import Streaming
from headgate.errors import ConnectionFailed, HeadgateError, StreamInterrupted, StreamLost
from headgate.types.shared import Answer, Usage

if TYPE_CHECKING:
    from headgate._sync.engine import Engine

ChunkT = TypeVar("ChunkT", bound=BaseModel)
FinalT = TypeVar("FinalT", bound=Answer)


class Stream(Generic[ChunkT, FinalT]):
    """An answer that is still coming.

    Use it as a context manager: leaving the block gives the connection back, and leaving early tells the gateway
    at once, which stops the work and settles what was delivered.
    """

    def __init__(self, engine: Engine, state: StreamState[ChunkT, FinalT]) -> None:
        self._engine = engine
        self._state = state
        self._queue: deque[ChunkT] = deque()
        self._streaming: Streaming | None = None
        self._chunks: Generator[bytes, None, None] | None = None
        self._closed = False

    @property
    def usage(self) -> Usage | None:
        """Usage as far as the gateway reported it; complete once the stream is."""
        return self._state.usage

    @property
    def cost(self) -> Cost | None:
        """The cost; known once the stream is complete."""
        return self._state.cost

    @property
    def request_id(self) -> str | None:
        """The gateway's id of the request."""
        return self._state.request_id

    @property
    def last_event_id(self) -> str | None:
        """Where a resume would go on."""
        return self._state.last_event_id

    @property
    def text_so_far(self) -> str:
        """The first choice's text as far as it came."""
        return "".join(self._state.text)

    @property
    def text(self) -> Iterator[str]:
        """The first choice's text, piece by piece."""
        return self._text()

    def _text(self) -> Iterator[str]:
        for chunk in self:
            piece = self._state.fold.text_of(chunk)
            if piece:
                yield piece

    def final(self) -> FinalT:
        """Read what is left and return the whole answer.

        Raises:
            StreamInterrupted: The stream was closed before its end, or broke: there is no whole answer.
        """
        for _ in self:
            pass
        if not self._state.done:
            raise self._state.interrupted("the stream was closed before its end")
        return self._state.final()

    def __iter__(self) -> Iterator[ChunkT]:
        """The chunks."""
        return self

    def __next__(self) -> ChunkT:
        """The next chunk.

        Raises:
            StreamInterrupted: The stream broke; it has the part that came.
            BudgetExceeded: The stream was cut by the budget around it.
        """
        while not self._queue:
            state = self._state
            if state.failure is not None:
                self._end(state.failure)
                raise state.failure
            if state.done or self._closed:
                self.close()
                raise StopIteration
            try:
                self._pull()
            except ConnectionFailed as error:
                self._go_on(error)
            except BaseException:
                self.close()
                raise
        return self._queue.popleft()

    def _pull(self) -> None:
        """Read until there is something to hand out or the stream is over."""
        if self._chunks is None:
            return
        state = self._state
        for data in self._chunks:
            self._queue.extend(state.feed(data))
            if self._queue or state.done or state.failure is not None:
                return
        state.ended()

    def attach(self, streaming: Streaming) -> None:
        """Read from a new connection, up to its first new event."""
        self.detach()
        self._streaming, self._chunks = streaming, streaming.chunks()
        self._pull()
        state = self._state
        if state.failure is not None and not self._queue and not isinstance(state.failure, StreamInterrupted):
            failure, state.failure = state.failure, None
            raise failure

    def _go_on(self, error: ConnectionFailed) -> None:
        """Resume a broken stream if it may be, else end it."""
        state = self._state
        if not state.resumable:
            failure: HeadgateError = state.interrupted(error.message, error)
        else:
            try:
                self._engine.resume(self, state, error)
            except StreamLost as lost:
                failure = state.lost(lost)
            except HeadgateError as last:
                failure = state.interrupted(last.message, last)
            else:
                return
        self._end(failure)
        raise failure

    def _end(self, failure: HeadgateError) -> None:
        self._state.failure = failure
        self._state.abandon(failure)
        self.close()

    def detach(self) -> None:
        """Let go of the connection, whatever state it is in. Idempotent."""
        streaming, chunks = self._streaming, self._chunks
        self._streaming = self._chunks = None
        if chunks is not None:
            chunks.close()
        if streaming is not None:
            streaming.close()

    def close(self) -> None:
        """Give the connection back; before the end of the stream, this stops the work. Idempotent."""
        self._closed = True
        try:
            self.detach()
        finally:
            self._state.abandon()

    def __del__(self) -> None:
        """Say so where a stream was dropped before its end: its connection is still taken."""
        if getattr(self, "_streaming", None) is not None:
            warnings.warn(
                "a stream was neither closed nor read to its end", ResourceWarning, source=self, stacklevel=2
            )

    def __enter__(self) -> Stream[ChunkT, FinalT]:
        """The stream itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class StreamManager(Generic[ChunkT, FinalT]):
    """A stream that opens when its `with` block does."""

    def __init__(self, opener: Callable[[], Stream[ChunkT, FinalT]]) -> None:
        self._opener = opener
        self._stream: Stream[ChunkT, FinalT] | None = None

    def __enter__(self) -> Stream[ChunkT, FinalT]:
        """Open the stream; its first event is there."""
        self._stream = self._opener()
        return self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        if self._stream is not None:
            self._stream.close()
