"""The fast transport: pyreqwest (`headgate[fast]`), and the only module that names it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pyreqwest import exceptions
from pyreqwest.client import BaseClientBuilder, ClientBuilder, SyncClient, SyncClientBuilder
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import BaseRequestBuilder, StreamRequest, SyncStreamRequest
from pyreqwest.response import Response, SyncResponse

from headgate._transport.closing import refuse_closed
from headgate._transport.interrupts import interruptibly
from headgate._transport.types import Received, Request, Timeout, Wiring
from headgate.errors import ConfigurationError, ConnectionFailed, HeadgateError, TimedOut

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
        limits = wiring.limits
        return TimedOut(
            f"no connection became free: all {limits.connections} of the pool (limits.connections)"
            f" were in use for {limits.pool_wait_s:g} s",
            clock="pool",
            seconds=limits.pool_wait_s,
        )
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


def _causes(error: exceptions.PyreqwestError) -> list[str]:
    """What lies under an error, outermost first."""
    if not isinstance(error, exceptions.DetailedPyreqwestError):
        return []
    return [cause["message"] for cause in error.details["causes"] or []]


def _clocked(clock: str, seconds: float, request: Request) -> TimedOut:
    if seconds >= request.remaining:
        return TimedOut(f"{request.url}: the deadline passed", clock="deadline", seconds=request.remaining)
    return TimedOut(f"{request.url}: timeout.{clock} of {seconds:g} s passed", clock=clock, seconds=seconds)


class _Streaming:
    """A sync answer still coming."""

    def __init__(
        self, stream: SyncStreamRequest, response: SyncResponse, request: Request, wiring: Wiring
    ) -> None:
        self._stream, self._response, self._request, self._wiring = stream, response, request, wiring
        self.status = response.status
        self.headers = response.headers
        self._closed = False

    def chunks(self) -> Generator[bytes, None, None]:
        reader = self._response.body_reader
        try:
            while (chunk := reader.read_chunk()) is not None:
                yield bytes(chunk)
        except exceptions.PyreqwestError as error:
            raise _failure(error, self._request, self._wiring, started=True) from error

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._stream.__exit__(None, None, None)


class FastTransport:
    """Sync, on pyreqwest. Its idle clock is the longer of `idle` and `first_byte`.

    Ctrl-C ends the wait for an answer. It does not end the wait for more of a stream, which nothing can but its
    clock: pyreqwest keeps that wait to itself.
    """

    def __init__(self, wiring: Wiring, timeout: Timeout) -> None:
        self._wiring = wiring
        self._timeout = timeout
        self._http = self._connected()
        self._closed = False

    def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        refuse_closed(closed=self._closed)
        try:
            builder = self._http.request(request.method, request.url)
            sent = _dress(builder, request, _whole(request)).build()
            response = interruptibly(sent.send, self._abort)
            return Received(response.status, response.headers, bytes(response.bytes()))
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error

    def open(self, request: Request) -> _Streaming:
        """Send and return when the headers have come."""
        refuse_closed(closed=self._closed)
        try:
            builder = self._http.request(request.method, request.url)
            stream = _streamed(_dress(builder, request, request.remaining)).build_streamed()
            response = interruptibly(stream.__enter__, self._abort)
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error
        return _Streaming(stream, response, request, self._wiring)

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        self._http.close()

    def _connected(self) -> SyncClient:
        return _configure(SyncClientBuilder(), self._wiring, self._timeout).build()

    def _abort(self) -> None:
        """End every wait for an answer, and go on with connections of a new client."""
        waiting, self._http = self._http, self._connected()
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
    """Async, on pyreqwest."""

    def __init__(self, wiring: Wiring, timeout: Timeout) -> None:
        self._wiring = wiring
        self._http = _configure(ClientBuilder(), wiring, timeout).build()
        self._closed = False

    async def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        refuse_closed(closed=self._closed)
        try:
            builder = self._http.request(request.method, request.url)
            response = await _dress(builder, request, _whole(request)).build().send()
            return Received(response.status, response.headers, bytes(await response.bytes()))
        except exceptions.PyreqwestError as error:
            raise _failure(error, request, self._wiring, started=False) from error

    async def open(self, request: Request) -> _AsyncStreaming:
        """Send and return when the headers have come."""
        import asyncio

        refuse_closed(closed=self._closed)
        try:
            builder = self._http.request(request.method, request.url)
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
        await self._http.close()
