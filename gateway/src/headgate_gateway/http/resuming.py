"""Streams that a client may continue over another connection: opened with `headgate-resumable`, a call for
seconds, and continued with the same Idempotency-Key and `Last-Event-ID`.

Such a stream is made by a task of its worker; the handler only reads it, and so may a handler of another worker.
May import the rest of this room, inference, streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from time import monotonic
from typing import Final

import msgspec
from headgate_plugin_api import Event
from litestar.types import Scope, Send

from headgate_gateway.domain.admission import Claim, Refused, Replay, Traced
from headgate_gateway.domain.money import format_amount
from headgate_gateway.http import headers
from headgate_gateway.http.answering import Answering, StreamEncoder
from headgate_gateway.http.bodies import ClientGone
from headgate_gateway.http.departure import Departure, Patience
from headgate_gateway.http.problems import OK, Problem
from headgate_gateway.http.sending import send_chunk, send_start
from headgate_gateway.inference.errors import Rejected, UnknownModel
from headgate_gateway.inference.exchange import MAX_ANSWER, Exchange
from headgate_gateway.inference.service import Call
from headgate_gateway.streams import Ahead, Busy, KeptStream, NotKept, OwnerLost, Reading, Superseded

RECOVERY_S: Final = 5.0
"""How long the ledger may take to settle the streams of a worker that died."""

AGAIN_S: Final = 0.1
"""Pause between two looks at whether it has."""


class Resumption(msgspec.Struct, frozen=True):
    """What a client wants of a resumable stream.

    Attributes:
        claim: Its Idempotency-Key: by it the stream is found again.
        seconds: How long it is to run on when the client has left.
        request_id: Which stream it continues; empty for one that begins.
        after: The number of the last event that it has, -1 for none.
    """

    claim: Claim
    seconds: float
    request_id: str = ""
    after: int = -1


def resumption(scope: Scope, call: Call, most_s: float) -> Resumption | None:
    """What the headers of a streaming call say; None for a plain stream.

    Args:
        scope: ASGI.
        call: The call.
        most_s: Seconds that a stream may run on at most; 0 where no stream may be resumed.

    Raises:
        Problem: A header is malformed, or there is no Idempotency-Key beside it.
    """
    seconds = headers.find(scope, headers.RESUMABLE)
    last = headers.find(scope, headers.LAST_EVENT_ID)
    if call.claim is None:
        if seconds is not None:
            raise _wrong(headers.RESUMABLE, "needs an Idempotency-Key beside it")
        return None  # browsers send Last-Event-ID by themselves
    kept_s = 0.0 if seconds is None else min(_seconds(seconds), most_s)
    if last is not None:
        request_id, after = _event_id(last)
        return Resumption(call.claim, kept_s, request_id, after)
    return Resumption(call.claim, kept_s) if kept_s else None


def _seconds(value: bytes) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(value)) > 0 and math.isfinite(seconds):
            return seconds
    raise _wrong(headers.RESUMABLE, "expected a number of seconds above 0")


def _event_id(value: bytes) -> tuple[str, int]:
    request_id, _, number = value.decode("latin-1").rpartition(":")
    if not request_id or not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise _wrong(headers.LAST_EVENT_ID, "expected the id of an event, such as req_...:7")
    return request_id, int(number)


def _wrong(header: bytes, what: str) -> Problem:
    name = header.decode("ascii")
    return Problem("invalid_request", f"{name}: {what}", path=name)


async def stream_resumably(one: Answering, asked: Resumption, scope: Scope, send: Send) -> None:
    """Answer a call with a stream that can be continued, or continue one."""
    with Departure(scope):
        reading = await (_continue(one, asked, send) if asked.request_id else _open(one, asked, send))
        if reading is not None:
            try:
                await _hand_on(reading, send)
            finally:
                reading.close()


async def _hand_on(reading: Reading, send: Send) -> None:
    last = False
    async with Patience() as patience:
        await send_start(send, OK, reading.head)
        while not last:
            try:
                piece = await reading.next()
            except Superseded:
                raise ClientGone from None
            except OwnerLost:
                # Once the ledger knows the bill, the client's next try is told of it.
                raise Problem("stream_lost", "the worker that made the stream has gone") from None
            last = piece.last
            patience.since = monotonic()
            await send_chunk(send, piece.data, more=not last)
            patience.since = None


# -- a stream that begins


async def _open(one: Answering, asked: Resumption, send: Send) -> Reading | None:
    """Begin. None when all has been sent already."""
    try:
        exchange = await one.begin()
    except Rejected as error:
        # The connection may have been lost before the first event came: then nobody reads the stream that this
        # key has in flight.
        if error.refused.code != "idempotency_in_progress" or error.refused.record_id is None:
            raise
        reading = await _unread(one, asked, error.refused.record_id)
        if reading is None:
            raise
        return reading
    if isinstance(exchange, Replay):
        await one.replay(exchange, send, after=-1)
        return None
    head = [*one.head(exchange), (headers.RESUMABLE, b"%g" % asked.seconds)]
    stream = one.rooms.streams.keep(exchange.request_id, head, asked.seconds)
    if stream is None:
        await one.relay(exchange, send)
        return None
    stream.made_by(one.rooms.inference.own(_make(one, exchange, stream)))
    return stream.attach(-1)


async def _unread(one: Answering, asked: Resumption, request_id: str) -> Reading | None:
    traced = await _trace(one, asked)
    if traced.state != "open" or traced.request_id != request_id:
        return None
    with contextlib.suppress(NotKept, Busy):
        reading = await one.rooms.siblings.attach(traced.worker, request_id, -1, steal=False)
        one.facts.request_id = request_id
        return reading
    return None


async def _make(one: Answering, exchange: Exchange, stream: KeptStream) -> None:
    """Make a stream to its end, whoever reads it; a cancelled one is settled by the model's policy."""
    writer = one.writer()
    replayable = False
    try:
        events = await _run(exchange, writer, stream)
        answer, replayable = (None, False) if events is None else one.keep_events(exchange, events)
        settled = await exchange.settle(answer)
        one.count(exchange, settled, exchange.overhead_ms)
        last = writer.final(exchange.usage, format_amount(settled.cost))
    except asyncio.CancelledError:
        await exchange.abandon()
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the client is told and the bill settled
        await exchange.abandon()
        last, replayable = one.failure(error, writer), False
    stream.end(last, replayable=replayable)


