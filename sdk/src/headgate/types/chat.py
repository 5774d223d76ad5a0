"""Chat completions: parameters in, answers and chunks out, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, Required, TypedDict, TypeVar, cast

from pydantic import Field, PrivateAttr

from headgate.types.shared import Answer, RequestOptions, Usage, Wire

ParsedT = TypeVar("ParsedT")


class FunctionCallParam(TypedDict):
    """The function that an assistant called."""

    name: str
    arguments: str


class ToolCallParam(TypedDict):
    """A tool call of an assistant, sent back as history."""

    id: str
    type: Literal["function"]
    function: FunctionCallParam


class ContentPartParam(TypedDict, total=False):
    """A part of a message: text, or an image, audio or file under its own key."""

    type: Required[Literal["text", "image_url", "input_audio", "file", "refusal"]]
    text: str
    image_url: Mapping[str, Any]
    input_audio: Mapping[str, Any]
    file: Mapping[str, Any]
    refusal: str


class MessageParam(TypedDict, total=False):
    """A message of the conversation."""

    role: Required[Literal["system", "developer", "user", "assistant", "tool", "function"]]
    content: str | Sequence[ContentPartParam] | None
    name: str
    tool_calls: Sequence[ToolCallParam]
    tool_call_id: str


class FunctionParam(TypedDict, total=False):
    """A function that the model may call."""

    name: Required[str]
    description: str
    parameters: Mapping[str, Any]
    strict: bool | None


class ToolParam(TypedDict):
    """A tool that the model may use."""

    type: Literal["function"]
    function: FunctionParam


class StreamOptionsParam(TypedDict, total=False):
    """What a stream carries besides its text."""

    include_usage: bool


class ParseFields(TypedDict, total=False):
    """Parameters of a chat completion; None is not sent."""

    model: Required[str]
    messages: Required[Iterable[MessageParam | ChatMessage]]
    max_tokens: int | None
    max_completion_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, int] | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Iterable[ToolParam] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning_effort: str | None
    metadata: Mapping[str, str] | None
    user: str | None
    service_tier: str | None
    stream_options: StreamOptionsParam | None
    options: Mapping[str, Any] | None


class ChatFields(ParseFields, total=False):
    """The same with a form for the answer."""

    response_format: Mapping[str, Any] | None


class ParseParams(ParseFields, RequestOptions, total=False):
    """Parameters of `chat.completions.parse`, which sets the form itself."""


class ChatParams(ChatFields, RequestOptions, total=False):
    """Parameters of a chat completion and what the call overrides."""


class ChatStreamParams(ChatParams, total=False):
    """The same for a stream.

    Attributes:
        resumable: Seconds that the gateway keeps the stream alive after a lost connection, so that the client
            goes on where it stopped. None does not ask for it.
    """

    resumable: float | None


class FunctionCall(Wire):
    """The function that the model wants called."""

    name: str = ""
    arguments: str = ""


class ToolCall(Wire):
    """A tool call of the model."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = Field(default_factory=FunctionCall)


class ChatMessage(Wire):
    """What the model said."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None


class ChatChoice(Wire):
    """One of the answers."""

    index: int = 0
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: Any = None


class ChatCompletion(Answer):
    """A whole chat completion."""

    id: str
    object: str = "chat.completion"
    created: int = 0
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return (self.choices[0].message.content or "") if self.choices else ""


class ParsedChatMessage(ChatMessage, Generic[ParsedT]):
    """What the model said, read into a model of yours."""

    _parsed: Any = PrivateAttr(default=None)

    @property
    def parsed(self) -> ParsedT:
        """The text as your type."""
        return cast("ParsedT", self._parsed)

    def keep(self, parsed: ParsedT) -> None:
        """Keep what the text was read into; the client does this."""
        self._parsed = parsed


class ParsedChatChoice(ChatChoice, Generic[ParsedT]):
    """One of the answers, read into a model of yours."""

    message: ParsedChatMessage[ParsedT]  # pyright: ignore[reportIncompatibleVariableOverride]  # a narrower kind


class ParsedChatCompletion(ChatCompletion, Generic[ParsedT]):
    """A chat completion whose texts were read into models of yours."""

    choices: list[ParsedChatChoice[ParsedT]]  # type: ignore[assignment]  # a list of a narrower kind

    @property
    def parsed(self) -> ParsedT:
        """The first choice as your type."""
        return self.choices[0].message.parsed


class FunctionDelta(Wire):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Wire):
    """A piece of a tool call."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class ChatDelta(Wire):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    reasoning_content: str | None = None


class ChunkChoice(Wire):
    """What a chunk adds to one of the answers."""

    index: int = 0
    delta: ChatDelta = Field(default_factory=ChatDelta)
    finish_reason: str | None = None
    logprobs: Any = None


class ChatCompletionChunk(Wire):
    """A piece of a streamed chat completion."""

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = Field(default_factory=list[ChunkChoice])
    usage: Usage | None = None
    system_fingerprint: str | None = None
