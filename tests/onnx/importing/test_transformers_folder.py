from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headgate_onnx.importing import TransformersImporter
from headgate_onnx.importing import transformers_folder as importer_module
from headgate_onnx.importing.heads import Embedder
from headgate_onnx.importing.sentence import read_recipe
from headgate_plugin_api import ImportJob, LoadFailed, Manifest
from safetensors.torch import save_file
from transformers import AutoModel

from tests.onnx import tiny
from tests.onnx.conftest import embed, load


def job(source: Path, out: Path, **facts: Any) -> ImportJob:
    return ImportJob(source=str(source), id="m", task=None, backend="onnx", out=str(out), **facts)


def convert(source: Path, out: Path, **facts: Any) -> Manifest:
    return TransformersImporter().run(job(source, out, **facts), lambda _: None)


TEXTS = ("water gate", "a", "the gate of the canal")


@pytest.mark.parametrize(
    ("pooling", "fold"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda rows: rows[0]),
        ({"pooling_mode_mean_tokens": True}, lambda rows: rows.mean(axis=0)),
        ({"pooling_mode_max_tokens": True}, lambda rows: rows.max(axis=0)),
        ({"pooling_mode": "lasttoken"}, lambda rows: rows[-1]),
    ],
    ids=["cls", "mean", "max", "last"],
)
def test_pooling_is_the_folder_s_and_blind_to_padding(tmp_path: Path, pooling: dict[str, Any], fold: Any) -> None:
    source = tiny.sentence_model(tmp_path / "s", pooling=pooling)
    transformer = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    ids = torch.tensor([[2, 4, 5, 6, 3], [2, 4, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        found = Embedder(transformer, read_recipe(source).pooling, (), normalize=False)(ids, mask).numpy()
        tokens = transformer(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    assert np.allclose(found, [fold(tokens[0]), fold(tokens[1, :3])], atol=1e-5)


def test_a_dense_layer_stands_between_pooling_and_normalisation(tmp_path: Path) -> None:
    source = tiny.sentence_model(
        tmp_path / "s", pooling={"pooling_mode_mean_tokens": True}, modules=("Dense", "Normalize")
    )
    dense = source / "2_Dense"
    dense.mkdir()
    facts = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (dense / "config.json").write_text(json.dumps(facts))
    weight, bias = torch.linspace(-1, 1, 256).reshape(8, 32), torch.linspace(0, 1, 8)
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors")
    (source / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "gate "}, "default_prompt_name": None})
    )
    manifest = convert(source, tmp_path / "m", options={"allow_dimensions": True, "max_tokens": 20})
    assert (manifest.dimensions, manifest.max_tokens, manifest.allow_dimensions) == (8, 20, True)
    assert manifest.prompts == {"query": "gate "}
    vectors, _ = embed(load(tmp_path / "m", "embed"), TEXTS)
    raw = [np.tanh(weight.numpy() @ tiny.hidden(source, text).mean(axis=0) + bias.numpy()) for text in TEXTS]
    assert np.allclose(vectors, [row / np.linalg.norm(row) for row in raw], atol=1e-4)


def test_a_language_model_as_embedder(tmp_path: Path) -> None:
    source = tiny.decoder(tmp_path / "s")
    manifest = convert(source, tmp_path / "m")
    assert (manifest.pooling, manifest.fused_nodes["MultiHeadAttention"]) == ("last", 2)
    vectors, _ = embed(load(tmp_path / "m", "embed"), TEXTS)
    assert np.allclose(vectors, [tiny.hidden(source, text)[-1] for text in TEXTS], atol=1e-4)


def test_a_conversion_that_is_not_exact_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer_module, "MAX_ERROR", 1e-12)
    source = tiny.distilled(tmp_path / "s")
    with pytest.raises(LoadFailed, match="differs from torch by"):
        convert(source, tmp_path / "out" / "m")
    assert list((tmp_path / "out").iterdir()) == []


def test_somebody_else_s_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(LoadFailed, match="is no model folder"):
        convert(tiny.distilled(tmp_path / "s"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (("WeightedLayerPooling",), {}, "modules of type 'WeightedLayerPooling' cannot be converted"),
        ((), {"pooling_mode": "weightedmean"}, "pooling weightedmean cannot be converted"),
        (
            (),
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pooling pooling_mode_cls_token, pooling_mode_mean_tokens cannot be converted",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path: Path, modules: Any, pooling: Any, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        read_recipe(tiny.sentence_model(tmp_path / "s", pooling=pooling, modules=modules))


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../.."])
def test_module_paths_stay_in_the_folder(tmp_path: Path, path: str) -> None:
    source = tiny.sentence_model(tmp_path / "s", pooling={})
    listed = [{"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.Pooling"}]
    (source / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(LoadFailed, match="leads out of the folder"):
        read_recipe(source)


def test_code_that_comes_with_a_folder_is_not_run(tmp_path: Path) -> None:
    source = tiny.distilled(tmp_path / "s")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(LoadFailed, match="trust_remote_code"):
        convert(source, tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"rubbish"), "s: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "s: "),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, change: Any, message: str) -> None:
    source = tiny.distilled(tmp_path / "s")
    change(source)
    with pytest.raises(LoadFailed, match=message):
        convert(source, tmp_path / "m")


def test_unknown_import_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="unknown field `quantise`"):
        convert(tmp_path, tmp_path / "m", options={"quantise": True})
