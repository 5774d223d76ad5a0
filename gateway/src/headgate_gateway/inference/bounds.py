"""The upper bound of every billable dimension of a request, before it is admitted.

A hold is taken from it, so it must never be too low: a budget stays whole in any case, because the ledger
captures at most the hold, but what a low bound misses is the house's loss. May import domain, settings and the
plugin API.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import msgspec
from headgate_plugin_api import (
    ChatPayload,
    ClassifyPayload,
    CompletionPayload,
    EmbedPayload,
    FilePart,
    InferenceRequest,
    InvalidRequest,
    Message,
    ModelInfo,
    Payload,
    RerankPayload,
    TextPart,
    Usage,
)
from msgspec.structs import replace

from headgate_gateway.domain.admission import Principal
from headgate_gateway.settings import Model

BYTES_PER_TOKEN: Final = 4
"""Divides bytes where nobody counts tokens."""

STEP: Final = 1_024
"""Output tokens by which a stream asks for more; the ledger holds as many at first."""

TOOL_EXPANSION: Final = 4
"""A chat template may print a tool's schema with indentation: up to this many times its compact JSON."""

MEDIA_TOKENS: Final = 50_000
"""Input tokens allowed for an image or a piece of audio when nobody knows a maximum; more than any provider
publishes for one image. Keys with a budget are refused instead."""

FILE_TOKENS: Final = 1_000_000
"""The same for a file, which may be a book: as much as models read."""

_UNKNOWN: Final = ModelInfo()
_WITH_OUTPUT: Final = (ChatPayload, CompletionPayload)


class Bound(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What one request can consume at most.

    Attributes:
        usage: Every dimension but output.
        limit: Output tokens per choice that the backend is told, None for tasks without output.
        choices: How many answers are made side by side.
        most: Output tokens of all choices together, at most.
        least: Output tokens below which it is not worth running.
        payload: What is asked.
    """

    usage: Usage
    limit: int | None
    choices: int
    most: int
    least: int
    payload: Payload

    @cached_property
    def estimated_input(self) -> Usage:
        """What goes in, where nobody counts it: as many tokens as its bytes mostly are, within the bound."""
        tokens = -(-input_bytes(self.payload) // BYTES_PER_TOKEN)
        return Usage(input=min(self.usage.prompt_tokens, tokens), requests=1)


def bound_of(
    request: InferenceRequest,
    model: Model,
    info: ModelInfo | None,
    own: Usage | None,
    principal: Principal,
    *,
    asked: bool,
) -> Bound:
    """Bound a request whose `max_output` is `output_limit(...)` already.

    Args:
        request: The request, with its effective output limit.
        model: The model's settings.
        info: What is known of the model.
        own: The backend's own bound, taken where it is lower than the general one.
        principal: Who asks.
        asked: Whether the caller named an output limit; then a whole answer is not worth running with less.

    Raises:
        InvalidRequest: The request has images or audio, nobody knows what they cost, and the key has a budget.
    """
    payload = request.payload
    # Only matters where gpu time has a price: then a request holds what its time limit allows.
    gpu_ms = int(model.timeout_s * 1000)
    if own is None:
        usage = Usage(input=_general_input(payload, info or _UNKNOWN, principal), requests=1, gpu_ms=gpu_ms)
    else:
        usage = replace(own, output=0, reasoning=0, requests=1, gpu_ms=own.gpu_ms or gpu_ms)
    if request.max_output is None:
        return Bound(usage=usage, limit=None, choices=1, most=0, least=0, payload=payload)
    choices = choices_of(payload)
    ceiling = choices * request.max_output
    most = ceiling if own is None else min(ceiling, own.completion_tokens)
    # A backend that knows the length beforehand, or a client that named one, is not served with less. Everyone
    # else takes what a small budget still covers.
    known = asked or most < ceiling
    least = most if known and not request.stream else min(choices, most)
    return Bound(usage=usage, limit=request.max_output, choices=choices, most=most, least=least, payload=payload)


def output_limit(
    request: InferenceRequest, model: Model, info: ModelInfo | None, principal: Principal
) -> int | None:
    """Output tokens per choice: what was asked, or the model's default, under the limits of model and key."""
    if not isinstance(request.payload, _WITH_OUTPUT):
        return None
    least = model.default_output if request.max_output is None else request.max_output
    for limit in (model.max_output_tokens, info.max_output_tokens if info else None, principal.max_output):
        if limit is not None and limit < least:
            least = limit
    return least


def choices_of(payload: Payload) -> int:
    """How many answers a payload asks for."""
    if isinstance(payload, ChatPayload):
        return payload.n
    if isinstance(payload, CompletionPayload):
        return payload.n * len(payload.prompts)
    return 1


def input_bytes(payload: Payload) -> int:
    """UTF-8 bytes of everything that a model may be made to read; media and tensors count as nothing here."""
    match payload:
        case ChatPayload():
            size = sum(_message_bytes(message) for message in payload.messages)
            if payload.tools:
                size += TOOL_EXPANSION * len(msgspec.json.encode(payload.tools))
            if payload.response_format:
                size += TOOL_EXPANSION * len(msgspec.json.encode(payload.response_format))
            return size
        case CompletionPayload():
            return sum(_size(prompt) for prompt in payload.prompts)
        case EmbedPayload():
            return sum(_size(item) if isinstance(item, str) else 4 * len(item) for item in payload.inputs)
        case RerankPayload():
            # Every document is read together with the query.
            return sum(_size(document) for document in payload.documents) + _size(payload.query) * len(
                payload.documents
            )
        case ClassifyPayload():
            return sum(sum(map(_size, (item,) if isinstance(item, str) else item)) for item in payload.inputs)
        case _:
            return 0


def _general_input(payload: Payload, info: ModelInfo, principal: Principal) -> int:
    """Input tokens at most, from bytes, template overhead and media."""
    size = input_bytes(payload)
    pieces, media, token_ids = 1, 0, 0
    match payload:
        case ChatPayload():
            pieces = len(payload.messages)
            media = _media(payload, principal)
        case CompletionPayload():
            pieces = len(payload.prompts)
        case EmbedPayload():
            pieces = len(payload.inputs)
            token_ids = sum(len(item) for item in payload.inputs if not isinstance(item, str))
            size -= 4 * token_ids
        case RerankPayload():
            pieces = len(payload.documents)
        case ClassifyPayload():
            pieces = len(payload.inputs)
        case _:
            return 0
    tokens = size * info.tokens_per_byte + token_ids + media + info.template_tokens * (pieces + 1)
    if info.max_input_tokens is not None:
        tokens = min(tokens, info.max_input_tokens * (1 if isinstance(payload, ChatPayload) else pieces))
    return tokens


def _media(payload: ChatPayload, principal: Principal) -> int:
    tokens = 0
    for number, message in enumerate(payload.messages):
        if isinstance(message.content, str):
            continue
        for place, part in enumerate(message.content):
            if not isinstance(part, TextPart):
                if principal.budgeted:
                    raise InvalidRequest(
                        "nobody knows the most that images, audio or files can cost with this model, so a key "
                        "with a budget cannot send them",
                        path=f"messages[{number}].content[{place}]",
                    )
                tokens += FILE_TOKENS if isinstance(part, FilePart) else MEDIA_TOKENS
    return tokens


def _message_bytes(message: Message) -> int:
    size = _size(message.text) + _size(message.name or "") + _size(message.tool_call_id or "")
    for call in message.tool_calls:
        size += _size(call.id) + _size(call.name) + _size(call.arguments)
    return size


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
