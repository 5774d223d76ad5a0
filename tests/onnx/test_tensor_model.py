from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from headgate_onnx.tensors import to_array, to_tensor
from headgate_plugin_api import (
    BatchModel,
    InferenceRequest,
    InferPayload,
    InferResult,
    InvalidRequest,
    Item,
    LoadFailed,
    Tensor,
    read_manifest,
)
from onnx import TensorProto, helper

from tests.onnx.conftest import ROOT, answer, load


@pytest.fixture(scope="session")
def digits_example() -> Any:
    spec = importlib.util.spec_from_file_location("digits_example", ROOT / "examples" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits(digits_folder: Path) -> BatchModel:
    return load(digits_folder, "infer")


def pixels(rows: Any) -> Tensor:
    return to_tensor("X", "FP32", rows)


def run(model: BatchModel, *inputs: Tensor, outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    result, _ = answer(model, InferPayload(inputs=inputs, outputs=outputs))
    assert isinstance(result, InferResult)
    return {tensor.name: to_array(tensor, tensor.name) for tensor in result.outputs}


def test_the_forest_answers_as_scikit_learn_does(digits: BatchModel, digits_example: Any) -> None:
    _, held_out, _, labels = digits_example.data()
    forest, _ = digits_example.model()
    found = run(digits, pixels(held_out))
    assert np.array_equal(found["label"], forest.predict(held_out))
    assert np.abs(found["probabilities"] - forest.predict_proba(held_out)).max() < 1e-5
    assert np.mean(found["label"] == labels) == forest.score(held_out, labels) > 0.95


def test_signature_is_in_manifest_and_info(digits_folder: Path, digits: BatchModel) -> None:
    manifest = read_manifest(digits_folder)
    assert [(value.name, value.datatype, value.shape) for value in digits.info.inputs] == [
        ("X", "FP32", (-1, 64))
    ]
    assert [(value.name, value.datatype) for value in digits.info.outputs] == [
        ("label", "INT64"),
        ("probabilities", "FP32"),
    ]
    assert manifest.outputs == digits.info.outputs
    assert manifest.parity is not None
    assert manifest.parity.samples == 450


def test_requests_are_joined_and_taken_apart(digits: BatchModel, digits_example: Any) -> None:
    _, rows, _, _ = digits_example.data()
    sizes = (1, 5, 2)
    items: list[Item] = []
    expected = []
    start = 0
    for n, size in enumerate(sizes):
        piece = rows[start : start + size]
        payload = InferPayload(inputs=(pixels(piece),))
        items += digits.prepare(InferenceRequest(id=f"req_{n}", model="m", payload=payload))
        expected.append(run(digits, pixels(piece)))
        start += size
    assert [item.tokens for item in items] == [1, 5, 2]
    assert len({item.shape for item in items}) == 1
    for found, want in zip(digits.run_batch(items), expected, strict=True):
        assert np.array_equal(found["label"], want["label"])
        # Not equal bit by bit: the runtime sums a forest's trees in another order for other batch sizes.
        assert np.allclose(found["probabilities"], want["probabilities"], atol=1e-5)


def test_only_the_outputs_that_were_asked_for(digits: BatchModel, digits_example: Any) -> None:
    _, rows, _, _ = digits_example.data()
    assert list(run(digits, pixels(rows[:1]), outputs=("probabilities",))) == ["probabilities"]


GOOD = np.zeros((1, 64), dtype=np.float32)


@pytest.mark.parametrize(
    ("inputs", "outputs", "path"),
    [
        ((to_tensor("X", "FP32", GOOD[:, :63]),), (), "inputs[0].shape"),
        ((to_tensor("X", "FP32", GOOD[0]),), (), "inputs[0].shape"),
        ((to_tensor("X", "FP64", GOOD),), (), "inputs[0].datatype"),
        ((to_tensor("Y", "FP32", GOOD),), (), "inputs[0].name"),
        ((to_tensor("X", "FP32", GOOD), to_tensor("X", "FP32", GOOD)), (), "inputs[1].name"),
        ((), (), "inputs"),
        ((to_tensor("X", "FP32", GOOD),), ("labels",), "outputs[0].name"),
        ((Tensor(name="X", datatype="FP32", shape=(1, 64), data=b"\0" * 255),), (), "inputs[0].data"),
    ],
)
def test_bad_tensors_are_named(digits: BatchModel, inputs: Any, outputs: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(digits, *inputs, outputs=outputs)
    assert caught.value.path == path


def graph(folder: Path, nodes: Any, inputs: Any, outputs: Any, name: str = "g.onnx") -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_strings_and_halves_pass_through_a_bare_file(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        [helper.make_node("Identity", ["s"], ["t"]), helper.make_node("Add", ["h", "h"], ["twice"])],
        [("s", TensorProto.STRING, [None]), ("h", TensorProto.FLOAT16, [None, 2])],
        [("t", TensorProto.STRING, [None]), ("twice", TensorProto.FLOAT16, [None, 2])],
    )
    model = load(path, "infer")
    found = run(
        model,
        to_tensor("s", "BYTES", np.array(["λ", ""], dtype=object)),
        to_tensor("h", "FP16", np.array([[1, 2], [3, 4]], dtype=np.float16)),
    )
    assert list(found["t"]) == ["λ", ""]
    assert found["twice"].tolist() == [[2, 4], [6, 8]]
    assert "not checked against a manifest" in model.info.detail


def test_inputs_with_different_rows_are_refused(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        [helper.make_node("Add", ["a", "b"], ["c"])],
        [("a", TensorProto.FLOAT, [None, 2]), ("b", TensorProto.FLOAT, [None, 2])],
        [("c", TensorProto.FLOAT, [None, 2])],
    )
    two, three = np.zeros((2, 2), np.float32), np.zeros((3, 2), np.float32)
    with pytest.raises(InvalidRequest) as caught:
        run(load(path, "infer"), to_tensor("a", "FP32", two), to_tensor("b", "FP32", three))
    assert caught.value.path == "inputs[1].shape"


def two_requests(model: BatchModel, name: str) -> list[Any]:
    rows = [np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 4.0]], np.float32)]
    return [
        item
        for n, row in enumerate(rows)
        for item in model.prepare(
            InferenceRequest(
                id=f"req_{n}", model="m", payload=InferPayload(inputs=(to_tensor(name, "FP32", row),))
            )
        )
    ]


