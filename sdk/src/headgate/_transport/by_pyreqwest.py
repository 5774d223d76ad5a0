"""The fast transport: pyreqwest (`headgate[fast]`), and the only module that names it.

httpx does what pyreqwest cannot: the streams of the sync colour, because pyreqwest keeps the wait for more of one
to itself, where neither Ctrl-C nor closing the stream ends it; and everything in a child that was forked after
pyreqwest began, because its threads stay with the parent.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyreqwest import exceptions
from pyreqwest.client import BaseClientBuilder, Client, ClientBuilder, SyncClient, SyncClientBuilder
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import BaseRequestBuilder, StreamRequest
from pyreqwest.response import Response

from headgate._core.forks import inherited
from headgate._transport.certificates import authorities
from headgate._transport.closing import refuse_closed
from headgate._transport.interrupts import interruptibly
from headgate._transport.types import AsyncStreaming, Received, Request, Streaming, Timeout, Wiring
from headgate.errors import ConfigurationError, ConnectionFailed, HeadgateError, TimedOut

if TYPE_CHECKING:
    from headgate._transport.by_httpx import AsyncHttpxTransport, HttpxTransport

BuilderT = TypeVar("BuilderT", bound=BaseClientBuilder)
RequestT = TypeVar("RequestT", bound=BaseRequestBuilder)

_YEAR = 365 * 86400.0


def _configure(builder: BuilderT, wiring: Wiring, timeout: Timeout) -> BuilderT:
    if wiring.uds is not None:
        raise ConfigurationError('unix sockets need transport="httpx"')
    limits = wiring.limits
    builder = (
        builder.follow_redirects(False)
        .referer(False)
        .max_connections(limits.connections)
        .pool_max_idle_per_host(limits.keepalive)
        .pool_idle_timeout(timedelta(seconds=limits.keepalive_s))
        .pool_timeout(timedelta(seconds=limits.pool_wait_s))
        .connect_timeout(timedelta(seconds=timeout.connect))
        .read_timeout(timedelta(seconds=max(timeout.first_byte, timeout.idle)))
        .tcp_keepalive(timedelta(seconds=60))
        .tcp_keepalive_interval(timedelta(seconds=30))
        .tcp_keepalive_retries(5)
        .http2(wiring.http2)
    )
    if wiring.proxy == "":
        builder = builder.no_proxy()
    elif wiring.proxy is not None:
        builder = builder.proxy(ProxyBuilder.all(wiring.proxy))
    if wiring.ca is not None:
        authorities(wiring.ca)
        builder = builder.add_root_certificate_pem(Path(wiring.ca).read_bytes())
    return builder if wiring.verify else builder.danger_accept_invalid_certs(True)


def _dress(builder: RequestT, request: Request, seconds: float) -> RequestT:
    builder = builder.headers(request.headers).timeout(timedelta(seconds=min(seconds, _YEAR)))
    return builder if request.body is None else builder.body_bytes(request.body)


def _streamed(builder: RequestT) -> RequestT:
    """Without this, the body's first 64 KiB are collected before anything is handed out."""
    return builder.streamed_read_buffer_limit(0)


def _whole(request: Request) -> float:
    """How long a whole answer may take here: its first byte, then one silence, inside the deadline."""
    return min(request.remaining, request.first_byte + request.idle)


def _failure(
    error: exceptions.PyreqwestError, request: Request, wiring: Wiring, *, started: bool
) -> HeadgateError:
    if isinstance(error, exceptions.PoolTimeoutError):
        return _no_room(wiring)
    causes = _causes(error)
    if isinstance(error, exceptions.RequestTimeoutError):
        # Any timeout before the headers is a ConnectTimeoutError there; only its causes tell them apart, and that
        # decides whether the request may have been worked on.
        if any("(Connect)" in cause for cause in causes):
            return _clocked("connect", request.connect, request)
        if started:
            return _clocked("idle", request.idle, request)
        return _clocked("first_byte", request.first_byte, request)
    what = ": ".join(dict.fromkeys([error.message, *causes[-1:]]))
    if isinstance(error, exceptions.ConnectError | exceptions.BuilderError):
        return ConnectionFailed(f"cannot connect to {request.url}: {what}", phase="connect")
    phase = "body" if started else "first_byte"
    return ConnectionFailed(f"the connection to {request.url} broke: {what}", phase=phase)


