"""The backend: what the gateway and the engine are given. It must be cheap to make and to import.

A backend with a heavy library would import it inside `load`, which only the engine process calls.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    EmbedPayload,
    InferenceRequest,
    InvalidRequest,
    LoadedModel,
    LoadProgress,
    ModelInfo,
    ModelSpec,
    Report,
    Task,
    Usage,
)

from headgate_echo.speak import EchoSpeaker, Options, ask, input_words
from headgate_echo.vectors import EchoVectors


class EchoBackend:
    """Answers with what it was told: one token per whitespace-separated word."""

    name = "echo"
    kind: Literal["engine"] = "engine"
    tasks: frozenset[Task] = frozenset({"chat", "completion", "embed", "infer"})
    options_type = Options

    def load(self, spec: ModelSpec, report: Report) -> LoadedModel:
        """Make the model. There is nothing to load, but a real model would report as it goes."""
        options = msgspec.convert(spec.options, Options)
        report(LoadProgress(fraction=1.0, what="nothing to load"))
        if spec.task in ("chat", "completion"):
            return EchoSpeaker(options, max_output=spec.max_output_tokens)
        return EchoVectors(options)

    def bound(self, request: InferenceRequest, spec: ModelSpec, info: ModelInfo | None) -> Usage | None:
        """Exactly what the request will consume: words can be counted without running anything.

        None for a request that the model will refuse: it consumes nothing.
        """
        del info  # a tokenizer's limits would come from it; words are words
        payload = request.payload
        if isinstance(payload, ChatPayload | CompletionPayload):
            try:
                answers = ask(request, msgspec.convert(spec.options, Options), spec.max_output_tokens)
            except InvalidRequest:
                return None
            return Usage(input=input_words(payload), output=sum(answer.count for answer in answers))
        if isinstance(payload, EmbedPayload):
            return Usage(
                input=sum(len(text.split()) if isinstance(text, str) else len(text) for text in payload.inputs)
            )
        return Usage()
