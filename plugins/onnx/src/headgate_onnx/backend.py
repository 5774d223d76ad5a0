"""The `onnx` backend: which tasks it takes, what a request can cost at most, how a model is loaded.

Light: `bound` runs in the gateway's workers, which never import numpy or onnxruntime; `load` imports them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from headgate_plugin_api import (
    ClassifyPayload,
    EmbedPayload,
    InferenceRequest,
    InferPayload,
    LoadedModel,
    LoadFailed,
    LoadProgress,
    Manifest,
    ModelInfo,
    ModelSpec,
    Report,
    RerankPayload,
    Task,
    Usage,
    read_manifest,
)

from headgate_onnx.options import OnnxOptions

if TYPE_CHECKING:
    from headgate_onnx.session import Opened

MODEL_FILE = "model.onnx"


class OnnxBackend:
    """Runs ONNX models: sentence embedders, rerankers and classifiers from a model folder, any tensors."""

    name = "onnx"
    kind: Literal["engine"] = "engine"
    tasks: frozenset[Task] = frozenset({"embed", "rerank", "classify", "infer"})
    options_type: type[msgspec.Struct] = OnnxOptions

    def load(self, spec: ModelSpec, report: Report) -> LoadedModel:
        """Load a model folder, or a bare `.onnx` file for task `infer`.

        Raises:
            LoadFailed: Names the file or option and the cause.
        """
        options = read_options(spec)
        if spec.source is None:
            raise LoadFailed(f"model {spec.id!r}: backend onnx needs a source: a model folder or an .onnx file")
        if spec.source.startswith("hf://"):
            raise LoadFailed(
                f"{spec.source} has to be imported first: "
                f"`headgate models import {spec.source} --id {spec.id} --task {spec.task} --backend onnx`"
            )
        source = Path(spec.source)
        report(LoadProgress(fraction=0.0, what="checking files"))
        if source.is_file():
            return _load_file(source, spec, options, report)
        manifest = read_manifest(source)
        _check(source, manifest, spec)
        report(LoadProgress(fraction=0.4, what="opening the model"))
        opened = _open(source / MODEL_FILE, spec, options)
        report(LoadProgress(fraction=0.9, what="reading the signature"))
        return _assemble(source, manifest, spec, options, opened)

    def bound(self, request: InferenceRequest, spec: ModelSpec, info: ModelInfo | None) -> Usage | None:
        """The most tokens a request can run: bytes times the tokenizer's factor, never above the limit."""
        known = info or ModelInfo(max_input_tokens=spec.max_input_tokens)
        match request.payload:
            case EmbedPayload(inputs=inputs):
                return Usage(input=sum(_most(known, item) for item in inputs))
            case RerankPayload(query=query, documents=documents):
                return Usage(input=sum(_most(known, query, document) for document in documents))
            case ClassifyPayload(inputs=pairs):
                return Usage(
                    input=sum(_most(known, *((item,) if isinstance(item, str) else item)) for item in pairs)
                )
            case InferPayload():
                return Usage()
            case _:
                return None


def read_options(spec: ModelSpec) -> OnnxOptions:
    """The options of a model, checked. Raises `LoadFailed` naming the field."""
    try:
        return msgspec.convert(spec.options, OnnxOptions)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"options of model {spec.id!r}: {error}") from error


def _most(info: ModelInfo, *texts: str | tuple[int, ...]) -> int:
    """Upper bound of one row's tokens. ASCII never grows under normalisation: a token per byte at most."""
    tokens = info.template_tokens
    for text in texts:
        if not isinstance(text, str) or text.isascii():
            tokens += len(text)
        else:
            tokens += len(text.encode(errors="surrogatepass")) * info.tokens_per_byte
    return tokens if info.max_input_tokens is None else min(tokens, info.max_input_tokens)


def _check(folder: Path, manifest: Manifest, spec: ModelSpec) -> None:
    if manifest.backend != "onnx":
        raise LoadFailed(f"{folder} was imported for backend {manifest.backend!r}, not for onnx")
    if manifest.task != spec.task:
        raise LoadFailed(f"{folder} is a model for task {manifest.task!r}; the config says {spec.task!r}")


def _open(model: Path, spec: ModelSpec, options: OnnxOptions) -> Opened:
    try:
        from headgate_onnx.session import open_session
    except ImportError as error:
        raise LoadFailed(f"onnxruntime cannot be imported: {error}") from error
    return open_session(model, spec.device, options)


def _load_file(source: Path, spec: ModelSpec, options: OnnxOptions, report: Report) -> LoadedModel:
    """A bare file: whatever its graph says is its signature."""
    if spec.task != "infer" or source.suffix != ".onnx":
        raise LoadFailed(
            f"{source}: a bare file can only be an .onnx file of task infer; task {spec.task!r} needs a "
            "model folder made by `headgate models import`"
        )
    report(LoadProgress(fraction=0.4, what="opening the model"))
    opened = _open(source, spec, options)
    from headgate_onnx.signature import signature_of
    from headgate_onnx.tensor_model import TensorModel

    inputs, outputs = signature_of(opened.session, source)
    opened = msgspec.structs.replace(
        opened, detail=f"{opened.detail}; a bare file, not checked against a manifest"
    )
    return TensorModel(opened, inputs, outputs, options, fingerprint="")


def _assemble(
    folder: Path, manifest: Manifest, spec: ModelSpec, options: OnnxOptions, opened: Opened
) -> LoadedModel:
    if manifest.task == "infer":
        from headgate_onnx.tensor_model import TensorModel

        return TensorModel(opened, manifest.inputs, manifest.outputs, options, fingerprint=manifest.fingerprint)
    from headgate_onnx.tokens import Tokens

    limit = manifest.max_tokens
    if limit is None:
        raise LoadFailed(f"{folder}: its manifest names no max_tokens")
    tokens = Tokens(folder, min(limit, spec.max_input_tokens or limit))
    if manifest.task == "embed":
        from headgate_onnx.embedding import EmbeddingModel

        return EmbeddingModel(opened, manifest, tokens, options)
    from headgate_onnx.scoring import ScoringModel

    return ScoringModel(opened, manifest, tokens, options)
