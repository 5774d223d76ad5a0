"""OpenAI's Responses: input in, output items out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Required, TypedDict, cast

from pydantic import Field, model_validator

from headgate.types.shared import Answer, RequestOptions, Usage, Wire


class ResponseFields(TypedDict, total=False):
    """Parameters of a response; None is not sent."""

    model: Required[str]
    input: Required[str | Iterable[Mapping[str, Any]]]
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    text: Mapping[str, Any] | None
    tools: Iterable[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning: Mapping[str, Any] | None
    metadata: Mapping[str, str] | None
    user: str | None
    store: bool | None
    include: Iterable[str] | None
    truncation: Literal["auto", "disabled"] | None
    options: Mapping[str, Any] | None


class ResponseParams(ResponseFields, RequestOptions, total=False):
    """Parameters of a response and what the call overrides."""


class ResponseStreamParams(ResponseParams, total=False):
    """The same for a stream; `resumable` as for chat."""

    resumable: float | None


class ResponseUsage(Usage):
    """Usage in the words of Responses; readable in those of chat as well."""

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        words = {
            "input_tokens": "prompt_tokens",
            "output_tokens": "completion_tokens",
            "input_tokens_details": "prompt_tokens_details",
            "output_tokens_details": "completion_tokens_details",
        }
        return {**given, **{ours: given[theirs] for theirs, ours in words.items() if theirs in given}}


class OutputContent(Wire):
    """A part of an output message."""

    type: str = "output_text"
    text: str = ""


class OutputItem(Wire):
    """A message, a reasoning, or a call that the model made: then it has `call_id`, `name` and `arguments`."""

    type: str = "message"
    id: str = ""
    role: str | None = None
    status: str | None = None
    content: list[OutputContent] = Field(default_factory=list[OutputContent])
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class Response(Answer):
    """A whole response; `incomplete_details` says why one is cut short."""

    id: str = ""
    object: str = "response"
    created_at: float | None = None
    model: str = ""
    status: str | None = None
    incomplete_details: dict[str, Any] | None = None
    store: bool | None = None
    output: list[OutputItem] = Field(default_factory=list[OutputItem])
    usage: ResponseUsage | None = None

    @property
    def output_text(self) -> str:
        """All text of the output, joined."""
        return "".join(part.text for item in self.output for part in item.content if part.type == "output_text")


class ResponseEvent(Wire):
    """An event of a streamed response."""

    type: str
    sequence_number: int | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: Any = None
    response: Response | None = None
