"""What a stream means, byte by byte: events, the fold, where a resume goes on, when it is broken. No I/O."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from headgate._core import outcome
from headgate._core.answers import shape_error
from headgate._core.fold import Fold
from headgate._core.money import Cost
from headgate._core.request import Call
from headgate._core.sse import EventDecoder, EventTooLarge, ServerSentEvent
from headgate._core.tickets import Ticket
from headgate._transport.types import Received
from headgate.errors import (
    ConnectionFailed,
    HeadgateError,
    StatusError,
    StreamInterrupted,
    StreamLost,
)
from headgate.types.shared import Answer, Raw, Usage

ChunkT = TypeVar("ChunkT", bound=BaseModel)
FinalT = TypeVar("FinalT", bound=Answer)
ErrorT = TypeVar("ErrorT", bound=HeadgateError)

_DONE = "[DONE]"


class StreamState(Generic[ChunkT, FinalT]):
    """One stream's mind: fed with bytes by a shell of either colour.

    Attributes:
        done: The stream said that it is complete.
        failure: What ended it instead; raised by the shell once the chunks before it are handed out.
        text: Pieces of the first choice's text.
    """

    def __init__(self, call: Call, fold: Fold[ChunkT, FinalT], ticket: Ticket, *, hide_usage: bool) -> None:
        self.call = call
        self.fold = fold
        self.done = False
        self.failure: HeadgateError | None = None
        self.text: list[str] = []
        self.last_event_id: str | None = None
        self._ticket = ticket
        self._hide_usage = hide_usage
        self._decoder = EventDecoder()
        self._position = -1
        self._bytes = 0
        self._chunks = 0
        self._head = Received(0, {}, b"")

    def opened(self, head: Received) -> None:
        """A connection begins: the first one, or one that resumes."""
        self._decoder = EventDecoder()
        self._head = head

    @property
    def begun(self) -> bool:
        """Whether the first event has come: from then on nothing is run again."""
        return self._chunks > 0 or self.done

    @property
    def resumable(self) -> bool:
        """Whether the stream can go on over another connection."""
        return self.last_event_id is not None and "headgate-resumable" in self.call.headers

    @property
    def usage(self) -> Usage | None:
        """The last usage that the gateway reported."""
        return self.fold.usage

    @property
    def cost(self) -> Cost | None:
        """What the gateway said that it costs; None until it did."""
        headers = self._head.headers
        usage = self.fold.usage
        return Cost.parse(
            usage.cost if usage is not None and usage.cost is not None else headers.get("headgate-cost"),
            currency=headers.get("headgate-currency"),
            price=headers.get("headgate-price"),
        )

    @property
    def request_id(self) -> str | None:
        """The gateway's id of the request."""
        return self._head.headers.get("x-request-id")

    def feed(self, data: bytes) -> list[ChunkT]:
        """Take bytes; return the chunks to hand out. A failure is kept in `failure`."""
        shown: list[ChunkT] = []
        try:
            events = self._decoder.feed(data)
        except EventTooLarge as error:
            self.failure = self.interrupted(str(error), error)
            return shown
        for event in events:
            if self.done or self.failure is not None:
                break
            chunk = self._event(event)
            if chunk is not None and (self.fold.shown(chunk) or not self._hide_usage):
                shown.append(chunk)
        return shown

    def ended(self) -> None:
        """The connection's bytes are over.

        Raises:
            ConnectionFailed: The stream did not say that it is complete.
        """
        if not self.done and self.failure is None:
            phase = "body" if self.begun else "first_byte"
            raise ConnectionFailed("the stream ended without its end mark", phase=phase)

    def _event(self, event: ServerSentEvent) -> ChunkT | None:
        if event.data == _DONE:
            self._finish()
            return None
        if event.event == "error" or event.data.startswith('{"error"'):
            error = outcome.error_of_event(event.data, self._head.headers)
            self.failure = error if not self.begun else self.interrupted(error.message, error)
            return None
        if not self._is_new(event.id):
            return None
        try:
            chunk = self.fold.chunk_type.model_validate_json(event.data)
        except ValidationError as error:
            self.failure = self._dress(shape_error(error, event.data.encode()))
            return None
        self._take(chunk)
        return chunk

    def _take(self, chunk: ChunkT) -> None:
        self.fold.add(chunk)
        piece = self.fold.text_of(chunk)
        if piece:
            self.text.append(piece)
            self._bytes += len(piece.encode())
        self._chunks += 1
        if self.fold.ends(chunk):
            self._finish()
        elif (cut := self._ticket.overruns(self._bytes, self._chunks)) is not None:
            cut.partial = "".join(self.text)
            self.failure = self._dress(cut)

    def _is_new(self, event_id: str | None) -> bool:
        """Whether an event is not one that a resume played again; ids are `<request id>:<n>`, dense."""
        if event_id is None:
            return True
        number = event_id.rpartition(":")[2]
        if number.isascii() and number.isdigit():
            if int(number) <= self._position:
                return False
            self._position = int(number)
        self.last_event_id = event_id
        return True

    def _finish(self) -> None:
        self.done = True
        cost = self.cost
        self._ticket.settle(
            usage=self.usage,
            nano=None if cost is None else cost.nano,
            request_id=self.request_id,
            replayed=self._head.headers.get("idempotency-replayed") == "true",
        )

    def interrupted(self, message: str, cause: BaseException | None = None) -> StreamInterrupted:
        """The error of a stream that broke; it has the part that came."""
        error = StreamInterrupted(message, partial="".join(self.text), last_event_id=self.last_event_id)
        error.__cause__ = cause
        if isinstance(cause, StatusError):
            error.code = cause.code
        return self._dress(error)

    def lost(self, error: StreamLost) -> StreamLost:
        """The error of a resume that came too late, with the part that came before."""
        error.partial = "".join(self.text)
        error.last_event_id = self.last_event_id
        return self._dress(error)

    def abandon(self, error: HeadgateError | None = None) -> None:
        """The stream ends before its end: book what is known of it."""
        if error is not None:
            self._dress(error)
        cost = self.cost or (error.cost if error is not None else None)
        self._ticket.settle(
            usage=self.usage,
            nano=None if cost is None else cost.nano,
            request_id=self.request_id,
            failed=error is not None,
        )

    def _dress(self, error: ErrorT) -> ErrorT:
        error.usage = self.usage
        error.cost = error.cost or self.cost
        error.request_id = error.request_id or self.request_id
        error.attempts = tuple(self.call.attempts)
        return error

    def final(self) -> FinalT:
        """The folded answer so far."""
        answer = self.fold.final()
        head, call = self._head, self.call
        answer.attach(Raw(head.status, head.headers, b"", tuple(call.attempts), call.key))
        return answer
