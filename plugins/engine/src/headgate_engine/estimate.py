"""How many tokens a request may be, before a model has looked at it: what bounds a queue, never a bill.

May import the plugin API.
"""

from __future__ import annotations

from typing import Final

from headgate_plugin_api import (
    ChatPayload,
    ClassifyPayload,
    CompletionPayload,
    EmbedPayload,
    InferenceRequest,
    InferPayload,
    RerankPayload,
)

CHARACTERS_PER_TOKEN: Final = 4


def estimated_tokens(request: InferenceRequest) -> int:
    """A guess at the input tokens of a request; at least 1."""
    payload = request.payload
    match payload:
        case ChatPayload():
            characters = sum(len(message.text) for message in payload.messages)
        case CompletionPayload():
            characters = sum(map(len, payload.prompts))
        case EmbedPayload():
            return max(1, sum(_of_input(text) for text in payload.inputs))
        case RerankPayload():
            characters = sum(len(payload.query) + len(document) for document in payload.documents)
        case ClassifyPayload():
            characters = sum(
                len(text) if isinstance(text, str) else sum(map(len, text)) for text in payload.inputs
            )
        case InferPayload():
            characters = sum(len(tensor.data) for tensor in payload.inputs)
    return characters // CHARACTERS_PER_TOKEN + 1


def _of_input(text: str | tuple[int, ...]) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 1 if isinstance(text, str) else len(text)
