"""Canonical requests: what a dialect decodes to and what every backend is given.

Imports nothing of ours.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
"""What decoded JSON can be."""
Task = Literal["chat", "completion", "embed", "rerank", "classify", "infer"]

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text inside a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image inside a message: an https or data URL."""

    url: str
    detail: str | None = None


class AudioPart(msgspec.Struct, frozen=True, tag="audio"):
    """Audio inside a message: base64 data and its container format."""

    data: str
    format: str


class FilePart(msgspec.Struct, frozen=True, tag="file"):
    """A document inside a message, as OpenAI's dialect has it: `file_data` with `filename`, or `file_id`."""

    file: dict[str, Any]


Part = TextPart | ImagePart | AudioPart | FilePart


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool that the model asked for; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Role
    content: str | tuple[Part, ...] = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the message, its parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are drawn. None means the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()


class ChatPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """A conversation to be continued `n` times. `reasoning_effort` is a hint, in the words of the provider."""

    messages: tuple[Message, ...]
    n: int = 1
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None


class CompletionPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="completion"):
    """Plain texts to be continued, each `n` times. Choice index = prompt index * n + k."""

    prompts: tuple[str, ...]
    n: int = 1
    sampling: Sampling = Sampling()
    echo: bool = False


class EmbedPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embed"):
    """Texts, or token ids of the served vocabulary, to be turned into vectors.

    `truncate`: None refuses an input that is too long; END and START say which end is cut.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    truncate: Literal["END", "START"] | None = None
    input_type: str | None = None
    prompt_name: str | None = None


class RerankPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="rerank"):
    """Documents to be scored against a query."""

    query: str
    documents: tuple[str, ...]
    truncate: Literal["END", "START"] | None = None


class ClassifyPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="classify"):
    """Texts, or pairs of texts, to be labelled."""

    inputs: tuple[str | tuple[str, str], ...]
    truncate: Literal["END", "START"] | None = None


Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
"""Tensor datatypes of the Open Inference Protocol."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A dense row-major tensor.

    `data` is little-endian; BYTES elements are each a 4-byte little-endian length and the bytes, which is
    the raw form of the Open Inference Protocol's binary extension.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes


class InferPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="infer"):
    """Named tensors to be run through a model; `outputs` empty means all of them."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}


Payload = ChatPayload | CompletionPayload | EmbedPayload | RerankPayload | ClassifyPayload | InferPayload


class Native(msgspec.Struct, frozen=True, kw_only=True):
    """The request as it came, so that a backend of the same dialect can pass unknown fields on.

    `document` is the decoded JSON object of the client. Only model, credentials, stream usage and the output
    limit may be changed by whoever sends it on. `beyond` names the fields that the payload does not say. In
    `prepared` a backend keeps what it made of the request for its bound and can send later; it names what it
    keeps.
    """

    dialect: str
    document: dict[str, Any]
    beyond: tuple[str, ...] = ()
    prepared: dict[Any, bytes] = {}


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One admitted request, as a backend sees it.

    Attributes:
        id: The request id (`req_...`).
        model: The configured model id that was asked for.
        payload: What is to be done; its type says which task.
        max_output: Output tokens that may be made per choice. Always set by the gateway for text generation,
            because a hold was taken for it; None elsewhere.
        stream: Whether the client reads the answer while it is made. A backend may use it as a hint only.
        timeout_ms: How long the answer may take from now on.
        options: Per-request options of the backend, as the client sent them in `options`. Unchecked: the
            backend refuses what it does not know with `InvalidRequest`.
        native: The client's own document, for backends that speak the dialect it came in.
    """

    id: str
    model: str
    payload: Payload
    max_output: int | None = None
    stream: bool = False
    timeout_ms: int = 600_000
    options: dict[str, Any] = {}
    native: Native | None = None

    @property
    def task(self) -> Task:
        """The task that the payload's type stands for."""
        tag: Task = self.payload.__struct_config__.tag  # type: ignore[assignment]
        return tag
