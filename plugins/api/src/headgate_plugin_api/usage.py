"""What a request consumed, in disjoint dimensions.

Imports nothing of ours.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Dimension = Literal[
    "input", "cache_read", "cache_write", "output", "reasoning", "images", "audio_ms", "requests", "gpu_ms"
]

DIMENSIONS: Final[tuple[Dimension, ...]] = (
    "input",
    "cache_read",
    "cache_write",
    "output",
    "reasoning",
    "images",
    "audio_ms",
    "requests",
    "gpu_ms",
)
"""Every billable dimension. They are disjoint: a token is counted in exactly one of them."""

UsageSource = Literal["upstream", "tokenizer", "slot", "estimated"]
"""Who counted: the upstream's own report, a tokenizer of ours, the flight slot after a crash, or a guess."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Quantities consumed by one request. All are counts (milliseconds for `audio_ms` and `gpu_ms`).

    Providers count cached tokens inside the input (OpenAI) or beside it (Anthropic); adapters normalise
    to this form, in which the parts never overlap.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    images: int = 0
    audio_ms: int = 0
    requests: int = 0
    gpu_ms: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All tokens that went in, cached or not (OpenAI's `prompt_tokens`)."""
        return self.input + self.cache_read + self.cache_write

    @property
    def completion_tokens(self) -> int:
        """All tokens that came out, visible or not (OpenAI's `completion_tokens`)."""
        return self.output + self.reasoning

    def __add__(self, other: Usage) -> Usage:
        """Sum two usages, dimension by dimension."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in DIMENSIONS})
