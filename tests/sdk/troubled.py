"""A proxy before a real gateway that makes the trouble which the fake is scripted with: the same faults."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from headgate.testing import (
    Cut,
    Disconnect,
    Duplicate,
    ErrorEvent,
    FailAfterCommit,
    Fault,
    Garble,
    Refuse,
    Split,
    Stall,
)


@dataclass(frozen=True)
class Seen:
    """A request as it arrived here; names of headers in lower case."""

    headers: Mapping[str, str]
    body: bytes


class Broken(Exception):
    """The connection breaks now, without a word."""


class TroubledProxy:
    """Relays requests to a gateway; each meets the next fault.

    Attributes:
        faults: What the next requests meet, one each.
        seen: Every request that arrived, in order.
    """

    def __init__(self, url: str) -> None:
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self._upstream = url
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._http = httpx.AsyncClient(timeout=30)
        self._server: asyncio.Server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _run(self, work: Any) -> Any:
        async def awaited() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(30)

    def script(self, *faults: Fault) -> None:
        """What comes next; what was before is forgotten."""
        self.faults = deque(faults)
        self.seen = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (at.partition(":") for at in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append(Seen(headers, body))
                path = request_line.split(" ")[1]
                await self._answer(path, self.seen[-1], reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, Broken):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(
        self, path: str, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Refuse):
            pace = {} if fault.retry_after is None else {"retry-after-ms": f"{fault.retry_after * 1000:g}"}
            problem = {"code": fault.code, "detail": "in the way", **fault.members}
            await whole(writer, fault.status, {**pace, **fault.headers}, json.dumps(problem).encode())
        elif isinstance(fault, Disconnect):
            raise Broken
        elif isinstance(fault, Stall) and fault.after is None:
            await reader.read()
        elif isinstance(fault, Garble):
            await whole(writer, 200, {"content-type": fault.content_type}, fault.body)
        else:
            kept = {name: seen.headers[name] for name in seen.headers if name not in {"", "host"}}
            async with self._http.stream(
                "POST", self._upstream + path, content=seen.body, headers=kept
            ) as answer:
                await relay(answer, fault, reader, writer)

    def close(self) -> None:
        """End every connection."""

        async def stop() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._http.aclose()

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def whole(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """An answer of the proxy's own."""
    head = {"x-request-id": "req_proxy", "headgate-version": "proxy", "content-length": len(body), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer.write(f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body)
    await writer.drain()


async def relay(
    answer: httpx.Response, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """The gateway's answer, through its fault."""
    if isinstance(fault, FailAfterCommit):
        await answer.aread()
        if fault.status is None:
            raise Broken
        await whole(writer, fault.status, {}, b'{"code": "internal_error", "detail": "lost on the way"}')
        return
    drop = {"content-length", "transfer-encoding", "connection"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items() if name not in drop)
    writer.write(f"HTTP/1.1 {answer.status_code} x\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
    async for piece in pieces(answer, fault, reader):
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def pieces(
    answer: httpx.Response, fault: Fault | None, reader: asyncio.StreamReader
) -> AsyncIterator[bytes]:
    """The body as the fault leaves it: events of a stream one by one."""
    left = getattr(fault, "after", None)
    async for event in events(answer):
        if left == 0:
            break
        left = None if left is None else left - 1
        if isinstance(fault, Split):
            for at in range(0, len(event), fault.size):
                yield event[at : at + fault.size]
        else:
            yield event
            if isinstance(fault, Duplicate):
                yield event
    if isinstance(fault, Stall):
        await reader.read()
    elif isinstance(fault, ErrorEvent):
        yield b'event: error\ndata: {"code": "%s", "detail": "no backend"}\n\n' % fault.code.encode()
    elif isinstance(fault, Cut) and not fault.tidy:
        raise Broken


async def events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The events of a stream; any other body is one."""
    rest = b""
    async for data in answer.aiter_raw():
        *done, rest = (rest + data).split(b"\n\n")
        for event in done:
            yield event + b"\n\n"
    if rest:
        yield rest
