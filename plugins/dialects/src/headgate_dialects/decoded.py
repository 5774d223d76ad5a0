"""What every dialect decodes a request to, and what it needs to encode the answer.

May import the plugin API.
"""

from __future__ import annotations

from typing import Any

import msgspec
from headgate_plugin_api import Payload


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request, read.

    Attributes:
        model: The model asked for, an id or an alias; empty where the dialect names it in the path.
        payload: What is to be done.
        max_output: Output tokens per choice that the client asked for; None when it did not say.
        stream: Whether it wants the answer while it is made.
        include_usage: Whether a stream shall end with a usage chunk.
        options: Per-request options of the backend.
        tags: From `metadata`; for usage queries.
        show: What the client asked of the answer's form (`encoding_format`, `top_n`, ...); for `AnswerMeta`.
        beyond: Fields that ask for what the payload cannot say: only a provider of the dialect, who is sent the
            client's own document, may know them.
    """

    model: str
    payload: Payload
    max_output: int | None = None
    stream: bool = False
    include_usage: bool = False
    options: dict[str, Any] = {}
    tags: dict[str, str] = {}
    show: dict[str, Any] = {}
    beyond: tuple[str, ...] = ()


class AnswerMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of an answer that are not in its events.

    Attributes:
        id: The request id.
        model: The model id as the client asked for it.
        created: Unix seconds.
        cost: What it costs the caller as a decimal string; None when it is not known (yet).
        include_usage: As in `Decoded`.
        version: The model's version (Open Inference Protocol).
        show: As in `Decoded`.
        payload: The request's payload, for answers that repeat parts of it (rerank's documents).
    """

    id: str
    model: str
    created: int
    cost: str | None = None
    include_usage: bool = False
    version: str = "1"
    show: dict[str, Any] = {}
    payload: Payload | None = None
