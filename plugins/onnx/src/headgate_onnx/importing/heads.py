"""The torch modules that are exported: a transformer with pooling on top, or with its classification head.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from headgate_plugin_api import LoadFailed, Pooling


class Embedder(torch.nn.Module):
    """Tokens to one vector a row: transformer, pooling, dense layers, normalisation."""

    def __init__(
        self, transformer: torch.nn.Module, pooling: Pooling, dense: Sequence[torch.nn.Module], normalize: bool
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.dense = torch.nn.Sequential(*dense)
        self.normalize = normalize

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, sequence) ids to (batch, dimensions) vectors."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
        vectors = self.dense(self._pool(hidden, attention_mask))
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.to(hidden.dtype)
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "max":
            return hidden.masked_fill(mask.unsqueeze(2) == 0, torch.finfo(hidden.dtype).min).max(dim=1).values
        if self.pooling == "last":
            last = (mask.sum(dim=1) - 1).reshape(-1, 1, 1).expand(-1, 1, hidden.shape[2])
            return hidden.gather(1, last).squeeze(1)
        # As a product of matrices: the runtime has a kernel for that, and the masked copy is never made.
        summed = torch.matmul(weights.unsqueeze(1), hidden).squeeze(1)
        return summed / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


class Scorer(torch.nn.Module):
    """Tokens to logits: a sequence-classification model."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, sequence) ids to (batch, labels) logits."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.classifier(
            input_ids=input_ids, attention_mask=attention_mask, **extra, return_dict=False
        )[0]
        return logits


class DenseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of a dense module."""

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "Identity": torch.nn.Identity,
    "Tanh": torch.nn.Tanh,
    "ReLU": torch.nn.ReLU,
    "GELU": torch.nn.GELU,
    "Sigmoid": torch.nn.Sigmoid,
}


def read_dense(folder: Path) -> torch.nn.Module:
    """A dense module's layer. Raises `LoadFailed` naming the file."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]  its PathLike is bare

    path = folder / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=DenseConfig)
        weights: dict[str, Any] = load_file(folder / "model.safetensors")
    except (OSError, msgspec.DecodeError) as error:
        raise LoadFailed(f"{path}: {error}") from error
    name = config.activation_function.rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise LoadFailed(f"{path}: activation {name!r} cannot be converted; known: {', '.join(_ACTIVATIONS)}")
    linear = torch.nn.Linear(config.in_features, config.out_features, bias=config.bias)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return torch.nn.Sequential(linear, _ACTIVATIONS[name]())
