"""Embeddings: texts in, vectors out; vectors travel as base64."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict, cast

from pydantic import Field, field_validator

from headgate.types.shared import Answer, RequestOptions, Usage, Wire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EmbeddingFields(TypedDict, total=False):
    """Parameters of an embedding call; None is not sent."""

    model: Required[str]
    input: Required[str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]]
    dimensions: int | None
    encoding_format: Literal["float", "base64"] | None
    input_type: str | None
    prompt_name: str | None
    truncate: Literal["END", "START"] | None
    user: str | None
    metadata: Mapping[str, str] | None
    options: Mapping[str, Any] | None


class EmbeddingParams(EmbeddingFields, RequestOptions, total=False):
    """Parameters of an embedding call and what the call overrides.

    Attributes:
        batch_size: Texts per request; longer lists are split under this one call.
    """

    batch_size: int


class Embedding(Wire):
    """One vector."""

    object: str = "embedding"
    index: int = 0
    embedding: list[float]

    @field_validator("embedding", mode="plain")
    @classmethod
    def _decode(cls, value: Any) -> list[float]:
        if isinstance(value, str):
            return decode_floats(value)
        if isinstance(value, list):
            numbers = cast("list[float]", value)
            if all(type(number) in {float, int} for number in numbers):
                return numbers
        raise ValueError("expected base64 or a list of numbers")


class EmbeddingsResponse(Answer):
    """Vectors, in the order of the texts."""

    object: str = "list"
    model: str = ""
    data: list[Embedding] = Field(default_factory=list[Embedding])
    usage: Usage | None = None

    @property
    def vectors(self) -> list[list[float]]:
        """The bare vectors."""
        return [item.embedding for item in self.data]

    def numpy(self) -> NDArray[np.float32]:
        """The vectors as an array of shape (texts, dimensions).

        Raises:
            ImportError: numpy is not installed.
        """
        import numpy as np

        return np.asarray(self.vectors, dtype=np.float32)


def decode_floats(text: str) -> list[float]:
    """Little-endian 32-bit floats from base64.

    Raises:
        ValueError: It is no base64, or its length is no multiple of 4 bytes.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(raw) % 4:
        raise ValueError(f"{len(raw)} bytes are no whole number of 32-bit floats")
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))
