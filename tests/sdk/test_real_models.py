"""The client's one-pass tasks against real models in real engines, and the bill that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from headgate import Cost, TensorError, errors
from headgate_onnx.importing import OnnxFileImporter, TransformersImporter
from headgate_plugin_api import Importer, ImportJob, Task
from onnx import TensorProto, helper

from tests.deployment import Gateway

from ..onnx import tiny  # noqa: TID252  the same tiny models, not a second kind of them
from .conftest import Driver

MODELS = """
[[models]]
id = "rank"
task = "rerank"
backend = "onnx"
source = "rank"
device = "cpu"
price = { input = "1" }

[[models]]
id = "label"
task = "classify"
backend = "onnx"
source = "label"
device = "cpu"
price = { input = "2", request = "0.000001" }

[[models]]
id = "sums"
task = "infer"
backend = "onnx"
source = "sums"
device = "cpu"
price = { request = "0.000003", minimum = "0.000005" }
"""

DOCUMENTS = ["a gate", "water water", {"text": "the gate of water"}]


def imported(importer: Importer, source: Path, folder: Path, task: Task) -> None:
    """What `headgate models import` does, in this process, which has loaded what that takes."""
    job = ImportJob(source=str(source), id=folder.name, task=task, backend="onnx", out=str(folder))
    assert importer.accepts(job)
    importer.run(job, lambda _: None)


def sums(path: Path) -> Path:
    """A model of two inputs and three outputs of different types: row sums, whether they are large, and names."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])
    least = helper.make_tensor_value_info("least", TensorProto.INT64, ["rows"])
    outputs = [
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("large", TensorProto.BOOL, ["rows"]),
        helper.make_tensor_value_info("first", TensorProto.INT64, ["rows"]),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["least"], ["bar"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["sum", "bar"], ["large"]),
        helper.make_node("ArgMax", ["x"], ["first"], axis=1, keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "sums", [x, least], outputs, [axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("scores")
    sources = tmp_path_factory.mktemp("sources")
    imported(TransformersImporter(), tiny.cross_encoder(sources / "rank"), folder / "rank", "rerank")
    imported(TransformersImporter(), tiny.classifier(sources / "label"), folder / "label", "classify")
    imported(OnnxFileImporter(), sums(sources / "sums.onnx"), folder / "sums", "infer")
    gateway = Gateway(folder, MODELS, workers=2).start()
    yield gateway
    gateway.close()


@pytest.fixture(params=["httpx", "fast"])
def client(request: pytest.FixtureRequest, drive: Driver, real: Gateway) -> Any:
    key = real.key(name=request.node.name)
    return drive.kind(api_key=key, base_url=real.url, transport=request.param, timeout=30)


async def test_rerank(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        asked = {"model": "rank", "query": "water", "documents": DOCUMENTS}
        answer = await drive.do(client.rerank.create, **asked, return_documents=True)
        scores = [result.relevance_score for result in answer.results]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        texts = ["a gate", "water water", "the gate of water"]
        assert all(result.document["text"] == texts[result.index] for result in answer.results)
        assert {result.index for result in answer.results} == {0, 1, 2}
        assert answer.cost.nano == answer.usage.prompt_tokens * 1000 > 0
        best = await drive.do(client.rerank.create, **asked, top_n=1, raw_scores=True)
        (first,) = best.results
        assert first.index == answer.results[0].index
        assert 1 / (1 + exp(-first.relevance_score)) == pytest.approx(scores[0])
        quote = await drive.do(client.quotes.create, **asked)
        assert quote.most.nano >= answer.cost.nano
        assert quote.bound["input"] >= answer.usage.prompt_tokens
        with pytest.raises(errors.InvalidRequest) as empty:
            await drive.do(client.rerank.create, model="rank", query="water", documents=[])
        assert empty.value.path == "documents"


async def test_classify(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        answer = await drive.do(client.classify.create, model="label", input=["a gate", "water"], top_k=2)
        assert [item.index for item in answer.data] == [0, 1]
        for item in answer.data:
            assert item.label in {"calm", "flood", "drought"}
            assert item.num_classes == len(item.probs) == 3
            assert sum(item.probs) == pytest.approx(1)
            assert item.scores[0].label == item.label
            assert len(item.scores) == 2
            assert item.score == max(item.probs)
        assert answer.cost.nano == answer.usage.prompt_tokens * 2000 + 1000
        one = await drive.do(client.classify.create, model="label", input="water", raw_scores=True)
        assert one.data[0].label == answer.data[1].label
        quote = await drive.do(client.quotes.create, model="label", input=["a gate", "water"])
        assert quote.most.nano >= answer.cost.nano


async def test_infer(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        rows = np.array([[1, 2, 3], [0.5, 0.25, 0.125], [-1, -3, -2]], dtype=np.float32)
        least = np.array([5, 1, 0])
        answer = await drive.do(client.infer.create, model="sums", inputs={"x": rows, "least": least})
        found = answer.numpy()
        np.testing.assert_array_equal(found["sum"], rows.sum(axis=1))
        np.testing.assert_array_equal(found["large"], rows.sum(axis=1) > least)
        np.testing.assert_array_equal(found["first"], rows.argmax(axis=1))
        assert [(name, array.dtype) for name, array in found.items()] == [
            ("sum", np.float32), ("large", np.bool_), ("first", np.int64),
        ]  # fmt: skip
        # Lists do as well, and one output may be asked for by name.
        asked: dict[str, Any] = {"x": {"data": [[4, 5, 6]], "datatype": "FP32"}, "least": [15]}
        one = await drive.do(
            client.infer.create, model="sums", inputs=asked, outputs=["large"], version="1", id="mine"
        )
        assert (one.id, one.model_name) == ("mine", "sums")
        assert {output.name: output.tolist() for output in one.outputs} == {"large": [False]}
        record = await drive.do(client.usage.retrieve, one.request_id)
        # One request is 0.000003; the price's minimum is more.
        assert record.amount == Cost(one.cost.nano) == Cost(5000)
        quote = await drive.do(client.quotes.create, model="sums", inputs={"x": rows, "least": least})
        assert quote.most.nano == answer.cost.nano
        with client.budget(max_cost="0.00001") as budget:
            for _ in range(2):
                await drive.do(client.infer.create, model="sums", inputs=asked)
            with pytest.raises(errors.BudgetExceeded) as full:
                await drive.do(client.infer.create, model="sums", inputs=asked)
        assert budget.cost == full.value.spent == Cost(10_000)


async def test_tensors_that_the_model_cannot_take(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        infer = client.infer.create
        with pytest.raises(errors.InvalidRequest, match="FP64") as wrong:
            await drive.do(infer, model="sums", inputs={"x": np.zeros((1, 3)), "least": [1]})
        assert wrong.value.path == "inputs[0].datatype"
        with pytest.raises(errors.InvalidRequest) as missing:
            await drive.do(infer, model="sums", inputs={"x": np.zeros((1, 3), dtype=np.float32)})
        assert missing.value.path == "inputs"
        with pytest.raises(errors.NotFound):
            await drive.do(infer, model="sums", inputs={"x": [1.0]}, version="7")
        half = np.zeros((1, 3), dtype=np.float16)
        for create in (infer, client.quotes.create):
            with pytest.raises(TensorError, match="x: FP16"):
                await drive.do(create, model="sums", inputs={"x": half})


async def test_meters_tags_and_the_ledger_agree(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        began = datetime.now(UTC)
        with client.meter() as meter:
            for team in ("web", "a, b=c", " edges "):
                await drive.do(
                    client.rerank.create, model="rank", query="water", documents=DOCUMENTS, tags={"team": team}
                )
            await drive.do(client.classify.create, model="label", input="water")
        totals = await drive.do(client.usage.query, group_by="tag:team", since=began)
        mine = {row.tag("team"): row.amount for row in totals}
        assert mine.keys() == meter.by_tag("team").keys() == {"web", "a, b=c", " edges ", ""}
        both = await drive.do(client.usage.query, group_by=["model", "tag:team"], since=began)
        ranked = {row.tag("team"): row.amount for row in both if row.model == "rank"}
        assert ranked.keys() == {"web", "a, b=c", " edges "}
        found = await drive.do(client.usage.reconcile, began)
        assert found.ok, found
        assert found.here == meter.cost
        assert found.matched == 4


async def test_a_client_side_budget_knows_the_price(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        await drive.do(client.models.list)
        with client.budget(max_cost="0.000002") as budget, pytest.raises(errors.BudgetExceeded):
            await drive.do(client.rerank.create, model="rank", query="water", documents=["gate " * 50] * 9)
        assert budget.cost == Cost(0)
