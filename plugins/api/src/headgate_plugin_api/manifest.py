"""`headgate-model.json`: what an imported model folder says of itself, and importers that write one.

May import requests, backend (for signatures) and errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from headgate_plugin_api.backend import LoadProgress, TensorSignature
from headgate_plugin_api.errors import LoadFailed
from headgate_plugin_api.requests import Task

MANIFEST_NAME = "headgate-model.json"

Pooling = Literal["mean", "cls", "max", "last", "none"]


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How close the converted model came to the original on the same inputs."""

    max_abs_error: float
    samples: int
    reference: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The facts that make a model folder's numbers reproducible.

    Attributes:
        format: Version of this document.
        task: What the model does.
        backend: Which backend runs it.
        files: sha256 of every file, by its path relative to the folder.
        source: Where it came from, for people.
        inputs: Tensor signature.
        outputs: The same for outputs.
        pooling: How token vectors become one.
        normalize: Whether that one is scaled to length 1.
        prompts: Named prefixes (`query`, `passage`, ...).
        default_prompt: Name of the prompt that goes before an input when the caller picks none.
        max_tokens: The longest input, specials included.
        dimensions: Length of an embedding.
        allow_dimensions: Whether a caller may ask for fewer (Matryoshka-trained models).
        labels: Names of the classes.
        multi_label: Whether several labels may hold at once (a sigmoid for each, no softmax).
        dtype: Weights' type.
        parity: What the importer measured against the original.
        fused_nodes: How many fused operators the graph optimiser made, by operator.
        fingerprint: sha256 over what decides the numbers.
    """

    format: int = 1
    task: Task
    backend: str
    files: dict[str, str]
    source: str = ""
    inputs: tuple[TensorSignature, ...] = ()
    outputs: tuple[TensorSignature, ...] = ()
    pooling: Pooling = "none"
    normalize: bool = False
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    max_tokens: int | None = None
    dimensions: int | None = None
    allow_dimensions: bool = False
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    dtype: str = "float32"
    parity: Parity | None = None
    fused_nodes: dict[str, int] = {}
    fingerprint: str = ""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """Read a folder's manifest and check every file against it.

    Raises:
        LoadFailed: No manifest, a malformed one, or a file whose bytes are not those that were imported.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise LoadFailed(f"{path} does not exist; make it with `headgate models import {folder}`") from None
    except (OSError, msgspec.DecodeError) as error:
        raise LoadFailed(f"{path}: {error}") from error
    for name, expected in manifest.files.items() if verify else ():
        file = folder / name
        if not file.is_file():
            raise LoadFailed(f"{file} is named in {MANIFEST_NAME} but does not exist")
        if (found := sha256_of(file)) != expected:
            raise LoadFailed(f"{file} has sha256 {found[:12]}…, {MANIFEST_NAME} says {expected[:12]}…")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest, readable by people."""
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


class ImportJob(msgspec.Struct, frozen=True, kw_only=True):
    """What `headgate models import` was asked for; `source` is a local path once `hf://` is resolved.

    Attributes:
        origin: The source as it was named, for the manifest; None where `source` still is that.
    """

    source: str
    id: str
    task: Task | None
    backend: str
    out: str
    options: dict[str, Any] = {}
    origin: str | None = None


class Importer(Protocol):
    """Turns a source into a model folder. Runs in a child process; heavy imports belong in `run`."""

    backend: str

    def accepts(self, job: ImportJob) -> bool:
        """Whether this importer knows the source, by its look (suffix, files in the folder)."""
        ...

    def run(self, job: ImportJob, report: Callable[[LoadProgress], None]) -> Manifest:
        """Do it, write the folder, and return the manifest that was written. Raises `LoadFailed`."""
        ...
