"""What every resource goes through: attempts, retries, tickets, streams; this colour's only I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from headgate._async import colour
from headgate._async.stream import AsyncStream
from headgate._core import answers, metering, observing, outcome
from headgate._core.fold import Fold
from headgate._core.money import to_nano
from headgate._core.prices import ModelPrice, PriceList, upper
from headgate._core.request import Call, Session, encode_json
from headgate._core.stream import StreamState
from headgate._core.tickets import Journal, Ticket
from headgate._transport.types import AsyncStreaming, AsyncTransport, Received
from headgate.errors import HeadgateError, ResponseShapeError
from headgate.types.shared import Answer

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

ModelT = TypeVar("ModelT", bound=BaseModel)
ChunkT = TypeVar("ChunkT", bound=BaseModel)
FinalT = TypeVar("FinalT", bound=Answer)

_EVENT_STREAM = "text/event-stream"


class AsyncEngine:
    """A session bound to a transport.

    Attributes:
        session: Address, key, defaults.
        transport: What moves the bytes; shared by every copy that `with_options` makes.
        journal: The last calls, for reconciliation; shared as well.
        prices: Prices as the gateway lists them for this key, once a budget has asked for them.
    """

    def __init__(
        self,
        session: Session,
        transport: AsyncTransport,
        journal: Journal,
        prices: PriceList,
    ) -> None:
        self.session = session
        self.transport = transport
        self.journal = journal
        self.prices = prices
        self._asking = colour.Turn()

    async def post(
        self,
        kind: type[ModelT],
        path: str,
        body: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        repeatable: bool = True,
    ) -> ModelT:
        """Send a document and read the answer as its type."""

        def reader(received: Received, call: Call) -> ModelT:
            return answers.read(kind, received, call)

        payload = encode_json(body)
        return await self.send(path, payload, body, options, {}, reader, repeatable=repeatable)

    async def get(
        self, kind: type[ModelT], path: str, options: Mapping[str, Any], *, method: str = "GET"
    ) -> ModelT:
        """Ask for a document."""
        call = Call(self.session, method, path, body=None, options=options)

        def reader(received: Received, call: Call) -> ModelT:
            return answers.read(kind, received, call)

        return answers.checked(reader, await self._fetch(call), call)

    async def send(
        self,
        path: str,
        payload: bytes,
        body: Mapping[str, Any],
        options: Mapping[str, Any],
        headers: Mapping[str, str],
        reader: Callable[[Received, Call], ModelT],
        *,
        repeatable: bool = True,
    ) -> ModelT:
        """Send bytes, read the answer and book it, whatever becomes of it."""
        call, ticket = await self._begin(path, payload, body, options, headers)
        call.repeatable = repeatable
        try:
            received = await self._fetch(call)
            answer = answers.checked(reader, received, call)
        except BaseException as error:
            self._fail(ticket, error)
            raise
        return self._book(answer, received, ticket)

    def _book(self, answer: ModelT, received: Received, ticket: Ticket) -> ModelT:
        cost = answer.cost if isinstance(answer, Answer) else None
        headers = received.headers
        ticket.settle(
            usage=getattr(answer, "usage", None),
            nano=to_nano(headers.get("headgate-cost")) if cost is None else cost.nano,
            request_id=headers.get("x-request-id"),
            replayed=headers.get("idempotency-replayed") == "true",
        )
        return answer

    async def _begin(
        self,
        path: str,
        payload: bytes,
        body: Mapping[str, Any],
        options: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> tuple[Call, Ticket]:
        scopes = metering.current()
        model = body.get("model")
        tags: dict[str, str] = {}
        for scope in scopes:
            tags.update(scope.tags)
        call = Call(
            self.session,
            "POST",
            path,
            body=payload,
            options=options,
            model=model,
            headers=headers,
            tags=tags,
        )
        ticket = Ticket(self.journal, scopes, model, options.get("tags"), call.key)
        if ticket.budgeted:
            ticket.reserve(upper(body, len(payload), await self._price(model)))
        return call, ticket

    async def _price(self, model: str | None) -> ModelPrice | None:
        """A model's price as the gateway lists it."""
        if model is None:
            return None
        clock = self.session.clock
        if not self.prices.knows(clock.monotonic()):
            async with self._asking.lock():
                # Who waited finds them here.
                if not self.prices.knows(clock.monotonic()):
                    await self._ask_prices()
        return self.prices.of(model)

    async def _ask_prices(self) -> None:
        from headgate.types.models import ModelList

        clock = self.session.clock
        try:
            models = await self.get(ModelList, "/v1/models", {})
        except HeadgateError:
            self.prices.missed(clock.monotonic())
            return
        listed = {name: ModelPrice.parse(one.price) for one in models for name in (one.id, *one.aliases)}
        self.prices.learn(listed, clock.monotonic())

    async def _fetch(self, call: Call) -> Received:
        """The answer of a call, after as many tries as its rules allow."""
        if observers := self.session.observers:
            with observing.around(observers, call):
                return await self._tries(call)
        return await self._tries(call)

    async def _tries(self, call: Call) -> Received:
        try:
            return await self._try(call)
        except HeadgateError as error:
            first: list[HeadgateError] = [error]
        # The loop is entered with the first failure in hand: a call that works never pays for it.
        return await self._loop(call)(self._again, call, first)

    async def _again(self, call: Call, first: list[HeadgateError]) -> Received:
        if first:
            raise first.pop()
        return await self._try(call)

    async def _try(self, call: Call) -> Received:
        if pause := call.pace():
            await colour.sleep(self.session.clock, pause)
        begun = self.session.clock.monotonic()
        try:
            return call.accept(await self.transport.fetch(call.request()), begun)
        except HeadgateError as error:
            call.failed(error, begun)
            raise

    def _loop(self, call: Call) -> AsyncRetrying:
        def paused(state: RetryCallState) -> None:
            call.paused(state.upcoming_sleep)

        return colour.retrying(self.session.clock, call.rules(), paused)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        if not isinstance(error, HeadgateError):
            ticket.settle(usage=None, nano=None, request_id=None, failed=True)
            return
        ticket.settle(
            usage=error.usage,
            nano=None if error.cost is None else error.cost.nano,
            request_id=error.request_id,
            failed=True,
        )

    async def stream(
        self,
        fold: Fold[ChunkT, FinalT],
        path: str,
        body: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> AsyncStream[ChunkT, FinalT]:
        """Open a stream and return when its first event is there: until then failures are retried."""
        asked: Mapping[str, Any] = body.get("stream_options") or {}
        wanted = asked.get("include_usage")
        body = {**body, "stream": True}
        if fold.asks_usage:
            body["stream_options"] = {**asked, "include_usage": wanted is not False}
        headers = {"accept": _EVENT_STREAM}
        if (resumable := options.get("resumable")) is not None:
            headers["headgate-resumable"] = f"{resumable:g}"
        call, ticket = await self._begin(path, encode_json(body), body, options, headers)
        state = StreamState(call, fold, ticket, hide_usage=wanted is None)
        stream = AsyncStream(self, state)
        try:
            with observing.around(self.session.observers, call):
                await self._start(stream, state)
        except BaseException as error:
            self._fail(ticket, error)
            raise
        return stream

    async def _start(self, stream: AsyncStream[ChunkT, FinalT], state: StreamState[ChunkT, FinalT]) -> None:
        try:
            await self.open_once(stream, state)
        except HeadgateError as error:
            await self.resume(stream, state, error)

    async def _reopen(
        self,
        stream: AsyncStream[ChunkT, FinalT],
        state: StreamState[ChunkT, FinalT],
        first: list[HeadgateError],
    ) -> None:
        if first:
            raise first.pop()
        await self.open_once(stream, state)

    async def resume(
        self,
        stream: AsyncStream[ChunkT, FinalT],
        state: StreamState[ChunkT, FinalT],
        error: HeadgateError,
    ) -> None:
        """After a failure: begin anew, or go on with a broken stream where it stopped; the rules are the same."""
        first: list[HeadgateError] = [error]
        await self._loop(state.call)(self._reopen, stream, state, first)

    async def open_once(self, stream: AsyncStream[ChunkT, FinalT], state: StreamState[ChunkT, FinalT]) -> None:
        """One attempt at a stream: connect, check the status, read up to the first new event."""
        call = state.call
        if pause := call.pace():
            await colour.sleep(self.session.clock, pause)
        begun = self.session.clock.monotonic()
        extra = None if state.last_event_id is None else {"last-event-id": state.last_event_id}
        try:
            streaming = await self.transport.open(call.request(extra))
            try:
                head = await self._head(streaming, call)
                state.opened(head)
                await stream.attach(streaming)
                call.accept(head, begun)
            except BaseException:
                await stream.detach()
                await streaming.close()
                raise
        except HeadgateError as error:
            call.failed(error, begun)
            raise

    async def _head(self, streaming: AsyncStreaming, call: Call) -> Received:
        head = Received(streaming.status, streaming.headers, b"")
        if not outcome.is_success(head.status):
            head.body = await streaming.read()
            raise call.refusal(head)
        kind = head.headers.get("content-type", "")
        if not kind.startswith(_EVENT_STREAM):
            error = ResponseShapeError(
                f"the answer's content-type: expected {_EVENT_STREAM}, got {kind!r}",
                path="content-type",
                body=await streaming.read(),
            )
            answers.tell(error, head, call)
            raise error
        return head
