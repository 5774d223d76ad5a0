"""Transports without sockets, one per colour: they hand requests to a fake gateway or to a cassette."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Protocol

from headgate._transport.closing import refuse_closed
from headgate._transport.types import Received, Request
from headgate.testing.gateway import Reply


class Answerer(Protocol):
    """What stands behind a fake transport."""

    def handle(self, request: Request) -> Reply:
        """Answer one attempt; raise what a transport would."""
        ...


class _Streaming:
    """An answer still coming; sync."""

    def __init__(self, reply: Reply, transport: FakeTransport) -> None:
        self._reply = reply
        self._transport = transport
        self.status: int = reply.status
        self.headers: Mapping[str, str] = reply.headers

    def chunks(self) -> Generator[bytes, None, None]:
        yield from self._reply.pieces
        if self._reply.end is not None:
            raise self._reply.end

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        self._transport.open_streams.discard(id(self))


class FakeTransport:
    """Moves a sync client's bytes to what answers them.

    Attributes:
        open_streams: Ids of answers that were not closed yet: a test for leaks looks here.
    """

    def __init__(self, gateway: Answerer) -> None:
        self._gateway = gateway
        self._closed = False
        self.open_streams: set[int] = set()

    def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        reply = self._reply(request)
        if reply.end is not None:
            raise reply.end
        return Received(reply.status, reply.headers, b"".join(reply.pieces))

    def open(self, request: Request) -> _Streaming:
        """Send and return when the headers have come."""
        streaming = _Streaming(self._reply(request), self)
        self.open_streams.add(id(streaming))
        return streaming

    def _reply(self, request: Request) -> Reply:
        refuse_closed(closed=self._closed)
        return self._gateway.handle(request)

    def close(self) -> None:
        """Refuse from now on."""
        self._closed = True


class _AsyncStreaming:
    """An answer still coming; async."""

    def __init__(self, reply: Reply, transport: AsyncFakeTransport) -> None:
        self._reply = reply
        self._transport = transport
        self.status: int = reply.status
        self.headers: Mapping[str, str] = reply.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece in self._reply.pieces:
            await asyncio.sleep(0)
            yield piece
        if self._reply.end is not None:
            raise self._reply.end

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    async def close(self) -> None:
        self._transport.open_streams.discard(id(self))


class AsyncFakeTransport:
    """Moves an async client's bytes to what answers them; attributes as for the sync one."""

    def __init__(self, gateway: Answerer) -> None:
        self._gateway = gateway
        self._closed = False
        self.open_streams: set[int] = set()

    async def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        await asyncio.sleep(0)
        reply = self._reply(request)
        if reply.end is not None:
            raise reply.end
        return Received(reply.status, reply.headers, b"".join(reply.pieces))

    async def open(self, request: Request) -> _AsyncStreaming:
        """Send and return when the headers have come."""
        await asyncio.sleep(0)
        streaming = _AsyncStreaming(self._reply(request), self)
        self.open_streams.add(id(streaming))
        return streaming

    def _reply(self, request: Request) -> Reply:
        refuse_closed(closed=self._closed)
        return self._gateway.handle(request)

    async def close(self) -> None:
        """Refuse from now on."""
        self._closed = True