async def _run(exchange: Exchange, writer: StreamEncoder, stream: KeptStream) -> list[Event] | None:
    """Add all events but the closing ones; returns what came, while that is not too much to be stored."""
    kept: list[Event] | None = []
    size = 0
    async with contextlib.aclosing(exchange.relayed()) as events:
        async for event in events:
            if data := writer.encode(event):
                stream.add(data)
            if kept is not None:
                kept.append(event)
                size += len(data)
                kept = kept if size <= _KEPT_BYTES else None
            await stream.wanted()
    return kept


_KEPT_BYTES: Final = 32 * MAX_ANSWER
"""Of a stream's own bytes, each piece of text under some 200 bytes of JSON: no answer to be stored has more."""


# -- a stream that goes on


async def _continue(one: Answering, asked: Resumption, send: Send) -> Reading | None:
    """Find the stream and read on, here or elsewhere. None when all has been sent already.

    Raises:
        Problem: `stream_lost`, with the bill so far.
    """
    now = asyncio.get_running_loop().time
    until = now() + RECOVERY_S
    while True:
        traced = await _trace(one, asked)
        if traced.request_id != asked.request_id:
            raise _lost(None)
        one.facts.request_id = traced.request_id
        try:
            if traced.answer is not None:
                replay = Replay(
                    request_id=traced.request_id, answer=traced.answer, cost=traced.cost, price=traced.price
                )
                if await one.replay(replay, send, after=asked.after):
                    return None
            return await one.rooms.siblings.attach(traced.worker, traced.request_id, asked.after)
        except Ahead:
            raise _wrong(headers.LAST_EVENT_ID, "the stream has had no such event yet") from None
        except NotKept:
            if traced.state != "open":
                raise _lost(traced) from None
        if now() >= until:
            raise Rejected(_in_progress(traced))
        await asyncio.sleep(AGAIN_S)


async def _trace(one: Answering, asked: Resumption) -> Traced:
    served = one.rooms.registry.find(one.call.request.model)
    if served is None:
        raise UnknownModel(one.call.request.model)
    traced = await one.rooms.ledger.trace(one.call.principal, served.settings.id, asked.claim)
    if isinstance(traced, Refused):
        raise Rejected(traced)
    return traced


def _lost(traced: Traced | None) -> Problem:
    if traced is None:
        return Problem("stream_lost", "there is no such stream under this Idempotency-Key")
    cost = format_amount(traced.cost)
    return Problem(
        "stream_lost",
        f"the stream has ended with its worker or for want of a reader; it cost {cost}",
        members={"record_id": traced.request_id, "cost": cost},
    )


def _in_progress(traced: Traced) -> Refused:
    return Refused(
        code="idempotency_in_progress",
        message="the request with this Idempotency-Key is still running, and cannot be read here",
        retry_after_ms=1000,
        record_id=traced.request_id,
    )
