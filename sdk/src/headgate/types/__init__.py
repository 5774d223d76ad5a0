"""Everything that goes in and comes out, by name; loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headgate._async.layers import AsyncMiddleware, AsyncSend
    from headgate._core.metering import Budget, Meter, MeterRow
    from headgate._core.money import Cost
    from headgate._core.observing import CallInfo, Observer
    from headgate._core.retry import RetryPolicy
    from headgate._sync.layers import Middleware, Send
    from headgate._transport.types import (
        AsyncStreaming,
        AsyncTransport,
        Limits,
        Received,
        Request,
        Streaming,
        Timeout,
        Transport,
        Wiring,
    )
    from headgate.types.admin import (
        AccountInfo,
        BudgetInfo,
        ConsumerInfo,
        CreditInfo,
        Done,
        KeyCreated,
        KeyFields,
        KeyInfo,
        LogEntry,
        ModelState,
        PriceInfo,
        PricesSet,
        TagsErased,
    )
    from headgate.types.chat import (
        ChatChoice,
        ChatCompletion,
        ChatCompletionChunk,
        ChatMessage,
        ChatParams,
        ChatStreamParams,
        MessageParam,
        ParsedChatChoice,
        ParsedChatCompletion,
        ParsedChatMessage,
        ToolCall,
        ToolParam,
    )
    from headgate.types.completions import Completion, CompletionParams
    from headgate.types.embeddings import Embedding, EmbeddingParams, EmbeddingsResponse
    from headgate.types.infer import InferParams, InferResponse, OutputTensor, TensorParam
    from headgate.types.limits import AccountLimits
    from headgate.types.models import Model, ModelList
    from headgate.types.quotes import Quote
    from headgate.types.rerank import ClassifyParams, ClassifyResponse, RerankParams, RerankResponse
    from headgate.types.responses import Response, ResponseEvent, ResponseParams
    from headgate.types.shared import Answer, RateLimit, Raw, RequestOptions, Usage
    from headgate.types.usage import (
        Difference,
        Reconciliation,
        UsageQuery,
        UsageRecord,
        UsageReport,
        UsageRow,
    )

_MODULES = {
    "_core.metering": ("Budget", "Meter", "MeterRow"),
    "_core.money": ("Cost",),
    "_async.layers": ("AsyncMiddleware", "AsyncSend"),
    "_core.observing": ("CallInfo", "Observer"),
    "_core.retry": ("RetryPolicy",),
    "_sync.layers": ("Middleware", "Send"),
    "_transport.types": (
        "AsyncStreaming",
        "AsyncTransport",
        "Limits",
        "Received",
        "Request",
        "Streaming",
        "Timeout",
        "Transport",
        "Wiring",
    ),
    "types.admin": (
        "AccountInfo",
        "BudgetInfo",
        "ConsumerInfo",
        "CreditInfo",
        "Done",
        "KeyCreated",
        "KeyFields",
        "KeyInfo",
        "LogEntry",
        "ModelState",
        "PriceInfo",
        "PricesSet",
        "TagsErased",
    ),
    "types.chat": (
        "ChatChoice",
        "ChatCompletion",
        "ChatCompletionChunk",
        "ChatMessage",
        "ChatParams",
        "ChatStreamParams",
        "MessageParam",
        "ParsedChatChoice",
        "ParsedChatCompletion",
        "ParsedChatMessage",
        "ToolCall",
        "ToolParam",
    ),
    "types.completions": ("Completion", "CompletionParams"),
    "types.embeddings": ("Embedding", "EmbeddingParams", "EmbeddingsResponse"),
    "types.infer": ("InferParams", "InferResponse", "OutputTensor", "TensorParam"),
    "types.limits": ("AccountLimits",),
    "types.models": ("Model", "ModelList"),
    "types.quotes": ("Quote",),
    "types.rerank": ("ClassifyParams", "ClassifyResponse", "RerankParams", "RerankResponse"),
    "types.responses": ("Response", "ResponseEvent", "ResponseParams"),
    "types.shared": ("Answer", "RateLimit", "Raw", "RequestOptions", "Usage"),
    "types.usage": ("Difference", "Reconciliation", "UsageQuery", "UsageRecord", "UsageReport", "UsageRow"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AccountInfo",
    "AccountLimits",
    "Answer",
    "AsyncMiddleware",
    "AsyncSend",
    "AsyncStreaming",
    "AsyncTransport",
    "Budget",
    "BudgetInfo",
    "CallInfo",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "ChatParams",
    "ChatStreamParams",
    "ClassifyParams",
    "ClassifyResponse",
    "Completion",
    "CompletionParams",
    "ConsumerInfo",
    "Cost",
    "CreditInfo",
    "Difference",
    "Done",
    "Embedding",
    "EmbeddingParams",
    "EmbeddingsResponse",
    "InferParams",
    "InferResponse",
    "KeyCreated",
    "KeyFields",
    "KeyInfo",
    "Limits",
    "LogEntry",
    "MessageParam",
    "Meter",
    "MeterRow",
    "Middleware",
    "Model",
    "ModelList",
    "ModelState",
    "Observer",
    "OutputTensor",
    "ParsedChatChoice",
    "ParsedChatCompletion",
    "ParsedChatMessage",
    "PriceInfo",
    "PricesSet",
    "Quote",
    "RateLimit",
    "Raw",
    "Received",
    "Reconciliation",
    "Request",
    "RequestOptions",
    "RerankParams",
    "RerankResponse",
    "Response",
    "ResponseEvent",
    "ResponseParams",
    "RetryPolicy",
    "Send",
    "Streaming",
    "TagsErased",
    "TensorParam",
    "Timeout",
    "ToolCall",
    "ToolParam",
    "Transport",
    "Usage",
    "UsageQuery",
    "UsageRecord",
    "UsageReport",
    "UsageRow",
    "Wiring",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'headgate.types' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headgate.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
