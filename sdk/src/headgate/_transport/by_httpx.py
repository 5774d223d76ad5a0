"""The default transport: httpx, and the only module that names it.

It drives httpx's transport layer (pool, TLS, proxies, HTTP/2) and leaves out its client layer: redirects, cookies
and auth have no place between a client and its gateway, and they cost half of the time of a call.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from headgate._core.forks import inherited
from headgate._transport.certificates import authorities
from headgate._transport.closing import refuse_closed
from headgate._transport.pool import disown, quicken
from headgate._transport.types import Received, Request, Wiring
from headgate.errors import ConfigurationError, ConnectionFailed, HeadgateError, TimedOut

_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5))
        if hasattr(socket, name)
    ),
]


def proxy_for(base_url: str, wiring: Wiring) -> str | None:
    """The proxy to use: the one that was named, else the environment's, else none."""
    if wiring.proxy is not None:
        return wiring.proxy or None
    split = urlsplit(base_url)
    if wiring.uds is not None or proxy_bypass(split.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(split.scheme) or proxies.get("all")


def trust(wiring: Wiring) -> ssl.SSLContext | bool:
    """What certificates to trust; read once for all pools that a client will have.

    Raises:
        ConfigurationError: `wiring.ca` is no PEM file of authorities.
    """
    if not wiring.verify:
        return False
    if wiring.ca:
        return authorities(wiring.ca)
    path = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=path) if path else httpx.create_ssl_context()


def _options(base_url: str, wiring: Wiring) -> dict[str, Any]:
    limits = wiring.limits
    if wiring.http2 and importlib.util.find_spec("h2") is None:
        raise ConfigurationError('wiring.http2 with transport="httpx" needs: pip install "httpx[http2]"')
    proxy = proxy_for(base_url, wiring)
    if proxy is not None and proxy.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigurationError('a SOCKS proxy with transport="httpx" needs: pip install "httpx[socks]"')
    plain = urlsplit(base_url).scheme == "http"
    return {
        # A plain address never shakes hands: reading the authorities would cost 20 ms for nothing.
        "verify": False if plain and wiring.proxy is None else trust(wiring),
        "http2": wiring.http2,
        "limits": httpx.Limits(
            max_connections=limits.connections,
            max_keepalive_connections=limits.keepalive,
            keepalive_expiry=limits.keepalive_s,
        ),
        "proxy": proxy,
        "uds": wiring.uds,
        "socket_options": None if wiring.uds else _KEEPALIVE,
    }


class _Prepared:
    """The parts of a request that repeat, and the way back from httpx's errors to ours."""

    def __init__(self, wiring: Wiring) -> None:
        self._limits = wiring.limits
        self._urls: dict[str, httpx.URL] = {}

    def request(self, request: Request) -> tuple[httpx.Request, dict[str, float]]:
        url = self._urls.get(request.url)
        if url is None:
            url = httpx.URL(request.url)
            if len(self._urls) < 256 and "?" not in request.url:
                self._urls[request.url] = url
        clocks = {
            "connect": request.connect,
            "read": request.first_byte,
            "write": request.idle,
            "pool": min(self._limits.pool_wait_s, request.remaining),
        }
        built = httpx.Request(
            request.method,
            url,
            headers=request.headers,
            content=request.body,
            extensions={"timeout": clocks},
        )
        return built, clocks

    def failure(self, error: Exception, request: Request, *, started: bool) -> HeadgateError:
        if isinstance(error, httpx.TimeoutException):
            return self._timeout(error, request, started=started)
        if isinstance(error, httpx.ConnectError):
            return ConnectionFailed(f"cannot connect to {request.url}: {error}", phase="connect")
        if isinstance(error, httpx.ProxyError):
            return ConnectionFailed(f"the proxy refused: {error}", phase="proxy")
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return ConnectionFailed(f"{request.url}: {error}", phase="connect")
        phase = "body" if started else "first_byte"
        what = str(error) or type(error).__name__
        return ConnectionFailed(f"the connection to {request.url} broke: {what}", phase=phase)

    def _timeout(self, error: httpx.TimeoutException, request: Request, *, started: bool) -> HeadgateError:
        if isinstance(error, httpx.PoolTimeout):
            return TimedOut(
                f"no connection became free: all {self._limits.connections} of the pool"
                f" (limits.connections) were in use for {self._limits.pool_wait_s:g} s",
                clock="pool",
                seconds=self._limits.pool_wait_s,
            )
        if isinstance(error, httpx.ConnectTimeout):
            clock, seconds = "connect", request.connect
        elif started:
            clock, seconds = "idle", request.idle
        else:
            clock, seconds = "first_byte", request.first_byte
        return clocked(clock, seconds, request)


