"""From a torch module to a fused ONNX graph.

Attention is not left to pattern matching: exporters change, the patterns of graph optimisers do not follow, and
what does not match is silently not fused. While a model is exported, its attention function is one that writes
the runtime's fused operator itself. Everything around it (skip + layer norm, bias + GELU) is fused afterwards
by onnxruntime's optimiser, and what came of it is counted in the finished graph. Imports torch and onnx.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from headgate_plugin_api import LoadFailed

ATTENTION: Final = "headgate_fused"
"""Name under which transformers knows our attention function."""

OPSET: Final = 18

_FUSED_DOMAIN: Final = "com.microsoft"
_SINGLE_FILE_LIMIT: Final = 1_900_000_000
"""Bytes; protobuf files end at 2 GiB, above it weights go to a file beside the graph."""


def fused_attention(
    module: torch.nn.Module,  # noqa: ARG001 - the signature is transformers'
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as one MultiHeadAttention node; `attention_mask` is additive, (batch, 1, query, key)."""
    batch, heads, length, width = query.shape
    if key.shape[1] != heads:  # grouped queries: several share one key
        key, value = (tensor.repeat_interleave(heads // tensor.shape[1], dim=1) for tensor in (key, value))

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(1, 2).reshape(batch, -1, heads * width)

    out = torch.onnx.ops.symbolic(
        f"{_FUSED_DOMAIN}::MultiHeadAttention",
        [flat(query), flat(key), flat(value), None, None, attention_mask],
        {"num_heads": heads, "scale": float(width**-0.5 if scaling is None else scaling)},
        dtype=query.dtype,
        shape=(batch, length, heads * width),
        version=1,
    )
    return out.reshape(batch, length, heads, width), None


def register_attention() -> None:
    """Make transformers know our attention function, with masks of the plain additive form."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, fused_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)


def export(module: torch.nn.Module, inputs: Sequence[str], output: str, path: Path) -> None:
    """Write a module of token inputs, all (batch, sequence), as an ONNX graph with both sizes free.

    Raises:
        LoadFailed: The exporter cannot convert it; says which operator or why.
    """
    ids = torch.arange(5, 23, dtype=torch.int64).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    samples = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(samples[name] for name in inputs),
                dynamo=True,
                dynamic_shapes=tuple(free for _ in inputs),
                input_names=list(inputs),
                output_names=[output],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own, torch's and Python's errors
        raise LoadFailed(f"the model cannot be exported to ONNX: {str(error)[:500]}") from error
    assert program is not None
    program.save(str(path))


def fuse(source: Path, target: Path, *, heads: int, hidden: int) -> dict[str, int]:
    """Fuse a graph and write it; returns how many of each fused operator the written graph really has."""
    import onnx
    from onnxruntime.transformers import optimizer

    with _quiet():
        fused = optimizer.optimize_model(
            str(source), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=2, use_gpu=False
        )
        external = sum(file.stat().st_size for file in source.parent.iterdir()) > _SINGLE_FILE_LIMIT
        fused.save_model_to_file(str(target), use_external_data_format=external)
    graph = onnx.load(str(target), load_external_data=False).graph
    return dict(sorted(Counter(node.op_type for node in graph.node if node.domain == _FUSED_DOMAIN).items()))


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's and optimiser's chatter (missing torchvision, shape inference) out of the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # The optimiser prints to stdout where it means to log.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
