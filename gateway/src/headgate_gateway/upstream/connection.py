"""One connection to a provider, and the answer that comes on it. Parsed by httptools, as uvicorn's requests are.

A connection carries one exchange at a time and is free again when the answer has come whole, read or not. An
answer that nobody reads is not taken from the kernel beyond `AHEAD` bytes. May import the plugin API.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, cast

import httptools
from headgate_plugin_api import BackendError, UpstreamFailed, UpstreamTimeout

AHEAD: Final = 256 * 1024
"""Bytes of a body that may wait for their reader."""

MAX_BARE: Final = 64 * 1024
"""Bytes that may come without any of a body among them: of headers, trailers and the like."""

UNREACHABLE: Final = "there is no way to it just now"
"""What clients hear of a provider that cannot be reached; why is the operator's to know."""

PROXY_AGREES: Final = 200
_FRAMES: Final = frozenset({b"content-length", b"transfer-encoding"})
_INFORMATIONAL: Final = range(100, 200)


class Answer:
    """An answer, its body read as it comes; implements the plugin API's `UpstreamResponse`.

    Attributes:
        status: The provider's.
        unheard: Whether the connection was closed before anything of an answer came.
        pairs: Its headers as they came.
    """

    status = 0
    unheard = False
    pairs: Sequence[tuple[bytes, bytes]] = ()
    _waiting = 0
    _over = False
    _error: BackendError | None = None

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection = connection
        self._place = place
        self._pieces: list[bytes] = []
        self._news: asyncio.Future[None] = connection.loop.create_future()

    @property
    def headers(self) -> Mapping[str, str]:
        """See `UpstreamResponse`. Made when asked for: of an answer that went well nobody asks."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.pairs}

    async def begun(self) -> None:
        """Wait for status and headers. Whoever is cancelled meanwhile takes the connection along."""
        try:
            while not self.status:
                await self._more()
        except BaseException:
            self._drop()
            raise

    async def read(self, limit: int) -> bytes:
        """See `UpstreamResponse`."""
        try:
            pieces, size = self._take()
            while size <= limit and await self._more():
                more, grown = self._take()
                pieces += more
                size += grown
        finally:
            self._drop()
        if size > limit:
            raise UpstreamFailed(f"the answer is longer than {limit} bytes", inner=self._place)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `UpstreamResponse`. What has come in the meantime is one chunk."""
        while self._pieces or await self._more():
            pieces, _ = self._take()
            if pieces:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def close(self) -> None:
        """See `UpstreamResponse`."""
        self._drop()

    # -- what the connection says

    def begins(self, status: int) -> None:
        """The headers are whole."""
        self.status = status
        self._tell()

    def grows(self, piece: bytes) -> bool:
        """More of the body has come. Returns whether as much waits as may."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        self._tell()
        return self._waiting > AHEAD

    def ends(self, error: BackendError | None = None) -> None:
        """All of it has come, or nothing more will."""
        if not self._over:
            self._over = True
            self._error = error
            self._tell()

    def fails(self, why: str) -> None:
        """It broke off."""
        self.ends(UpstreamFailed(why, inner=self._place))

    def late(self) -> None:
        """Its time is up."""
        self.ends(UpstreamTimeout("no answer in time", inner=self._place))

    # --

    async def _more(self) -> bool:
        """Wait for news; False after the end. What came before an error is read first."""
        if self._over:
            if self._error is not None:
                raise self._error
            return False
        if self._news.done():
            self._news = self._connection.loop.create_future()
        await self._news
        return True

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    def _take(self) -> tuple[list[bytes], int]:
        """What has come, and how much that is."""
        pieces, size = self._pieces, self._waiting
        self._pieces, self._waiting = [], 0
        if size > AHEAD:
            self._connection.go_on(self)
        return pieces, size

    def _drop(self) -> None:
        if not self._over:
            self.fails("closed")
            self._connection.drop(self)


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        free: Called when it can carry another exchange.
        lost: Called when it cannot any more.
    """

    def __init__(self, free: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.idle_since = 0.0
        self._free = free
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._pairs: list[tuple[bytes, bytes]] = []
        self._bare = 0
        self._paused = False
        self._ended = False
        self._opening = False
        self._due = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def closing(self) -> bool:
        """Whether it can carry nothing more. TLS has still to say goodbye when the provider has done so."""
        return self._ended or self._transport is None or self._transport.is_closing()

    def ask(self, data: bytes, place: str, timeout_s: float) -> Answer:
        """Send a request; its answer begins later."""
        assert self._transport is not None
        assert self._answer is None
        answer = self._answer = Answer(self, place)
        self._bare = 0
        self._pairs.clear()
        self._transport.write(data)
        due = self._due = self.loop.time() + timeout_s
        # One timer lasts for many answers: set and cancelled for each, it cost as much as the write.
        if self._watch is None or self._watch.when() > due:
            self._look_at(due)
        return answer

    async def tunnel(self, request: bytes, place: str, host: str, tls: ssl.SSLContext, timeout_s: float) -> None:
        """Have a proxy connect us to a provider, and speak TLS with that.

        Raises:
            UpstreamFailed: The proxy refuses.
            OSError: The provider's certificate, or the connection, is not good.
        """
        self._opening = True  # it belongs to nobody else meanwhile, however whole the proxy's answer is
        answer = self.ask(request, place, timeout_s)
        await answer.begun()
        if answer.status != PROXY_AGREES:
            self.drop(answer)
            raise UpstreamFailed(UNREACHABLE, inner=f"{place}: the proxy answered {answer.status}")
        self._answer = None
        answer.ends()
        self._opening = False
        self._parser = httptools.HttpResponseParser(self)
        assert self._transport is not None
        transport = await self.loop.start_tls(self._transport, self, tls, server_hostname=host)
        if transport is None:
            raise ConnectionResetError("the connection was closed")
        self.connection_made(transport)

    def drop(self, answer: Answer) -> None:
        """Close it, if it still carries this answer."""
        if self._answer is answer:
            self._answer = None
            self.close()

    def go_on(self, answer: Answer) -> None:
        """The reader has caught up."""
        if self._paused and self._answer is answer and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. Called twice where TLS follows on a proxy's consent."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._answer is None or self._parser is None:
            self.close()  # nothing was asked
            return
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break("what came is no HTTP")
            return
        if self._bare > MAX_BARE:
            self._break(f"more than {MAX_BARE} bytes came that are no body")

    def eof_received(self) -> None:
        """See asyncio.Protocol."""
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._watch is not None:
            self._watch.cancel()
        self._parser = None  # it refers to us
        self._ended = True
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.unheard = not (self._bare or answer.status)
            if exc is None and answer.status and _FRAMES.isdisjoint(name.lower() for name, _ in answer.pairs):
                answer.ends()  # as HTTP/1.0 ends its answers
            else:
                answer.fails("the connection was closed")
        self._lost(self)

    # -- httptools

    def on_message_begin(self) -> None:
        """See httptools. Not even the beginning of a second answer may stay for the next exchange."""
        if self._answer is None or self._answer.status:
            raise ValueError("an answer to nothing")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Of trailers as well, which nobody asks for."""
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        assert self._parser is not None
        answer, status = self._answer, self._parser.get_status_code()
        if answer is None or not status:
            raise ValueError("no answer")
        pairs, self._pairs = self._pairs, []
        if status in _INFORMATIONAL:
            return
        answer.pairs = pairs
        answer.begins(status)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._bare = 0
        if self._answer is not None and self._answer.grows(body) and not self._paused:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """See httptools."""
        answer = self._answer
        if answer is None or not answer.status or self._opening:
            return
        assert self._parser is not None
        if self._paused:
            self.go_on(answer)
        self._answer = None
        answer.ends()
        assert self._transport is not None
        # An answer may come before its request has left; what follows must not be taken for its rest.
        if self._parser.should_keep_alive() and not self._transport.get_write_buffer_size():
            self._free(self)
        else:
            self.close()

    def _look_at(self, due: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        """Whether the answer's time is up, or when it will be."""
        self._watch = None
        answer = self._answer
        if answer is None:
            return
        if self._due > self.loop.time():
            self._look_at(self._due)
        else:
            answer.late()
            self.drop(answer)

    def _break(self, why: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.fails(why)
        self.close()
