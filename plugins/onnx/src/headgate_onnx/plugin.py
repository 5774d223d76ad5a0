"""Entry point of the `onnx` plugin: registers its backend and its importers.

Light on purpose: onnxruntime, numpy and tokenizers are imported when a model loads, torch and transformers only
when one is imported into a model folder. May import pluggy's marker from the plugin API and this distribution.
"""

from __future__ import annotations

from collections.abc import Callable

from headgate_plugin_api import Backend, Importer, hookimpl

from headgate_onnx.backend import OnnxBackend

HEADGATE_API = 1


@hookimpl
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    """Hand over the `onnx` backend."""
    register(OnnxBackend())


@hookimpl
def headgate_register_importers(register: Callable[[Importer], None]) -> None:
    """Hand over the importers; the first one that accepts a source takes it."""
    from headgate_onnx.importing import IMPORTERS

    for importer in IMPORTERS:
        register(importer)
