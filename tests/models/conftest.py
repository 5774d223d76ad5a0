import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from headgate_engine.spec import EngineSpec
from headgate_engine.testing import EngineProcess
from headgate_gateway.models import EngineClient
from headgate_plugin_api import ChatPayload, InferenceRequest, Message

numbers = iter(range(1_000_000))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have short paths, which pytest's own does not always give."""
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        yield Path(folder)


@pytest.fixture
def spec() -> EngineSpec:
    return EngineSpec(id="echo", task="chat", backend="echo")


@pytest.fixture
def engine(short_path: Path, spec: EngineSpec) -> Iterator[EngineProcess]:
    with EngineProcess(spec, short_path / "e.sock") as process:
        yield process


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine.socket, name="echo/0", random=Random(1))
    await client.start()
    yield client
    await client.close()


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def chat(
    text: str, *, max_output: int | None = None, timeout_ms: int = 60_000, **options: object
) -> InferenceRequest:
    return InferenceRequest(
        id=f"req_{next(numbers)}",
        model="echo",
        payload=ChatPayload(messages=(Message(role="user", content=text),)),
        max_output=max_output,
        timeout_ms=timeout_ms,
        options=options,
    )
