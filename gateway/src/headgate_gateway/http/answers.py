"""What answers look like, as structs: the API's description is made from them, tests hold the answers to them.

Answers are written by the dialects and the routes; nothing is decoded or encoded with these. May import the
plugin API.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from headgate_plugin_api import Datatype, Task

Amount = str
"""A decimal string."""

Moment = str
"""RFC 3339, UTC."""


class _Closed(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A document whose every member is named; members with a default may be missing."""


# -- what models make


class PromptDetails(_Closed):
    """Tokens inside `prompt_tokens`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class CompletionDetails(_Closed):
    """Tokens inside `completion_tokens`."""

    reasoning_tokens: int


class TokenUsage(_Closed):
    """What a request consumed; `cost` is missing only while it is not settled."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    cost: Amount | None = None


class CalledFunction(_Closed):
    """A function that the model calls; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(_Closed):
    """A tool call of an answer."""

    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, kw_only=True):
    """A message that a model made; members of a provider that have no form of ours are kept."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(_Closed):
    """One answer of a chat completion."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason | None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage | None = None


class ChunkCall(_Closed):
    """A piece of a tool call; `id` and the function's name come with its first."""

    index: int
    function: dict[str, str] = {}
    id: str | None = None
    type: str | None = None


class ChunkDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ChunkCall] | None = None


class ChunkChoice(_Closed):
    """One choice's part of a chunk."""

    index: int
    delta: ChunkDelta
    finish_reason: FinishReason | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """An event of a streamed chat completion; the last one carries `usage`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None


class TextChoice(_Closed):
    """One text of a completion."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: dict[str, Any] | None = None


class TextCompletion(msgspec.Struct, kw_only=True):
    """A completion, or an event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage | None = None


class InputDetails(_Closed):
    """Tokens inside `input_tokens`."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(_Closed):
    """What a response consumed, in the words of responses."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int
    cost: Amount | None = None


class OutputContent(msgspec.Struct, kw_only=True):
    """A piece of a message or of a reasoning."""

    type: Literal["output_text", "reasoning_text"]
    text: str


class OutputItem(msgspec.Struct, kw_only=True):
    """A message, a reasoning or a function call; the call has `call_id`, `name` and `arguments`."""

    type: Literal["message", "reasoning", "function_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] | None = None
    content: list[OutputContent] = []
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class Response(msgspec.Struct, kw_only=True):
    """A response; it repeats what it was asked with. It is not stored."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    incomplete_details: dict[str, str] | None
    store: Literal[False]


class ResponseEvent(msgspec.Struct, kw_only=True):
    """An event of a streamed response; which members it has follows from its type, as OpenAI has it."""

    type: str
    sequence_number: int
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: str | None = None
    response: Response | None = None


class Embedding(_Closed):
    """One vector: numbers, or little-endian float32 in base64 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(_Closed):
    """Vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class RankedDocument(_Closed):
    """A document's text."""

    text: str


class RankResult(_Closed):
    """One document's place."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(_Closed):
    """Documents, best first."""

    id: str
    model: str
    results: list[RankResult]
    usage: TokenUsage


class LabelScore(_Closed):
    """A label's score."""

    label: str
    score: float


class ClassifiedInput(_Closed):
    """One input's label; `scores` are the best `top_k`, `probs` all of them in the model's order."""

    index: int
    label: str
    score: float
    probs: list[float]
    num_classes: int
    scores: list[LabelScore]


class ClassifyAnswer(_Closed):
    """Labels, in the order of the inputs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifiedInput]
    usage: TokenUsage


class OutputTensor(_Closed):
    """A tensor of an answer; `data` is flat, in row-major order."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any]


class InferAnswer(_Closed):
    """Tensors, as the Open Inference Protocol has them."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[Literal["cost"], Amount] = {}


# -- models


class ModelCard(_Closed):
    """A model. `price` is the one in force for the key that asks: tokens per million."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: Task
    state: str
    price: dict[str, Any] | None
    aliases: list[str]
    max_input_tokens: int | None
    max_output_tokens: int | None
    reason: str | None = None
    fingerprint: str | None = None
    dimensions: int | None = None
    labels: list[str] | None = None


class ModelList(_Closed):
    """The models that a key may ask for."""

    object: Literal["list"]
    data: list[ModelCard]


class TensorMetadata(_Closed):
    """A tensor that a model takes or gives; -1 is a free dimension."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Closed):
    """A model, as the Open Inference Protocol describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReadiness(_Closed):
    """Whether a model is ready, and why not."""

    name: str
    ready: bool
    state: str
    reason: str


