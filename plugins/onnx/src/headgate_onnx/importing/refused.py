"""The importer of last resort: says what is wrong with a source that no other one took.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headgate_plugin_api import ImportJob, LoadFailed, LoadProgress, Manifest

SUPPORTED = (
    "a Hugging Face folder (config.json and safetensors weights), hf://org/name, an .onnx file, or "
    "py:file.py:function for scikit-learn"
)

_NOT_YET = {
    ".skops": "load it in a function and name that: py:file.py:function",
    ".keras": "export it from Keras 3 with model.export(path, format='onnx') and import the .onnx file",
    ".pt2": "export it with torch.onnx.export(..., dynamo=True) and import the .onnx file",
    ".pt": "a pickle may run code when it is opened; save the weights as safetensors or export an .onnx file",
    ".safetensors": "weights alone do not say what the model is; name the folder that also holds config.json",
}


class RefusedImporter:
    """Accepts everything and explains."""

    backend = "onnx"

    def accepts(self, job: ImportJob) -> bool:  # noqa: ARG002
        """Always: it stands last."""
        return True

    def run(self, job: ImportJob, report: Callable[[LoadProgress], None]) -> Manifest:  # noqa: ARG002
        """Raises `LoadFailed` with the reason and what is supported."""
        path = Path(job.source)
        supported = f"the onnx importer takes {SUPPORTED}"
        if path.suffix in _NOT_YET:
            raise LoadFailed(
                f"{job.source}: {path.suffix} files are not supported yet; {_NOT_YET[path.suffix]} ({supported})"
            )
        if not path.exists():
            raise LoadFailed(f"{job.source} does not exist ({supported})")
        if path.is_dir():
            raise LoadFailed(f"{job.source} has no config.json ({supported})")
        raise LoadFailed(f"{job.source}: no importer knows this kind of file ({supported})")
