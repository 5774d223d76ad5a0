"""From a source to a model that runs: files, device, weights, and the checks that batching needs.

May import torch, transformers, huggingface_hub, the plugin API and the rooms beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from headgate_plugin_api import (
    MANIFEST_NAME,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    ModelSpec,
    Report,
    read_manifest,
)
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from headgate_torch.batch import Batch, UnsupportedCache
from headgate_torch.model import TorchModel
from headgate_torch.options import TorchOptions
from headgate_torch.prompts import Prompts
from headgate_torch.sampling import Defaults

HUB: Final = "hf://"
WANTED: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched from a hub: no pickles, no code."""

SMALL_MODEL: Final = 20_000_000
"""Parameters under which one CPU thread is faster than several that wait for each other."""

FALLBACK_CONTEXT: Final = 4096
NEIGHBOUR_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})
"""Rotary scalings whose angles follow the longest row of the batch: neighbours would change a row's text."""


def load(spec: ModelSpec, options: TorchOptions, report: Report) -> TorchModel:
    """Load a causal language model. Raises `LoadFailed` with the file or option at fault."""
    transformers_logging.disable_progress_bar()
    folder = _folder(spec, report)
    device = _device(spec.device)
    dtype = _dtype(options.dtype, device)
    report(LoadProgress(fraction=0.2, what="reading the tokenizer"))
    tokenizer = _tokenizer(folder)
    generation = _generation(folder)
    defaults = _defaults(folder, generation)
    report(LoadProgress(fraction=0.3, what="reading weights"))
    model = _weights(folder, dtype, options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if options.threads is not None or parameters < SMALL_MODEL:
        torch.set_num_threads(options.threads or 1)
    report(LoadProgress(fraction=0.7, what=f"moving to {device}"))
    model = _to_device(model, device)
    report(LoadProgress(fraction=0.9, what="trying it out"))
    batch = Batch(model, device)
    check_batching(batch, vocabulary=model.config.get_text_config().vocab_size, exact=dtype == torch.float32)

    context = _context(model, tokenizer)
    prompts = Prompts(tokenizer, min(spec.max_input_tokens or context - 1, context - 1))
    if spec.task == "chat" and not prompts.has_template:
        raise LoadFailed(
            f"{folder}: task is chat, but the tokenizer has no chat template"
            " (tokenizer_config.json or chat_template.jinja); serve it with task = 'completion'"
        )
    info = ModelInfo(
        device=str(device),
        detail=f"{parameters / 1e6:.1f} M parameters, {str(dtype).removeprefix('torch.')}, context {context}",
        max_input_tokens=prompts.limit,
        max_output_tokens=min(spec.max_output_tokens or context - 1, context - 1),
        tokens_per_byte=prompts.tokens_per_byte,
        template_tokens=prompts.template_tokens(),
        fingerprint=_fingerprint(folder, dtype),
        platform="pytorch",
    )
    report(LoadProgress(fraction=1.0, what="ready"))
    return TorchModel(
        batch,
        prompts,
        info,
        ends=_ends(generation, model, tokenizer),
        defaults=defaults,
        context=context,
        max_requests=options.max_requests,
    )


def check_batching(batch: Batch, *, vocabulary: int, exact: bool) -> None:
    """Run two prompts of unequal length together and alone: a row must not feel its neighbour.

    Also warms the model up. `exact` is for float32; rounding in shorter types moves scores by more.

    Raises:
        LoadFailed: The architecture ignores masks or positions, or keeps another state than keys and values.
    """
    rope = _rope_type(batch.model.config)
    if rope in NEIGHBOUR_DEPENDENT_ROPE:
        raise LoadFailed(f"rotary scaling {rope!r} depends on the longest row of a batch; it is not supported")
    short, long = [token % vocabulary for token in (5, 7, 11)], [token % vocabulary for token in range(3, 20)]
    following = 13 % vocabulary
    try:
        alone, _ = batch.prefill(short)
        expected = alone.decode([following])[0]
        together, _ = batch.prefill(long)
        together.absorb(batch.prefill(short)[0])
        found = together.decode([following, following])[1]
    except UnsupportedCache as error:
        raise LoadFailed(f"{type(batch.model).__name__} is not supported: {error}") from error
    except Exception as error:
        raise LoadFailed(f"{type(batch.model).__name__} does not run: {type(error).__name__}: {error}") from error
    difference = (found - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if not difference <= (1e-3 if exact else 0.1) * scale:
        raise LoadFailed(
            f"{type(batch.model).__name__} is not supported:"
            f" a neighbour in the batch moved its scores by {difference:.3g}"
        )


def _folder(spec: ModelSpec, report: Report) -> Path:
    """The folder with the model's files, fetched if it lives on a hub, checked if it has a manifest."""
    if spec.source is None:
        raise LoadFailed(f"model {spec.id}: backend torch needs `source`, a folder or hf://org/name")
    if spec.source.startswith(HUB):
        report(LoadProgress(fraction=0.0, what=f"fetching {spec.source}"))
        folder = _fetched(spec.source)
    else:
        folder = Path(spec.source)
    if not (folder / "config.json").is_file():
        raise LoadFailed(f"{folder / 'config.json'} does not exist; `source` is a folder in transformers' format")
    if not any(folder.glob("*.safetensors")):
        raise LoadFailed(f"{folder} holds no *.safetensors; weights in other formats are not read")
    if (folder / MANIFEST_NAME).is_file():
        report(LoadProgress(fraction=0.05, what="checking files"))
        read_manifest(folder)
    return folder


def _fetched(source: str) -> Path:
    """A hub's snapshot, from the local cache where it is there already. `@revision` may follow the name."""
    from huggingface_hub import snapshot_download

    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except Exception as error:
        raise LoadFailed(f"{source}: {type(error).__name__}: {error}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadFailed(f"device {name!r}: expected cpu, cuda, cuda:N or auto") from None
    if device.type not in {"cpu", "cuda"}:
        raise LoadFailed(f"device {name!r}: expected cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LoadFailed(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise LoadFailed(f"{folder}: tokenizer: {type(error).__name__}: {error}") from error


def _weights(folder: Path, dtype: torch.dtype, options: TorchOptions) -> Any:
    """The model on the CPU. Weights that the architecture needs and the files lack are an error, never random."""
    attention = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **attention,
        )
    except Exception as error:
        raise LoadFailed(f"{folder}: {type(error).__name__}: {error}") from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if names := found.get(kind):
            raise LoadFailed(f"{folder}: weights have {kind.replace('_', ' ')}: {sorted(map(str, names))[:5]}")
    return model


def _to_device(model: Any, device: torch.device) -> Any:
    try:
        return model.to(device).eval().requires_grad_(requires_grad=False)
    except torch.cuda.OutOfMemoryError as error:
        raise LoadFailed(f"device {device}: {error}") from error


def _context(model: Any, tokenizer: Any) -> int:
    """Tokens that prompt and answer may have together."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None and tokenizer.model_max_length < 1 << 24:
        context = tokenizer.model_max_length
    return int(context or FALLBACK_CONTEXT)


def _rope_type(config: Any) -> str | None:
    """The rotary scaling by name, wherever the config keeps it."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    types = [str(value.get("rope_type")) for value in by_layer_type if value.get("rope_type")]
    return next((name for name in types if name in NEIGHBOUR_DEPENDENT_ROPE), types[0] if types else None)


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise LoadFailed(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise LoadFailed(f"{path}: expected an object")
    return document


def _defaults(folder: Path, generation: dict[str, Any]) -> Defaults:
    try:
        return Defaults.read(generation)
    except (TypeError, ValueError) as error:
        raise LoadFailed(f"{folder / 'generation_config.json'}: {error}") from error


def _ends(generation: dict[str, Any], model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, by any of the three files that may say so."""
    ends: set[int] = set()
    named = (generation.get("eos_token_id"), model.config.get_text_config().eos_token_id, tokenizer.eos_token_id)
    for value in named:
        ends.update([value] if isinstance(value, int) else value or ())
    return frozenset(ends)


def _fingerprint(folder: Path, dtype: torch.dtype) -> str:
    """Names what makes the text: config, vocabulary, dtype, and the weights by name, size and index.

    Weights of a folder without a manifest are not read for it, as that may take minutes.
    """
    if (folder / MANIFEST_NAME).is_file() and (given := read_manifest(folder, verify=False).fingerprint):
        return given
    digest = hashlib.sha256(str(dtype).encode())
    for path in sorted(folder.glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()
