from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headgate_onnx.importing import ScikitImporter
from headgate_onnx.tensors import to_array, to_tensor
from headgate_plugin_api import ImportJob, InferPayload, InferResult, LoadFailed, Manifest, read_manifest

from tests.onnx.conftest import answer, load

HEAD = """
import numpy as np
from dataclasses import dataclass
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
rows = np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32)
"""


def convert(tmp_path: Path, code: str, name: str = "model", **facts: Any) -> Manifest:
    file = tmp_path / "source.py"
    file.write_text("from __future__ import annotations\n" + HEAD + code)
    os.utime(file, (1, 1))
    job = ImportJob(
        **(
            {
                "source": f"py:{file}:{name}",
                "id": "m",
                "task": None,
                "backend": "onnx",
                "out": str(tmp_path / "m"),
            }
            | facts
        )
    )
    assert ScikitImporter().accepts(job)
    return ScikitImporter().run(job, lambda _: None)


def run(folder: Path, rows: Any, datatype: Any) -> dict[str, Any]:
    model = load(folder, "infer")
    result, _ = answer(model, InferPayload(inputs=(to_tensor(model.info.inputs[0].name, datatype, rows),)))
    assert isinstance(result, InferResult)
    return {tensor.name: to_array(tensor, tensor.name) for tensor in result.outputs}


def test_a_pipeline_with_labels_of_text(tmp_path: Path) -> None:
    manifest = convert(
        tmp_path,
        "@dataclass\nclass Kept:\n    note: str = ''\n"
        "labels = np.where(rows[:, 0] > 0, 'wet', 'dry')\n"
        "made = make_pipeline(StandardScaler(), LogisticRegression())\n"
        "def model():\n    return made.fit(rows, labels), rows\n",
    )
    assert [(value.name, value.datatype) for value in manifest.outputs] == [
        ("label", "BYTES"),
        ("probabilities", "FP32"),
    ]
    assert manifest.parity is not None
    found = run(tmp_path / "m", np.array([[3, 0, 0], [-3, 0, 0]], np.float32), "FP32")
    assert list(found["label"]) == ["wet", "dry"]
    assert np.allclose(found["probabilities"].sum(axis=1), 1.0, atol=1e-5)


def test_a_regressor_in_double_precision(tmp_path: Path) -> None:
    manifest = convert(
        tmp_path,
        "def model():\n    x = rows.astype(np.float64)\n    return LinearRegression().fit(x, x @ [1, 2, 3]), x\n",
    )
    assert manifest.inputs[0].datatype == "FP64"
    found = run(tmp_path / "m", np.array([[1, 1, 1]], np.float64), "FP64")
    assert np.allclose(next(iter(found.values())), 6.0, atol=1e-9)


def test_an_earlier_import_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, too: what Python caches of a file is known by its size and the second in which it was written."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    code = "def model():\n    return LinearRegression().fit(rows, rows @ [{}, 2, 3]), rows\n"
    first = convert(tmp_path, code.format(1))
    second = convert(tmp_path, code.format(9))
    assert read_manifest(tmp_path / "m") == second
    assert second.fingerprint != first.fingerprint
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("code", "facts", "message"),
    [
        ("def model():\n    return 1 / 0\n", {}, "ZeroDivisionError: division by zero"),
        ("def model():\n    return 5\n", {}, r"expected \(model, samples\), got int"),
        ("def model():\n    return 5, [1]\n", {}, "samples must be a numpy array of rows x features"),
        ("def model():\n    return 5, rows\n", {}, "int cannot be converted"),
        ("def other():\n    pass\n", {}, "has no attribute 'model'"),
        ("x = (\n", {}, "SyntaxError"),
        ("", {"task": "classify"}, "imported for task infer, not classify"),
        ("", {"source": "py:nowhere.py:model"}, r"nowhere\.py does not exist"),
        ("", {"source": "py:nowhere.py"}, "expected py:file.py:function"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, code: str, facts: Any, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        convert(tmp_path, code, **facts)
    assert not (tmp_path / "m").exists()
