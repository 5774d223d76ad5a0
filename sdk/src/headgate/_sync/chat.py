# Generated from headgate/_async/chat.py by sdk/scripts/unasync.py. Do not edit.
"""`client.chat.completions` and `client.completions`: text generation, whole and streamed."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Unpack, cast, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from headgate._core import request
from headgate._core.answers import shape_error
from headgate._core.strict import strict_schema
from headgate._core.text_folds import ChatFold, CompletionFold
from headgate._sync.engine import Engine
from headgate._sync.stream import Stream, StreamManager
from headgate.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatFields,
    ChatParams,
    ChatStreamParams,
    ParsedChatCompletion,
    ParseParams,
)
from headgate.types.completions import (
    Completion,
    CompletionFields,
    CompletionParams,
    CompletionStreamParams,
)
from headgate.types.shared import OPTION_NAMES

ParsedT = TypeVar("ParsedT")

_CHAT_PATH = "/v1/chat/completions"
_CHAT_FIELDS = frozenset(ChatFields.__annotations__)
_COMPLETION_PATH = "/v1/completions"
_COMPLETION_FIELDS = frozenset(CompletionFields.__annotations__)
_STREAM_OPTIONS = OPTION_NAMES | {"resumable"}


class ChatCompletions:
    """`client.chat.completions`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @overload
    def create(self, *, stream: Literal[False] = False, **params: Unpack[ChatParams]) -> ChatCompletion: ...
    @overload
    def create(
        self, *, stream: Literal[True], **params: Unpack[ChatStreamParams]
    ) -> Stream[ChatCompletionChunk, ChatCompletion]: ...
    @overload
    def create(
        self, *, stream: bool, **params: Unpack[ChatStreamParams]
    ) -> ChatCompletion | Stream[ChatCompletionChunk, ChatCompletion]: ...
    def create(self, *, stream: bool = False, **params: Any) -> Any:
        """Ask a chat model.

        Args:
            stream: Return a stream whose first event is there, instead of the whole answer.
            **params: OpenAI's parameters, and the options of any call.

        Raises:
            HeadgateError: Typed by what happened.
        """
        if stream:
            return self._stream(params)
        body, options = _apart(params, _CHAT_FIELDS, OPTION_NAMES, "chat.completions.create")
        request.require(body, "chat.completions.create", "model", "messages")
        return self._engine.post(ChatCompletion, _CHAT_PATH, body, options)

    def stream(self, **params: Unpack[ChatStreamParams]) -> StreamManager[ChatCompletionChunk, ChatCompletion]:
        """A stream that opens with the block: `with client.chat.completions.stream(...) as stream`."""
        return StreamManager(lambda: self._stream(dict(params)))

    def parse(
        self, *, response_format: type[ParsedT], **params: Unpack[ParseParams]
    ) -> ParsedChatCompletion[ParsedT]:
        """Ask for an answer of a type of yours: a pydantic model, a dataclass, a TypedDict.

        Raises:
            ResponseShapeError: The model's text is not of that type; the path names where.
        """
        if not isinstance(cast("object", response_format), Hashable):
            raise TypeError("chat.completions.parse: response_format: expected a type; create() takes a mapping")
        adapter, schema = _adapter(cast("Hashable", response_format))
        given: dict[str, Any] = {**params, "response_format": schema}
        body, options = _apart(given, _CHAT_FIELDS, OPTION_NAMES, "chat.completions.parse")
        request.require(body, "chat.completions.parse", "model", "messages")
        # The bare class: a parametrised one would be built anew for every type that comes along.
        kind = cast("type[ParsedChatCompletion[ParsedT]]", ParsedChatCompletion)
        answer = self._engine.post(kind, _CHAT_PATH, body, options)
        said = [(choice.message.content or "", choice.finish_reason) for choice in answer.choices]
        parsed: list[ParsedT] = []
        for text, end in said or [("", None)]:
            try:
                parsed.append(adapter.validate_json(text))
            except ValidationError as error:
                note = "" if end in {"stop", None} else f"; it ended with finish_reason {end!r}"
                wrong = shape_error(error, text.encode(), note=note)
                wrong.usage, wrong.cost, wrong.request_id = answer.usage, answer.cost, answer.request_id
                wrong.attempts = answer.attempts
                raise wrong from error
        for choice, read in zip(answer.choices, parsed, strict=True):
            choice.message.keep(read)
        return answer

    def _stream(self, params: dict[str, Any]) -> Stream[ChatCompletionChunk, ChatCompletion]:
        body, options = _apart(params, _CHAT_FIELDS, _STREAM_OPTIONS, "chat.completions.stream")
        request.require(body, "chat.completions.stream", "model", "messages")
        return self._engine.stream(ChatFold(), _CHAT_PATH, body, options)


class Chat:
    """`client.chat`."""

    def __init__(self, engine: Engine) -> None:
        self.completions = ChatCompletions(engine)


class Completions:
    """`client.completions`: the legacy form, a prompt in and text out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @overload
    def create(self, *, stream: Literal[False] = False, **params: Unpack[CompletionParams]) -> Completion: ...
    @overload
    def create(
        self, *, stream: Literal[True], **params: Unpack[CompletionStreamParams]
    ) -> Stream[Completion, Completion]: ...
    @overload
    def create(
        self, *, stream: bool, **params: Unpack[CompletionStreamParams]
    ) -> Completion | Stream[Completion, Completion]: ...
    def create(self, *, stream: bool = False, **params: Any) -> Any:
        """Continue a prompt; arguments and errors as for chat."""
        if stream:
            return self._stream(params)
        body, options = _apart(params, _COMPLETION_FIELDS, OPTION_NAMES, "completions.create")
        request.require(body, "completions.create", "model", "prompt")
        return self._engine.post(Completion, _COMPLETION_PATH, body, options)

    def stream(self, **params: Unpack[CompletionStreamParams]) -> StreamManager[Completion, Completion]:
        """A stream that opens with the block."""
        return StreamManager(lambda: self._stream(dict(params)))

    def _stream(self, params: dict[str, Any]) -> Stream[Completion, Completion]:
        body, options = _apart(params, _COMPLETION_FIELDS, _STREAM_OPTIONS, "completions.stream")
        request.require(body, "completions.stream", "model", "prompt")
        return self._engine.stream(CompletionFold(), _COMPLETION_PATH, body, options)


def _apart(
    params: dict[str, Any], fields: frozenset[str], options: frozenset[str], call: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters apart; messages that are models of ours go out as they came in, and no list goes as it is."""
    body, given = request.split(params, fields, options, call)
    messages = body.get("messages")
    if isinstance(messages, Iterable) and not isinstance(messages, str | Mapping):
        body["messages"] = [
            message.model_dump(exclude_none=True) if isinstance(message, BaseModel) else message
            for message in cast("Iterable[object]", messages)
        ]
    return body, given


@functools.lru_cache(maxsize=256)
def _adapter(kind: Hashable) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """A type's validator and its `response_format`, made once per type."""
    adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", kind))
    name = getattr(kind, "__name__", "answer")
    schema, closed = strict_schema(adapter.json_schema())
    schema = {"name": name, "schema": schema, "strict": closed}
    return adapter, {"type": "json_schema", "json_schema": schema}
