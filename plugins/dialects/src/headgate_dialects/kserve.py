"""Open Inference Protocol (KServe v2), JSON tensors, both directions.

A tensor's `data` is nested or flat; BYTES are UTF-8 strings; FP16 and BF16 travel as binary only, because JSON
has no form for them that every client reads alike. NaN and infinities of an output become `null`, which is all
that JSON can say. May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any, Final

import msgspec
from headgate_plugin_api import (
    Datatype,
    Event,
    InferenceRequest,
    InferPayload,
    InferResult,
    InvalidRequest,
    JsonValue,
    Tensor,
    UpstreamFailed,
)

from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_dialects.fields import beyond, known_fields, read_answer, read_request
from headgate_dialects.tensors import pack, unpack

NAME: Final = "kserve"

MAX_RANK: Final = 32

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _Tensor(msgspec.Struct):
    name: str
    datatype: Datatype
    shape: Annotated[list[_Size], msgspec.Meta(max_length=MAX_RANK)]
    data: list[Any]
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    inputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1, max_length=1024)]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=1024)] | None = None


_KNOWN: Final = known_fields(InferRequest, "model")  # quotes have their model in the body


def decode_request(document: Any) -> Decoded:
    """Read a client's request; its model stands in the path of the call.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, InferRequest)
    seen: set[str] = set()
    for index, tensor in enumerate(wire.inputs):
        if tensor.name in seen:
            path = f"inputs[{index}].name"
            raise InvalidRequest(f"{path}: {tensor.name!r} is there twice", path=path)
        seen.add(tensor.name)
    for index, output in enumerate(wire.outputs or ()):
        _refuse_binary_output(output, index)
    return Decoded(
        model="",
        payload=InferPayload(
            inputs=tuple(_read(tensor, f"inputs[{index}]") for index, tensor in enumerate(wire.inputs)),
            outputs=tuple(output.name for output in wire.outputs or ()),
            parameters=wire.parameters or {},
        ),
        show={} if wire.id is None else {"id": wire.id},
        beyond=beyond(document, _KNOWN),
    )


def _refuse_binary_output(output: _Output, index: int) -> None:
    for name in ("binary_data", "classification", "shared_memory_region"):
        if (output.parameters or {}).get(name):
            path = f"outputs[{index}].parameters.{name}"
            raise InvalidRequest(f"{path}: is not supported", path=path)


def _read(tensor: _Tensor, path: str) -> Tensor:
    for name in ("shared_memory_region", "binary_data_size"):
        if name in (tensor.parameters or {}):
            where = f"{path}.parameters.{name}"
            raise InvalidRequest(f"{where}: is not supported", path=where)
    shape = tuple(tensor.shape)
    flat = _flatten(tensor.data, shape, f"{path}.data")
    return Tensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=shape,
        data=pack(tensor.datatype, flat, f"{path}.data"),
    )


def _flatten(data: list[JsonValue], shape: tuple[int, ...], path: str) -> list[JsonValue]:
    """The elements in row-major order. Flat data is taken by its length, nested data level by level."""
    if not data or not isinstance(data[0], list) or not shape:
        expected = prod(shape)
        if len(data) != expected and not (data == [] and expected == 0):
            raise InvalidRequest(
                f"{path}: has {len(data)} elements, shape {list(shape)} needs {expected}", path=path
            )
        return data
    level: list[JsonValue] = [data]
    for depth, size in enumerate(shape):
        below: list[JsonValue] = []
        for position, items in enumerate(level):
            if not isinstance(items, list) or len(items) != size:
                where = path + _subscripts(position, shape[:depth])
                found = f"{len(items)} elements" if isinstance(items, list) else "no array"
                raise InvalidRequest(
                    f"{where}: has {found}, dimension {depth} of shape {list(shape)} is {size}", path=where
                )
            below += items
        level = below
    return level


def _subscripts(position: int, shape: tuple[int, ...]) -> str:
    """The subscripts of the element at a row-major position: `[1][0]`."""
    found = ""
    for size in reversed(shape):
        position, index = divmod(position, size)
        found = f"[{index}]{found}"
    return found


def encode_request(request: InferenceRequest) -> dict[str, Any]:
    """The body for an upstream of this protocol.

    Raises:
        InvalidRequest: A tensor is FP16 or BF16.
    """
    payload = request.payload
    assert isinstance(payload, InferPayload)
    document: dict[str, Any] = {"id": request.id, "inputs": [_document(tensor) for tensor in payload.inputs]}
    if payload.parameters:
        document["parameters"] = payload.parameters
    if payload.outputs:
        document["outputs"] = [{"name": name} for name in payload.outputs]
    return document


def encode_answer(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of the answer, data flat.

    Raises:
        InvalidRequest: An output is FP16 or BF16.
    """
    outputs = [tensor for event in events if isinstance(event, InferResult) for tensor in event.outputs]
    document: dict[str, Any] = {
        "model_name": meta.model,
        "model_version": meta.version,
        "outputs": [_document(tensor) for tensor in outputs],
    }
    document["id"] = meta.show.get("id", meta.id)
    if meta.cost is not None:
        document["parameters"] = {"cost": meta.cost}
    return msgspec.json.encode(document)


def _document(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": unpack(tensor),
    }


class _Answer(msgspec.Struct):
    outputs: list[_Tensor]


_answers = msgspec.json.Decoder(_Answer)


def decode_answer(data: bytes) -> tuple[Event, ...]:
    """The events of an upstream's answer.

    Raises:
        UpstreamFailed: The body is not an answer of this protocol.
    """
    answer = read_answer(data, _answers)
    try:
        outputs = tuple(_read(tensor, f"outputs[{index}]") for index, tensor in enumerate(answer.outputs))
    except InvalidRequest as error:
        raise UpstreamFailed(f"the upstream's answer is malformed: {error.message}") from None
    return (InferResult(outputs=outputs),)
