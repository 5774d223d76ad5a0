"""Long lists of texts as several requests, and their answers as one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headgate._core.money import format_nano
from headgate.errors import ResponseShapeError
from headgate.types.embeddings import Embedding, EmbeddingsResponse
from headgate.types.shared import Raw, Usage

SIZE = 256
"""Texts per request; the gateway batches them again by tokens."""


def parts(value: Any, size: int) -> list[Sequence[Any]]:
    """The input in parts of at most `size` texts; one part for a single text or one list of token ids.

    Arrays, columns of tables and generators are taken as the lists that they make; what is nothing of that kind
    is for the gateway to refuse.

    Raises:
        ValueError: The size is not positive.
    """
    if size < 1:
        raise ValueError(f"batch_size: {size} is not positive")
    given: Sequence[Any] = value
    if hasattr(value, "tolist"):
        given = value.tolist()
    elif hasattr(value, "__next__"):
        given = list(value)
    if not isinstance(given, list | tuple) or not given or isinstance(given[0], int):
        return [given]
    return [given[at : at + size] for at in range(0, len(given), size)]


def options(given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A part's options: a caller's own idempotency key becomes one key per part."""
    part = dict(given)
    if key := part.get("idempotency_key"):
        part["idempotency_key"] = f"{key}-{number}"
    return part


def joined(answers: Sequence[EmbeddingsResponse]) -> EmbeddingsResponse:
    """The parts' answers as one: vectors in order, usage and cost added up.

    Raises:
        ResponseShapeError: The parts were made by different models, so their vectors do not belong together.
    """
    prints = {answer.fingerprint for answer in answers}
    if len(prints) > 1:
        raise ResponseShapeError(
            f"the parts of one call have different fingerprints: {sorted(map(str, prints))}",
            path="headgate-fingerprint",
        )
    first = answers[0]
    data: list[Embedding] = []
    for answer in answers:
        for item in answer.data:
            item.index = len(data)
            data.append(item)
    usages = [answer.usage for answer in answers if answer.usage is not None]
    nanos = [None if answer.cost is None else answer.cost.nano for answer in answers]
    known = [nano for nano in nanos if nano is not None]
    usage = Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        total_tokens=sum(usage.total_tokens for usage in usages),
        cost=format_nano(sum(known)) if len(known) == len(nanos) else None,
    )
    whole = EmbeddingsResponse(object=first.object, model=first.model, data=data, usage=usage)
    headers = {name: value for name, value in first.raw.headers.items() if name != "headgate-cost"}
    attempts = [attempt for answer in answers for attempt in answer.raw.attempts]
    whole.attach(Raw(first.raw.status, headers, b"", attempts, first.raw.idempotency_key))
    return whole
