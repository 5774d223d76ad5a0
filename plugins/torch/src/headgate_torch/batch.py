"""The rows that decode together: one KV cache, padded on the left, one forward a step.

A prompt runs alone and then joins; shorter rows are padded on the left, and mask and positions keep padding out
of what a row computes. Layers keep every position, sliding windows are cut by transformers' masks. May import
torch and transformers; knows tokens and nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class UnsupportedCache(Exception):
    """The model keeps a state that is not a plain cache of keys and values."""


class Batch:
    """Rows of one model. A row is known by its place; `lengths` says how many tokens each has seen."""

    def __init__(self, model: Any, device: torch.device, cache: Any = None, lengths: Sequence[int] = ()) -> None:
        self.model = model
        self._device = device
        self.cache: Any = cache
        """Keys and values of each layer, [rows, heads, columns, size]; None while there are no rows."""
        self.lengths = list(lengths)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> tuple[Batch, torch.Tensor]:
        """Run a prompt alone, as a batch of its own, and give the scores after its last token, [vocabulary].

        Raises:
            UnsupportedCache: The model's state cannot be batched here.
        """
        cache = DynamicCache()
        result = self.model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.arange(len(tokens), device=self._device).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.keys.shape[-2] != len(tokens):
                raise UnsupportedCache(
                    f"a layer keeps a {type(layer).__name__}, not keys and values of each token"
                )
        return Batch(self.model, self._device, cache, [len(tokens)]), result.logits[0, -1]

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed each row its next token; the scores after it, [rows, vocabulary].

        When the forward fails the rows are as they were before it, so that the caller may try them one by one.
        """
        width = self.width
        try:
            result = self.model(
                input_ids=torch.tensor(tokens, device=self._device).unsqueeze(1),
                position_ids=torch.tensor(self.lengths, device=self._device).unsqueeze(1),
                attention_mask=self._mask(width + 1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except Exception:
            self._cut(slice(None, width))
            raise
        self.lengths = [length + 1 for length in self.lengths]
        return cast("torch.Tensor", result.logits[:, -1])

    def alone(self, row: int) -> Batch:
        """A copy of one row as a batch of its own."""
        layers = [(layer.keys[row : row + 1], layer.values[row : row + 1]) for layer in self.cache.layers]
        single = Batch(self.model, self._device, DynamicCache(layers), [self.lengths[row]])
        single.trim()
        return single

    def repeat(self, copies: int) -> None:
        """Have each row `copies` times."""
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self.lengths = [length for length in self.lengths for _ in range(copies)]

    def absorb(self, other: Batch) -> None:
        """Append the rows of another batch, which is used up. Where memory fails both are as they were."""
        if self.cache is None or other.cache is None:
            if self.cache is None:
                self.cache, self.lengths = other.cache, other.lengths
            return
        width = max(self.width, other.width)
        joined = [
            tuple(
                torch.cat([_padded(mine, width), _padded(theirs, width)])
                for mine, theirs in ((ours.keys, new.keys), (ours.values, new.values))
            )
            for ours, new in zip(self.cache.layers, other.cache.layers, strict=True)
        ]
        for layer, (keys, values) in zip(self.cache.layers, joined, strict=True):
            layer.keys, layer.values = keys, values
        self.lengths = self.lengths + other.lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these, whose order stays; padding that nobody needs any more goes too."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = None
            return
        self.cache.batch_select_indices(torch.tensor(rows, device=self._device))
        self.trim()

    @property
    def width(self) -> int:
        """Columns of the cache: the longest row's length, as padding beyond it is trimmed."""
        return max(self.lengths)

    def _mask(self, width: int) -> torch.Tensor | None:
        """Ones over what each row has seen and the token it is fed; None when nothing is padded."""
        if min(self.lengths) == max(self.lengths):
            return None
        padding = torch.tensor([width - 1 - length for length in self.lengths], device=self._device)
        return (torch.arange(width, device=self._device) >= padding.unsqueeze(1)).long()

    def trim(self) -> None:
        """Cut off columns on the left that are padding in every row."""
        self._cut(slice(-self.width, None))

    def _cut(self, columns: slice) -> None:
        for layer in self.cache.layers:
            layer.keys = layer.keys[..., columns, :]
            layer.values = layer.values[..., columns, :]


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """States [rows, heads, tokens, size] padded with zeros on the left to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
