"""The fake gateway's models: pure, deterministic answers with honest token counts. One word is one token."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

Answerer = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of the fake gateway.

    Attributes:
        task: What it does: `chat`, `embed`, `rerank`, `classify`, `infer`.
        price: As in the gateway's config: decimal strings, tokens per million.
        answer: Text for a request; the last user message by default.
        dimensions: Length of its vectors.
    """

    task: str = "chat"
    price: Mapping[str, str] = field(default_factory=lambda: {"input": "1", "output": "2"})
    answer: Answerer | None = None
    dimensions: int = 8


def last_user_text(document: Mapping[str, Any]) -> str:
    """The last user message, or the prompt."""
    for message in reversed(document.get("messages") or []):
        if message.get("role") == "user":
            return flat_text(message.get("content"))
    prompt = document.get("prompt", document.get("input", ""))
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def flat_text(content: Any) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    parts = cast("list[Mapping[str, str]]", content or [])
    return " ".join(part.get("text", "") for part in parts)


def count_input(document: Mapping[str, Any]) -> int:
    """Tokens that go in."""
    if "messages" in document:
        texts = [flat_text(message.get("content")) for message in document["messages"]]
    else:
        given = document.get("input", document.get("prompt", document.get("documents", "")))
        texts = [given] if isinstance(given, str) else [str(item) for item in given]
        texts.append(str(document.get("query", "")))
    return sum(len(text.split()) for text in texts)


def words(text: str) -> list[str]:
    """Text as tokens that join to it again."""
    found: list[str] = []
    for word in text.split(" "):
        found.append(word if not found else f" {word}")
    return found if text else []


def vector(text: str, dimensions: int) -> list[float]:
    """A deterministic vector of length 1."""
    raw = b""
    counter = 0
    while len(raw) < dimensions * 2:
        raw += hashlib.sha256(f"{counter}:{text}".encode()).digest()
        counter += 1
    numbers = [value / 32768 for value in struct.unpack(f"<{dimensions}h", raw[: dimensions * 2])]
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    return [struct.unpack("<f", struct.pack("<f", number / norm))[0] for number in numbers]


def encoded(numbers: list[float]) -> str:
    """A vector as base64."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def overlap(query: str, text: str) -> float:
    """A relevance score: the share of the query's words that a text has."""
    asked = set(query.lower().split())
    return len(asked & set(text.lower().split())) / len(asked) if asked else 0.0
