"""Canonical answers: the events that a backend gives for a request, streamed or whole.

An answer is a sequence of events. Text generation gives deltas, one `Finished` per choice and a
`UsageReport` last; every other task gives one result and one `UsageReport`. A whole answer is the fold of the
same sequence, so that streams and whole answers are one path. May import requests and usage.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headgate_plugin_api.requests import Tensor
from headgate_plugin_api.usage import Usage, UsageSource

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="text"):
    """Text that was made for one choice.

    `tokens` is how many output tokens this delta stands for; None when the backend cannot say, and then
    the gateway estimates. `extra` holds fields of the upstream's chunk that have no canonical form.
    """

    text: str
    index: int = 0
    tokens: int | None = None
    reasoning: bool = False
    extra: dict[str, Any] = {}


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="tool_call"):
    """A piece of a tool call; `id` and `name` come with its first piece."""

    index: int = 0
    call: int = 0
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    tokens: int | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="finished"):
    """One choice is complete."""

    reason: FinishReason
    index: int = 0


class EmbedResult(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """Vectors in input order, each as little-endian float32 bytes; `fingerprint` names what made them."""

    vectors: tuple[bytes, ...]
    fingerprint: str = ""


class RerankResult(msgspec.Struct, frozen=True, kw_only=True, tag="rerank"):
    """Raw scores (logits) in document order."""

    scores: tuple[float, ...]


class ClassifyResult(msgspec.Struct, frozen=True, kw_only=True, tag="classify"):
    """Raw scores (logits) per input and label. `multi_label` says sigmoid instead of softmax."""

    labels: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    multi_label: bool = False


class InferResult(msgspec.Struct, frozen=True, kw_only=True, tag="infer"):
    """Output tensors."""

    outputs: tuple[Tensor, ...]


class UsageReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="usage"):
    """What was consumed. The last event of every complete answer.

    A remote backend that got no usage from its upstream leaves it out, and the gateway counts what was relayed.
    A stream may report once more before its first delta, with what went in: if the client leaves, or the stream
    is cut, the input is billed as counted instead of estimated.
    """

    usage: Usage
    source: UsageSource = "tokenizer"
    extra: dict[str, Any] = {}


Event = (
    TextDelta | ToolCallDelta | Finished | EmbedResult | RerankResult | ClassifyResult | InferResult | UsageReport
)
