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


class Closed(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A document whose every member is named; members with a default may be missing."""


# -- what models make


class PromptDetails(Closed):
    """Tokens inside `prompt_tokens`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class CompletionDetails(Closed):
    """Tokens inside `completion_tokens`."""

    reasoning_tokens: int


class TokenUsage(Closed):
    """What a request consumed; `cost` is missing only while it is not settled."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    cost: Amount | None = None


class CalledFunction(Closed):
    """A function that the model calls; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Closed):
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


class ChatChoice(Closed):
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


class ChunkCall(Closed):
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


class ChunkChoice(Closed):
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


class TextChoice(Closed):
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


class InputDetails(Closed):
    """Tokens inside `input_tokens`."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Closed):
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


class Embedding(Closed):
    """One vector: numbers, or little-endian float32 in base64 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Closed):
    """Vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class RankedDocument(Closed):
    """A document's text."""

    text: str


class RankResult(Closed):
    """One document's place."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(Closed):
    """Documents, best first."""

    id: str
    model: str
    results: list[RankResult]
    usage: TokenUsage


class LabelScore(Closed):
    """A label's score."""

    label: str
    score: float


class ClassifiedInput(Closed):
    """One input's label; `scores` are the best `top_k`, `probs` all of them in the model's order."""

    index: int
    label: str
    score: float
    probs: list[float]
    num_classes: int
    scores: list[LabelScore]


class ClassifyAnswer(Closed):
    """Labels, in the order of the inputs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifiedInput]
    usage: TokenUsage


class OutputTensor(Closed):
    """A tensor of an answer; `data` is flat, in row-major order."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any]


class InferAnswer(Closed):
    """Tensors, as the Open Inference Protocol has them."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[Literal["cost"], Amount] = {}


# -- models


class ModelCard(Closed):
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


class ModelList(Closed):
    """The models that a key may ask for."""

    object: Literal["list"]
    data: list[ModelCard]


class TensorMetadata(Closed):
    """A tensor that a model takes or gives; -1 is a free dimension."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(Closed):
    """A model, as the Open Inference Protocol describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReadiness(Closed):
    """Whether a model is ready, and why not."""

    name: str
    ready: bool
    state: str
    reason: str


class ServerMetadata(Closed):
    """The server, as the Open Inference Protocol describes it."""

    name: str
    version: str
    extensions: list[str]


class ModelState(Closed):
    """What a configured model is doing."""

    id: str
    task: Task
    state: str
    reason: str
    required: bool


class ConfiguredModel(ModelState):
    """A configured model as operators see it; `detail` is the engine's own line."""

    aliases: list[str]
    backends: list[str]
    device: str
    detail: str


class ModelStates(Closed):
    """What every configured model is doing."""

    object: Literal["list"]
    data: list[ConfiguredModel]


class ModelControlled(Closed):
    """A model was loaded or unloaded."""

    id: str
    state: Literal["ready", "unloaded"]


class Readiness(Closed):
    """Whether the gateway serves; `reason` says why the ledger is unavailable."""

    ready: bool
    ledger: Literal["ready", "unavailable"]
    reason: str | None
    models: list[ModelState]
