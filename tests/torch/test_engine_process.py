"""The shipped model in a real engine process, asked over its socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from headgate_engine.spec import EngineSpec
from headgate_engine.testing import EngineProcess
from headgate_gateway.models import EngineClient
from headgate_plugin_api import InferenceRequest, InvalidRequest, ModelSpec, TextDelta, UsageReport

Make = Callable[..., Any]


@pytest.fixture
def engine(spec: ModelSpec) -> Iterator[EngineProcess]:
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        model = EngineSpec(
            id="tiny-lm", task="chat", backend="torch", source=spec.source, device="cpu",
            options={"max_requests": 2},
        )  # fmt: skip
        with EngineProcess(model, Path(folder) / "e.sock") as process:
            yield process


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine.socket, name="tiny-lm/0", random=Random(1))
    await client.start()
    await until(lambda: client.state == "ready")
    yield client
    await client.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def answer(client: EngineClient, request: InferenceRequest) -> list[Any]:
    return [event async for event in client.run(request)]


async def test_answers_stream_side_by_side_and_a_place_is_freed_by_who_leaves(
    client: EngineClient, chat: Make
) -> None:
    requests = [chat("And he said", request_id=f"req_{at}", most=12, temperature=0) for at in range(5)]
    answers = await asyncio.gather(*(answer(client, request) for request in requests))
    texts = {"".join(e.text for e in events if isinstance(e, TextDelta)) for events in answers}
    assert len(texts) == 1, "more requests than rows, and each says the same"
    assert all(isinstance(events[-1], UsageReport) for events in answers)

    async with aclosing(client.run(chat("And God", request_id="req_gone", most=500))) as stream:
        first = await anext(stream)
    assert isinstance(first, TextDelta)
    await until(lambda: client.beat is not None and client.beat.running == 0)
    with pytest.raises(InvalidRequest) as caught:
        await answer(client, chat("a", request_id="req_bad", temperature=-1.0))
    assert caught.value.path == "temperature"
    assert await answer(client, requests[0])


async def test_an_engine_process_carries_the_model_and_no_server(
    engine: EngineProcess, client: EngineClient
) -> None:
    assert client.info is not None
    assert client.info.platform == "pytorch"
    assert engine.process is not None
    mapped = " ".join(region.path for region in psutil.Process(engine.process.pid).memory_maps())
    assert "libtorch" in mapped
    assert not [name for name in ("uvloop", "httptools", "pyreqwest", "sqlalchemy") if f"/{name}/" in mapped]
    assert engine.stop() == 0
