"""`kill -9` of worker, engine and ledger under load: nothing hangs, each answer is charged once, audit passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from headgate_plugin_api import DIMENSIONS

CLIENTS = 16
WORDS = "alpha beta gamma delta epsilon zeta eta theta"
PATIENCE_S = 60.0

SLOW_ECHO = """
[[models]]
id = "echo"
task = "chat"
backend = "echo"
options = { delay_ms = 5 }
price = { input = "1", output = "1" }
"""


class Load:
    """Clients that ask without pause and write down every answer they received in full."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.headers = {"authorization": f"Bearer {key}"}
        self.received: list[str] = []
        """Request ids of complete answers."""
        self.broken = 0
        self.stopped = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While this lasts; at its end every client has finished what it was asking."""
        task = asyncio.create_task(self.run())
        try:
            yield
            self.stopped = True
            await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self.client(stream=number % 2 == 0))

    async def client(self, *, stream: bool) -> None:
        body = {"model": "echo", "messages": [{"role": "user", "content": WORDS}], "stream": stream}
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            while not self.stopped:
                try:
                    answer = await client.post(f"{self.url}/v1/chat/completions", json=body, headers=self.headers)
                except httpx.TimeoutException:
                    raise AssertionError("a request hung") from None
                except httpx.TransportError:
                    self.broken += 1
                    await asyncio.sleep(0.01)
                    continue
                complete = answer.status_code == 200 and (not stream or "data: [DONE]" in answer.text)
                if complete:
                    self.received.append(answer.headers["x-request-id"])
                else:
                    assert answer.status_code in {200, 429, 502, 503}, answer.text
                    assert answer.status_code != 503 or "retry-after" in answer.headers, answer.text
                    self.broken += 1

    async def progress(self, count: int) -> None:
        """Wait until so many more answers have come."""
        target = len(self.received) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.received) < target:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("victim", ["headgate_gateway.worker", "headgate_engine", "headgate_gateway.ledger"])
async def test_killed_under_load(gateway: Any, victim: str) -> None:
    deployment = gateway(SLOW_ECHO, workers=2)
    key = deployment.key(budget="100/total")
    load = Load(deployment.url, key)
    async with load.running():
        for _ in range(3):
            await load.progress(50)
            victims = deployment.children(victim)
            assert victims, f"no process of {victim}"
            before = {process.pid for process in victims}
            victims[0].kill()
            async with asyncio.timeout(PATIENCE_S):
                while not ({process.pid for process in deployment.children(victim)} - before):
                    await asyncio.sleep(0.02)
        await load.progress(50)
    assert deployment.stop() == 0
    report = deployment.audit()
    assert report["ok"], report
    records = {row["request_id"]: row for row in all_records(deployment)}
    assert len(set(load.received)) == len(load.received)
    tokens = len(WORDS.split())
    for request_id in load.received:
        record = records[request_id]
        assert record["outcome"] == "ok"
        assert record["usage"]["input"] == tokens
        assert record["usage"]["output"] == tokens
        assert round(float(record["cost"]) * 1e9) == 2 * tokens * 1000
    assert set(records[load.received[0]]["usage"]) <= set(DIMENSIONS)


def all_records(deployment: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = deployment.command("usage", "--records", "1000", "--after", str(after))
        rows += page["records"]
        after = page["after"]
    return rows
