"""uvicorn's connection with bounds that it lacks: how large request headers may be and how long they may take.

Once a request's headers are whole, the application's own bounds hold. May import bodies, problems and sending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from headgate_gateway.http.bodies import CLIENT, ClientGone
from headgate_gateway.http.headers import CLOSE, CONTENT_LENGTH, EXPECT, FIRSTS, HOST, TRANSFER_ENCODING, Pairs
from headgate_gateway.http.problems import NO_CONTENT, Problem, body_problem, raw_answer
from headgate_gateway.http.sending import ANSWER

if TYPE_CHECKING:
    from headgate_gateway.http.edge import Edge

MAX_HEAD: Final = 64 * 1024
"""Bytes that may arrive before the headers are whole."""

HEAD_S: Final = 15.0
"""Seconds that headers may take, from their first byte or the connection's beginning; TLS before them as well."""

LAST_S: Final = 1.0
"""The same once the worker drains: what a client that has just connected asks may still be on its way."""

LINGER_S: Final = 30.0
"""How long a client may take to read the rest after a connection was closed."""

MOST_WAITING: Final = 100
"""Requests of one connection that may wait for the answer before theirs."""

READ_AHEAD: Final = 8
"""How many of these are read on: where reading pauses, nothing is heard of a client that leaves."""

_HOST: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=%:[]"
"""What a host and its port are made of (RFC 3986, 3.2.2)."""

_HEAD: Final = b"HTTP/1.1 "
_UPGRADE: Final = b"upgrade"
_VERSIONS: Final = frozenset({"1.0", "1.1"})


class Ambiguous(Exception):
    """A request that another reader, a proxy before us, might read as something else."""


class Gathered(asyncio.Transport):
    """A transport that sends an answer's head along with what follows it, in one system call instead of two.

    A head that nothing follows leaves at the end of the loop's turn.

    Attributes:
        write_whole: Writes an answer that nothing is to follow; there must be none before it that has begun.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.write_whole = transport.write
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.Transport."""
        if self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        elif isinstance(data, bytes) and data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """See asyncio.Transport. A client that never reads what is left does not keep the connection for ever."""
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(LINGER_S, self._transport.abort)

    def abort(self) -> None:
        """See asyncio.Transport."""
        self._transport.abort()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See asyncio.Transport."""
        self._transport.set_protocol(protocol)

    def _flush(self) -> None:
        if self._head and not self.is_closing():
            self._transport.write(self._head)
        self._head = b""


class Cycle(RequestResponseCycle):
    """uvicorn's way of one request and its answer, which also takes an `ANSWER` and writes it at once.

    uvicorn looks at each header for itself, twice and with a regular expression: with the twenty that an answer
    of ours has, that was a tenth of a worker's time.
    """

    transport: Gathered
    left: Callable[[], None] | None = None

    def take(self) -> bytes:
        """See `Client`: what `receive` would bring, without a wait."""
        if self.disconnected:
            raise ClientGone
        body, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        self.waiting_for_100_continue = False
        return body

    def watch(self, left: Callable[[], None]) -> None:
        """See `Client`. A large body has made the connection pause, and nothing is heard of one that does."""
        if self.disconnected:
            raise ClientGone
        self.left = left
        self.flow.resume_reading()

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if message["type"] != ANSWER:
            if self.chunked_encoding and message.get("more_body") and not self.response_complete:
                await self._chunk(message.get("body"))
            else:
                if self.scope["http_version"] == "1.0":  # it knows no chunks: its answer ends with the connection
                    self.chunked_encoding = False
                    self.expected_content_length = len(message.get("body") or b"")
                await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            raise RuntimeError("an answer after the answer has begun")
        self.response_started = True
        if self.waiting_for_100_continue:
            # A client that waited for our consent need not send its body now: what it sends next is no telling.
            self.keep_alive = False
        self.transport.write_whole(self._answer(message["status"], message["headers"], message["body"]))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def _chunk(self, body: bytes | None) -> None:
        """A piece of a stream: what uvicorn does, in fewer steps."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if body and not self.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def _answer(self, status: int, pairs: Pairs, body: bytes) -> bytes:
        pairs = [*self.default_headers, *pairs]
        if status != NO_CONTENT:
            pairs.append((CONTENT_LENGTH, b"%d" % len(body)))
        if CLOSE in pairs:
            self.keep_alive = False
        elif not self.keep_alive:
            pairs.append(CLOSE)
        text = b"".join(chain.from_iterable(pairs))
        if b"\n" in text or b"\r" in text:
            raise RuntimeError("a header with a line break")
        lines = b"\r\n".join(map(b": ".join, pairs))
        shown = b"" if self.scope["method"] == "HEAD" else body
        return b"%b%b\r\n\r\n%b" % (STATUS_LINE[status], lines, shown)


