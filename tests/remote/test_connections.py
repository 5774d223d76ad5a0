"""What becomes of connections: when one is used again, when it is dropped, and how much is read ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from headgate_gateway.upstream import HttpUpstream
from headgate_plugin_api import UpstreamFailed

OK = b"HTTP/1.1 200 OK\r\n"
SMALL = OK + b"content-length: 2\r\n\r\nok"
MUCH = 16 * 1024 * 1024

Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Says the same to every request; counts connections and requests."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.connections = 0
        self.requests = 0
        self.url = ""
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.append(writer)
        try:
            while True:
                await reader.readuntil(b"{}")
                self.requests += 1
                await self.say(writer)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


@asynccontextmanager
async def serving(*pieces: bytes, close: bool = False) -> AsyncIterator[Server]:
    async def say(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()

    server = Server(say)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    yield server
    for writer in server.open:
        writer.close()
    listener.close()


async def ask(upstream: HttpUpstream, server: Server, limit: int = 100) -> bytes:
    response = await upstream.send("POST", server.url, headers={}, body=b"{}", timeout_s=20)
    return await response.read(limit)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", SMALL),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r", b"\nok\r\n0\r\nx-late: 1\r\n\r\n"),
        (OK, b"content-le", b"ngth: 2\r\n\r", b"\no", b"k"),
    ],
    ids=["interim answers", "trailers", "in pieces"],
)
async def test_a_connection_carries_answer_after_answer(upstream, pieces):
    async with serving(*pieces) as server:
        for _ in range(3):
            assert await ask(upstream, server) == b"ok"
        assert (server.connections, server.requests) == (1, 3)
        await upstream.close()


@pytest.mark.parametrize(
    ("pieces", "close"),
    [
        ((OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok",), False),
        ((b"HTTP/1.0 200 OK\r\n\r\n", b"o", b"k"), True),
        ((SMALL, b"and more that nobody asked for"), False),
        ((SMALL + SMALL,), False),
        ((SMALL,), True),
    ],
    ids=["said to close", "ends with the connection", "says more", "answers twice", "closes"],
)
async def test_a_connection_that_cannot_be_used_again_is_not(upstream, pieces, close):
    async with serving(*pieces, close=close) as server:
        for number in range(2):
            try:
                assert await ask(upstream, server) == b"ok"
            except UpstreamFailed:
                # It may be known only when it is used again; an answer to another request is never taken.
                assert number
        await until(lambda: server.connections == 2 or server.requests == 1)
        await upstream.close()


@pytest.mark.parametrize(
    "more",
    [OK + b"content-length: 5\r\n\r\nfalse", b"HTTP/1.1 500 No\r\nx: ", b"H"],
    ids=["an answer", "a head's beginning", "a byte"],
)
async def test_what_came_for_nothing_is_never_an_answer(upstream, more):
    async with serving(SMALL + more) as server:
        for _ in range(2):
            response = await upstream.send("POST", server.url, headers={}, body=b"{}", timeout_s=20)
            assert (response.status, await response.read(100)) == (200, b"ok")
        assert server.connections == 2
        await upstream.close()


class Fickle(Server):
    """Answers the first request of its first connection; on the next says `last` and closes."""

    def __init__(self, last: bytes, *, wait_s: float = 0) -> None:
        super().__init__(self._say)
        self._last = last
        self._wait_s = wait_s

    async def _say(self, writer: asyncio.StreamWriter) -> None:
        if self.requests == 2:
            await asyncio.sleep(self._wait_s)
            writer.write(self._last)
            writer.close()
        else:
            writer.write(SMALL)


@asynccontextmanager
async def fickle(last: bytes = b"", *, wait_s: float = 0) -> AsyncIterator[Server]:
    server = Fickle(last, wait_s=wait_s)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    yield server
    for writer in server.open:
        writer.close()
    listener.close()


async def test_a_request_on_a_connection_that_was_being_closed_goes_out_again(upstream):
    async with fickle() as server:
        for _ in range(3):
            assert await ask(upstream, server) == b"ok"
        assert (server.connections, server.requests) == (2, 4)
        await upstream.close()


async def test_a_request_that_was_heard_does_not_go_out_again(upstream):
    async with fickle(b"HTTP/1.1 2") as server:
        assert await ask(upstream, server) == b"ok"
        with pytest.raises(UpstreamFailed, match="closed"):
            await ask(upstream, server)
        assert server.requests == 2
        await upstream.close()


async def test_a_request_that_was_worked_on_does_not_go_out_again(upstream, monkeypatch):
    monkeypatch.setattr("headgate_gateway.upstream.client.STALE_S", 0.01)
    async with fickle(wait_s=0.05) as server:
        assert await ask(upstream, server) == b"ok"
        with pytest.raises(UpstreamFailed, match="closed"):
            await ask(upstream, server)
        assert server.requests == 2
        await upstream.close()


async def test_a_first_request_does_not_go_out_again(upstream):
    async with serving(close=True) as server:
        with pytest.raises(UpstreamFailed, match="closed"):
            await ask(upstream, server)
        assert server.requests == 1


async def test_a_status_that_is_none(upstream):
    async with serving(b"HTTP/1.1 000 X\r\ncontent-length: 2\r\n\r\nok") as server:
        with pytest.raises(UpstreamFailed, match="no HTTP"):
            await ask(upstream, server)


async def test_a_reader_that_waits_holds_the_provider_back(upstream):
    async with serving(OK + b"content-length: %d\r\n\r\n" % MUCH, *[b"x" * 65_536] * (MUCH // 65_536)) as server:
        response = await upstream.send("POST", server.url, headers={}, body=b"{}", timeout_s=20)
        await until(lambda: server.open and server.open[0].transport.get_write_buffer_size() > 0)
        size = 0
        async for chunk in response.chunks():
            assert len(chunk) < MUCH // 4
            size += len(chunk)
        assert size == MUCH
        assert await ask(upstream, server, MUCH) == b"x" * MUCH
        assert server.connections == 1
        await upstream.close()


async def test_a_protocol_that_was_not_asked_for(upstream):
    async with serving(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n") as server:
        with pytest.raises(UpstreamFailed):
            await ask(upstream, server)


async def test_trailers_have_an_end(upstream):
    async with serving(
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", *[b"x: " + b"y" * 8000 + b"\r\n"] * 200
    ) as server:
        with pytest.raises(UpstreamFailed, match="no body"):
            await ask(upstream, server)
