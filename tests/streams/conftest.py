"""A gateway whose workers have a port each, so that a test chooses where a stream begins and where it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests import processes
from tests.deployment import wait_for

CHAT = "/v1/chat/completions"

MODELS = {
    "models": [
        {"id": "echo", "task": "chat", "backend": "echo", "price": {"input": "1", "output": "2"}},
        {"id": "words", "task": "completion", "backend": "echo", "price": {"input": "1", "output": "2"}},
        {
            "id": "waived",
            "task": "chat",
            "backend": "echo",
            "price": {"input": "1", "output": "2"},
            "disconnect": "waive",
        },
    ]
}


class Deployment:
    """Two workers on one ledger.

    Attributes:
        gateway: Its processes.
        urls: Where each worker answers.
    """

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.urls = [gateway.url]
        self._listeners: list[socket.socket] = [gateway.listener]

    def add_worker(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listeners.append(listener)
        self.urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
        self.start_worker(len(self.urls) - 1)

    def start_worker(self, number: int) -> None:
        self.gateway.listener = self._listeners[number]
        try:
            self.gateway.start_worker(number)
        finally:
            self.gateway.listener = self._listeners[0]
        wait_for(lambda: self.ready(number), f"worker {number} is ready")

    def ready(self, number: int) -> bool:
        status: int = httpx.get(f"{self.urls[number]}/health/ready").status_code
        return status == 200

    def close(self) -> None:
        for listener in self._listeners[1:]:
            listener.close()

    def key(self, **more: Any) -> str:
        made: str = self.gateway.key(**more)
        return made

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.gateway.admin("GET", "usage?limit=1000")["data"]
        return found

    def record(self, request_id: str) -> dict[str, Any] | None:
        return next((record for record in self.records() if record["request_id"] == request_id), None)

    def audit(self) -> None:
        report = self.gateway.admin("GET", "audit?full=true")
        assert report["ok"], report


@contextlib.contextmanager
def deployed(**server: Any) -> Iterator[Deployment]:
    """A deployment of two workers."""
    with processes.running({**MODELS, "server": server}) as gateway:
        deployment = Deployment(gateway)
        try:
            deployment.add_worker()
            gateway.url = deployment.urls[1]  # no test ends this one: administration goes there
            yield deployment
            deployment.audit()
        finally:
            deployment.close()


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """One deployment for every test that does no harm to it; at the end its books must agree."""
    with deployed() as started:
        yield started


@contextlib.asynccontextmanager
async def _deployed_aside(**server: Any) -> AsyncIterator[Deployment]:
    manager = deployed(**server)
    started = await asyncio.to_thread(manager.__enter__)
    try:
        yield started
    except BaseException as error:
        await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(manager.__exit__, None, None, None)


@pytest.fixture
def deploy() -> Callable[..., contextlib.AbstractAsyncContextManager[Deployment]]:
    """`async with deploy(drain_s=5)`: a deployment of the test's own."""
    return _deployed_aside


@pytest.fixture(name="wait_for")
def wait_aside() -> Callable[..., Any]:
    """`await wait_for(condition, what)`; the loop goes on meanwhile."""

    async def wait(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        return await asyncio.to_thread(wait_for, condition, what, seconds)

    return wait


def speech(words: int, delay_ms: int = 0, **more: Any) -> dict[str, Any]:
    """A streaming request whose answer is numbered words, so that a gap or a repetition shows."""
    text = " ".join(f"w{number}" for number in range(words))
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "options": {"tokens": words, "delay_ms": delay_ms},
        **more,
    }


class Event:
    """One server-sent event as it came."""

    def __init__(self, raw: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in raw.decode().splitlines())
        self.raw = raw
        self.id = fields.get("id")
        self.kind = fields.get("event", "message")
        self.data = fields["data"]

    @property
    def document(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        if self.data == "[DONE]" or self.kind == "error":
            return ""
        choices = self.document["choices"]
        return (choices[0].get("delta") or choices[0]).get("content") or "" if choices else ""


class Reply:
    """An answer, read event by event on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self._buffer = b""

    async def begin(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)

    async def body(self) -> bytes:
        if "content-length" in self.headers:
            return await self._reader.readexactly(int(self.headers["content-length"]))
        return b""

    async def document(self) -> Any:
        return json.loads(await self.body())

    async def event(self) -> Event | None:
        """The next one; None after the last, and where the connection was cut."""
        while b"\n\n" not in self._buffer:
            try:
                line = await self._reader.readline()
                if not line:
                    return None
                size = int(line, 16)
                if not size:
                    await self._reader.read(2)
                    self.whole = True
                    return None
                self._buffer += (await self._reader.readexactly(size + 2))[:-2]
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        raw, _, self._buffer = self._buffer.partition(b"\n\n")
        return Event(raw)

    async def events(self, most: int = 1_000_000) -> list[Event]:
        found: list[Event] = []
        while len(found) < most and (event := await self.event()) is not None:
            found.append(event)
        return found

    def cut(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


@pytest.fixture
async def ask() -> AsyncIterator[Callable[..., Any]]:
    """`await ask(url, key, document, **headers)`: a request on a connection of its own."""
    open_replies: list[Reply] = []

    async def post(url: str, key: str, document: dict[str, Any], path: str = CHAT, **headers: str) -> Reply:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=16 * 1024 * 1024)
        content = json.dumps(document).encode()
        lines = [f"POST {path} HTTP/1.1", "host: x", f"x-api-key: {key}", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        reply = Reply(reader, writer)
        open_replies.append(reply)
        await reply.begin()
        return reply

    yield post
    for reply in open_replies:
        reply.cut()
