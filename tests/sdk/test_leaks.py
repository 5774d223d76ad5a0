"""Nothing is left open: sockets, files, tasks, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc

import psutil
import pytest
from headgate import Headgate, errors
from headgate.testing import Cut, FakeGateway

from .conftest import HELLO, Driver


def test_memory_is_flat_over_many_calls() -> None:
    gateway = FakeGateway()
    client = gateway.client()

    def run(count: int) -> int:
        for _ in range(count):
            client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
            client.chat.completions.create(model="echo", messages=HELLO, stream=True).final()  # type: ignore[arg-type]
            gateway.seen.clear()
            gateway.records.clear()
            gateway._claims.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    client._engine.journal._size = 50
    run(100)
    tracemalloc.start()
    try:
        before = run(100)
        after = run(300)
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


async def test_no_task_is_left(drive: Driver) -> None:
    before = asyncio.all_tasks()
    drive.gateway.script(Cut(2))
    async with drive.within(drive.client()) as client:
        with pytest.raises(errors.StreamInterrupted):
            await drive.do(
                (await drive.do(client.chat.completions.create, model="echo", messages=HELLO, stream=True)).final
            )
        await drive.do(client.embeddings.create, model="embed", input=["a"] * 9, batch_size=2)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("transport", ["httpx", "fast"])
def test_no_file_is_left(transport: str) -> None:
    process = psutil.Process(os.getpid())

    def use() -> None:
        client = Headgate(api_key="x", base_url="http://127.0.0.1:1", transport=transport, max_retries=0)  # type: ignore[arg-type]
        with client, pytest.raises(errors.ConnectionFailed):
            client.models.list()

    use()
    gc.collect()
    before = process.num_fds()
    for _ in range(5):
        use()
    gc.collect()
    assert process.num_fds() <= before + 2


async def test_a_cancelled_call_leaves_nothing(gateway: FakeGateway) -> None:
    client = gateway.async_client()
    with client.meter() as meter:
        task = asyncio.create_task(client.chat.completions.create(model="echo", messages=HELLO))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = asyncio.create_task(client.chat.completions.create(model="echo", messages=HELLO, stream=True))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
    assert not client._engine.transport.open_streams  # type: ignore[attr-defined]
    assert meter.rows()[0].failures == 2


def test_a_dropped_stream_is_told(gateway: FakeGateway) -> None:
    stream = gateway.client().chat.completions.create(model="echo", messages=HELLO, stream=True)  # type: ignore[arg-type]
    next(stream)
    with pytest.warns(ResourceWarning, match="neither closed nor read"):
        del stream