class BoundedConnection(HttpToolsProtocol):
    """One client's connection.

    Attributes:
        began: Whether it ever stood.
        on_lost: Called when one that stood has ended.
    """

    app: Any
    scope: Any
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._last = False
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[Cycle | None] | None = None
        self._rests_since: float | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._running: Cycle | None = None
        self._host = b""
        self.began = False
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self.began = True
        super().connection_made(Gathered(transport, self.loop))
        self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._disarm()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)
        running = self._running
        if running is None or running.response_complete:
            return
        running.disconnected = True  # uvicorn tells the request that came last
        running.message_event.set()
        if running.left is not None:
            running.left()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. The usual request comes whole, and then costs two comparisons here."""
        if self._refused:
            return
        if self._reading_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            cause = error.__context__ or error  # ours, or the parser's own
            known = isinstance(cause, Ambiguous | OverflowError | httptools.HttpParserError)
            self.send_400_response(f"this is not HTTP/1.1: {cause}" if known else "this is not HTTP/1.1")
            return
        if not self._reading_head:
            return
        if self._head_bytes > MAX_HEAD:
            self._refuse(body_problem("headers_too_large", f"the headers are larger than {MAX_HEAD} bytes"))
        elif self._head_bytes and self._head_timer is None:
            self._arm(HEAD_S)

    def on_message_begin(self) -> None:
        """See httptools. Only this ends the rest between two requests: empty lines do not."""
        if len(self.pipeline) >= MOST_WAITING:  # uvicorn reads on with every answer, and 4 MB of these took 120
            raise OverflowError("too many requests at once")
        self._rests_since = None
        self._reading_head = True
        self._head_bytes = self._head_bytes or 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools. As uvicorn, for a server without other protocols, mounts and a bound on requests."""
        parser = self.parser
        if parser.should_upgrade():
            return
        self._rests_since = None  # the answer before may have ended meanwhile
        self._reading_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._disarm()
        scope, before, firsts = self.scope, self.cycle, dict(reversed(self.headers))
        version, url = parser.get_http_version(), httptools.parse_url(self.url)
        self._check(version, firsts)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        scope[FIRSTS] = firsts
        cycle = self.cycle = scope[CLIENT] = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=EXPECT in firsts and firsts[EXPECT].lower() == b"100-continue",
            keep_alive=version != "1.0" and parser.should_keep_alive() and not self._last,
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.pipeline.appendleft((cycle, self.app))
            if len(self.pipeline) > READ_AHEAD:
                self.flow.pause_reading()

    def _check(self, version: str, firsts: dict[bytes, bytes]) -> None:
        """What the parser leaves to us of how a request is framed and addressed (RFC 9112, 3.2 and 6.1)."""
        host = firsts.get(HOST)
        if host is None and version == "1.1":
            raise Ambiguous("a request needs a host header")
        if host and host != self._host:  # a connection's requests mostly name the same
            if host.translate(None, _HOST):
                raise Ambiguous("the host header names no host")
            self._host = host
        if len(firsts) != len(self.headers) and [name for name, _ in self.headers].count(HOST) > 1:
            raise Ambiguous("a request has one host header")
        if TRANSFER_ENCODING in firsts and (version != "1.1" or firsts[TRANSFER_ENCODING].lower() != b"chunked"):
            raise Ambiguous("of transfer codings, HTTP/1.1's chunked alone is read")
        if version not in _VERSIONS:
            raise Ambiguous(f"version {version} is not spoken")

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn, which sets a timer after each answer and cancels it before the next. Here one lasts."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._rests_since = self.loop.time()
        if self._rest_timer is None:
            self._rest_timer = self.loop.call_later(self.timeout_keep_alive, self._rest_over)

    def _rest_over(self) -> None:
        self._rest_timer = None
        if self._rests_since is None:
            return
        left = self._rests_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._rest_timer = self.loop.call_later(left, self._rest_over)
        else:
            self.timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """See uvicorn, which makes a task for each request. A connection has one here, while it is in time."""
        self._running = cycle
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.set_result(cycle)
        elif self._task is None:
            self._task = self.loop.create_task(self._answer_all(cycle))
        else:  # it still cleans up behind the answer before
            super()._start_asgi_task(cycle, app)

    async def _answer_all(self, cycle: Cycle | None) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        while cycle is not None:
            self.tasks.add(task)
            await cycle.run_asgi(self.app)
            self.tasks.discard(task)
            if self.transport.is_closing():
                return
            self._idle = self.loop.create_future()
            cycle = await self._idle

    def shutdown(self) -> None:
        """See uvicorn, which would also close on who has not asked yet: for it, that is no server at all."""
        if self._reading_head and (self.cycle is None or self._head_bytes):
            self._last = True
            self._disarm()
            self._arm(LAST_S)
        else:
            super().shutdown()

    def _stay(self, rest: bytes) -> None:
        """Read a request again that offers another protocol, without the offer: a server may ignore it.

        The parser takes what follows such a head for the other protocol's. But Java's client offers HTTP/2 with
        its first request and sends the body all the same (RFC 9110, 7.8).
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode("ascii")
        if method == b"CONNECT":
            self.send_400_response("this server is no proxy")
            return
        lines = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != _UPGRADE]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._head_bytes = 0
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, b"".join(lines), rest))

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says of bytes that are not HTTP, in the form of every other error."""
        self._refuse(Problem("invalid_request", msg, close=True))

    def _refuse(self, problem: Problem) -> None:
        """Answer what cannot be read, and read no more. A request before it keeps its own answer."""
        self._disarm()
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not (cycle.more_body or cycle.response_complete):
            cycle.keep_alive = False
        elif not self.transport.is_closing():
            edge = cast("Edge", self.config.app)
            self.transport.write(raw_answer(problem, edge.ids.request()))
            self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._head_timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(body_problem("too_slow", "the headers came too slowly"))
        elif not self.transport.is_closing():
            self.transport.close()
