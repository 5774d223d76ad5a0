"""A small budget shared by stock clients that send no `max_tokens`: several of them work at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

CLIENTS = 8
HELD = 1024
"""Output tokens that one request holds: a stream's first step, a whole answer's default limit."""

ANSWER = "as much as you need"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


class Upstream:
    """A provider that answers nobody before `CLIENTS` requests wait: who holds the whole budget waits forever."""

    def __init__(self) -> None:
        self._all = asyncio.Barrier(CLIENTS)
        self.limits: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                self.limits.append(asked.get("max_completion_tokens") or asked["max_tokens"])
                await self._all.wait()
                writer.write(self._stream() if asked.get("stream") else self._whole())
                await writer.drain()

    def _whole(self) -> bytes:
        message = {"role": "assistant", "content": ANSWER}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": USAGE,
        }
        text = json.dumps(body).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
            len(text),
            text,
        )

    def _stream(self) -> bytes:
        said = {"index": 0, "delta": {"role": "assistant", "content": ANSWER}, "finish_reason": None}
        ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunks = [
            {**head, "choices": [said]},
            {**head, "choices": [ended]},
            {**head, "choices": [], "usage": USAGE},
        ]
        text = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
        head_ = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
        return head_ % len(text) + text


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    provider = Upstream()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    yield provider, server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "whole"])
async def test_a_small_budget_lets_several_work_at_once(
    upstream: tuple[Upstream, int], gateway: Any, stream: bool
) -> None:
    """The budget is worth the first steps of all, to the nano-unit, and a fourth of their full limits."""
    provider, port = upstream
    limit = 4 * HELD if stream else HELD
    config = f"""
[[models]]
id = "hosted"
task = "chat"
price = {{ output = "1" }}
default_output = {limit}
[[models.targets]]
backend = "openai"
model = "m"
base_url = "http://127.0.0.1:{port}/v1"
"""
    deployment = await asyncio.to_thread(gateway, config, workers=2)
    key = await asyncio.to_thread(deployment.key, budget=f"0.{CLIENTS * HELD * 1000:09d}/total")

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{deployment.url}/v1", api_key=key, max_retries=0) as client:
            said = await client.chat.completions.create(
                model="hosted", messages=[{"role": "user", "content": "how much?"}], stream=stream
            )
            if isinstance(said, openai.AsyncStream):
                return "".join([c.choices[0].delta.content or "" async for c in said if c.choices])
            return said.choices[0].message.content or ""

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    assert answers == [ANSWER] * CLIENTS
    assert provider.limits == [limit] * CLIENTS  # the provider is told the full limit, whatever is held
    (found,) = (await asyncio.to_thread(deployment.command, "budgets", "list"))["budgets"]
    assert (found["spent"], found["held"]) == (f"0.{CLIENTS * 7 * 1000:09d}".rstrip("0"), "0")
    assert (await asyncio.to_thread(deployment.audit))["ok"]
