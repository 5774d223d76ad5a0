"""The HTTP client as remote backends see it: writes requests, keeps connections. May import this room."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from typing import Final

from headgate_plugin_api import UpstreamFailed, UpstreamResponse, UpstreamTimeout

from headgate_gateway.upstream.address import Address, Origin, parse
from headgate_gateway.upstream.connection import UNREACHABLE, Connection

CONNECT_S: Final = 10.0
"""Seconds to a connection. A provider that cannot be reached should cost little before the fallback."""

IDLE_S: Final = 60.0
"""Seconds that an idle connection is kept."""

IDLE_PER_HOST: Final = 256
"""Idle connections kept for one provider."""

STALE_S: Final = 1.0
"""Seconds in which a connection that was being closed says so. One that breaks later may break over the work."""

CAUSE_LENGTH: Final = 200
"""Characters of a cause that an error repeats."""

_ALWAYS: Final = ("accept: */*", "user-agent: headgate")


class HttpUpstream:
    """The worker's HTTP client; implements the plugin API's `Upstream`."""

    def __init__(self, *, connect_s: float = CONNECT_S) -> None:
        self._connect_s = connect_s
        self._pools: dict[Origin, Pool] = {}
        self._known: dict[str, tuple[Address, Pool]] = {}

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> UpstreamResponse:
        """See `Upstream`. `timeout_s` bounds the whole answer, its body included.

        A provider may close an idle connection just as a request leaves on it (RFC 9112, 9.5). Such a request
        goes out once more on a connection of its own.
        """
        try:
            address, pool = self._known.get(url) or self._learn(url)
            data = _request(method, address, headers, body)
        except ValueError:
            # The text of these errors may repeat a header's value, and their cause would.
            raise UpstreamFailed("the request could not be built", retryable=False, inner=_place(url)) from None
        began = pool.loop.time()
        if (connection := pool.idle()) is not None:
            answer = connection.ask(data, address.place, timeout_s)
            try:
                await answer.begun()
            except UpstreamFailed:
                if not answer.unheard or pool.loop.time() - began > STALE_S:
                    raise
            else:
                return answer
        connection = await pool.connect(address.place, min(self._connect_s, timeout_s))
        answer = connection.ask(data, address.place, timeout_s - (pool.loop.time() - began))
        await answer.begun()
        return answer

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.close()

    def _learn(self, url: str) -> tuple[Address, Pool]:
        address = parse(url)
        pool = self._pools.setdefault(address.origin, Pool(address.origin))
        self._known[url] = address, pool
        return address, pool


class Pool:
    """Connections to one origin."""

    def __init__(self, origin: Origin) -> None:
        self.loop = asyncio.get_running_loop()
        self._origin = origin
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._tls: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def idle(self) -> Connection | None:
        """The connection that was used last, if any is free."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closing:
                return connection
        return None

    async def connect(self, place: str, timeout_s: float) -> Connection:
        """A new connection.

        Raises:
            UpstreamFailed: There is none to be had.
            UpstreamTimeout: There was none in `timeout_s`.
        """
        connection = Connection(self._freed, self._lost)
        try:
            async with asyncio.timeout(timeout_s):
                await self._reach(connection, place, timeout_s)
        except TimeoutError:
            connection.close()
            raise UpstreamTimeout("no connection in time", inner=place) from None
        except OSError as error:
            connection.close()
            raise UpstreamFailed(UNREACHABLE, inner=f"{place}: {str(error)[:CAUSE_LENGTH]}") from error
        except BaseException:
            connection.close()
            raise
        if connection.closing:
            # Its end was told before anybody listened, and is not told again.
            connection.close()
            raise UpstreamFailed("the connection was closed", inner=place)
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        """Close all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()
        while self._open:
            await asyncio.sleep(0)

    async def _reach(self, connection: Connection, place: str, timeout_s: float) -> None:
        origin, loop = self._origin, self.loop
        if origin.tls and self._tls is None:
            # It reads a file of some hundred certificates.
            self._tls = await asyncio.to_thread(_tls)
        if origin.proxy is None:
            await loop.create_connection(lambda: connection, origin.host, origin.port, ssl=self._tls)
            return
        await loop.create_connection(lambda: connection, origin.proxy.host, origin.proxy.port)
        if self._tls is not None:
            request = _connect_request(origin, origin.proxy)
            await connection.tunnel(request, place, origin.host, self._tls, timeout_s)

    def _freed(self, connection: Connection) -> None:
        if len(self._idle) >= IDLE_PER_HOST:
            connection.close()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self.loop.call_later(IDLE_S, self._sweep_idle)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep_idle(self) -> None:
        """Close what nobody used for a while. The list is in the order of use."""
        latest = self.loop.time() - IDLE_S
        for connection in self._idle:
            if connection.idle_since > latest:
                break
            connection.close()
        self._sweep = self.loop.call_later(IDLE_S, self._sweep_idle) if self._idle else None


def _place(url: str) -> str:
    """Names an address that may be none, without the credentials that may stand in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _request(method: str, address: Address, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """The bytes of a request.

    Raises:
        ValueError: A header holds what would end it.
    """
    lines = [f"{method} {address.target} HTTP/1.1", *address.lines, *_ALWAYS, *map(": ".join, headers.items())]
    if address.authorization is not None and "authorization" not in headers:
        lines.append(f"authorization: {address.authorization}")
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    text = "".join(lines)
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a header with a line break")
    return b"%b\r\n\r\n%b" % ("\r\n".join(lines).encode("latin-1"), body or b"")


def _connect_request(origin: Origin, proxy: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}"
    credentials = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{credentials}\r\n".encode("latin-1")
