from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from headgate_plugin_api import (
    BatchModel,
    EmbedPayload,
    EmbedResult,
    InferenceRequest,
    InvalidRequest,
    LoadFailed,
    Manifest,
    read_manifest,
    write_manifest,
)

from tests.onnx.conftest import answer, embed, load

TEXTS = (
    "The cat sits on the mat.",
    "a",
    "Wasser fließt durch den Kanal, bis das Wehr schließt.",
    "naïve café — Ångström №5 ﷺ",
    "def settle(hold, usage): return min(price(usage), hold)",
    "A gate in a canal measures the water that it lets through, and never lets through more. " * 8,
)


@pytest.fixture(scope="session")
def reference(minilm_source: Path) -> Any:
    """The vectors of torch, each text alone, pooled by the formula of the model's card."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm_source, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(minilm_source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def vector(text: str) -> Any:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            mean = model(ids, torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
        return (mean / mean.norm()).numpy()

    return np.stack([vector(text) for text in TEXTS])


def test_the_manifest_says_what_was_made(minilm_folder: Path) -> None:
    manifest = read_manifest(minilm_folder)
    assert (manifest.task, manifest.pooling, manifest.normalize) == ("embed", "mean", True)
    assert (manifest.max_tokens, manifest.dimensions) == (256, 384)
    assert manifest.fused_nodes == {"BiasGelu": 6, "MultiHeadAttention": 6, "SkipLayerNormalization": 12}
    assert manifest.parity is not None
    assert manifest.parity.max_abs_error < 1e-5
    assert set(manifest.files) == {"model.onnx", "tokenizer.json"}


@pytest.mark.parametrize(
    "batch", [range(6), [0], [5, 1], [1, 1, 1], [3, 5, 0]], ids=["all", "one", "long+short", "same", "mixed"]
)
def test_vectors_are_those_of_torch_whatever_the_batch(minilm: BatchModel, reference: Any, batch: Any) -> None:
    places = list(batch)
    vectors, _ = embed(minilm, [TEXTS[place] for place in places])
    assert np.abs(vectors - reference[places]).max() < 1e-5


def test_a_batch_that_is_run_in_parts_keeps_its_order(minilm_folder: Path, reference: Any) -> None:
    model = load(minilm_folder, "embed", options={"max_batch_tokens": 40, "threads": 1})
    vectors, _ = embed(model, TEXTS)
    assert np.abs(vectors - reference).max() < 1e-5


def test_items_of_several_requests_run_together(minilm: BatchModel) -> None:
    requests = [
        InferenceRequest(id=f"req_{n}", model="m", payload=EmbedPayload(inputs=(TEXTS[n], TEXTS[n + 1])))
        for n in range(3)
    ]
    items = [list(minilm.prepare(request)) for request in requests]
    results = minilm.run_batch([item for group in items for item in group])
    for n, request in enumerate(requests):
        events = minilm.finish(request, items[n], results[2 * n : 2 * n + 2])
        alone, _ = embed(minilm, (TEXTS[n], TEXTS[n + 1]))
        assert isinstance(events[0], EmbedResult)
        assert np.allclose(np.frombuffer(events[0].vectors[1], "<f4"), alone[1], atol=1e-5)


def test_what_means_alike_lies_near(minilm: BatchModel) -> None:
    vectors, _ = embed(minilm, ["How do I pay my bill?", "Ways to settle an invoice", "The cat chases a mouse"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_usage_counts_specials_and_no_padding(minilm: BatchModel) -> None:
    _, tokens = embed(minilm, ["cat", "the cat sat on the mat"])
    assert tokens == (1 + 2) + (6 + 2)


def test_longer_than_the_tokenizer_file_would_pad_or_cut(minilm: BatchModel) -> None:
    # MiniLM's tokenizer.json cuts at 128 and pads to 128; neither may show.
    _, tokens = embed(minilm, ["cat " * 200])
    assert tokens == 202


def test_too_long_names_input_tokens_and_limit(minilm: BatchModel) -> None:
    with pytest.raises(InvalidRequest, match=r"input\[1\] has 302 tokens, the model takes at most 256") as caught:
        embed(minilm, ["fine", "cat " * 300])
    assert caught.value.path == "input[1]"


@pytest.mark.parametrize(("side", "kept"), [("END", "head"), ("START", "tail")])
def test_truncation_cuts_the_named_side(minilm: BatchModel, side: Any, kept: str) -> None:
    words = {"head": "cat " * 254, "tail": "dog " * 254}
    vectors, tokens = embed(minilm, [words["head"] + words["tail"]], truncate=side)
    whole, _ = embed(minilm, [words[kept]])
    assert tokens == 256
    assert np.allclose(vectors, whole, atol=1e-5)


def test_operator_can_lower_the_limit(minilm_folder: Path) -> None:
    model = load(minilm_folder, "embed", max_input_tokens=16)
    assert model.info.max_input_tokens == 16
    with pytest.raises(InvalidRequest, match="at most 16"):
        embed(model, ["cat " * 20])


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (EmbedPayload(inputs=("a", "")), "input[1]"),
        (EmbedPayload(inputs=()), "input"),
        (EmbedPayload(inputs=((),)), "input[0]"),
        (EmbedPayload(inputs=("a", "b", "half \ud800")), "input[2]"),
        (EmbedPayload(inputs=((5, 30522),)), "input[0][1]"),
        (EmbedPayload(inputs=((-1,),)), "input[0][0]"),
        (EmbedPayload(inputs=("a",), dimensions=128), "dimensions"),
        (EmbedPayload(inputs=("a",), prompt_name="query"), "prompt_name"),
    ],
)
def test_bad_requests_name_the_field(minilm: BatchModel, payload: EmbedPayload, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(minilm, payload)
    assert caught.value.path == path
    assert caught.value.message


def test_unknown_request_options_are_refused(minilm: BatchModel) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(minilm, EmbedPayload(inputs=("a",)), options={"turbo": True})
    assert caught.value.path == "options.turbo"


def test_token_ids_run_as_given(minilm: BatchModel) -> None:
    from_text, tokens = embed(minilm, ["the cat"])
    from_ids, counted = embed(minilm, [(101, 1996, 4937, 102)])
    assert tokens == counted == 4
    assert np.allclose(from_text, from_ids, atol=1e-6)


def test_a_changed_file_does_not_load(minilm_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(minilm_folder, folder)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(LoadFailed, match=r"tokenizer\.json has sha256"):
        load(folder, "embed")


def variant(folder: Path, target: Path, **changes: Any) -> Path:
    """The same files with another manifest."""
    target.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (target / name).symlink_to(folder / name)
    manifest: Manifest = msgspec.structs.replace(read_manifest(folder), **changes)
    write_manifest(target, manifest)
    return target


def test_dimensions_cut_and_scale_again_where_the_manifest_allows(minilm_folder: Path, tmp_path: Path) -> None:
    model = load(variant(minilm_folder, tmp_path / "m", allow_dimensions=True), "embed")
    full, _ = embed(model, TEXTS[:2])
    cut, _ = embed(model, TEXTS[:2], dimensions=64)
    assert cut.shape == (2, 64)
    assert np.allclose(cut, full[:, :64] / np.linalg.norm(full[:, :64], axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(InvalidRequest, match="expected 1 to 384"):
        embed(model, ["a"], dimensions=385)
    (result, _) = answer(model, EmbedPayload(inputs=("a",), dimensions=64))
    assert isinstance(result, EmbedResult)
    assert result.fingerprint != model.info.fingerprint


def test_prompts_are_chosen_by_name_type_and_default(minilm_folder: Path, tmp_path: Path) -> None:
    changes = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt": "passage"}
    model = load(variant(minilm_folder, tmp_path / "m", **changes), "embed")
    plain = load(minilm_folder, "embed")

    def same(text: str, **facts: Any) -> bool:
        return np.allclose(embed(model, ["water"], **facts)[0], embed(plain, [text])[0], atol=1e-5)

    assert same("query: water", prompt_name="query")
    assert same("query: water", input_type="query")
    assert same("query: water", input_type="search_query")
    assert same("passage: water", input_type="document")
    assert same("passage: water")
    assert not same("water")
    with pytest.raises(InvalidRequest, match="this model has: passage, query"):
        embed(model, ["water"], prompt_name="clustering")


def test_truncating_at_the_start_keeps_the_prompt(minilm_folder: Path, tmp_path: Path) -> None:
    model = load(variant(minilm_folder, tmp_path / "m", prompts={"query": "query: "}), "embed")
    plain = load(minilm_folder, "embed")
    long, tokens = embed(model, ["cat " * 300 + "dog " * 252], prompt_name="query", truncate="START")
    assert tokens == 256
    assert np.allclose(long, embed(plain, ["query: " + "dog " * 252])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"options": {"thread": 2}}, "options of model 'm': Object contains unknown field `thread`"),
        ({"options": {"threads": -1}}, r"\$\.threads"),
    ],
)
def test_bad_options_name_the_field(minilm_folder: Path, facts: Any, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        load(minilm_folder, "embed", **facts)


def test_another_task_than_the_folder_s_is_refused(minilm_folder: Path) -> None:
    with pytest.raises(LoadFailed, match="is a model for task 'embed'; the config says 'rerank'"):
        load(minilm_folder, "rerank")