def _no_room(wiring: Wiring) -> TimedOut:
    limits = wiring.limits
    return TimedOut(
        f"no connection became free: all {limits.connections} of the pool (limits.connections)"
        f" were in use for {limits.pool_wait_s:g} s",
        clock="pool",
        seconds=limits.pool_wait_s,
    )


def _spoken(wiring: Wiring) -> Wiring:
    """The wiring for httpx, which needs another package to speak HTTP/2."""
    return replace(wiring, http2=wiring.http2 and importlib.util.find_spec("h2") is not None)


def _causes(error: exceptions.PyreqwestError) -> list[str]:
    """What lies under an error, outermost first."""
    if not isinstance(error, exceptions.DetailedPyreqwestError):
        return []
    return [cause["message"] for cause in error.details["causes"] or []]


def _clocked(clock: str, seconds: float, request: Request) -> TimedOut:
    if seconds >= request.remaining:
        return TimedOut(f"{request.url}: the deadline passed", clock="deadline", seconds=request.remaining)
    return TimedOut(f"{request.url}: timeout.{clock} of {seconds:g} s passed", clock=clock, seconds=seconds)


class _Runtime:
    """pyreqwest's threads: they begin with its first client, and a forked child has none."""

    def __init__(self) -> None:
        self.lost = False
        self._began = False
        self._kept: list[object] = []

    def begin(self) -> None:
        """A client is made."""
        if not self._began:
            self._began = True
            inherited(self)

    def forked(self) -> None:
        """It began in the parent; it cannot begin here any more."""
        self.lost = True

    def keep(self, client: object) -> None:
        """Hold on to a client of the parent: to let go of it would wait for threads that are not there."""
        self._kept.append(client)


_runtime = _Runtime()


