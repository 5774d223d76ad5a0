"""Addresses that clients of other servers ask for and this version does not serve: said plainly, not just 404.

A row goes when its route comes. May import nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BINARY: Final = "binary tensors (Inference-Header-Content-Length)"
NOTHING: Final = "there is nothing at this address"

_ABSENT: Final[Mapping[str, str]] = {
    "/v1/messages": "Anthropic's dialect",
    "/v1beta/": "Gemini's dialect",
    "/api/": "Ollama's dialect",
    "/v1/responses/": "stored responses",
    "/v1/audio/": "audio",
    "/v1/images/": "image generation",
    "/v1/moderations": "moderations",
    "/v1/files": "files",
    "/v1/uploads": "files",
    "/v1/batches": "batches",
    "/v1/fine_tuning/": "fine-tuning",
    "/v1/assistants": "assistants",
    "/v1/threads": "assistants",
    "/v1/vector_stores": "vector stores",
    "/v1/realtime": "realtime sessions",
    "/v2/repository/": "the model repository extension; models come from the config",
    "/v2/systemsharedmemory/": "shared memory",
    "/v2/cudasharedmemory/": "shared memory",
    "/v2/trace/": "trace settings",
    "/v2/logging": "log settings",
}

_OF_MODELS: Final[Mapping[str, str]] = {
    "/stats": "statistics of models",
    "/config": "statistics of models",
    "/trace/setting": "trace settings",
    "/generate": "the generate extension; /v1/completions does that",
    "/generate_stream": "the generate extension; /v1/completions does that",
}
"""Ends of addresses under `/v2/models`."""


_BASE: Final = "/v1"
_UNDER_BASE: Final = frozenset(
    {"/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/usage", "/limits"}
)
"""What is asked of a base address that lacks `/v1`, or has it twice."""


def missing(what: str) -> str:
    """That something is not served, for people."""
    return f"not supported by this version: {what}"


def told(path: str) -> str:
    """What to say of an address that nothing answers at; empty where nobody would look for anything there."""
    if path.startswith("/v2/models/"):
        return next((missing(what) for end, what in _OF_MODELS.items() if path.endswith(end)), "")
    for start, what in _ABSENT.items():
        if path.startswith(start):
            return missing(what)
    if path in ("/", _BASE, "/v1/"):
        return "clients begin here and ask further on: OpenAI's take this address with /v1; /schema has the rest"
    asked = path.removeprefix(_BASE).removeprefix(_BASE)
    if asked in _UNDER_BASE:
        return f"{NOTHING}; {_BASE}{asked} is there: the base address of OpenAI's clients ends with one /v1"
    return ""
