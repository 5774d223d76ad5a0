"""An infer call as its document and bytes, and the answer read back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from headgate._core import tensors
from headgate._core.answers import dress, shape_error
from headgate._core.request import Call, encode_json
from headgate._transport.types import Received
from headgate.errors import ResponseShapeError
from headgate.types.infer import InferResponse

BINARY_HEADER = "inference-header-content-length"


def encode(params: Mapping[str, Any]) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """The document, the bytes to send and their headers.

    Raises:
        TensorError: An input cannot be sent; the message names it.
    """
    binary = bool(params.get("binary"))
    named: object = params["inputs"]
    if not isinstance(named, Mapping):
        raise tensors.TensorError("inputs: expected arrays or lists by name, such as {'x': [1.0, 2.0]}")
    inputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, value in cast("Mapping[str, Any]", named).items():
        entry, raw = _input(name, value, binary=binary)
        inputs.append(entry)
        if raw is not None:
            tail.append(raw)
    document: dict[str, Any] = {"inputs": inputs}
    if (outputs := params.get("outputs")) is not None:
        document["outputs"] = [{"name": name} for name in outputs]
    parameters = dict(params.get("parameters") or {})
    if binary:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    if (own := params.get("id")) is not None:
        document["id"] = own
    if extra := params.get("extra_body"):
        document.update(extra)
    head = encode_json(document)
    if not binary:
        return document, head, {}
    headers = {BINARY_HEADER: str(len(head)), "content-type": "application/octet-stream"}
    return document, head + b"".join(tail), headers


def _input(name: str, value: Any, *, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    given = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {"data": value}
    if "data" not in given:
        raise tensors.TensorError(f"{name}: expected an array, lists or a mapping with 'data'")
    datatype, shape, data = tensors.describe(name, given["data"])
    wanted = given.get("datatype", datatype)
    if hasattr(data, "astype") and wanted != datatype:
        data = data.astype(tensors.numpy_dtype(name, wanted))
    entry: dict[str, Any] = {
        "name": name,
        "datatype": wanted,
        "shape": list(given.get("shape", shape)),
    }
    if not binary:
        entry["data"] = tensors.to_json(name, wanted, data)
        return entry, None
    raw = tensors.to_bytes(name, wanted, data)
    entry["parameters"] = {"binary_data_size": len(raw)}
    return entry, raw


def decode(received: Received, call: Call) -> InferResponse:
    """The answer, JSON or with raw bytes behind it.

    Raises:
        ResponseShapeError: It is not what the protocol says.
    """
    length = received.headers.get(BINARY_HEADER)
    body = received.body
    head = body if length is None else body[: _length(length, len(body))]
    try:
        answer = InferResponse.model_validate_json(head)
    except ValidationError as error:
        raise shape_error(error, head) from error
    offset = len(head)
    for at, output in enumerate(answer.outputs):
        size = output.parameters.get("binary_data_size")
        if isinstance(size, int):
            if offset + size > len(body):
                raise ResponseShapeError("the answer's tensors end early", path=f"outputs[{at}]", body=head)
            output.attach(body[offset : offset + size])
            offset += size
    return dress(answer, received, call)


def _length(value: str, size: int) -> int:
    if value.isascii() and value.isdigit() and int(value) <= size:
        return int(value)
    raise ResponseShapeError(f"the answer's {BINARY_HEADER} is {value!r}", path=BINARY_HEADER)
