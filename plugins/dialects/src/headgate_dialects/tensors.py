"""Elements of tensors as Python values and as the little-endian bytes of the canonical form, without numpy.

May import the plugin API.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from math import isfinite, prod
from typing import Any, Final

from headgate_plugin_api import Datatype, InvalidRequest, Tensor, UpstreamFailed

_CODES: Final[dict[str, str]] = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
_NAMES: Final[dict[type[object], str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
}


def pack(datatype: Datatype, elements: Sequence[Any], path: str) -> bytes:
    """The bytes of JSON elements.

    Raises:
        InvalidRequest: An element is of another type or out of the datatype's range, or the datatype
            has no form in JSON.
    """
    if datatype in _BINARY_ONLY:
        raise InvalidRequest(f"{path}: {datatype} has no form in JSON; send FP32, or send binary data", path=path)
    if datatype == "BYTES":
        _check_types(elements, {str}, "a string", path)
        return b"".join(_length_prefixed(text) for text in elements)
    if datatype == "BOOL":
        _check_types(elements, {bool}, "a boolean", path)
        return bytes(elements)
    if datatype in {"FP32", "FP64"}:
        _check_types(elements, {int, float}, "a number", path)
    else:
        _check_types(elements, {int}, "an integer", path)
    return _numbers(datatype, elements, path)


def _numbers(datatype: Datatype, elements: Sequence[Any], path: str) -> bytes:
    code = _CODES[datatype]
    try:
        values = array(code, elements)
    except OverflowError:
        index = next(i for i, element in enumerate(elements) if not _fits(code, element))
        raise _out_of_range(datatype, index, path) from None
    if code == "f" and not all(map(isfinite, values)):
        index = next(i for i, value in enumerate(values) if not isfinite(value))
        raise _out_of_range(datatype, index, path)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _out_of_range(datatype: Datatype, index: int, path: str) -> InvalidRequest:
    where = f"{path}[{index}]"
    return InvalidRequest(f"{where}: is out of range for {datatype}", path=where)


def _fits(code: str, element: Any) -> bool:
    try:
        array(code, (element,))
    except OverflowError:
        return False
    return True


def _length_prefixed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def _check_types(elements: Sequence[object], allowed: set[type], expected: str, path: str) -> None:
    """One pass in C over the types; the slow search only where something is wrong."""
    if set(map(type, elements)) <= allowed:
        return
    index, wrong = next((i, element) for i, element in enumerate(elements) if type(element) not in allowed)
    found = "null" if wrong is None else _NAMES.get(type(wrong), "an object")
    raise InvalidRequest(f"{path}[{index}]: expected {expected}, got {found}", path=f"{path}[{index}]")


def unpack(tensor: Tensor) -> list[Any]:
    """The elements of a tensor as JSON knows them, in row-major order.

    Raises:
        InvalidRequest: The datatype has no form in JSON, or BYTES are not UTF-8.
        UpstreamFailed: The bytes do not fit the shape.
    """
    if tensor.datatype in _BINARY_ONLY:
        raise InvalidRequest(f"output {tensor.name!r} is {tensor.datatype}, which has no form in JSON")
    if tensor.datatype == "BYTES":
        elements: list[Any] = _texts(tensor)
    elif tensor.datatype == "BOOL":
        elements = [byte != 0 for byte in tensor.data]
    else:
        code = _CODES[tensor.datatype]
        if len(tensor.data) % array(code).itemsize:
            raise UpstreamFailed(f"output {tensor.name!r} has {len(tensor.data)} bytes, no multiple of its type")
        values = array(code, tensor.data)
        if sys.byteorder == "big":
            values.byteswap()
        elements = values.tolist()
    if len(elements) != prod(tensor.shape):
        raise UpstreamFailed(
            f"output {tensor.name!r} has {len(elements)} elements, shape {list(tensor.shape)} needs "
            f"{prod(tensor.shape)}"
        )
    return elements


def _texts(tensor: Tensor) -> list[str]:
    data, position = tensor.data, 0
    texts: list[str] = []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        end = position + 4 + length
        if position + 4 > len(data) or end > len(data):
            raise UpstreamFailed(f"output {tensor.name!r} ends inside an element")
        try:
            texts.append(data[position + 4 : end].decode())
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output {tensor.name!r} holds bytes that are not UTF-8 text; ask for binary data"
            ) from None
        position = end
    return texts
