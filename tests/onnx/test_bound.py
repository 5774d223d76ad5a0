"""A hold is taken from `bound`: it must never be below what a request then runs."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest
from headgate_onnx.backend import OnnxBackend
from headgate_onnx.tokens import Tokens, tokens_per_byte
from headgate_plugin_api import BatchModel, EmbedPayload, InferenceRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.onnx.conftest import embed, spec


def bound(model: BatchModel, *inputs: str | tuple[int, ...]) -> int:
    request = InferenceRequest(id="req_1", model="m", payload=EmbedPayload(inputs=inputs))
    usage = OnnxBackend().bound(request, spec("x", "embed"), model.info)
    assert usage is not None
    return usage.input


def test_it_is_tight_for_ascii(minilm: BatchModel) -> None:
    assert bound(minilm, "a cat") == len("a cat") + 4


def test_it_never_exceeds_what_the_model_takes(minilm: BatchModel) -> None:
    assert bound(minilm, "cat " * 10_000, "x" * 10_000) == 2 * 256


def test_before_the_model_was_ever_ready_it_knows_nothing_better() -> None:
    request = InferenceRequest(id="req_1", model="m", payload=EmbedPayload(inputs=("ä",)))
    usage = OnnxBackend().bound(request, spec("x", "embed"), None)
    assert usage is not None
    assert usage.input == 2 * 11 + 64


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=4))
def test_it_is_never_too_low(minilm: BatchModel, texts: list[str]) -> None:
    _, tokens = embed(minilm, texts, truncate="END")
    assert tokens <= bound(minilm, *texts)


def test_no_character_makes_more_tokens_than_its_bytes_allow(minilm_folder: Path) -> None:
    tokens = Tokens(minilm_folder, 256)
    assert tokens.per_byte == 2
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    grows = [one for one in characters if len(unicodedata.normalize("NFKD", one).lower()) > 1]
    assert len(grows) > 10_000
    assert all(tokens.count(one) <= 2 * len(one.encode()) for one in grows)


@pytest.mark.parametrize(
    ("normalizer", "factor"),
    [
        (None, 1),
        ({"type": "BertNormalizer"}, 2),
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}, 2),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}, 11),
        ({"type": "Precompiled"}, 11),
    ],
)
def test_the_factor_follows_the_normaliser(normalizer: object, factor: int) -> None:
    assert tokens_per_byte(json.loads(json.dumps({"normalizer": normalizer}))) == factor
