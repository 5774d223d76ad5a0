"""KServe v2 tensors: Python lists and numpy arrays to the wire's JSON or raw bytes and back.

numpy is imported only when an array comes in or is asked for. Imports the standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite, prod
from typing import Any, cast

_TYPECODES: Mapping[str, str] = {
    "BOOL": "?",
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
_SIZES: Mapping[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4,
    "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_NUMPY: Mapping[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_OF_NUMPY = {name: datatype for datatype, name in _NUMPY.items()}

_FLOATS = frozenset({"FP32", "FP64"})
BINARY_ONLY = frozenset({"FP16", "BF16"})


class TensorError(ValueError):
    """A tensor that cannot be sent or read; the message names it."""


def describe(name: str, value: Any) -> tuple[str, tuple[int, ...], Any]:
    """Datatype, shape and data of what a caller gave: an array, or nested lists of one type.

    Raises:
        TensorError: Ragged lists, mixed or unknown types.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = str(value.dtype)
        if kind in _OF_NUMPY:
            return _OF_NUMPY[kind], tuple(value.shape), value
        if value.dtype.kind in "USO":
            return "BYTES", tuple(value.shape), value.tolist()
        raise TensorError(f"{name}: arrays of {kind} have no datatype on the wire")
    shape = tuple(_shape(name, value))
    flat = list(_flatten(value, len(shape)))
    if len(flat) != prod(shape):
        raise TensorError(f"{name}: the lists are ragged; expected shape {list(shape)}")
    return _guess(name, flat), shape, flat


def _shape(name: str, value: Any) -> Iterator[int]:
    while isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        yield len(items)
        if not items:
            return
        value = items[0]
    if isinstance(value, Mapping):
        raise TensorError(f"{name}: expected numbers, strings or lists of them")


def _flatten(value: Any, depth: int) -> Iterator[Any]:
    if depth == 0:
        yield value
        return
    if not isinstance(value, list | tuple):
        return
    for item in cast("Sequence[Any]", value):
        yield from _flatten(item, depth - 1)


def _guess(name: str, flat: Sequence[Any]) -> str:
    kinds: set[type] = {type(item) for item in flat}
    if kinds <= {bool}:
        return "BOOL"
    if kinds <= {int}:
        return "INT64"
    if kinds <= {int, float}:
        return "FP32"
    if kinds <= {str} or kinds <= {bytes}:
        return "BYTES"
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise TensorError(f"{name}: a tensor has one type; found {names}")


def to_json(name: str, datatype: str, data: Any) -> list[Any]:
    """Flat JSON data of a tensor.

    Raises:
        TensorError: The datatype travels as raw bytes only, or BYTES that are no text.
    """
    if datatype in BINARY_ONLY:
        raise TensorError(f"{name}: {datatype} travels as raw bytes only; pass binary=True")
    flat: list[Any] = data.ravel().tolist() if hasattr(data, "ravel") else list(data)
    if datatype == "BYTES":
        try:
            return [item.decode() if isinstance(item, bytes) else str(item) for item in leaves(flat)]
        except UnicodeDecodeError as error:
            raise TensorError(f"{name}: bytes that are no UTF-8 need binary=True") from error
    if datatype in _FLOATS and not all(map(isfinite, flat)):
        raise TensorError(f"{name}: JSON has no form for infinities and what is no number; pass binary=True")
    return flat


def leaves(value: Any) -> Iterator[Any]:
    """Every innermost value of nested lists, in order."""
    if isinstance(value, list | tuple):
        yield from chain.from_iterable(map(leaves, cast("Sequence[Any]", value)))
    else:
        yield value


def to_bytes(name: str, datatype: str, data: Any) -> bytes:
    """Raw little-endian, row-major bytes of a tensor; BYTES with a 4-byte length before each item."""
    if datatype == "BYTES":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in leaves(data)]
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    if hasattr(data, "astype"):
        little = data.dtype.newbyteorder("<")
        return bytes(data.astype(little, order="C", copy=False).tobytes())
    code = _TYPECODES.get(datatype)
    if code is None:
        raise TensorError(f"{name}: {datatype} needs a numpy array")
    try:
        return struct.pack(f"<{len(data)}{code}", *data)
    except struct.error as error:
        raise TensorError(f"{name}: {error} (datatype {datatype})") from error


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> list[Any]:
    """Flat values of raw bytes; FP16 and BF16 become floats."""
    count = prod(shape)
    if datatype == "BYTES":
        return list(_items(name, raw, count))
    size = _SIZES.get(datatype)
    if size is None or len(raw) != count * size:
        expected = "a known datatype" if size is None else f"{count * size} bytes"
        raise TensorError(f"{name}: {datatype} of shape {list(shape)}: {expected} expected, got {len(raw)}")
    if datatype == "BF16":
        halves = struct.unpack(f"<{count}H", raw)
        return [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves]
    code = "e" if datatype == "FP16" else _TYPECODES[datatype]
    return list(struct.unpack(f"<{count}{code}", raw))


def _items(name: str, raw: bytes, count: int) -> Iterator[bytes]:
    offset = 0
    for _ in range(count):
        if offset + 4 > len(raw):
            raise TensorError(f"{name}: the bytes end early")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise TensorError(f"{name}: an item of {length} bytes leaves the tensor")
        yield raw[offset : offset + length]
        offset += length


def numpy_dtype(name: str, datatype: str) -> str:
    """Numpy's name of a datatype; BF16 becomes float32, BYTES objects."""
    if datatype == "BYTES":
        return "object"
    if datatype == "BF16":
        return "float32"
    found = _NUMPY.get(datatype)
    if found is None:
        raise TensorError(f"{name}: unknown datatype {datatype!r}")
    return found


def nest(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    """Flat values as nested lists of a shape; a scalar for `()`."""
    if not shape:
        return flat[0] if flat else None
    if len(shape) == 1:
        return list(flat)
    step = prod(shape[1:])
    return [nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
