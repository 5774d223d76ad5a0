"""The backend `openai`: any server that speaks OpenAI's chat, completions or embeddings.

A request that came in OpenAI's dialect is passed through with every field; other dialects are encoded. A stream
that ends without its end mark was cut off and is an error, never a short answer. May import dialects, the plugin
API and this distribution.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from headgate_dialects import openai_chat, openai_completions, openai_embeddings
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    EmbedPayload,
    Event,
    Finished,
    InferenceRequest,
    RemoteModel,
    TargetSpec,
    Task,
    TextPart,
    Upstream,
    UpstreamFailed,
    UpstreamResponse,
    Usage,
)

from headgate_remote.answers import ERROR_BODY, refusal

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of a whole answer; an embedding of 2,048 texts in decimals is about 60 MB."""

TOOL_EXPANSION: Final = 4
"""How much longer a tool's schema may stand in the prompt than in the document."""

_PATHS: Final[dict[str, str]] = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embed": "/embeddings",
}

_DECODERS: Final[dict[str, Callable[[bytes], Sequence[Event]]]] = {
    "chat": openai_chat.decode_answer,
    "completion": openai_completions.decode_answer,
}


class OpenAIOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `options` of a target.

    Attributes:
        headers: Sent with every request, for providers that want more than a credential.
        limit_field: How the provider calls the output limit; by default as the client did, else `max_tokens`.
        tokens_per_byte: Most input tokens that one UTF-8 byte can become. 1 holds for every byte-level
            tokenizer; embedding models with NFKC normalisation need 11. Default: 1 for text generation and for
            OpenAI itself, 11 for other embeddings.
        template_tokens: Most tokens that the provider's chat template adds per message and per request.
    """

    headers: dict[str, str] = {}
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    tokens_per_byte: int | None = None
    template_tokens: int = 64


_PLAIN: Final = OpenAIOptions()


class _Reader(Protocol):
    """What the stream decoders of both dialects have in common."""

    done: bool

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Events that a piece completes."""
        ...

    def end(self) -> Iterable[Event]:
        """Events left when the connection closes."""
        ...


class OpenAIBackend:
    """See the module."""

    name = "openai"
    kind: Literal["remote"] = "remote"
    tasks: frozenset[Task] = frozenset({"chat", "completion", "embed"})
    options_type: type[msgspec.Struct] = OpenAIOptions

    def connect(self, spec: TargetSpec, upstream: Upstream) -> RemoteModel:
        """See `RemoteBackend`."""
        return OpenAIModel(spec, upstream)

    def bound(self, request: InferenceRequest, spec: TargetSpec) -> Usage | None:
        """See `RemoteBackend`. None where images or audio are in the request: only the provider knows.

        Input is bounded by the whole document that is sent, because fields that we do not know may reach the
        model as well.
        """
        payload = request.payload
        options = msgspec.convert(spec.options, OpenAIOptions) if spec.options else _PLAIN
        if isinstance(payload, ChatPayload) and has_media(payload):
            return None
        size, pieces, choices = len(_prepared(request, spec, options)), 1, 0
        match payload:
            case ChatPayload():
                native = request.native
                if payload.tools or (native is not None and native.document.get("tools")):
                    # A template may print the schemas of tools with indentation.
                    tools = encode(request, spec, options).get("tools", ())
                    size += (TOOL_EXPANSION - 1) * len(msgspec.json.encode(tools))
                pieces, choices = len(payload.messages), payload.n
            case CompletionPayload():
                pieces = len(payload.prompts)
                choices = pieces * payload.n
            case EmbedPayload():
                pieces = len(payload.inputs)
            case _:
                return None
        tokens = size * _tokens_per_byte(spec, options) + options.template_tokens * (pieces + 1)
        return Usage(input=tokens, output=choices * (request.max_output or 0))


