"""Tensors of the Open Inference Protocol to numpy and back, every claim of the sender checked before use.

May import the plugin API; numpy only.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from headgate_plugin_api import Datatype, InvalidRequest, Tensor
from numpy.typing import NDArray

Array = NDArray[Any]

NUMPY_TYPES: Final[dict[Datatype, str]] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""BYTES have no fixed width, and numpy knows no bfloat16: both are missing here."""

MAX_RANK: Final = 32

_LENGTH: Final = 4


def to_array(tensor: Tensor, path: str) -> Array:
    """A numpy view of a tensor (BYTES: an array of str objects, as onnxruntime wants them).

    Raises:
        InvalidRequest: Shape and data disagree; names `path` and the member.
    """
    if len(tensor.shape) > MAX_RANK or any(size < 0 for size in tensor.shape):
        raise InvalidRequest(
            f"{path}.shape is {list(tensor.shape)}, expected at most {MAX_RANK} sizes of at least 0",
            path=f"{path}.shape",
        )
    count = math.prod(tensor.shape)  # Python's integers: no overflow to hide behind
    if tensor.datatype == "BYTES":
        return _strings(tensor.data, count, path).reshape(tensor.shape)
    code = NUMPY_TYPES.get(tensor.datatype)
    if code is None:
        raise InvalidRequest(f"{path}.datatype {tensor.datatype} is not supported", path=f"{path}.datatype")
    dtype = np.dtype(code)
    if len(tensor.data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"{path}.data has {len(tensor.data)} bytes; shape {list(tensor.shape)} of {tensor.datatype} needs "
            f"{count * dtype.itemsize}",
            path=f"{path}.data",
        )
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)


def to_tensor(name: str, datatype: Datatype, array: Array) -> Tensor:
    """A tensor of an output array; `datatype` is the model's own for it."""
    if datatype == "BYTES":
        data = b"".join(_packed(str(value).encode()) for value in array.reshape(-1))
    else:
        data = np.ascontiguousarray(array, dtype=NUMPY_TYPES[datatype]).tobytes()
    return Tensor(name=name, datatype=datatype, shape=array.shape, data=data)


def _packed(value: bytes) -> bytes:
    return len(value).to_bytes(_LENGTH, "little") + value


def _strings(data: bytes, count: int, path: str) -> Array:
    """Length-prefixed elements. Bounded by the data: a huge count runs out of bytes, not of memory."""
    values: list[str] = []
    position = 0
    where = f"{path}.data"
    while position < len(data):
        end = position + _LENGTH + int.from_bytes(data[position : position + _LENGTH], "little")
        if position + _LENGTH > len(data) or end > len(data):
            raise InvalidRequest(f"{where}[{len(values)}] is cut short", path=where)
        try:
            values.append(data[position + _LENGTH : end].decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{where}[{len(values)}] is not UTF-8: {error}", path=where) from error
        position = end
    if len(values) != count:
        raise InvalidRequest(f"{where} has {len(values)} elements, its shape needs {count}", path=where)
    result = np.empty(count, dtype=object)
    result[:] = values
    return result