def clocked(clock: str, seconds: float, request: Request) -> TimedOut:
    """The timeout of a clock, or of the deadline where that is what clipped it."""
    if seconds >= request.remaining:
        return TimedOut(f"{request.url}: the deadline passed", clock="deadline", seconds=request.remaining)
    words = {
        "connect": "no connection",
        "first_byte": "no first byte of the answer",
        "idle": "silence in the middle of the answer",
    }
    return TimedOut(
        f"{request.url}: {words[clock]} for {seconds:g} s (timeout.{clock})", clock=clock, seconds=seconds
    )


class _Streaming:
    """A sync answer still coming."""

    def __init__(self, prepared: _Prepared, response: httpx.Response, request: Request) -> None:
        self._prepared, self._response, self._request = prepared, response, request
        self.status = response.status_code
        self.headers = response.headers

    def chunks(self) -> Generator[bytes, None, None]:
        deadline = time.monotonic() + self._request.remaining
        try:
            for chunk in self._response.iter_bytes():
                yield chunk
                if time.monotonic() > deadline:
                    raise clocked("idle", self._request.remaining, self._request)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._prepared.failure(error, self._request, started=True) from error

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        self._response.close()


class HttpxTransport:
    """Sync, on httpx.

    A read that has begun is not called back: a stream that falls silent near its deadline ends one `idle` late.
    """

    def __init__(self, base_url: str, wiring: Wiring) -> None:
        self._prepared = _Prepared(wiring)
        self._options = _options(base_url, wiring)
        self._http = self._connected()
        self._closed = False
        inherited(self)

    def _connected(self) -> httpx.HTTPTransport:
        http = httpx.HTTPTransport(**self._options)
        quicken(http)
        return http

    def forked(self) -> None:
        """A forked child makes connections of its own."""
        disown(self._http)
        self._http = self._connected()

    def open(self, request: Request) -> _Streaming:
        """Send and return when the headers have come."""
        refuse_closed(closed=self._closed)
        built, clocks = self._prepared.request(request)
        try:
            response = self._http.handle_request(built)
        except httpx.HTTPError as error:
            raise self._prepared.failure(error, request, started=False) from error
        clocks["read"] = request.idle
        return _Streaming(self._prepared, response, request)

    def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        answer = self.open(request)
        try:
            return Received(answer.status, answer.headers, answer.read())
        finally:
            answer.close()

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        self._http.close()


class _AsyncStreaming:
    """An async answer still coming."""

    def __init__(self, prepared: _Prepared, response: httpx.Response, request: Request) -> None:
        self._prepared, self._response, self._request = prepared, response, request
        self._deadline = asyncio.get_running_loop().time() + request.remaining
        self.status = response.status_code
        self.headers = response.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        try:
            async for chunk in self._response.aiter_bytes():
                yield chunk
                if loop.time() > self._deadline:
                    raise clocked("idle", self._request.remaining, self._request)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._prepared.failure(error, self._request, started=True) from error

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def close(self) -> None:
        await self._response.aclose()


class AsyncHttpxTransport:
    """Async, on httpx. A connection belongs to its event loop, so each loop has a pool of its own."""

    def __init__(self, base_url: str, wiring: Wiring) -> None:
        self._prepared = _Prepared(wiring)
        self._options = _options(base_url, wiring)
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncHTTPTransport] = {}
        self._closed = False

    def _pool(self) -> httpx.AsyncHTTPTransport:
        refuse_closed(closed=self._closed)
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for gone in [other for other in self._pools if other.is_closed()]:
                self._pools.pop(gone, None)
            pool = self._pools[loop] = httpx.AsyncHTTPTransport(**self._options)
            quicken(pool)
        return pool

    async def open(self, request: Request) -> _AsyncStreaming:
        """Send and return when the headers have come."""
        pool = self._pool()
        built, clocks = self._prepared.request(request)
        try:
            response = await pool.handle_async_request(built)
        except httpx.HTTPError as error:
            raise self._prepared.failure(error, request, started=False) from error
        clocks["read"] = request.idle
        return _AsyncStreaming(self._prepared, response, request)

    async def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        answer = await self.open(request)
        try:
            return Received(answer.status, answer.headers, await answer.read())
        finally:
            await answer.close()

    async def close(self) -> None:
        """Close every connection of this event loop; those of others go with their loops."""
        self._closed = True
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        self._pools.clear()
        if pool is not None:
            await pool.aclose()