class ServerMetadata(_Closed):
    """The server, as the Open Inference Protocol describes it."""

    name: str
    version: str
    extensions: list[str]


class ModelState(_Closed):
    """What a configured model is doing."""

    id: str
    task: Task
    state: str
    reason: str
    required: bool


class ModelStates(_Closed):
    """What every configured model is doing."""

    object: Literal["list"]
    data: list[ModelState]


class Readiness(_Closed):
    """Whether the gateway serves."""

    ready: bool
    ledger: Literal["ready", "unavailable"]
    models: list[ModelState]


# -- the books


class RecordedAttempt(_Closed):
    """One try at one target."""

    backend: str
    target: str
    outcome: str
    started_at: Moment
    ended_at: Moment


class UsageRecord(_Closed):
    """One request that has ended. `seq`, `held` and `overrun` are for operators."""

    request_id: str
    organization: str
    project: str
    key: str
    model: str
    task: str
    backend: str
    outcome: str
    usage: dict[str, int]
    usage_source: str
    cost: Amount
    price: str | None
    billed: bool
    flagged: bool
    created_at: Moment
    first_byte_at: Moment | None
    finished_at: Moment
    idempotency_key: str | None
    retry_of: str | None
    tags: dict[str, str]
    attempts: list[RecordedAttempt]
    seq: int = 0
    held: Amount = ""
    overrun: Amount = ""


class UsageTotal(msgspec.Struct, kw_only=True):
    """Sums of a group and a bucket of time; a tag that was grouped by is a member named `tag:NAME`."""

    requests: int
    cost: Amount
    usage: dict[str, int]
    model: str | None = None
    key: str | None = None
    project: str | None = None
    organization: str | None = None
    backend: str | None = None
    outcome: str | None = None
    bucket: Moment | None = None
    overrun: Amount | None = None


class UsageRecords(_Closed):
    """A page of records."""

    object: Literal["list"]
    data: list[UsageRecord]
    has_more: bool
    after: str | None


class UsageTotals(_Closed):
    """Totals, where `group_by` or `bucket` was asked for."""

    object: Literal["list"]
    data: list[UsageTotal]
    has_more: bool
    after: str | None


class Budget(_Closed):
    """A budget and where its present window stands. `kind` is a window, or `credit` for what was prepaid."""

    kind: str
    limit: Amount
    spent: Amount
    held: Amount
    hard: bool
    timezone: str
    starts_at: Moment
    ends_at: Moment | None
    priority: int | None


class BudgetOver(Budget):
    """A budget that a key is under, and the account that it belongs to."""

    scope: str
    account: str
    remaining: Amount


class LimitOver(_Closed):
    """A limit that a key is under: a rate per minute, or requests in flight."""

    scope: str
    account: str
    kind: Literal["requests", "tokens", "concurrency"]
    limit: int


class AccountLimits(_Closed):
    """The budgets and limits that a key is under."""

    object: Literal["limits"]
    budgets: list[BudgetOver]
    limits: list[LimitOver]


# -- what operators see


class Account(_Closed):
    """An organization, a project or a key."""

    id: str
    kind: Literal["organization", "project", "key"]
    name: str
    parent: str | None
    created_at: Moment
    budgets: list[Budget]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    in_flight: int


class AccountList(_Closed):
    """A page of accounts."""

    object: Literal["list"]
    data: list[Account]
    has_more: bool
    after: str | None


class Key(_Closed):
    """A key, never its secret."""

    id: str
    name: str
    prefix: str
    project: str
    project_id: str
    organization_id: str
    scopes: list[str]
    models: list[str] | None
    max_output: int | None
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    account: Account


class KeyList(_Closed):
    """A page of keys."""

    object: Literal["list"]
    data: list[Key]
    has_more: bool
    after: str | None


class KeyCreated(_Closed):
    """A fresh key; its secret is shown this once. `project` and `organization` are ids."""

    id: str
    key: str
    project: str
    organization: str


class Done(_Closed):
    """The command was carried out; `changed` is false when it was so already."""

    id: str
    changed: bool


class PriceVersion(msgspec.Struct, kw_only=True):
    """A price version; empty `rates` withdraw the price."""

    id: str
    model: str
    rates: dict[str, Any]
    source: str
    scope: str
    effective_at: Moment


class PriceList(_Closed):
    """The price versions in force."""

    object: Literal["list"]
    data: list[PriceVersion]
    has_more: bool
    after: str | None


class PricesSet(_Closed):
    """The price versions that are new."""

    versions: list[PriceVersion]


class AuditReport(msgspec.Struct, kw_only=True):
    """Whether everything re-derives, how much was checked, and the first difference."""

    ok: bool
    checked: dict[str, int]
    first_difference: str | None