class _Room:
    """Room for so many requests at once, in two pools that know nothing of each other."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._free = threading.BoundedSemaphore(wiring.limits.connections)
        self.leave = self._free.release

    def enter(self, request: Request) -> None:
        """Wait for room.

        Raises:
            TimedOut: There was none for as long as the limits say.
        """
        if not self._free.acquire(timeout=min(self._wiring.limits.pool_wait_s, request.remaining)):
            raise _no_room(self._wiring)


class _Streaming:
    """A stream that takes up room until it is closed."""

    def __init__(self, inner: Streaming, room: _Room) -> None:
        self._inner, self._room = inner, room
        self.status, self.headers = inner.status, inner.headers
        self.chunks, self.read = inner.chunks, inner.read
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._room.leave()
            self._inner.close()


class FastTransport:
    """Sync. Its connections are made with the first request, so that a client may be older than a fork."""

    def __init__(self, base_url: str, wiring: Wiring, timeout: Timeout) -> None:
        self._base_url, self._wiring, self._timeout = base_url, wiring, timeout
        self._room = _Room(wiring)
        self._http: SyncClient | None = None
        self._closed = False
        _configure(SyncClientBuilder(), wiring, timeout)  # what cannot be is said now
        inherited(self)

    @cached_property
    def _plain(self) -> HttpxTransport:
        from headgate._transport.by_httpx import HttpxTransport

        return HttpxTransport(self._base_url, _spoken(self._wiring))

    def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        refuse_closed(closed=self._closed)
        if _runtime.lost:
            return self._plain.fetch(request)
        self._room.enter(request)
        try:
            http = self._http or self._connected()
            sent = _dress(http.request(request.method, request.url), request, _whole(request)).build()
            response = interruptibly(sent.send, self._abort)
            return Received(response.status, response.headers, bytes(response.bytes()))
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error
        finally:
            self._room.leave()

    def open(self, request: Request) -> Streaming:
        """Send and return when the headers have come."""
        refuse_closed(closed=self._closed)
        room = self._room
        room.enter(request)
        try:
            return _Streaming(self._plain.open(request), room)
        except BaseException:
            room.leave()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._http is not None:
            self._http.close()
        if "_plain" in vars(self):
            self._plain.close()

    def forked(self) -> None:
        """A forked child goes by httpx where pyreqwest has begun."""
        self._room = _Room(self._wiring)
        _runtime.keep(self._http)
        self._http = None

    def _connected(self) -> SyncClient:
        _runtime.begin()
        self._http = _configure(SyncClientBuilder(), self._wiring, self._timeout).build()
        return self._http

    def _abort(self) -> None:
        """End every wait for an answer, and go on with connections of a new client."""
        waiting, self._http = self._http, None
        if waiting is not None:
            waiting.close()


class _AsyncStreaming:
    """An async answer still coming."""

    def __init__(self, stream: StreamRequest, response: Response, request: Request, wiring: Wiring) -> None:
        self._stream, self._response, self._request, self._wiring = stream, response, request, wiring
        self.status = response.status
        self.headers = response.headers
        self._closed = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        import asyncio  # here, because a sync client starts a tenth faster without it

        reader = self._response.body_reader
        try:
            while True:
                async with asyncio.timeout(self._request.idle):
                    chunk = await reader.read_chunk()
                if chunk is None:
                    return
                yield bytes(chunk)
        except exceptions.PyreqwestError as error:
            raise _failure(error, self._request, self._wiring, started=True) from error
        except TimeoutError as error:
            raise _clocked("idle", self._request.idle, self._request) from error

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._stream.__aexit__(None, None, None)


class AsyncFastTransport:
    """Async. Its connections are made with the first request, so that a client may be older than a fork."""

    def __init__(self, base_url: str, wiring: Wiring, timeout: Timeout) -> None:
        self._base_url, self._wiring, self._timeout = base_url, wiring, timeout
        self._http: Client | None = None
        self._closed = False
        _configure(ClientBuilder(), wiring, timeout)  # what cannot be is said now
        inherited(self)

    @cached_property
    def _plain(self) -> AsyncHttpxTransport:
        from headgate._transport.by_httpx import AsyncHttpxTransport

        return AsyncHttpxTransport(self._base_url, _spoken(self._wiring))

    async def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        refuse_closed(closed=self._closed)
        if _runtime.lost:
            return await self._plain.fetch(request)
        try:
            http = self._http or self._connected()
            builder = http.request(request.method, request.url)
            response = await _dress(builder, request, _whole(request)).build().send()
            return Received(response.status, response.headers, bytes(await response.bytes()))
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error

    async def open(self, request: Request) -> AsyncStreaming:
        """Send and return when the headers have come."""
        import asyncio

        refuse_closed(closed=self._closed)
        if _runtime.lost:
            return await self._plain.open(request)
        try:
            http = self._http or self._connected()
            builder = http.request(request.method, request.url)
            stream = _streamed(_dress(builder, request, request.remaining)).build_streamed()
            async with asyncio.timeout(request.first_byte):
                response = await stream.__aenter__()
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error
        except TimeoutError as error:
            raise _clocked("first_byte", request.first_byte, request) from error
        return _AsyncStreaming(stream, response, request, self._wiring)

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._http is not None:
            await self._http.close()
        if "_plain" in vars(self):
            await self._plain.close()

    def forked(self) -> None:
        """A forked child goes by httpx where pyreqwest has begun."""
        _runtime.keep(self._http)
        self._http = None

    def _connected(self) -> Client:
        _runtime.begin()
        self._http = _configure(ClientBuilder(), self._wiring, self._timeout).build()
        return self._http