class OpenAIModel:
    """One target."""

    def __init__(self, spec: TargetSpec, upstream: Upstream) -> None:
        self._spec = spec
        self._upstream = upstream
        self._options = msgspec.convert(spec.options, OpenAIOptions)
        self._url = spec.base_url.rstrip("/") + _PATHS[spec.task]
        self._what = f"the provider of {spec.model!r}"
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if spec.api_key is not None:
            self._headers["authorization"] = f"Bearer {spec.api_key}"
        self._decode = _DECODERS.get(spec.task, openai_embeddings.decode_answer)
        self._headers |= {name.lower(): value for name, value in self._options.headers.items()}

    async def run(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """See `RemoteModel`. A stream must be told to its end."""
        if not request.stream or self._spec.task == "embed":
            for event in await self.answer(request):
                yield event
            return
        response = await self._sent(request)
        try:
            if not 200 <= response.status < 300:
                raise await self._refused(response)
            reader: _Reader = (
                openai_chat.StreamDecoder() if self._spec.task == "chat" else openai_completions.StreamDecoder()
            )
            finished = False
            async for chunk in response.chunks():
                for event in reader.feed(chunk):
                    finished = finished or isinstance(event, Finished)
                    yield event
                if reader.done:
                    return
            for event in reader.end():
                finished = finished or isinstance(event, Finished)
                yield event
            # Some servers leave the end mark out; one that finished its choices has said all the same.
            if not (reader.done or finished):
                raise UpstreamFailed(f"{self._what} broke its stream off")
        finally:
            await response.close()

    async def answer(self, request: InferenceRequest) -> Sequence[Event]:
        """See `WholeAnswers`."""
        response = await self._sent(request)
        try:
            if not 200 <= response.status < 300:
                raise await self._refused(response)
            return self._decode(await response.read(MAX_ANSWER))
        finally:
            await response.close()

    async def close(self) -> None:
        """See `RemoteModel`. The connections belong to the gateway."""

    async def _sent(self, request: InferenceRequest) -> UpstreamResponse:
        body = _prepared(request, self._spec, self._options)
        # The provider's own deduplication, where it has one: the same request id is the same work.
        headers = {**self._headers, "idempotency-key": request.id}
        timeout_s = min(self._spec.timeout_s, request.timeout_ms / 1000)
        return await self._upstream.send("POST", self._url, headers=headers, body=body, timeout_s=timeout_s)

    async def _refused(self, response: UpstreamResponse) -> Exception:
        try:
            body = await response.read(ERROR_BODY)
        except UpstreamFailed:
            body = b""
        return refusal(response.status, response.headers, body, target=self._what, secret=self._spec.api_key)


def encode(request: InferenceRequest, spec: TargetSpec, options: OpenAIOptions) -> dict[str, Any]:
    """The document that is sent to the provider."""
    match spec.task:
        case "chat":
            return openai_chat.encode_request(request, spec.upstream_model, limit_field=options.limit_field)
        case "completion":
            return openai_completions.encode_request(request, spec.upstream_model)
        case _:
            return openai_embeddings.encode_request(request, spec.upstream_model)


def _prepared(request: InferenceRequest, spec: TargetSpec, options: OpenAIOptions) -> bytes:
    """The document as it is sent. What a request was bounded by is not encoded again to send it."""
    native, limit = request.native, request.max_output
    if native is None:
        return msgspec.json.encode(encode(request, spec, options))
    place = (id(spec), limit)
    body = native.prepared.get(place)
    if body is None:
        body = native.prepared[place] = msgspec.json.encode(encode(request, spec, options))
    return body


def _tokens_per_byte(spec: TargetSpec, options: OpenAIOptions) -> int:
    if options.tokens_per_byte is not None:
        return options.tokens_per_byte
    byte_level = spec.task != "embed" or urlsplit(spec.base_url).hostname == "api.openai.com"
    return 1 if byte_level else 11


def has_media(payload: ChatPayload) -> bool:
    """Whether a conversation carries anything but text."""
    for message in payload.messages:
        content = message.content
        if not isinstance(content, str) and not all(isinstance(part, TextPart) for part in content):
            return True
    return False
