"""Requests of OpenAI chat completions, both directions.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from headgate_plugin_api import (
    AudioPart,
    ChatPayload,
    FilePart,
    ImagePart,
    InferenceRequest,
    InvalidRequest,
    Message,
    Part,
    Role,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
)

from headgate_dialects.decoded import Decoded
from headgate_dialects.fields import MAX_LIMIT, Usual, beyond, known_fields, read_request, read_tags
from headgate_dialects.openai_stream import StreamOptions, stop_strings

NAME: Final = "openai_chat"

LimitField = Literal["max_tokens", "max_completion_tokens"]

_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
_Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


# -- the request as it stands on the wire


class _Text(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class _Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class _ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class _Image(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: _ImageUrl


class _AudioData(msgspec.Struct):
    data: str
    format: str


class _Audio(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: _AudioData


class _File(msgspec.Struct, tag_field="type", tag="file"):
    file: dict[str, Any]


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _CalledFunction


class _Message(msgspec.Struct):
    role: Role
    content: str | list[_Text | _Refusal | _Image | _Audio | _File] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Function | None = None


class ChatRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_LIMIT)] | None = None
    seed: _Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_KNOWN: Final = known_fields(
    ChatRequest, "user", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "prediction", "parallel_tool_calls", "reasoning_effort",
    "verbosity",
)  # fmt: skip
_USUAL: Usual = {"modalities": (["text"],), "function_call": ("none", "auto"), "top_logprobs": (0,)}


def decode_request(document: Any) -> Decoded:
    """Read a client's request.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, ChatRequest)
    return Decoded(
        model=wire.model,
        payload=ChatPayload(
            messages=tuple([_message(message, index) for index, message in enumerate(wire.messages)]),
            n=wire.n or 1,
            sampling=Sampling(
                temperature=wire.temperature,
                top_p=wire.top_p,
                top_k=wire.top_k,
                seed=wire.seed,
                presence_penalty=wire.presence_penalty,
                frequency_penalty=wire.frequency_penalty,
                stop=stop_strings(wire.stop),
            ),
            tools=_tools(wire.tools or ()),
            tool_choice=wire.tool_choice,
            response_format=wire.response_format,
        ),
        max_output=_asked_limit(wire.max_completion_tokens, wire.max_tokens),
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        beyond=beyond(document, _KNOWN, _USUAL),
    )


def _asked_limit(new: int | None, old: int | None) -> int | None:
    """Where a client names both spellings, the smaller is what it can live with."""
    return min(new, old) if new is not None and old is not None else new or old


def _message(wire: _Message, index: int) -> Message:
    if wire.content is None and wire.role != "assistant":
        path = f"messages[{index}].content"
        raise InvalidRequest(f"{path}: is required for role {wire.role!r}", path=path)
    if wire.role == "tool" and wire.tool_call_id is None:
        path = f"messages[{index}].tool_call_id"
        raise InvalidRequest(f"{path}: is required for role 'tool'", path=path)
    content = wire.content
    return Message(
        role=wire.role,
        content=content if isinstance(content, str) else tuple(_part(part) for part in content or ()) or "",
        name=wire.name,
        tool_calls=_calls(wire.tool_calls) if wire.tool_calls else (),
        tool_call_id=wire.tool_call_id,
    )


def _calls(wire: Sequence[_Call]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments) for call in wire
    )


def _part(wire: _Text | _Refusal | _Image | _Audio | _File) -> Part:
    if isinstance(wire, _Text):
        return TextPart(wire.text)
    if isinstance(wire, _Refusal):
        return TextPart(wire.refusal)
    if isinstance(wire, _Image):
        return ImagePart(wire.image_url.url, wire.image_url.detail)
    if isinstance(wire, _File):
        return FilePart(wire.file)
    return AudioPart(wire.input_audio.data, wire.input_audio.format)


def _tools(wire: Sequence[_Tool]) -> tuple[Tool, ...]:
    """The functions among the tools; kinds that only a provider knows stay in the native document."""
    tools: list[Tool] = []
    for index, tool in enumerate(wire):
        function = tool.function
        if function is not None:
            tools.append(
                Tool(
                    name=function.name,
                    description=function.description,
                    parameters=function.parameters,
                    strict=function.strict,
                )
            )
        elif tool.type == "function":
            path = f"tools[{index}].function"
            raise InvalidRequest(f"{path}: is required", path=path)
    return tuple(tools)


def encode_request(
    request: InferenceRequest, upstream_model: str, *, limit_field: LimitField | None = None
) -> dict[str, Any]:
    """The body for an OpenAI-compatible upstream.

    A request that came in this dialect keeps every field; only model, stream, stream usage and the output
    limit are set. `limit_field` names the field for that limit; by default the one that the client used,
    else `max_tokens`, which every server knows (one that ignored the limit would run on at our cost).
    """
    assert isinstance(request.payload, ChatPayload)
    native = request.native
    document = (
        dict(native.document)
        if native is not None and native.dialect == NAME
        else _document(request.payload, request.options)
    )
    document["model"] = upstream_model
    if limit_field is None:
        limit_field = "max_completion_tokens" if document.get("max_completion_tokens") else "max_tokens"
    document.pop("max_tokens", None)
    document.pop("max_completion_tokens", None)
    if request.max_output is not None:
        document[limit_field] = request.max_output
    set_stream(document, stream=request.stream)
    return document


def set_stream(document: dict[str, Any], *, stream: bool) -> None:
    """Ask an upstream for a stream with usage at its end, or for none."""
    if stream:
        document["stream"] = True
        options = document.get("stream_options")
        document["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    else:
        document.pop("stream", None)
        document.pop("stream_options", None)


def _document(payload: ChatPayload, options: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {"messages": [_message_document(message) for message in payload.messages]}
    if payload.n != 1:
        document["n"] = payload.n
    document |= sampling_document(payload.sampling)
    if payload.tools:
        document["tools"] = [_tool_document(tool) for tool in payload.tools]
    if payload.tool_choice is not None:
        document["tool_choice"] = payload.tool_choice
    for name in ("response_format", "parallel_tool_calls", "reasoning_effort"):
        if (value := getattr(payload, name)) is not None:
            document[name] = value
    if options:
        document["options"] = options
    return document


def sampling_document(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields that were set."""
    fields = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")
    document = {name: value for name in fields if (value := getattr(sampling, name)) is not None}
    if sampling.stop:
        document["stop"] = list(sampling.stop)
    return document


def _message_document(message: Message) -> dict[str, Any]:
    document: dict[str, Any] = {"role": message.role}
    if isinstance(message.content, str):
        document["content"] = message.content if message.content or not message.tool_calls else None
    else:
        document["content"] = [_part_document(part) for part in message.content]
    if message.name is not None:
        document["name"] = message.name
    if message.tool_calls:
        document["tool_calls"] = [call_document(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    return document


def _part_document(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        image = {"url": part.url} if part.detail is None else {"url": part.url, "detail": part.detail}
        return {"type": "image_url", "image_url": image}
    if isinstance(part, FilePart):
        return {"type": "file", "file": part.file}
    return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}


def _tool_document(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def call_document(call: ToolCall) -> dict[str, Any]:
    """A tool call on the wire, in messages and in answers."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
