"""The models that a key may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from headgate.types.shared import Answer


class Model(Answer):
    """A model that the gateway serves."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    task: str | None = None
    state: str | None = None
    price: dict[str, Any] | None = None


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
