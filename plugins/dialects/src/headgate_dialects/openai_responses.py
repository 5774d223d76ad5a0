"""OpenAI responses: requests in, answers out, whole and streamed. Nothing is stored to be referred to.

Text, images and functions; what only OpenAI's own servers can do (stored conversations, hosted tools, background
runs) is refused by name. May import the plugin API.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from headgate_plugin_api import (
    ChatPayload,
    ImagePart,
    InvalidRequest,
    Message,
    Part,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
)

from headgate_dialects.decoded import Decoded
from headgate_dialects.fields import MAX_LIMIT, beyond, known_fields, read_request, read_tags
from headgate_dialects.openai_responses_answers import StreamEncoder, encode_answer

__all__ = ["NAME", "ResponseRequest", "StreamEncoder", "decode_request", "encode_answer"]

NAME: Final = "openai_responses"

_STORED: Final = ("previous_response_id", "conversation", "prompt", "background")
"""Fields that ask for what lies on a server of OpenAI's."""

_ECHOED: Final = (
    "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "reasoning", "temperature", "text",
    "tool_choice", "tools", "top_p", "user",
)  # fmt: skip
"""Fields that an answer repeats."""


class _InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class _OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str


class _Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class _InputImage(msgspec.Struct, tag_field="type", tag="input_image"):
    image_url: str
    detail: str | None = None


_Content = str | list[_InputText | _OutputText | _Refusal | _InputImage]


class _MessageItem(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content


class _CallItem(msgspec.Struct):
    call_id: str
    name: str
    arguments: str


class _ResultItem(msgspec.Struct):
    call_id: str
    output: _Content


class _Function(msgspec.Struct):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class ResponseRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    input: str | Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    tools: list[_Function] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    options: dict[str, Any] | None = None


_KNOWN: Final = known_fields(
    ResponseRequest, *_STORED, "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "max_tool_calls", "stream_options", "client_metadata",
)  # fmt: skip


def decode_request(document: Any) -> Decoded:
    """Read a client's request.

    Raises:
        InvalidRequest: With the path of the field at fault, or the name of what is not served here.
    """
    wire = read_request(document, ResponseRequest)
    for name in _STORED:
        if document.get(name):
            raise InvalidRequest(f"{name}: responses are not stored here; send the whole input", path=name)
    if others := beyond(document, _KNOWN, {"top_logprobs": (0,)}):
        raise InvalidRequest(f"{others[0]}: is not served here", path=others[0])
    if any("logprobs" in item for item in wire.include or ()):
        raise InvalidRequest("include: log probabilities are not served here", path="include")
    messages = _messages(wire.input)
    if wire.instructions:
        messages.insert(0, Message(role="system", content=wire.instructions))
    return Decoded(
        model=wire.model,
        payload=ChatPayload(
            messages=tuple(messages),
            sampling=Sampling(temperature=wire.temperature, top_p=wire.top_p),
            tools=tuple(
                Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
                for tool in wire.tools or ()
            ),
            tool_choice=_tool_choice(wire.tool_choice),
            response_format=_response_format(wire.text),
            parallel_tool_calls=wire.parallel_tool_calls,
            reasoning_effort=wire.reasoning.effort if wire.reasoning is not None else None,
        ),
        max_output=wire.max_output_tokens,
        stream=bool(wire.stream),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        show={name: document[name] for name in _ECHOED if document.get(name) is not None},
    )


def _messages(wire: str | list[dict[str, Any]]) -> list[Message]:
    if isinstance(wire, str):
        return [Message(role="user", content=wire)]
    found: list[Message] = []
    for index, item in enumerate(wire):
        message = _item(item, f"input[{index}]")
        if message is None:
            continue
        last = found[-1] if found else None
        if message.tool_calls and last is not None and last.role == "assistant":
            # A turn's text and its calls are items here, and one message to a model.
            found[-1] = msgspec.structs.replace(last, tool_calls=last.tool_calls + message.tool_calls)
        else:
            found.append(message)
    if not found:
        raise InvalidRequest("input: expected at least one message", path="input")
    return found


def _item(item: dict[str, Any], path: str) -> Message | None:
    kind = item.get("type", "message")
    if kind == "message":
        message = _read(item, _MessageItem, path)
        return Message(role=message.role, content=_content(message.content))
    if kind == "function_call":
        call = _read(item, _CallItem, path)
        made = ToolCall(id=call.call_id, name=call.name, arguments=call.arguments)
        return Message(role="assistant", tool_calls=(made,))
    if kind == "function_call_output":
        result = _read(item, _ResultItem, path)
        return Message(role="tool", content=_content(result.output), tool_call_id=result.call_id)
    if kind == "reasoning":
        return None  # a model's thoughts of an earlier turn are not its input
    raise InvalidRequest(
        f"{path}.type: {str(kind)[:64]!r} is not served here; expected message, function_call, "
        "function_call_output or reasoning",
        path=f"{path}.type",
    )


def _read(item: dict[str, Any], shape: type[Any], path: str) -> Any:
    try:
        return read_request(item, shape)
    except InvalidRequest as error:
        inner = error.path or ""
        where = f"{path}.{inner}" if inner else path
        raise InvalidRequest(f"{where}: {error.message.removeprefix(f'{inner}: ')}", path=where) from None


def _content(wire: _Content) -> str | tuple[Part, ...]:
    if isinstance(wire, str):
        return wire
    return tuple(_part(part) for part in wire)


def _part(wire: _InputText | _OutputText | _Refusal | _InputImage) -> Part:
    if isinstance(wire, _InputImage):
        return ImagePart(wire.image_url, wire.detail)
    return TextPart(wire.refusal if isinstance(wire, _Refusal) else wire.text)


def _tool_choice(wire: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A choice in the words of chat, which the backends know."""
    if not isinstance(wire, dict):
        return wire
    if wire.get("type") == "function" and isinstance(wire.get("name"), str):
        return {"type": "function", "function": {"name": wire["name"]}}
    raise InvalidRequest("tool_choice: expected auto, none, required or a function", path="tool_choice")


def _response_format(text: _Text | None) -> dict[str, Any] | None:
    """The answer's form in the words of chat."""
    wire = text.format if text is not None else None
    if wire is None or wire.get("type") == "text":
        return None
    if wire.get("type") == "json_schema":
        schema = {name: value for name, value in wire.items() if name != "type"}
        return {"type": "json_schema", "json_schema": schema}
    return wire
