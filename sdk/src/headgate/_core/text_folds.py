"""Chunks of chat and legacy completions folded into the answers that they make. Pure; imports the wire types."""

from __future__ import annotations

from typing import Any, cast

from headgate.types.chat import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChunkChoice,
    FunctionCall,
    ToolCall,
    ToolCallDelta,
)
from headgate.types.completions import Completion, CompletionChoice
from headgate.types.shared import Usage


class ChatFold:
    """Chat completion chunks."""

    chunk_type = ChatCompletionChunk
    asks_usage = True

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._head: ChatCompletionChunk | None = None
        self._choices: dict[int, _ChoiceFold] = {}

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take the next chunk."""
        if self._head is None:
            self._head = chunk
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            fold = self._choices.get(choice.index)
            if fold is None:
                fold = self._choices[choice.index] = _ChoiceFold()
            fold.add(choice)

    def text_of(self, chunk: ChatCompletionChunk) -> str:
        """What the chunk adds to the first choice's text."""
        return "".join(choice.delta.content or "" for choice in chunk.choices if choice.index == 0)

    def shown(self, chunk: ChatCompletionChunk) -> bool:
        """Whether the chunk has choices; the usage chunk has none."""
        return bool(chunk.choices)

    def ends(self, chunk: ChatCompletionChunk) -> bool:  # noqa: ARG002  the protocol asks
        """Chat ends with `[DONE]` alone."""
        return False

    def final(self) -> ChatCompletion:
        """The answer so far."""
        head = self._head or ChatCompletionChunk()
        extra = {name: value for name, value in (head.model_extra or {}).items() if name != "usage"}
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=[fold.final(index) for index, fold in sorted(self._choices.items())],
            usage=self.usage,
            **extra,
        )


class _ChoiceFold:
    """One choice."""

    __slots__ = ("calls", "finish", "logprobs", "reasoning", "refusal", "role", "text")

    def __init__(self) -> None:
        self.role = "assistant"
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.finish: str | None = None
        self.logprobs: Any = None

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.role is not None:
            self.role = delta.role
        if delta.content is not None:
            self.text.append(delta.content)
        if delta.refusal is not None:
            self.refusal.append(delta.refusal)
        if delta.reasoning_content is not None:
            self.reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self._call(call)
        if choice.finish_reason is not None:
            self.finish = choice.finish_reason
        if choice.logprobs is not None:
            self.logprobs = _merge(self.logprobs, choice.logprobs)

    def _call(self, delta: ToolCallDelta) -> None:
        parts = self.calls.setdefault(delta.index, ["", "function", "", ""])
        parts[0] = delta.id or parts[0]
        parts[1] = delta.type or parts[1]
        if delta.function is not None:
            parts[2] += delta.function.name or ""
            parts[3] += delta.function.arguments or ""

    def final(self, index: int) -> ChatChoice:
        calls = [
            ToolCall(id=parts[0], type=parts[1], function=FunctionCall(name=parts[2], arguments=parts[3]))
            for _, parts in sorted(self.calls.items())
        ]
        message = ChatMessage(
            role=self.role,
            content="".join(self.text) if self.text or not calls else None,
            refusal="".join(self.refusal) or None,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=calls or None,
        )
        return ChatChoice(index=index, message=message, finish_reason=self.finish, logprobs=self.logprobs)


def _merge(so_far: Any, more: Any) -> Any:
    """Log probabilities joined: lists are continued, anything else is replaced."""
    if not isinstance(so_far, dict) or not isinstance(more, dict):
        return more
    merged = dict(cast("dict[str, Any]", so_far))
    for name, value in cast("dict[str, Any]", more).items():
        old = merged.get(name)
        merged[name] = [*old, *value] if isinstance(old, list) and isinstance(value, list) else value
    return merged


class CompletionFold:
    """Legacy completion chunks."""

    chunk_type = Completion
    asks_usage = True

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._head: Completion | None = None
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}
        self._logprobs: dict[int, Any] = {}

    def add(self, chunk: Completion) -> None:
        """Take the next chunk."""
        if self._head is None:
            self._head = chunk
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            self._texts.setdefault(choice.index, []).append(choice.text)
            if choice.finish_reason is not None:
                self._finish[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                self._logprobs[choice.index] = _merge(self._logprobs.get(choice.index), choice.logprobs)

    def text_of(self, chunk: Completion) -> str:
        """What the chunk adds to the first choice's text."""
        return "".join(choice.text for choice in chunk.choices if choice.index == 0)

    def shown(self, chunk: Completion) -> bool:
        """Whether the chunk has choices; the usage chunk has none."""
        return bool(chunk.choices)

    def ends(self, chunk: Completion) -> bool:  # noqa: ARG002  the protocol asks
        """Completions end with `[DONE]` alone."""
        return False

    def final(self) -> Completion:
        """The answer so far."""
        head = self._head or Completion()
        return Completion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=[
                CompletionChoice(
                    index=index,
                    text="".join(parts),
                    finish_reason=self._finish.get(index),
                    logprobs=self._logprobs.get(index),
                )
                for index, parts in sorted(self._texts.items())
            ],
            usage=self.usage,
        )
