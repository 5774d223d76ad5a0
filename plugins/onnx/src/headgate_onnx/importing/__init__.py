"""Importers: from a Hugging Face folder, a scikit-learn model or an `.onnx` file to a checked model folder.

Cheap to import; torch, transformers and skl2onnx come in with `run`, which only the import's child process calls.
"""

from __future__ import annotations

from headgate_plugin_api import Importer

from headgate_onnx.importing.onnx_file import OnnxFileImporter
from headgate_onnx.importing.refused import RefusedImporter
from headgate_onnx.importing.scikit import ScikitImporter
from headgate_onnx.importing.transformers_folder import TransformersImporter

IMPORTERS: tuple[Importer, ...] = (
    TransformersImporter(),
    ScikitImporter(),
    OnnxFileImporter(),
    RefusedImporter(),
)
"""In the order in which they are asked; the last one takes what is left, to say why it cannot."""

__all__ = ["IMPORTERS", "OnnxFileImporter", "RefusedImporter", "ScikitImporter", "TransformersImporter"]
