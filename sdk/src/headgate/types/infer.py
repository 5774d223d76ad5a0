"""Tensors in, tensors out: the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Required, TypedDict

from pydantic import Field, PrivateAttr

from headgate._core import tensors
from headgate.types.shared import Answer, RequestOptions, Usage, Wire

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TensorParam(TypedDict, total=False):
    """An input with its own datatype or shape; `data` is flat or nested, or a numpy array."""

    data: Required[Any]
    datatype: str
    shape: Sequence[int]


class InferParams(RequestOptions, total=False):
    """Parameters of an infer call.

    Attributes:
        model: The model's id.
        inputs: By name: a numpy array, nested lists, or a `TensorParam`.
        outputs: Names of the outputs to return; all by default.
        version: The model's version; the loaded one by default.
        parameters: Passed on to the model.
        binary: Send and receive raw bytes instead of JSON numbers. FP16 and BF16 need it.
        id: Your id of the request; comes back with the answer.
    """

    model: Required[str]
    inputs: Required[Mapping[str, Any]]
    outputs: Sequence[str]
    version: str
    parameters: Mapping[str, Any]
    binary: bool
    id: str


class OutputTensor(Wire):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])

    _bytes: bytes | None = PrivateAttr(default=None)

    def attach(self, raw: bytes) -> None:
        """Give the tensor its raw bytes; the client does this."""
        self._bytes = raw

    def tolist(self) -> Any:
        """The values as nested lists of the tensor's shape."""
        return tensors.nest(self._flat(), self.shape)

    def numpy(self) -> NDArray[Any]:
        """The values as an array.

        Raises:
            ImportError: numpy is not installed.
        """
        import numpy as np

        dtype = tensors.numpy_dtype(self.name, self.datatype)
        if self._bytes is not None and self.datatype not in {"BYTES", "BF16"}:
            little = np.dtype(dtype).newbyteorder("<")
            return np.frombuffer(self._bytes, dtype=little).reshape(self.shape)
        flat = np.empty(len(values := self._flat()), dtype=dtype)
        flat[:] = values
        return flat.reshape(self.shape)

    def _flat(self) -> list[Any]:
        if self._bytes is not None:
            return tensors.from_bytes(self.name, self.datatype, self.shape, self._bytes)
        return list(tensors.leaves(self.data))


class InferResponse(Answer):
    """The outputs of a model."""

    id: str | None = None
    model_name: str = ""
    model_version: str | None = None
    outputs: list[OutputTensor] = Field(default_factory=list[OutputTensor])
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
    usage: Usage | None = None

    def __getitem__(self, name: str) -> OutputTensor:
        """The output of that name.

        Raises:
            KeyError: There is none; the message lists those that are.
        """
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(f"{name!r}: the outputs are {[output.name for output in self.outputs]}")

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Every output as an array, by name."""
        return {output.name: output.numpy() for output in self.outputs}
