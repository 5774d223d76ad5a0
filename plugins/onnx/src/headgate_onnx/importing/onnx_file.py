"""Import of an `.onnx` file for task `infer`: checked, copied, its signature read from the graph.

onnxruntime resolves weights kept outside the graph by a path in the file; such paths are checked here, because
a file from elsewhere could name any file of this machine. Heavy imports stand inside `run`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from headgate_plugin_api import ImportJob, LoadFailed, LoadProgress, Manifest, sha256_of

from headgate_onnx.importing.folder import fingerprint, new_folder, write_folder


class OnnxFileImporter:
    """Takes `.onnx` files."""

    backend = "onnx"

    def accepts(self, job: ImportJob) -> bool:
        """A file of that suffix."""
        return job.source.endswith(".onnx") and Path(job.source).is_file()

    def run(self, job: ImportJob, report: Callable[[LoadProgress], None]) -> Manifest:
        """Check, copy, write the manifest. Raises `LoadFailed`."""
        if job.task not in (None, "infer"):
            raise LoadFailed(
                f"{job.source}: a bare .onnx file can be imported for task infer; for {job.task} import the "
                "Hugging Face folder that it was made from, which also holds the tokenizer"
            )
        if job.options:
            raise LoadFailed(f"import options: {', '.join(job.options)} unknown; .onnx files take none")
        source = Path(job.source)
        report(LoadProgress(fraction=0.1, what="checking the graph"))
        outside = external_files(source)
        with new_folder(job.out) as folder:
            shutil.copyfile(source, folder / "model.onnx")
            for name in outside:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.parent / name, folder / name)
            report(LoadProgress(fraction=0.6, what="reading the signature"))
            manifest = write_folder(folder, describe(folder, job.source))
        report(LoadProgress(fraction=1.0, what="done"))
        return manifest


def describe(folder: Path, source: str) -> Manifest:
    """The manifest of a folder that holds a tensor model, without its files. Raises `LoadFailed`."""
    from headgate_onnx.options import OnnxOptions
    from headgate_onnx.session import open_session
    from headgate_onnx.signature import signature_of

    model = folder / "model.onnx"
    session = open_session(model, "cpu", OnnxOptions()).session
    inputs, outputs = signature_of(session, model)
    hashes = {path.name: sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return Manifest(
        task="infer",
        backend="onnx",
        files={},
        source=source,
        inputs=inputs,
        outputs=outputs,
        fingerprint=fingerprint(task="infer", files=hashes),
    )


def external_files(model: Path) -> list[str]:
    """Relative paths of the files that a graph keeps weights in, each checked to lie beside it.

    Raises:
        LoadFailed: The file is no ONNX model, or names a file outside its own folder or a link.
    """
    try:
        import onnx
    except ImportError as error:
        raise LoadFailed(f"{error}; `pip install headgate-onnx[import]` brings what imports need") from error
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's and Python's errors
        raise LoadFailed(f"{model} is no ONNX model: {error}") from error
    names: set[str] = set()
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    for name in sorted(names):
        path = PurePosixPath(name)
        file = model.parent / name
        if not name or path.is_absolute() or ".." in path.parts:
            raise LoadFailed(f"{model} keeps weights in {name!r}, which is outside its folder")
        if file.is_symlink() or not file.is_file():
            raise LoadFailed(f"{model} keeps weights in {name!r}, which is missing or a link")
    return sorted(names)


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in a message: initializers, attributes, subgraphs, functions."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, list) or hasattr(value, "add") else (value,):
                yield from _tensors(child)
