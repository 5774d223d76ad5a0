from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from headgate_onnx.importing import OnnxFileImporter
from headgate_onnx.tensors import to_array, to_tensor
from headgate_plugin_api import ImportJob, InferPayload, InferResult, LoadFailed, Manifest
from onnx import TensorProto, helper, numpy_helper

from tests.onnx.conftest import answer, load


def adder(folder: Path, *, weights: str | None = None) -> Path:
    """A graph that adds two rows of weights, kept in a file of their own when one is named."""
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        initializer=[numpy_helper.from_array(np.array([1, 2], np.float32), "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "adder.onnx"
    if weights is not None:
        onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
        onnx.save(model, path)
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = weights
    path.write_bytes(model.SerializeToString())
    return path


def convert(source: Path, out: Path, **facts: Any) -> Manifest:
    job = ImportJob(
        **({"source": str(source), "id": "m", "task": "infer", "backend": "onnx", "out": str(out)} | facts)
    )
    assert OnnxFileImporter().accepts(job)
    return OnnxFileImporter().run(job, lambda _: None)


@pytest.mark.parametrize("weights", [None, "w.bin"], ids=["inside", "beside"])
def test_a_graph_is_copied_with_its_weights_and_runs(tmp_path: Path, weights: str | None) -> None:
    manifest = convert(adder(tmp_path, weights=weights), tmp_path / "out" / "m")
    assert [(value.name, value.shape) for value in manifest.inputs] == [("x", (-1, 2))]
    assert set(manifest.files) == {"model.onnx", *([weights] if weights else [])}
    model = load(tmp_path / "out" / "m", "infer")
    tensor = to_tensor("x", "FP32", np.zeros((3, 2), np.float32))
    result, _ = answer(model, InferPayload(inputs=(tensor,)))
    assert isinstance(result, InferResult)
    assert to_array(result.outputs[0], "y").tolist() == [[1, 2]] * 3


@pytest.mark.parametrize("weights", ["../w.bin", "/etc/passwd", "sub/../../w.bin", "gone.bin", ""])
def test_weights_anywhere_else_are_refused(tmp_path: Path, weights: str) -> None:
    with pytest.raises(LoadFailed, match=r"outside its folder|missing or a link"):
        convert(adder(tmp_path, weights=weights), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = adder(tmp_path, weights="w.bin")
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadFailed, match="missing or a link"):
        convert(path, tmp_path / "m")


def test_maps_cannot_be_served_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    import skl2onnx
    from sklearn.linear_model import LogisticRegression

    rows = np.array([[0.0], [1.0]], np.float32)
    converted = skl2onnx.to_onnx(LogisticRegression().fit(rows, [0, 1]), rows)
    path = tmp_path / "mapped.onnx"
    path.write_bytes(converted.SerializeToString())
    with pytest.raises(LoadFailed, match="ZipMap off"):
        convert(path, tmp_path / "m")


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"task": "embed"}, "also holds the tokenizer"), ({"options": {"x": 1}}, "x unknown")],
)
def test_what_a_bare_file_cannot_be(tmp_path: Path, facts: Any, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        convert(adder(tmp_path), tmp_path / "m", **facts)


def test_rubbish_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 10)
    with pytest.raises(LoadFailed, match=r"m\.onnx"):
        convert(path, tmp_path / "m")
