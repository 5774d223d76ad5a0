"""The models that a key may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from headgate.types.shared import Answer


class Model(Answer):
    """A model that the gateway serves.

    Attributes:
        task: `chat`, `completion`, `embed`, `rerank`, `classify` or `infer`.
        state: `ready`, or what it is doing instead; `reason` says why.
        price: Decimal strings by rate, for the key that asked; tokens per million.
        max_input_tokens: The longest input that it takes.
        max_output_tokens: The longest output that it makes.
    """

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    task: str | None = None
    state: str | None = None
    reason: str | None = None
    price: dict[str, Any] | None = None
    aliases: list[str] = Field(default_factory=list[str])
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    labels: list[str] | None = None

    @property
    def fingerprint(self) -> str | None:
        """What an embedding model's answers will be told apart by."""
        found = (self.model_extra or {}).get("fingerprint")
        return None if found is None else str(found)


class ModelList(Answer):
    """The list of models; iterating gives the models."""

    object: str = "list"
    data: list[Model] = Field(default_factory=list[Model])

    def __iter__(self) -> Iterator[Model]:  # type: ignore[override]
        """The models."""
        return iter(self.data)

    def __len__(self) -> int:
        """How many."""
        return len(self.data)
