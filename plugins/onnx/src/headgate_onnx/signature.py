"""The tensor signature that a session's graph declares. May import the plugin API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from headgate_plugin_api import Datatype, LoadFailed, TensorSignature

_DATATYPES: Final[dict[str, Datatype]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def signature_of(session: Any, path: Path) -> tuple[tuple[TensorSignature, ...], tuple[TensorSignature, ...]]:
    """Inputs and outputs of a session; symbolic and unknown sizes become -1.

    Raises:
        LoadFailed: A value is no tensor, or of a type that the Open Inference Protocol cannot carry.
    """
    return _values(session.get_inputs(), path), _values(session.get_outputs(), path)


def _values(values: Sequence[Any], path: Path) -> tuple[TensorSignature, ...]:
    return tuple(
        TensorSignature(
            name=value.name,
            datatype=_datatype(value, path),
            shape=tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape),
        )
        for value in values
    )


def _datatype(value: Any, path: Path) -> Datatype:
    datatype = _DATATYPES.get(value.type)
    if datatype is not None:
        return datatype
    hint = "; convert classifiers with ZipMap off (`zipmap: False`)" if value.type.startswith("seq(") else ""
    raise LoadFailed(f"{path}: {value.name!r} is a {value.type}, which cannot be served{hint}")
