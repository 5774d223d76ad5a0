from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

FOREST = """
def forest():
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    print("noise on stdout, as libraries make it")
    x, y = load_digits(return_X_y=True)
    return RandomForestClassifier(n_estimators=2, random_state=0).fit(x, y), x[:4].astype("float32")
"""


@pytest.mark.timeout(300)
def test_a_scikit_learn_model_becomes_a_folder(tmp_path: Path, headgate: Callable[..., str]) -> None:
    (tmp_path / "digits.py").write_text(FOREST)
    source = ("py:digits.py:forest", "--id", "team/digits", "--task", "infer", "--backend", "onnx")
    told = json.loads(headgate(tmp_path, "models", "import", *source, "--json"))
    assert told["folder"] == "models/team--digits"
    assert told["manifest"]["task"] == "infer"
    assert set(told["manifest"]["files"]) <= {path.name for path in (tmp_path / told["folder"]).iterdir()}
    model = '[[models]]\nid = "digits"\ntask = "infer"\nbackend = "onnx"\nsource = "%s"\n'
    (tmp_path / "headgate.toml").write_text(model % told["folder"])
    headgate(tmp_path, "check")


def test_a_failed_import_names_its_cause(tmp_path: Path, headgate: Callable[..., str]) -> None:
    source = ("nowhere", "--id", "x", "--backend", "onnx", "--out", "out")
    assert "nowhere does not exist" in headgate(tmp_path, "models", "import", *source, code=1)
    assert not (tmp_path / "out").exists()
