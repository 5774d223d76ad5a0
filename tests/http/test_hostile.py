"""Documents with something wrong in them, by the hundred: never a 500, and every 400 is a whole problem."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx2 as httpx
import pytest

GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "echo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 5,
        "stop": ["x"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "metadata": {"a": "b"},
        "options": {"tokens": 3},
        "stream": False,
    },
    "/v1/completions": {"model": "words", "prompt": ["a", "b"], "max_tokens": 3, "options": {"tokens": 2}},
    "/v1/embeddings": {"model": "vectors", "input": ["a", "b"], "dimensions": 64, "options": {}},
    "/v2/models/tensors/infer": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}],
        "outputs": [{"name": "x"}],
        "parameters": {"a": 1},
    },
    "/v1/rerank": {"model": "echo", "query": "a", "documents": ["b"]},
    "/v1/classify": {"model": "echo", "input": ["a"]},
}
ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64,
    10**40,
    1e308,
    "",
    "\0",
    "a\0b",
    "\u202e",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key of a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def spoiled(document: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The document with one to three places changed or left out."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(places(document) or [({"": 0}, "")])
        if isinstance(container, dict) and draw.random() < 0.2:
            del container[key]
        else:
            container[key] = json.loads(json.dumps(draw.choice(ODD)))
    return document


@pytest.mark.parametrize("path", GOOD)
def test_no_document_makes_a_500(client: httpx.Client, path: str) -> None:
    draw = random.Random(path)
    for _ in range(150):
        document = spoiled(GOOD[path], draw)
        answer = client.post(path, json=document)
        assert answer.status_code in {200, 400, 404}, (document, answer.text)
        if answer.status_code == 400:
            assert answer.json()["code"] == "invalid_request"
            assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"model": "m" * 500_000}),
        ("/v1/chat/completions", {"m" * 500_000: 1}),
        ("/v1/chat/completions", {"messages": [{"role": "m" * 500_000, "content": "hi"}]}),
    ],
)
def test_a_name_of_any_length_is_not_sent_back_at_that_length(
    client: httpx.Client, path: str, more: dict[str, Any]
) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], **more}
    answer = client.post(path, json=body)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 10_000
