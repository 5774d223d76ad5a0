"""The way of one inference call that is decoded through HTTP: run, settle, encode; whole and streamed.

A whole answer is settled before its first byte leaves, a stream before its closing chunk. This is the hot path.
May import the rest of this room, inference and the dialects.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

import msgspec
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_dialects.fold import condense
from headgate_plugin_api import (
    BackendError,
    EmbedResult,
    Event,
    InvalidRequest,
    TextDelta,
    ToolCallDelta,
    UpstreamFailed,
    Usage,
    UsageReport,
)
from litestar.types import Scope, Send

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Replay, Settled
from headgate_gateway.domain.money import format_amount
from headgate_gateway.http import headers
from headgate_gateway.http.bodies import ClientGone
from headgate_gateway.http.departure import Departure, Patience
from headgate_gateway.http.edge import Facts
from headgate_gateway.http.problems import OK, Problem, of_error
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.sending import send_bytes, send_chunk, send_start
from headgate_gateway.inference.exchange import MAX_ANSWER, Exchange
from headgate_gateway.inference.service import Call
from headgate_gateway.models.registry import ServedModel
from headgate_gateway.streams import Runs, join_runs, numbered, split_runs


class StreamEncoder(Protocol):
    """A dialect's writer of streams."""

    def encode(self, event: Event) -> bytes:
        """Bytes for one event, maybe none."""
        ...

    def final(self, usage: Usage, cost: str | None) -> bytes:
        """The closing bytes."""
        ...

    def error(self, document: Any) -> bytes:
        """The bytes of an error that ends the stream."""
        ...


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """A wire dialect as this room uses it.

    Attributes:
        name: As `Native.dialect` knows it.
        decode: Reads a document; raises `InvalidRequest`.
        encode: Writes a whole answer.
        stream: Makes a writer of streams; None where the dialect has none.
        check: Further rules that need the served model; raises `Problem` or `InvalidRequest`.
    """

    name: str
    decode: Callable[[Any], Decoded]
    encode: Callable[[Sequence[Event], AnswerMeta], bytes]
    stream: Callable[[AnswerMeta], StreamEncoder] | None = None
    check: Callable[[Decoded, ServedModel], None] | None = None

    def fit(self, decoded: Decoded, served: ServedModel) -> None:
        """Refuse what the served model cannot do. What a local model does not know, it could only ignore."""
        if decoded.beyond and served.local:
            name = decoded.beyond[0]
            raise InvalidRequest(f"{name}: this model does not know the field", path=name)
        if self.check is not None:
            self.check(decoded, served)


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is stored for an idempotency key: enough to write the same answer again.

    With `runs` the events of a stream can be made again one by one, so that it can be continued behind any.
    """

    created: int
    backend: str
    attempts: int
    events: tuple[Event, ...]
    runs: Runs | None = None


_kept_encoder = msgspec.msgpack.Encoder()
_kept_decoder = msgspec.msgpack.Decoder(Kept)


class Answering(msgspec.Struct, eq=False):
    """One call on its way."""

    rooms: Rooms
    _dialect: Dialect
    facts: Facts
    call: Call
    _meta: AnswerMeta
    _served: ServedModel | None

    async def whole(self, scope: Scope, send: Send) -> None:
        """Run, settle, then send."""
        with Departure(scope):
            exchange = await self.begin()
            if not isinstance(exchange, Exchange):
                await self.replay(exchange, send)
                return
            try:
                events = exchange.whole()
                settled = await exchange.settle(self._keep(exchange, events))
            except BaseException:
                await exchange.abandon()
                raise
        overhead_ms = exchange.overhead_ms
        cost = self.count(exchange, settled, overhead_ms)
        body = self._dialect.encode(events, msgspec.structs.replace(self._meta, cost=cost))
        pairs = [
            headers.JSON,
            *self._headers(exchange, cost, overhead_ms, events),
            *headers.of_granted(exchange.granted),
        ]
        await send_bytes(send, OK, body, pairs)
        reach("worker.after_last_bytes")

    async def stream(self, scope: Scope, send: Send) -> None:
        """Run and relay; settle before the closing chunk."""
        with Departure(scope):
            exchange = await self.begin()
            if isinstance(exchange, Replay):
                await self.replay(exchange, send)
            else:
                await self.relay(exchange, send)

    async def relay(self, exchange: Exchange, send: Send) -> None:
        """Hand a stream on to the client as it is made."""
        writer = self.writer()
        try:
            last = await self._relay(exchange, writer, send)
        except (asyncio.CancelledError, ClientGone, TimeoutError):
            await exchange.abandon()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told and the bill settled
            await exchange.abandon()
            last = self.failure(error, writer)
        await send_chunk(send, last, more=False)
        reach("worker.after_last_bytes")

    def writer(self) -> StreamEncoder:
        """A writer of the stream."""
        assert self._dialect.stream is not None
        return self._dialect.stream(self._meta)

    def failure(self, error: Exception, writer: StreamEncoder) -> bytes:
        """The event that says what ended a stream."""
        problem = of_error(error, self.facts.request_id)
        self.facts.code = problem.code
        return writer.error(problem.document(self.facts.request_id, route="/v1"))

    def head(self, exchange: Exchange) -> headers.Pairs:
        """The headers of a stream."""
        return [
            *headers.EVENT_STREAM,
            *self._headers(exchange, None, exchange.overhead_ms),
            *headers.of_granted(exchange.granted),
        ]

    async def begin(self) -> Exchange | Replay:
        """Have it admitted and dispatched; returns with the first event in hand."""
        tried: list[Exchange] = []
        try:
            exchange = await self.rooms.inference.begin(self.call, tried.append)
        except BackendError as error:
            if tried and tried[0].attempts:
                self.facts.tried = self._headers(tried[0], None, tried[0].overhead_ms)
            if self._served is not None and self._served.local and isinstance(error, UpstreamFailed):
                # Our own engine died under the request and is being restarted: nothing was delivered or charged.
                raise Problem("model_loading", error.message) from error
            raise
        if isinstance(exchange, Exchange):
            self.rooms.metrics.first_event(self.facts.model, self.rooms.clock.monotonic() - self.facts.began)
            for scope in exchange.granted.over:
                self.rooms.metrics.over_budget(scope)
        return exchange

    async def _relay(self, exchange: Exchange, writer: StreamEncoder, send: Send) -> bytes:
        """Send all but the closing bytes, settle, and return those."""
        kept: list[Event] | None = [] if self.call.claim is not None else None
        size = 0
        async with Patience() as patience, contextlib.aclosing(exchange.relayed()) as events:
            await send_start(send, OK, self.head(exchange))
            async for event in events:
                if kept is not None:
                    kept.append(event)
                    size += _size(event)
                    kept = kept if size <= MAX_ANSWER else None
                if data := writer.encode(event):
                    patience.since = monotonic()
                    await send_chunk(send, data, more=True)
                    patience.since = None
        settled = await exchange.settle(None if kept is None else self._keep(exchange, kept))
        self.count(exchange, settled, exchange.overhead_ms)
        return writer.final(exchange.usage, format_amount(settled.cost))

    async def replay(self, replay: Replay, send: Send, *, after: int | None = None) -> bool:
        """The stored answer again, as the client asked for it the first time.

        Args:
            replay: What the ledger has.
            send: ASGI.
            after: Number of the last event that the client has, -1 for none; None where it knows of no numbers.

        Returns:
            Whether the answer was sent: not where it is to go on behind an event, and is stored without them.
        """
        kept = _kept_decoder.decode(replay.answer)
        if after is not None and kept.runs is None:
            if after >= 0:
                return False
            after = None
        self.facts.request_id = replay.request_id
        cost = format_amount(replay.cost)
        meta = msgspec.structs.replace(self._meta, id=replay.request_id, created=kept.created, cost=cost)
        pairs = [
            headers.REPLAYED,
            *headers.of_answer(
                cost=cost,
                price=replay.price,
                backend=kept.backend,
                attempts=kept.attempts,
                overhead_ms=(self.rooms.clock.monotonic() - self.facts.began) * 1000,
                fingerprint=_fingerprint(kept.events),
            ),
        ]
        if not self.call.request.stream:
            await send_bytes(send, OK, self._dialect.encode(kept.events, meta), [headers.JSON, *pairs])
            return True
        assert self._dialect.stream is not None
        writer = self._dialect.stream(meta)
        events = kept.events if kept.runs is None else split_runs(kept.events, kept.runs)
        body = b"".join(map(writer.encode, events)) + writer.final(_usage(events), cost)
        if after is not None:
            body = numbered(replay.request_id, body, after=after)
        await send_start(send, OK, [*headers.EVENT_STREAM, *pairs])
        await send_chunk(send, body, more=False)
        return True

    def _keep(self, exchange: Exchange, events: Sequence[Event]) -> bytes | None:
        if self.call.claim is None:
            return None
        kept = Kept(self._meta.created, exchange.backend, exchange.attempts, condense(events))
        return _kept_encoder.encode(kept)

    def keep_events(self, exchange: Exchange, events: Sequence[Event]) -> tuple[bytes | None, bool]:
        """What is stored of a stream, and whether it can be continued from that: a large one cannot."""
        joined, runs = join_runs(events)
        kept = Kept(self._meta.created, exchange.backend, exchange.attempts, joined, runs)
        if len(answer := _kept_encoder.encode(kept)) <= MAX_ANSWER:
            return answer, True
        return self._keep(exchange, events), False

    def _headers(
        self, exchange: Exchange, cost: str | None, overhead_ms: float, events: Sequence[Event] = ()
    ) -> headers.Pairs:
        return headers.of_answer(
            cost=cost,
            price=exchange.price,
            backend=exchange.backend,
            attempts=exchange.attempts,
            overhead_ms=overhead_ms,
            fingerprint=_fingerprint(events),
        )

    def count(self, exchange: Exchange, settled: Settled, overhead_ms: float) -> str:
        """Note a settled request in the metrics; returns its cost as it is shown."""
        cost = self.facts.cost = format_amount(settled.cost)
        self.rooms.metrics.consumed(self.facts.model, exchange.usage, settled.cost, overhead_ms / 1000)
        return cost


def _fingerprint(events: Sequence[Event]) -> str:
    return events[0].fingerprint if events and isinstance(events[0], EmbedResult) else ""


def _usage(events: Sequence[Event]) -> Usage:
    return next((event.usage for event in reversed(events) if isinstance(event, UsageReport)), Usage())


def _size(event: Event) -> int:
    if isinstance(event, TextDelta):
        return len(event.text) + 8
    return len(event.arguments) + 32 if isinstance(event, ToolCallDelta) else 8
