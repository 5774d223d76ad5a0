"""The `options` table of an ONNX model. Imports nothing of ours."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

GraphOptimization = Literal["none", "basic", "extended", "all"]


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set for a model of the `onnx` backend.

    Attributes:
        threads: Threads of one pass on the CPU; 0 takes the cores that this process may use.
        spin: Whether idle threads of the pool spin instead of sleeping: a little faster alone, and a
            waste of cores as soon as anything else runs beside the model.
        graph_optimization: How far the runtime rewrites the graph at load. Imported models are fused already.
        max_batch_tokens: Tokens of one pass, padding included; larger batches are run in parts. For task `infer`,
            rows.
        max_batch_items: Inputs that are run together at most, of any requests.
        batching: `auto` joins requests for a tensor model along the first axis where its signature leaves that
            axis free; `off` runs each request alone, for models whose first axis is not a batch.
        arena: Whether freed CPU memory is kept for the next pass. Off returns it at once and costs some speed.
        gpu_mem_limit_mb: Upper limit of the CUDA memory arena; None leaves it to the device.
        tf32: Whether CUDA may multiply float32 in TF32: faster, and wrong from the fourth digit on.
    """

    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    spin: bool = False
    graph_optimization: GraphOptimization = "all"
    max_batch_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 16_384
    max_batch_items: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 256
    batching: Literal["auto", "off"] = "auto"
    arena: bool = True
    gpu_mem_limit_mb: Annotated[int, msgspec.Meta(ge=64)] | None = None
    tf32: bool = False
