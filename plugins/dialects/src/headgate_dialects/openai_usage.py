"""OpenAI's `usage` object, both directions. Cached and reasoning tokens stand *inside* its totals.

May import the plugin API.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from headgate_plugin_api import JsonValue, Usage

MAX_COUNT: Final = 2**40
"""More tokens than any answer can have: a count above it is a lie and is ignored."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


def encode(usage: Usage, cost: str | None = None) -> dict[str, Any]:
    """The object, with the cost as a decimal string where it is known."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    document: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if usage.cache_read or usage.cache_write:
        details = {"cached_tokens": usage.cache_read}
        if usage.cache_write:
            details["cache_write_tokens"] = usage.cache_write
        document["prompt_tokens_details"] = details
    if usage.reasoning:
        document["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    if cost is not None:
        document["cost"] = cost
    return document


def encode_input_only(usage: Usage, cost: str | None = None) -> dict[str, Any]:
    """The object for tasks that make no tokens (embeddings)."""
    document: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if cost is not None:
        document["cost"] = cost
    return document


def decode(document: Any) -> Usage | None:
    """An upstream's object in disjoint dimensions; None when it is missing or cannot be true."""
    if document is None:
        return None
    try:
        wire = msgspec.convert(document, _Usage)
    except msgspec.ValidationError:
        return None
    prompt, output = wire.prompt_tokens, wire.completion_tokens
    cached = written = reasoning = 0
    details: JsonValue = wire.prompt_tokens_details
    if isinstance(details, dict):
        cached = _count(details.get("cached_tokens"))
        written = _count(details.get("cache_write_tokens"))
    details = wire.completion_tokens_details
    if isinstance(details, dict):
        reasoning = _count(details.get("reasoning_tokens"))
    if cached + written > prompt or reasoning > output:
        return None
    return Usage(
        input=prompt - cached - written,
        cache_read=cached,
        cache_write=written,
        output=output - reasoning,
        reasoning=reasoning,
    )


def _count(value: Any) -> int:
    """A detail; what is none counts as nothing."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0
