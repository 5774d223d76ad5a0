"""Everything that goes in and comes out, by name."""

from headgate._core.metering import Budget, Meter, MeterRow
from headgate._core.money import Cost
from headgate._core.retry import RetryPolicy
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
from headgate.types.admin import AccountInfo, BudgetInfo, KeyCreated, KeyInfo
from headgate.types.chat import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatParams,
    ChatStreamParams,
    MessageParam,
    ParsedChatCompletion,
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

__all__ = [
    "AccountInfo",
    "AccountLimits",
    "Answer",
    "AsyncStreaming",
    "AsyncTransport",
    "Budget",
    "BudgetInfo",
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
    "Cost",
    "Difference",
    "Embedding",
    "EmbeddingParams",
    "EmbeddingsResponse",
    "InferParams",
    "InferResponse",
    "KeyCreated",
    "KeyInfo",
    "Limits",
    "MessageParam",
    "Meter",
    "MeterRow",
    "Model",
    "ModelList",
    "OutputTensor",
    "ParsedChatCompletion",
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
    "Streaming",
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
