"""A provider made of a bare socket: it says the very bytes that a test wants said, and notes what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from headgate_gateway.upstream import HttpUpstream


class Seen:
    """One request as it arrived."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Provider:
    """Listens on a port of the system's choice; `answer` decides what is said."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.gone = asyncio.Event()
        self.connections = 0
        self.answer: Callable[[asyncio.StreamWriter], Awaitable[None]] = self._nothing
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether any connection is open."""
        return bool(self._handlers)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    def says(self, *pieces: bytes, close: bool = True) -> None:
        """Answer with these bytes, piece by piece, then close or stay silent."""

        async def answer(writer: asyncio.StreamWriter) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if not close:
                await self.gone.wait()

        self.answer = answer

    def says_json(self, document: Any, *, status: int = 200, headers: str = "") -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.says(head.encode() + body, close=False)

    def streams(self, *events: Any, close: bool = True) -> None:
        """Answer with an SSE stream of these documents (bytes go out as they are)."""
        pieces = [
            event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
            for event in events
        ]
        self.says(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", *pieces, close=close)

    async def _nothing(self, writer: asyncio.StreamWriter) -> None:
        return

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = Seen(head[:-4], b"").headers
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append(Seen(head[:-4], body))
                watch = asyncio.create_task(self._watch(reader))
                answer = asyncio.ensure_future(self.answer(writer))
                await asyncio.wait({watch, answer}, return_when=asyncio.FIRST_COMPLETED)
                done = answer.done()
                for each in (watch, answer):
                    each.cancel()
                ends = await asyncio.gather(watch, answer, return_exceptions=True)
                if any(isinstance(end, OSError) for end in ends):
                    self.gone.set()  # the peer reset the connection
                if done:
                    return
        except (OSError, asyncio.IncompleteReadError):
            self.gone.set()
        except asyncio.CancelledError:
            # The test is over. asyncio's streams report a cancelled handler as an error.
            return
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Return when the peer closes."""
        while await reader.read(1):
            pass
        self.gone.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    await provider.start()
    yield provider
    await provider.close()


@pytest.fixture
async def another() -> AsyncIterator[Provider]:
    provider = Provider()
    await provider.start()
    yield provider
    await provider.close()


@pytest.fixture
async def upstream() -> AsyncIterator[HttpUpstream]:
    upstream = HttpUpstream()
    yield upstream
    await upstream.close()