def test_a_graph_whose_first_axis_is_no_batch_is_not_joined(tmp_path: Path) -> None:
    # The output has two rows for each row that goes in: joined, it could not be told apart.
    path = graph(
        tmp_path,
        [helper.make_node("Concat", ["a", "a"], ["c"], axis=0)],
        [("a", TensorProto.FLOAT, [None, 2])],
        [("c", TensorProto.FLOAT, [None, 2])],
    )
    model = load(path, "infer")
    first, second = model.run_batch(two_requests(model, "a"))
    assert first["c"].tolist() == [[1, 2], [1, 2]]
    assert second["c"].tolist() == [[3, 4], [3, 4]]


def test_batching_off_keeps_requests_apart(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        [helper.make_node("Softmax", ["a"], ["c"], axis=0)],
        [("a", TensorProto.FLOAT, [None, 2])],
        [("c", TensorProto.FLOAT, [None, 2])],
    )
    model = load(path, "infer", options={"batching": "off"})
    items = two_requests(model, "a")
    assert items[0].shape != items[1].shape
    assert [found["c"].tolist() for found in model.run_batch(items)] == [[[1, 1]], [[1, 1]]]


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_bare_file_has_no_other_task(tmp_path: Path, task: Any) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    with pytest.raises(LoadFailed, match=r"can only be an \.onnx file of task infer"):
        load(path, task)


def test_rubbish_is_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(LoadFailed, match=r"m\.onnx: onnxruntime refuses it"):
        load(path, "infer")


def test_a_folder_without_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="headgate models import"):
        load(tmp_path, "infer")


def test_a_hub_source_has_to_be_imported_first() -> None:
    with pytest.raises(LoadFailed, match="headgate models import hf://a/b"):
        load("hf://a/b", "embed")
