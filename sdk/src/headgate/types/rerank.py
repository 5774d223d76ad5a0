"""Rerank and classify: texts in, scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from pydantic import Field

from headgate.types.shared import Answer, RequestOptions, Usage, Wire


class DocumentParam(TypedDict):
    """A document to rank."""

    text: str


class RerankParams(RequestOptions, total=False):
    """Parameters of a rerank call; None is not sent."""

    model: Required[str]
    query: Required[str]
    documents: Required[Sequence[str | DocumentParam]]
    top_n: int | None
    return_documents: bool | None
    raw_scores: bool | None
    truncate: Literal["END", "START"] | None
    metadata: Mapping[str, str] | None
    options: Mapping[str, Any] | None


class RerankResult(Wire):
    """One document's place."""

    index: int
    relevance_score: float
    document: Any = None


class RerankResponse(Answer):
    """Documents, best first."""

    id: str | None = None
    model: str | None = None
    results: list[RerankResult] = Field(default_factory=list[RerankResult])
    usage: Usage | None = None


class ClassifyParams(RequestOptions, total=False):
    """Parameters of a classify call; None is not sent."""

    model: Required[str]
    input: Required[str | Sequence[str] | Sequence[tuple[str, str]]]
    top_k: int | None
    raw_scores: bool | None
    explain: bool | None
    truncate: Literal["END", "START"] | None
    metadata: Mapping[str, str] | None
    options: Mapping[str, Any] | None


class LabelScore(Wire):
    """A label and its score."""

    label: str
    score: float


class Classification(Wire):
    """One text's label."""

    index: int = 0
    label: str | None = None
    score: float | None = None
    probs: list[float] | None = None
    num_classes: int | None = None
    scores: list[LabelScore] = Field(default_factory=list[LabelScore])


class ClassifyResponse(Answer):
    """Labels, in the order of the texts."""

    id: str | None = None
    model: str | None = None
    data: list[Classification] = Field(default_factory=list[Classification])
    usage: Usage | None = None
