"""Legacy completions: a prompt in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

from pydantic import Field

from headgate.types.chat import StreamOptionsParam
from headgate.types.shared import Answer, RequestOptions, Usage, Wire


class CompletionFields(TypedDict, total=False):
    """Parameters of a completion; None is not sent."""

    model: Required[str]
    prompt: Required[str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]]
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    best_of: int | None
    echo: bool | None
    logprobs: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    suffix: str | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, int] | None
    user: str | None
    stream_options: StreamOptionsParam | None
    metadata: Mapping[str, str] | None
    options: Mapping[str, Any] | None


class CompletionParams(CompletionFields, RequestOptions, total=False):
    """Parameters of a completion and what the call overrides."""


class CompletionStreamParams(CompletionParams, total=False):
    """The same for a stream; `resumable` as for chat."""

    resumable: float | None


class CompletionChoice(Wire):
    """One of the texts, or what a chunk adds to it."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: Any = None


class Completion(Answer):
    """A completion, whole or a piece of a stream."""

    id: str = ""
    object: str = "text_completion"
    created: int = 0
    model: str = ""
    choices: list[CompletionChoice] = Field(default_factory=list[CompletionChoice])
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text if self.choices else ""
