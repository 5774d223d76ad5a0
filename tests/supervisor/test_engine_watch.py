"""Engines that hang: in one pass of their model, or altogether."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from headgate_engine.ipc import Codec, Connection, listen
from headgate_engine.wire import Beat, State, ToEngine
from headgate_gateway.supervisor.engine_watch import EngineWatch
from headgate_plugin_api import ModelInfo

READY = State(state="ready", info=ModelInfo(device="cpu", detail="a fake"))
LOADING = State(state="loading")
BUSY = Beat(stalled_ms=500, waiting=3, running=1, per_second=1.0)
IDLE = Beat(stalled_ms=0, waiting=0, running=0, per_second=1.0)


async def watched(messages: list[State | Beat], *, most_s: float) -> str:
    """What a watch says of an engine that says this and then no more."""
    said: asyncio.Queue[str] = asyncio.Queue()

    def greet(connection: Connection[ToEngine]) -> None:
        for message in messages:
            connection.send(message)

    codec: Codec[ToEngine] = Codec(ToEngine)
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        socket = Path(folder) / "e.sock"
        server = await listen(socket, lambda: Connection(codec, lambda *_: None, on_open=greet))
        watch = EngineWatch(socket, lambda: None, most_s=most_s, on_hanging=said.put_nowait, look_s=0.02)
        watch.start()
        try:
            return await asyncio.wait_for(said.get(), 30)
        finally:
            await watch.stop()
            server.close()


async def test_one_that_is_too_long_in_one_pass() -> None:
    assert await watched([READY, IDLE, BUSY], most_s=0.4) == "its model was in one pass for 0.4 s"


async def test_one_that_says_nothing() -> None:
    assert await watched([READY, IDLE], most_s=0.2) == "it was silent for 0.2 s"


async def test_one_that_loads_may_take_its_time() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await watched([LOADING, BUSY], most_s=0.1)
