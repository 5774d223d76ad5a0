"""Any ONNX graph behind the Open Inference Protocol: named tensors in, named tensors out.

An item is one request with its rows; requests of like shape are joined along the first axis where the
signature leaves that axis free everywhere. May import tensors, session, options and the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from headgate_plugin_api import (
    Event,
    InferenceRequest,
    InferPayload,
    InferResult,
    InvalidRequest,
    Item,
    ModelInfo,
    Tensor,
    TensorSignature,
    Usage,
    UsageReport,
)

from headgate_onnx.options import OnnxOptions
from headgate_onnx.session import Opened
from headgate_onnx.tensors import Array, to_array, to_tensor

Arrays = dict[str, Array]


class TensorModel:
    """A loaded graph."""

    def __init__(
        self,
        opened: Opened,
        inputs: Sequence[TensorSignature],
        outputs: Sequence[TensorSignature],
        options: OnnxOptions,
        *,
        fingerprint: str,
    ) -> None:
        self._session: Any = opened.session
        self._inputs = {value.name: value for value in inputs}
        self._outputs = {value.name: value for value in outputs}
        free = all(value.shape and value.shape[0] == -1 for value in (*inputs, *outputs))
        self._joins = free and options.batching == "auto"
        self._info = ModelInfo(
            device=opened.device,
            detail=opened.detail,
            tokens_per_byte=0,
            template_tokens=0,
            fingerprint=fingerprint,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            platform="onnxruntime",
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """Check the tensors against the signature. Raises `InvalidRequest` naming the member."""
        payload = _payload(request)
        arrays: Arrays = {}
        for place, tensor in enumerate(payload.inputs):
            path = f"inputs[{place}]"
            self._check(tensor, path, arrays)
            arrays[tensor.name] = to_array(tensor, path)
        missing = [name for name in self._inputs if name not in arrays]
        if missing:
            raise InvalidRequest(f"inputs lacks {', '.join(map(repr, missing))}", path="inputs")
        for place, name in enumerate(payload.outputs):
            if name not in self._outputs:
                raise InvalidRequest(
                    f"outputs[{place}].name {name!r} is unknown; this model has: {', '.join(self._outputs)}",
                    path=f"outputs[{place}].name",
                )
        rows = 1
        shape: tuple[Any, ...] = (object(),)  # equal to no other request's
        if self._joins:
            rows = self._rows(payload, arrays)
            shape = tuple((name, arrays[name].shape[1:]) for name in self._inputs)
        return [Item(request=request, index=0, tokens=max(rows, 1), data=arrays, shape=shape)]

    def run_batch(self, items: Sequence[Item]) -> Sequence[Arrays]:
        """The output arrays of each item. Items that cannot be joined run one by one."""
        if len(items) > 1 and self._joins and len({item.shape for item in items}) == 1:
            joined = self._run_joined(items)
            if joined is not None:
                return joined
        return [self._run(item.data) for item in items]

    def finish(
        self,
        request: InferenceRequest,
        items: Sequence[Item],  # noqa: ARG002 - a request is one item
        results: Sequence[Arrays],
    ) -> Sequence[Event]:
        """The tensors that were asked for, in the order asked."""
        wanted = _payload(request).outputs or tuple(self._outputs)
        outputs = tuple(to_tensor(name, self._outputs[name].datatype, results[0][name]) for name in wanted)
        return InferResult(outputs=outputs), UsageReport(usage=Usage())

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def _run(self, feeds: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(list(self._outputs), feeds), strict=True))

    def _run_joined(self, items: Sequence[Item]) -> list[Arrays] | None:
        """One pass over all rows, or None when an output has not one row per row of input.

        A graph whose signature leaves the first axis free need not treat it as a batch; the first one that
        does not is run alone from then on.
        """
        counts = [next(iter(item.data.values())).shape[0] for item in items]
        feeds = {name: np.concatenate([item.data[name] for item in items]) for name in self._inputs}
        results = self._run(feeds)
        if any(not array.ndim or array.shape[0] != sum(counts) for array in results.values()):
            self._joins = False
            return None
        edges = np.cumsum(counts)[:-1]
        split = {name: np.split(array, edges) for name, array in results.items()}
        return [{name: split[name][place] for name in split} for place in range(len(items))]

    def _rows(self, payload: InferPayload, arrays: Arrays) -> int:
        """How many rows the request has; every input must have as many."""
        rows = arrays[payload.inputs[0].name].shape[0]
        for place, tensor in enumerate(payload.inputs):
            if tensor.shape[0] != rows:
                raise InvalidRequest(
                    f"inputs[{place}].shape is {list(tensor.shape)}, expected {rows} rows as in inputs[0]",
                    path=f"inputs[{place}].shape",
                )
        return int(rows)

    def _check(self, tensor: Tensor, path: str, seen: Arrays) -> None:
        expected = self._inputs.get(tensor.name)
        if expected is None:
            raise InvalidRequest(
                f"{path}.name {tensor.name!r} is unknown; this model has: {', '.join(self._inputs)}",
                path=f"{path}.name",
            )
        if tensor.name in seen:
            raise InvalidRequest(f"{path}.name {tensor.name!r} is given twice", path=f"{path}.name")
        if tensor.datatype != expected.datatype:
            raise InvalidRequest(
                f"{path}.datatype is {tensor.datatype}, expected {expected.datatype}", path=f"{path}.datatype"
            )
        fits = len(tensor.shape) == len(expected.shape) and all(
            want in (-1, size) for want, size in zip(expected.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise InvalidRequest(
                f"{path}.shape is {list(tensor.shape)}, expected {list(expected.shape)} (-1 is free)",
                path=f"{path}.shape",
            )


def _payload(request: InferenceRequest) -> InferPayload:
    if not isinstance(request.payload, InferPayload):
        raise InvalidRequest(f"this model does infer, not {request.task}", path="model")
    return request.payload
