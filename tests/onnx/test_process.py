"""The plugin as other processes meet it: what they must not import, and a real engine on a socket."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from headgate_engine import ipc, wire
from headgate_engine.testing import EngineProcess
from headgate_plugin_api import BatchModel, EmbedPayload, EmbedResult, Event, InferenceRequest

from tests.onnx.conftest import embed, spec

HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "skl2onnx",
    "sklearn",
    "onnxscript",
    "litestar",
    "sqlalchemy",
    "uvicorn",
)


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_registering_imports_neither_runtime_nor_importers() -> None:
    loaded = modules_after(
        "from headgate_engine.discovery import find_backend, find_importers\n"
        "find_backend('onnx'); assert len(find_importers('onnx')) == 4"
    )
    assert "headgate_onnx.backend" in loaded
    assert not loaded & {*HEAVY, "onnxruntime", "numpy", "tokenizers", "huggingface_hub"}


def test_a_running_model_needs_neither_torch_nor_transformers(minilm_folder: Path) -> None:
    loaded = modules_after(
        "from headgate_onnx.backend import OnnxBackend\n"
        "from headgate_plugin_api import *\n"
        f"spec = ModelSpec(id='m', task='embed', backend='onnx', source={str(minilm_folder)!r}, device='cpu')\n"
        "model = OnnxBackend().load(spec, lambda _: None)\n"
        "request = InferenceRequest(id='r', model='m', payload=EmbedPayload(inputs=('water',)))\n"
        "items = model.prepare(request); model.finish(request, items, model.run_batch(items))"
    )
    assert "onnxruntime" in loaded
    assert not loaded & set(HEAVY)


@pytest.fixture
def engine(minilm_folder: Path) -> Iterator[EngineProcess]:
    # Not tmp_path: a socket's path must stay under about 100 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="hg") as folder,
        EngineProcess(spec(minilm_folder, "embed", options={"threads": 1}), Path(folder) / "e.sock") as running,
    ):
        yield running


async def test_a_real_engine_answers_many_at_once(engine: EngineProcess, minilm: BatchModel) -> None:
    texts = [f"gate number {n} " + "lets water through " * (n % 7) for n in range(40)]
    answers: dict[str, list[Event]] = {}
    waiting = asyncio.Event()
    ready: asyncio.Future[wire.State] = asyncio.get_running_loop().create_future()

    def heard(_: object, message: wire.FromEngine) -> None:
        if isinstance(message, wire.State) and message.state in ("ready", "failed") and not ready.done():
            ready.set_result(message)
        elif isinstance(message, wire.Events):
            answers.setdefault(message.request_id, []).extend(message.events)
            if len(answers) == len(texts):
                waiting.set()
        elif isinstance(message, wire.Failed):
            pytest.fail(message.message)

    connection = await reach(engine, heard)
    state = await asyncio.wait_for(ready, 30)
    assert state.state == "ready", state.reason
    assert state.info is not None
    assert state.info.dimensions == 384
    for n, text in enumerate(texts):
        payload = EmbedPayload(inputs=(text,))
        connection.send(wire.Run(InferenceRequest(id=f"req_{n}", model="m", payload=payload)))
    await asyncio.wait_for(waiting.wait(), 30)
    connection.close()
    expected, _ = embed(minilm, texts)
    for n in range(len(texts)):
        result = answers[f"req_{n}"][0]
        assert isinstance(result, EmbedResult)
        assert np.allclose(np.frombuffer(result.vectors[0], "<f4"), expected[n], atol=1e-5)


async def reach(engine: EngineProcess, heard: object) -> ipc.Connection[wire.FromEngine]:
    """Connect as soon as the engine listens."""
    for _ in range(300):
        try:
            return await ipc.connect(
                engine.socket,
                lambda: ipc.Connection(ipc.Codec(wire.FromEngine), heard),  # type: ignore[arg-type]
            )
        except OSError:
            assert engine.process is not None
            assert engine.process.poll() is None, engine.wait()
            await asyncio.sleep(0.1)
    raise TimeoutError("the engine does not listen")
