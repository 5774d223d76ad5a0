"""Import of a scikit-learn model: `py:file.py:function` returns it with sample inputs, skl2onnx converts it.

The operator's own function is run, in the import's child process only. The model's input type is that of the
samples. Heavy imports stand inside `run`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, Final

import msgspec
from headgate_plugin_api import ImportJob, LoadFailed, LoadProgress, Manifest, Parity

from headgate_onnx.importing.folder import new_folder, write_folder
from headgate_onnx.importing.onnx_file import describe

MAX_ERROR: Final = 1e-4
"""Largest difference to scikit-learn in any probability or prediction, relative to values above 1."""


class ScikitImporter:
    """Takes `py:file.py:function`."""

    backend = "onnx"

    def accepts(self, job: ImportJob) -> bool:
        """Sources that begin with `py:`."""
        return job.source.startswith("py:")

    def run(self, job: ImportJob, report: Callable[[LoadProgress], None]) -> Manifest:
        """Call the function, convert, measure, write. Raises `LoadFailed`."""
        if job.task not in (None, "infer"):
            raise LoadFailed(f"{job.source}: scikit-learn models are imported for task infer, not {job.task}")
        if job.options:
            raise LoadFailed(f"import options: {', '.join(job.options)} unknown; py: sources take none")
        report(LoadProgress(fraction=0.05, what="calling the function"))
        model, samples = call_source(job.source)
        report(LoadProgress(fraction=0.6, what="converting"))
        with new_folder(job.out) as folder:
            (folder / "model.onnx").write_bytes(_convert(job.source, model, samples))
            manifest = describe(folder, job.source)
            report(LoadProgress(fraction=0.8, what="measuring against scikit-learn"))
            parity = _measure(job.source, folder, model, samples)
            manifest = write_folder(folder, msgspec.structs.replace(manifest, parity=parity))
        report(LoadProgress(fraction=1.0, what="done"))
        return manifest


class _Fresh(SourceFileLoader):
    """Runs what the file says now: Python's cache beside it knows a change by size and whole seconds only."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the loader has one file
        return self.source_to_code(self.get_data(self.path), self.path)


def call_source(source: str) -> tuple[Any, Any]:
    """Run `py:file.py:function` and return its model and samples (rows x features).

    Raises:
        LoadFailed: No such file or function, it failed, or it returned something else.
    """
    file, _, name = source.removeprefix("py:").rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise LoadFailed(f"{source}: expected py:file.py:function")
    if not path.is_file():
        raise LoadFailed(f"{path} does not exist")
    if path.suffix != ".py":
        raise LoadFailed(f"{path} is no Python file")
    loader = _Fresh(f"headgate_source_{path.stem}", str(path))
    spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert spec is not None, "there is one where a loader is given"
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses and pickles of the file look their module up there
    try:
        loader.exec_module(module)
        result = getattr(module, name)()
    except Exception as error:  # the operator's code may raise anything
        raise LoadFailed(f"{source}: {type(error).__name__}: {error}") from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise LoadFailed(f"{source}: expected (model, samples), got {type(result).__name__}")
    model, samples = result
    if getattr(samples, "ndim", 0) != 2 or not len(samples) or not hasattr(samples, "dtype"):
        raise LoadFailed(f"{source}: samples must be a numpy array of rows x features with at least one row")
    return model, samples


def _convert(source: str, model: Any, samples: Any) -> bytes:
    try:
        import skl2onnx
        from sklearn.base import is_classifier
        from sklearn.pipeline import Pipeline
    except ImportError as error:
        raise LoadFailed(f"{error}; `pip install headgate-onnx[import]` brings what imports need") from error
    final = model.steps[-1][1] if isinstance(model, Pipeline) else model
    # A map per row, as skl2onnx makes by default, cannot be carried as a tensor.
    try:
        options = {id(final): {"zipmap": False}} if is_classifier(final) else None
        converted = skl2onnx.to_onnx(model, samples[:1], options=options)
    except Exception as error:  # skl2onnx raises a dozen types, also for user errors
        raise LoadFailed(f"{source}: {type(model).__name__} cannot be converted: {str(error)[:500]}") from error
    content: bytes = converted.SerializeToString()
    return content


def _measure(source: str, folder: Path, model: Any, samples: Any) -> Parity:
    """Largest difference to the model itself, all samples in one batch and a few alone."""
    import numpy as np
    import sklearn

    from headgate_onnx.options import OnnxOptions
    from headgate_onnx.session import open_session

    expected = [getattr(model, method)(samples) for method in _methods(model)]
    session = open_session(folder / "model.onnx", "cpu", OnnxOptions()).session
    name = session.get_inputs()[0].name
    given = samples.astype(str).astype(object) if samples.dtype.kind in "US" else samples
    worst = 0.0
    for rows in (slice(None), *(slice(place, place + 1) for place in range(min(len(samples), 8)))):
        for want, found in zip(expected, session.run(None, {name: given[rows]}), strict=False):
            wanted = np.asarray(want)[rows]
            if wanted.dtype.kind in "fc":
                gap = np.abs(found.reshape(wanted.shape) - wanted) / np.maximum(np.abs(wanted), 1.0)
                worst = max(worst, float(gap.max())) if not np.isnan(gap).any() else float("inf")
            elif not np.array_equal(found.reshape(wanted.shape).astype(wanted.dtype), wanted):
                raise LoadFailed(
                    f"{source}: the converted model gives other labels than scikit-learn on its samples"
                )
    if not worst < MAX_ERROR:
        raise LoadFailed(
            f"{source}: the converted model differs from scikit-learn by {worst:.2e}, more than {MAX_ERROR:.0e}; "
            "samples of another dtype (float32 or float64) may convert more exactly"
        )
    return Parity(max_abs_error=worst, samples=len(samples), reference=f"scikit-learn {sklearn.__version__}")


def _methods(model: Any) -> tuple[str, ...]:
    """What gives the reference, in the order of the converted model's outputs."""
    if hasattr(model, "predict_proba"):
        return ("predict", "predict_proba")
    return ("predict",) if hasattr(model, "predict") else ("transform",)
