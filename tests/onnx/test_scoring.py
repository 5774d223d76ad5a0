from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headgate_onnx.importing import TransformersImporter
from headgate_plugin_api import (
    BatchModel,
    ClassifyPayload,
    ClassifyResult,
    ImportJob,
    InvalidRequest,
    LoadFailed,
    RerankPayload,
    RerankResult,
    Task,
    UsageReport,
    read_manifest,
)
from transformers import AutoModelForSequenceClassification

from tests.onnx import tiny
from tests.onnx.conftest import answer, load


def convert(source: Path, out: Path, task: Task | None = None) -> Path:
    job = ImportJob(source=str(source), id="m", task=task, backend="onnx", out=str(out))
    assert TransformersImporter().accepts(job)
    TransformersImporter().run(job, lambda _: None)
    return out


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scoring")


@pytest.fixture(scope="session")
def reranker(places: Path) -> BatchModel:
    return load(convert(tiny.cross_encoder(places / "ce"), places / "ce.onnx"), "rerank")


@pytest.fixture(scope="session")
def classifier(places: Path) -> BatchModel:
    return load(
        convert(tiny.classifier(places / "cl", problem_type="multi_label_classification"), places / "cl.onnx"),
        "classify",
    )


def torch_logits(folder: Path, *texts: str) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    encoding = tiny.tokenizer().encode(*texts)  # type: ignore[arg-type]
    feeds = {
        "input_ids": torch.tensor([encoding.ids]),
        "attention_mask": torch.ones(1, len(encoding), dtype=torch.int64),
    }
    if model.config.type_vocab_size > 1:
        feeds["token_type_ids"] = torch.tensor([encoding.type_ids])
    with torch.no_grad():
        return model(**feeds).logits[0].numpy()


DOCUMENTS = ("water gate", "a", "the gate of the canal lets")


def test_rerank_scores_are_torch_s_logits_in_document_order(reranker: BatchModel, places: Path) -> None:
    result, report = answer(reranker, RerankPayload(query="gate", documents=DOCUMENTS))
    assert isinstance(result, RerankResult)
    wanted = [torch_logits(places / "ce", "gate", document)[0] for document in DOCUMENTS]
    assert np.allclose(result.scores, wanted, atol=1e-4)
    assert len(set(result.scores)) == 3
    assert isinstance(report, UsageReport)
    assert report.usage.input == sum(len(tiny.tokenizer().encode("gate", document)) for document in DOCUMENTS)


def test_one_label_means_rerank_unless_asked_otherwise(places: Path, reranker: BatchModel) -> None:
    manifest = read_manifest(places / "ce.onnx")
    assert manifest.task == "rerank"
    assert manifest.max_tokens == 40
    assert manifest.fused_nodes["MultiHeadAttention"] == 2
    assert [value.name for value in manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


def test_classify_texts_and_pairs(classifier: BatchModel, places: Path) -> None:
    result, _ = answer(classifier, ClassifyPayload(inputs=("water", ("gate", "the canal"), "a b c d")))
    assert isinstance(result, ClassifyResult)
    assert result.labels == ("calm", "flood", "drought")
    wanted = [torch_logits(places / "cl", *texts) for texts in (("water",), ("gate", "the canal"), ("a b c d",))]
    assert np.allclose(result.scores, wanted, atol=1e-4)
    assert result.multi_label


def test_positions_of_roberta_begin_behind_the_pad_id(classifier: BatchModel, places: Path) -> None:
    assert read_manifest(places / "cl.onnx").max_tokens == 39
    answer(classifier, ClassifyPayload(inputs=("a " * 37,)))  # 39 with specials: the last position there is
    with pytest.raises(InvalidRequest, match="has 40 tokens, the model takes at most 39"):
        answer(classifier, ClassifyPayload(inputs=("a " * 38,)))


@pytest.mark.parametrize(("side", "expected"), [("END", {"a", "b"}), ("START", {"x", "y"})])
def test_long_pairs_are_cut_fairly(reranker: BatchModel, side: Any, expected: set[str]) -> None:
    query = "a " * 30 + "x " * 30
    document = "b " * 30 + "y " * 30
    request_rows = reranker._tokens.pairs([(query, document)], ["documents[0]"], side)  # type: ignore[attr-defined]
    kept = [tiny.VOCABULARY[token] for token in request_rows[0].ids]
    assert len(kept) == 40
    first, second = kept[1 : kept.index("[SEP]")], kept[kept.index("[SEP]") + 1 : -1]
    assert (len(first), len(second)) == (18, 19)
    assert set(first) | set(second) == expected
    assert list(request_rows[0].types) == [0] * 20 + [1] * 20


def test_a_short_query_stays_whole(reranker: BatchModel) -> None:
    rows = reranker._tokens.pairs([("a b", "c " * 99)], ["documents[0]"], "END")  # type: ignore[attr-defined]
    kept = [tiny.VOCABULARY[token] for token in rows[0].ids]
    assert kept[1:3] == ["a", "b"]
    assert kept[4:-1] == ["c"] * 35


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (RerankPayload(query="", documents=("a",)), "query"),
        (RerankPayload(query="a", documents=()), "documents"),
        (RerankPayload(query="a", documents=("b", "")), "documents[1]"),
        (RerankPayload(query="a", documents=("b", "c " * 50)), "documents[1]"),
        (ClassifyPayload(inputs=("a",)), "model"),
        (RerankPayload(query="a", documents=("\ud800",)), "documents[0]"),
    ],
)
def test_bad_rerank_requests_name_the_field(reranker: BatchModel, payload: Any, path: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(reranker, payload)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (ClassifyPayload(inputs=()), "input"),
        (ClassifyPayload(inputs=("a", ("b", ""))), "input[1]"),
    ],
)
def test_bad_classify_requests_name_the_field(classifier: BatchModel, payload: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(classifier, payload)
    assert caught.value.path == path


def test_a_task_that_the_head_cannot_do_is_refused(places: Path, classifier: BatchModel) -> None:
    with pytest.raises(
        LoadFailed, match="RobertaForSequenceClassification, which can be imported for task classify"
    ):
        convert(places / "cl", places / "never", "rerank")
    assert not (places / "never").exists()
