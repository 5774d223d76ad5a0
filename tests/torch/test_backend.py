from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from headgate_plugin_api import (
    LoadFailed,
    LoadProgress,
    Manifest,
    ModelSpec,
    StepModel,
    sha256_of,
    write_manifest,
)
from headgate_torch.backend import TorchBackend
from headgate_torch.model import TorchModel
from headgate_torch.options import TorchOptions
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

Make = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, spec: ModelSpec) -> Path:
    """A copy of the shipped model's folder, to be spoiled."""
    assert spec.source is not None
    return Path(shutil.copytree(spec.source, tmp_path / "model"))


def load(spec: ModelSpec, **change: Any) -> Any:
    return TorchBackend().load(msgspec.structs.replace(spec, **change), lambda progress: None)


def test_the_shipped_model_is_what_its_card_says(spec: ModelSpec) -> None:
    seen: list[LoadProgress] = []
    model = TorchBackend().load(spec, seen.append)
    assert isinstance(model, StepModel)
    assert [progress.fraction for progress in seen] == sorted(progress.fraction for progress in seen)
    assert seen[-1].fraction == 1.0
    info = model.info
    assert (info.device, info.max_input_tokens, info.tokens_per_byte, info.platform) == ("cpu", 511, 1, "pytorch")
    assert "3.3 M parameters, float32" in info.detail
    assert spec.source is not None
    weights = sum(path.stat().st_size for path in Path(spec.source).glob("*.safetensors"))
    assert weights <= 8_000_000


def test_the_shipped_model_writes_words_of_its_book(loaded: TorchModel, ask: Make, chat: Make) -> None:
    text = ask(loaded, chat("And the LORD spake unto Moses, saying,", most=80, temperature=0.7, seed=3)).text()
    words = text.split()
    assert len(words) > 30
    common = {
        "the",
        "and",
        "of",
        "unto",
        "that",
        "shall",
        "in",
        "he",
        "And",
        "LORD",
        "they",
        "to",
        "them",
        "thou",
    }
    assert sum(word.strip(",.;:") in common for word in words) > len(words) / 4


def test_the_shipped_model_says_greedily_what_transformers_generates(
    loaded: TorchModel, spec: ModelSpec, ask: Make, completion: Make
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(spec.source)
    network = LlamaForCausalLM.from_pretrained(spec.source, dtype=torch.float32)
    for text in ("In the beginning", "Now it came to pass", "Give ear, O"):
        inputs = tokenizer(text, return_tensors="pt")
        made = network.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False,
                                temperature=None, max_new_tokens=40)  # fmt: skip
        whole = tokenizer.decode(made[0], skip_special_tokens=True)
        assert text + ask(loaded, completion(text, most=40, temperature=0)).text() == whole


def test_options_are_strict() -> None:
    for wrong in ({"dtpye": "float32"}, {"dtype": "int8"}, {"threads": 0}, {"max_requests": "many"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, TorchOptions)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": None}, "needs `source`"),
        ({"source": "/nowhere/at/all"}, "/nowhere/at/all/config.json does not exist"),
        ({"device": "tpu"}, "expected cpu, cuda, cuda:N or auto"),
        ({"device": "cuda:99"}, "sees \\d+ CUDA devices"),
        ({"device": "meta"}, "expected cpu"),
        ({"options": {"speed": 9}}, "speed"),
        ({"task": "embed"}, "chat and completion, not embed"),
    ],
)
def test_a_spec_that_cannot_be_loaded_says_why(spec: ModelSpec, change: dict[str, Any], says: str) -> None:
    with pytest.raises(LoadFailed, match=says):
        load(spec, **change)


def test_weights_in_pickles_are_not_read(folder: Path, spec: ModelSpec) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match=r"no \*\.safetensors"):
        load(spec, source=str(folder))


def test_missing_weights_are_an_error_and_never_random(folder: Path, spec: ModelSpec) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"missing keys.*layers\.1\.mlp"):
        load(spec, source=str(folder))


def test_a_truncated_file_is_named(folder: Path, spec: ModelSpec) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadFailed, match=str(folder)):
        load(spec, source=str(folder))


def test_a_manifest_is_held_against_the_files(folder: Path, spec: ModelSpec) -> None:
    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    write_manifest(folder, Manifest(task="chat", backend="torch", files=files, fingerprint="f00"))
    assert load(spec, source=str(folder)).info.fingerprint == "f00"
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(LoadFailed, match=r"tokenizer_config\.json has sha256"):
        load(spec, source=str(folder))


def test_chat_without_a_template_is_refused_at_load(folder: Path, spec: ModelSpec) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(LoadFailed, match="no chat template"):
        load(spec, source=str(folder))
    assert load(spec, source=str(folder), task="completion").info.max_input_tokens == 511


def test_the_operators_limits_narrow_the_models(spec: ModelSpec) -> None:
    info = load(spec, max_input_tokens=100, max_output_tokens=50).info
    assert (info.max_input_tokens, info.max_output_tokens) == (100, 50)


@pytest.mark.parametrize("kind", ["dynamic", "mamba"])
def test_a_model_whose_rows_feel_their_neighbours_is_refused(kind: str, folder: Path, spec: ModelSpec) -> None:
    (folder / "model.safetensors").unlink()
    sizes: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2}
    if kind == "mamba":
        MambaForCausalLM(MambaConfig(**sizes, state_size=4)).save_pretrained(folder)
    else:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        config = LlamaConfig(**sizes, intermediate_size=48, num_attention_heads=4, rope_parameters=rope)
        LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(LoadFailed, match=r"not supported|does not run"):
        load(spec, source=str(folder))


def test_shorter_types_run(spec: ModelSpec, ask: Make, chat: Make) -> None:
    model = load(spec, options={"dtype": "bfloat16", "max_requests": 3, "threads": 1})
    assert "bfloat16" in model.info.detail
    assert model.room == 3
    assert ask(model, chat("And God said", most=30, seed=1)).usage.output > 0


def modules_after(code: str, **environment: str) -> set[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_naming_the_plugin_imports_nothing_heavy() -> None:
    found = modules_after("import headgate_torch.plugin as p\np.headgate_register_backends(lambda backend: None)")
    assert not found & {"torch", "transformers", "numpy", "tokenizers"}


def test_a_model_out_of_a_hubs_cache_brings_no_server(spec: ModelSpec, tmp_path: Path) -> None:
    assert spec.source is not None
    cached, commit = tmp_path / "hub" / "models--org--tiny-lm", "0" * 40
    shutil.copytree(spec.source, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    found = modules_after(
        "from headgate_torch.backend import TorchBackend\nfrom headgate_plugin_api import ModelSpec\n"
        "spec = ModelSpec(id='m', task='chat', backend='torch', source='hf://org/tiny-lm')\n"
        "TorchBackend().load(spec, lambda progress: None)",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert "torch" in found
    assert not found & {"litestar", "sqlalchemy", "uvicorn", "pyreqwest", "headgate_gateway", "starlette"}


@pytest.mark.parametrize(
    ("content", "says"), [('{"temperature": "hot"}', "hot"), ("[]", "an object"), ("{", "line 1")]
)
def test_a_malformed_generation_config_is_named(content: str, says: str, folder: Path, spec: ModelSpec) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(LoadFailed, match=rf"generation_config\.json: .*{says}"):
        load(spec, source=str(folder))
