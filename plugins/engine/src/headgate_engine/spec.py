"""What an engine process is told: the model, and how much may wait for it. May import the plugin API."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from headgate_plugin_api import ModelSpec

MAX_BATCH_TOKENS: Final = 16_384
"""Padded tokens of one batch where the model's options say nothing else."""

MAX_BATCH_ITEMS: Final = 256
"""Items of one batch where the model's options say nothing else."""


class EngineSpec(ModelSpec, frozen=True, kw_only=True):
    """A model's spec and the bounds of its queue. A bare `ModelSpec` document is one, with the defaults.

    Attributes:
        queue_requests: Requests that may wait.
        queue_tokens: Input tokens that may wait, all requests together.
    """

    queue_requests: int = 1024
    queue_tokens: int = 1_000_000

    @property
    def max_batch_tokens(self) -> int:
        """Padded tokens of one batch; from `options.max_batch_tokens` where the backend has that option."""
        return _positive(self.options.get("max_batch_tokens"), MAX_BATCH_TOKENS)

    @property
    def max_batch_items(self) -> int:
        """Items of one batch; from `options.max_batch_items` where the backend has that option."""
        return _positive(self.options.get("max_batch_items"), MAX_BATCH_ITEMS)


def _positive(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def read_spec(path: Path) -> EngineSpec:
    """Read the file that `--spec` names.

    Raises:
        ValueError: It is missing or not such a document; the message names file and field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
