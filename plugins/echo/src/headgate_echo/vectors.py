"""Embeddings and tensors: a batch model with deterministic unit vectors, and the identity on tensors."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any

from headgate_plugin_api import (
    EmbedPayload,
    EmbedResult,
    Event,
    InferenceRequest,
    InferPayload,
    InferResult,
    InvalidRequest,
    Item,
    ModelInfo,
    Tensor,
    Usage,
    UsageReport,
)

from headgate_echo.speak import Options


def unit_vector(text: str, dimensions: int) -> bytes:
    """A direction that depends on the text alone, as little-endian float32 of length 1."""
    drawn = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    numbers = [value / 2**31 for value in struct.unpack(f"<{dimensions}i", drawn)]
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def _outputs(payload: InferPayload) -> tuple[Tensor, ...]:
    """The inputs that are asked for as outputs; all of them where nobody asks. Raises `InvalidRequest`."""
    if not payload.outputs:
        return payload.inputs
    tensors = {tensor.name: tensor for tensor in payload.inputs}
    for place, name in enumerate(payload.outputs):
        if name not in tensors:
            raise InvalidRequest(f"expected the name of an input, got {name!r}", path=f"outputs[{place}].name")
    return tuple(tensors[name] for name in payload.outputs)


class EchoVectors:
    """The batch model."""

    def __init__(self, options: Options) -> None:
        self._dimensions = options.dimensions
        self._fingerprint = f"echo-{options.dimensions}"
        self.info = ModelInfo(
            detail="echo",
            tokens_per_byte=1,
            template_tokens=0,
            dimensions=options.dimensions,
            fingerprint=self._fingerprint,
            platform="echo",
        )

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """See BatchModel: one item per text; a request of tensors is one item."""
        payload = request.payload
        if isinstance(payload, InferPayload):
            return [Item(request=request, index=0, tokens=1, data=_outputs(payload))]
        if not isinstance(payload, EmbedPayload):
            raise InvalidRequest(f"this model does embed and infer, not {request.task}", path="model")
        if payload.dimensions not in (None, self._dimensions):
            raise InvalidRequest(f"expected {self._dimensions}, the model's own", path="dimensions")
        items: list[Item] = []
        for index, text in enumerate(payload.inputs):
            if not isinstance(text, str):
                raise InvalidRequest("expected text; echo has no vocabulary of ids", path=f"input[{index}]")
            if not text.strip():
                raise InvalidRequest("expected at least one word", path=f"input[{index}]")
            items.append(Item(request=request, index=index, tokens=len(text.split()), data=text))
        return items

    def run_batch(self, items: Sequence[Item]) -> Sequence[Any]:
        """See BatchModel."""
        return [
            unit_vector(item.data, self._dimensions) if isinstance(item.data, str) else item.data
            for item in items
        ]

    def finish(self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Any]) -> Sequence[Event]:
        """See BatchModel."""
        if isinstance(request.payload, InferPayload):
            return [InferResult(outputs=results[0]), UsageReport(usage=Usage())]
        return [
            EmbedResult(vectors=tuple(results), fingerprint=self._fingerprint),
            UsageReport(usage=Usage(input=sum(item.tokens for item in items))),
        ]

    def close(self) -> None:
        """See BatchModel."""
