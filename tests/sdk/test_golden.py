"""The gateway's golden answers are read by the client's types: two sets of types, one wire."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from headgate.types import (
    ChatCompletion,
    ClassifyResponse,
    Completion,
    EmbeddingsResponse,
    InferResponse,
    RerankResponse,
)

GOLDEN = Path(__file__).parents[1] / "dialects" / "golden"
KINDS: dict[str, Any] = {
    "chat": ChatCompletion,
    "completions": Completion,
    "embeddings": EmbeddingsResponse,
    "infer": InferResponse,
    "rerank": RerankResponse,
    "classify": ClassifyResponse,
}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_golden_answer_is_read(path: Path) -> None:
    document = json.loads(path.read_text())["answer"]
    answer = KINDS[path.stem.partition("-")[0]].model_validate(document)
    again = json.loads(answer.model_dump_json(exclude_unset=True))
    for item in document.get("data", []):
        if isinstance(item.get("embedding"), str):
            raw = base64.b64decode(item["embedding"])
            item["embedding"] = [float(x) for x in memoryview(raw).cast("f")]
    # Nothing that the gateway says is lost on the way through our types.
    assert again == document


def test_the_corpus_is_there() -> None:
    assert {path.stem.partition("-")[0] for path in GOLDEN.glob("*.json")} == set(KINDS)
