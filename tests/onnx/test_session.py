from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from headgate_onnx import session as session_module
from headgate_onnx.backend import OnnxBackend
from headgate_onnx.options import OnnxOptions
from headgate_onnx.session import check_wheels, cuda_problem, open_session, usable_cores
from headgate_plugin_api import LoadFailed
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression

NO_CUDA = cuda_problem()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "m.onnx"
    rows = np.eye(2, dtype=np.float32)
    path.write_bytes(to_onnx(LinearRegression().fit(rows, [1, 2]), rows).SerializeToString())
    return path


def test_cpu_says_threads_and_version(model: Path) -> None:
    opened = open_session(model, "cpu", OnnxOptions(threads=3))
    assert opened.device == "cpu"
    assert opened.detail == f"onnxruntime {ort.__version__}, CPU, 3 threads"
    assert opened.session.get_session_options().intra_op_num_threads == 3


def test_threads_default_to_the_cores_that_may_be_used(model: Path) -> None:
    opened = open_session(model, "cpu", OnnxOptions())
    assert opened.session.get_session_options().intra_op_num_threads == usable_cores() >= 1


@pytest.mark.skipif(NO_CUDA is None, reason="this machine has a usable CUDA device")
def test_auto_falls_back_and_says_why(model: Path) -> None:
    opened = open_session(model, "auto", OnnxOptions())
    assert opened.device == "cpu"
    assert f"(auto: {NO_CUDA})" in opened.detail


@pytest.mark.skipif(NO_CUDA is None, reason="this machine has a usable CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_explicit_cuda_never_falls_back(model: Path, device: str) -> None:
    with pytest.raises(LoadFailed, match="cannot be used: ") as caught:
        open_session(model, device, OnnxOptions())
    assert NO_CUDA is not None
    assert NO_CUDA in caught.value.message


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_unknown_devices_are_named(model: Path, device: str) -> None:
    with pytest.raises(LoadFailed, match="expected cpu, cuda:N or auto"):
        open_session(model, device, OnnxOptions())


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
def test_every_optimisation_level_gives_the_same(model: Path, level: Any) -> None:
    opened = open_session(model, "cpu", OnnxOptions(graph_optimization=level, spin=True, arena=False))
    [found] = opened.session.run(None, {"X": np.eye(2, dtype=np.float32)})
    assert np.allclose(found.reshape(-1), [1, 2], atol=1e-5)


def test_two_wheels_in_one_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What pip leaves behind when both were installed: two distributions, one folder of files.
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metadata.version("onnxruntime") == "1.0"
    with pytest.raises(LoadFailed, match="pip uninstall onnxruntime onnxruntime-gpu"):
        check_wheels()


def test_one_wheel_is_fine() -> None:
    check_wheels()


def test_the_backend_names_itself_and_its_tasks() -> None:
    backend = OnnxBackend()
    assert (backend.name, backend.kind) == ("onnx", "engine")
    assert backend.tasks == {"embed", "rerank", "classify", "infer"}
    assert backend.options_type is OnnxOptions


def test_a_provider_that_cannot_be_loaded_names_the_library() -> None:
    # The GPU wheel is installed here without CUDA's libraries: the loader must be quoted, not paraphrased.
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    problem = session_module._provider_problem()
    if problem is None:
        pytest.skip("this machine has the CUDA libraries")
    assert ".so" in problem
    assert "headgate-onnx[cuda]" in problem
